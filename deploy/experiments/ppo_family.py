"""GRPO and RLOO by trl's own trainers, as an arm of an experiment: a process of its own, which rondo never imports.

    python deploy/experiments/ppo_family.py SETTINGS.json

The settings name the initial checkpoint, the prompts in their order, the judge and the directory of results: the
policies after each part of the steps. trl is no dependency of rondo: ``pip install 'trl>=1,<2'``.
"""

import json
import sys
from pathlib import Path
from typing import Any


def train(settings: dict[str, Any]) -> None:
    """Trains on each prompt once, K completions each, and saves the policy after each part of the steps."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from pipeline.judges import JudgeItem, make_judge
    from pipeline.judges.base import JudgedCandidate
    from pipeline.recipe import Recipe

    torch.set_num_threads(settings["threads"])
    recipe = Recipe.model_validate(settings["recipe"])
    judge = make_judge(recipe.judge, threads=settings["threads"])
    options, candidates = settings["options"], recipe.sampling.candidates
    prompts, parts = settings["prompts"], settings["parts"]
    steps = len(prompts) // options["prompts_per_step"]
    to = Path(settings["to"])

    def answer(text: str) -> JudgedCandidate:
        return JudgedCandidate(index=0, text=text, finish_reason="stop")

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        items = [
            JudgeItem(
                prompt_id=str(place),
                prompt_text=prompt,
                candidates=[JudgedCandidate(index=0, text=text, finish_reason="stop")],
            )
            for place, (prompt, text) in enumerate(zip(prompts, completions, strict=True))
        ]
        return [judgment.score for judgment in judge.judge(items)]

    class Saving(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % (steps // parts) == 0:
                number = state.global_step // (steps // parts)
                kwargs["model"].save_pretrained(to / str(number))
                tokenizer.save_pretrained(to / str(number))

    tokenizer = AutoTokenizer.from_pretrained(settings["checkpoint"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(settings["checkpoint"], dtype=torch.float32)
    kind = settings["method"].upper()
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(to / "trainer"), max_steps=steps, learning_rate=options["learning_rate"], beta=options["beta"],
        adam_epsilon=options["adam_epsilon"], lr_scheduler_type="constant", max_grad_norm=1.0,
        per_device_train_batch_size=options["prompts_per_step"] * candidates, gradient_accumulation_steps=1,
        num_generations=candidates, max_completion_length=recipe.sampling.max_tokens,
        temperature=recipe.sampling.temperature, mask_truncated_completions=recipe.preferences.drop_truncated,
        shuffle_dataset=False, seed=recipe.seed, use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=8,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model, reward_funcs=reward, args=config, processing_class=tokenizer, callbacks=[Saving()],
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    try:
        train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except ImportError as error:
        sys.exit(f"this method needs a package that is not installed ({error}): pip install 'trl>=1,<2'")

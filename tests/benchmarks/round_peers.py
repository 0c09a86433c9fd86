"""Other ways to the same round: trl's trainer of online DPO, and a loop of scripts. Each runs in processes of its own.

All start from the same policy, and get the same prompts, judge, pairs per step, learning rate and clipping; float32,
and as many threads as ours. They sample as many answers of as many tokens, though not the same ones: each draws its own
random numbers.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.round_contestants import measured, serve
from benchmarks.round_judges import sentiment

K = 2
"""Answers of a prompt: trl makes two, fixed in its code."""


def trl_online(
    directory: str, recipe: Mapping[str, Any], threads: int, own_copy: str | None = None
) -> Callable[..., Any]:
    """trl's OnlineDPOTrainer, asked for prompts; a new trainer for each request, whose making is not counted.

    Of its settings, what makes it fast here: no gradient checkpointing, as that also turns off the cache of keys and
    values; no logging, saving or progress bar; the fused optimizer. It samples anew for each optimizer step.

    Args:
        own_copy: directory with what a copy of the policy with untied embeddings has beside its weights, for trl's vLLM
            mode, which it then uses.
    """
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRL_EXPERIMENTAL_SILENCE="1", VLLM_CPU_KVCACHE_SPACE="1")
    if own_copy:
        from pipeline.sampling import configure_environment

        configure_environment("cpu", threads)
    import datasets
    import torch
    import transformers
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    from pipeline.model.policy import load_policy, load_weights
    from pipeline.recipe import Recipe

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    config = Recipe.model_validate(recipe)
    lengths: list[int] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(_length(ids, eos) for ids in completion_ids)
        return [sentiment(answer) for answer in completions]

    model, tokenizer = load_policy(directory, device="cpu")
    eos = tokenizer.eos_token_id
    kind = _on_cpu(OnlineDPOTrainer, model, Path(own_copy)) if own_copy else OnlineDPOTrainer
    sampled: list[dict[str, Any]] = []

    class Timed(kind):  # type: ignore[misc,valid-type]
        def _generate(self, *arguments: Any, **named: Any) -> Any:
            with measured() as found:
                answers = super()._generate(*arguments, **named)
            sampled.append(found)
            return answers

        def _generate_vllm(self, *arguments: Any, **named: Any) -> Any:
            with measured() as found:
                answers = super()._generate_vllm(*arguments, **named)
            sampled.append(found)
            return answers

    arguments = {**_trl_arguments(config), "use_vllm": own_copy is not None}

    def train(prompts: list[dict[str, Any]]) -> dict[str, Any]:
        lengths.clear()
        sampled.clear()
        load_weights(model, Path(directory))
        texts = [_as_read(row, tokenizer, adds_special=own_copy is not None) for row in prompts]
        with tempfile.TemporaryDirectory() as scratch:
            trainer = Timed(
                model=model,
                reward_funcs=reward,
                args=OnlineDPOConfig(output_dir=scratch, **arguments),
                train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in texts]),
                processing_class=tokenizer,
            )
            trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
            with measured() as found:
                trainer.train()
        return {
            **found, "tokens": sum(lengths), "preferences": len(lengths) // K,
            "processor of sampling": sum(one["processor"] for one in sampled),
        }  # fmt: skip

    return train


def _as_read(row: Mapping[str, Any], tokenizer: Any, *, adds_special: bool) -> str:
    """The text that trl reads as the very tokens of our prompt; a conversation's is what the chat template makes of it.

    Args:
        adds_special: whether the tokenizer may add the token that begins a text, where it does. vLLM lets it; trl's own
            generation does not, so that the text has to spell it.
    """
    text: str = row["text"]
    for spelled in (text, (tokenizer.bos_token or "") + text):
        if tokenizer(spelled, add_special_tokens=adds_special)["input_ids"] == row["token_ids"]:
            return spelled
    raise SystemExit(f"the prompt {text!r} is not {row['token_ids']} for trl, as it is for us")


def _trl_arguments(recipe: Any) -> dict[str, Any]:
    sampling, update = recipe.sampling, recipe.update
    context = sampling.context or recipe.policy.context
    return {
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_dropout": True,
        "per_device_train_batch_size": update.batch_size, "num_train_epochs": 1,
        "learning_rate": update.learning_rate, "lr_scheduler_type": "constant", "optim": "adamw_torch_fused",
        "adam_epsilon": update.adam_epsilon, "max_grad_norm": update.max_grad_norm, "beta": [update.beta],
        "max_new_tokens": sampling.max_tokens, "max_length": context - sampling.max_tokens,
        "temperature": sampling.temperature, "top_p": sampling.top_p, "logging_strategy": "no",
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip


def _on_cpu(trainer: Any, model: Any, own_copy: Path) -> Any:
    """trl's trainer with two changes without which its vLLM mode ends with an error on a CPU.

    The engine starts uncompiled. New weights are reloaded from a file, as ours are: trl calls the layers' own loaders,
    which are gone once vLLM has packed the weights for a CPU's matrix kernels.
    """
    from functools import partial

    import trl.experimental.online_dpo.online_dpo_trainer as module
    from safetensors.torch import save_file

    module.LLM = partial(module.LLM, dtype="float32", enforce_eager=True, enable_chunked_prefill=False)
    model.name_or_path = str(own_copy)

    def save() -> None:
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(weights, own_copy / "model.safetensors", metadata={"format": "pt"})

    class OnCpu(trainer):  # type: ignore[misc]
        def _move_model_to_vllm_inner(self) -> None:
            save()
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(own_copy)})

    save()  # the engine starts with them
    return OnCpu


def _length(ids: Sequence[int], eos: int) -> int:
    """Tokens of a padded answer, with the one that ends it."""
    return ids.index(eos) + 1 if eos in ids else len(ids)


def script_loop(
    directory: str, recipe: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> dict[str, Any]:
    """A round as shell scripts do it: one program samples with a new vLLM, the next judges, makes pairs and trains."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "prompts.json").write_text(json.dumps(list(prompts)), encoding="utf-8")
        started, processor = time.perf_counter(), _processor_of_ended()
        seconds = []
        for program in ("sample", "train"):
            arguments = json.dumps({"directory": directory, "recipe": dict(recipe), "scratch": scratch})
            log = place / "log"
            with log.open("wb") as output:
                done = subprocess.run(
                    [sys.executable, __file__, program, arguments],
                    stdout=output, stderr=output, env=dict(environment), check=False,
                )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"the script '{program}' failed: {log.read_text(errors='replace')[-2000:]}")
            seconds.append(time.perf_counter() - started - sum(seconds))
        answers = json.loads((place / "answers.json").read_text(encoding="utf-8"))
        return {
            "seconds": sum(seconds), "processor": _processor_of_ended() - processor,
            "tokens": sum(len(answer["ids"]) for answer in answers), "preferences": len(answers) // K,
        }  # fmt: skip


def _processor_of_ended() -> float:
    """Seconds of the processor of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def sample(directory: str, recipe: Mapping[str, Any], scratch: str) -> None:
    """The loop's first program: samples all answers and writes them as JSON."""
    from pipeline.model.sampler_copy import sampler_copy
    from pipeline.recipe import Recipe
    from pipeline.sampling import configure_environment

    configure_environment("cpu", 1)
    from vllm import LLM, SamplingParams

    sampling = Recipe.model_validate(recipe).sampling
    place = Path(scratch)
    prompts = json.loads((place / "prompts.json").read_text(encoding="utf-8"))
    untied = sampler_copy(Path(directory), place / "untied")
    llm = LLM(
        model=str(untied), dtype="float32", enforce_eager=True, max_num_seqs=sampling.max_sequences,
        kv_cache_memory_bytes=int(sampling.cache_gib * 2**30), generation_config="vllm", enable_chunked_prefill=False,
    )  # fmt: skip
    params = [
        SamplingParams(
            n=K, temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens,
            seed=row["seed"],
        )
        for row in prompts
    ]  # fmt: skip
    outputs = llm.generate([{"prompt_token_ids": row["token_ids"]} for row in prompts], params, use_tqdm=False)
    answers = [
        {"prompt": row["token_ids"], "ids": list(one.token_ids), "text": one.text}
        for row, output in zip(prompts, outputs, strict=True)
        for one in output.outputs
    ]
    (place / "answers.json").write_text(json.dumps(answers), encoding="utf-8")


def train(directory: str, recipe: Mapping[str, Any], scratch: str) -> None:
    """The loop's second program: judges, makes pairs, and trains with a second model as the reference."""
    import torch
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline.recipe import Recipe

    torch.set_num_threads(1)
    torch.manual_seed(0)
    update = Recipe.model_validate(recipe).update
    place = Path(scratch)
    answers = json.loads((place / "answers.json").read_text(encoding="utf-8"))
    for answer in answers:
        answer["score"] = sentiment(answer["text"])
    pairs = [
        sorted(answers[start : start + K], key=lambda answer: -answer["score"]) for start in range(0, len(answers), K)
    ]
    policy, reference = (AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval() for _ in range(2))
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=update.learning_rate, eps=update.adam_epsilon, weight_decay=0.0, fused=True
    )
    losses = []
    for indices in torch.randperm(len(pairs)).split(update.batch_size):
        # The chosen answers first, then the rejected ones, padded on the right.
        rows = [pairs[index][side] for side in (0, 1) for index in indices.tolist()]
        longest = max(len(row["prompt"]) + len(row["ids"]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask, answered = torch.zeros_like(ids), torch.zeros(len(rows), longest)
        for place_, row in enumerate(rows):
            whole = [*row["prompt"], *row["ids"]]
            ids[place_, : len(whole)] = torch.tensor(whole)
            mask[place_, : len(whole)] = 1
            answered[place_, len(row["prompt"]) : len(whole)] = 1

        def logps(model: Any, ids: Any = ids, mask: Any = mask, answered: Any = answered) -> Any:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            tokens = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            return (tokens * answered[:, 1:]).sum(-1)

        with torch.no_grad():
            expected = logps(reference)
        chosen, rejected = (logps(policy) - expected).chunk(2)
        loss = -F.logsigmoid(update.beta * (chosen - rejected)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), update.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    policy.save_pretrained(place / "policy")
    AutoTokenizer.from_pretrained(directory).save_pretrained(place / "policy")
    (place / "metrics.json").write_text(json.dumps({"losses": losses}), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "trl":
        serve({"trl": trl_online})
    else:
        {"sample": sample, "train": train}[sys.argv[1]](**json.loads(sys.argv[2]))

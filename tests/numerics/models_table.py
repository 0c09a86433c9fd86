"""The table of architectures in docs/models.md, from tiny models with random weights: ``python -m`` writes it anew.

Each cell is found by doing it. What is neither right nor refused in one sentence raises an error, and no table is made.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from numerics.tiny_models import SHAPE, VOCABULARY, plain_logps, token_groups
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.config import LoraConfig, SamplingConfig
from pipeline.errors import RondoError
from pipeline.model.check import check_model
from pipeline.model.logprobs import sequence_logps
from pipeline.model.lora import Adapter, merge
from pipeline.model.lora_targets import is_mixture
from pipeline.model.policy import load_policy, load_weights, save_policy
from pipeline.model.sampler_copy import sampler_copy
from pipeline.model.weight_names import Files, WeightNames, weightless
from pipeline.sampling.transformers_engine import TransformersSampler
from support.tiny import tiny_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- table: tests/numerics/models_table.py -->", "<!-- end of table -->"
HEADER = ("architecture", "names in files", "packed equals alone", "saves and loads", "weight sync", "LoRA")

_GPT2 = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "initializer_range": 0.2}
_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 16,
}  # fmt: skip
# What each type needs besides the common shape, so that it is tiny, and not the plainest of its kind.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 5, "final_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5},
    "phi3": {"pad_token_id": 0},
    "phi3 with longrope": {"pad_token_id": 0, "rope_parameters": _ROPE, "original_max_position_embeddings": 16},
    "gpt2": _GPT2,
    "gpt_neox": {},
    "opt": _OPT,
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "cohere": {"logit_scale": 0.25},
    "olmo2": {},
    "stablelm": {},
    "mixtral": _LOCAL,
    "qwen2_moe": {**_EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**_EXPERTS, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": _EXPERTS,
    "granitemoe": {**_LOCAL, "logits_scaling": 4.0},
}


def tiny(name: str, seed: int = 0) -> Any:
    """A model of this type; its distribution is far from uniform, so that a wrong mask or weight shows."""
    kind = name.partition(" ")[0]
    common = SHAPE if kind != "gpt2" else {"bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **{**common, **SHAPES[name]})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.generation_config.eos_token_id = 2
    return model.eval()


def row(name: str) -> list[str]:
    """What holds for a type, in the order of the header."""
    groups = token_groups(4, longest=14)
    cells: tuple[Callable[[str, Path, Any], str], ...] = (_names, _packed, _saved, _synced, _adapted)
    found = [name]
    for cell in cells:
        with TemporaryDirectory() as directory:
            try:
                found.append(cell(name, Path(directory), groups))
            except RondoError as error:
                found.append(f"refused: {_short(error, directory)}")
    return found


def table() -> str:
    """The table in Markdown."""
    rows = [HEADER, ["---"] * len(HEADER), *map(row, SHAPES)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def on_page() -> str:
    """The table as the page has it now."""
    return PAGE.read_text(encoding="utf-8").partition(f"{BEGIN}\n")[2].partition(END)[0]


def _names(name: str, directory: Path, _groups: Any) -> str:
    tiny(name).save_pretrained(directory)
    files = Files(iter(sorted(directory.glob("*.safetensors"))))
    groups = WeightNames(weightless(directory), files.shapes).groups
    stacked = any(len(group.sources) > 1 for group in groups)
    renamed = any(group.sources[0][0] != group.target for group in groups if group.sources[0][1] is None)
    return "experts apart" if stacked else "others" if renamed else "as in memory"


def _packed(name: str, directory: Path, groups: Any) -> str:
    model = _saved_and_loaded(name, directory)
    check_model(model)
    _same(sequence_logps(model, groups, 100), _alone(model, groups))
    return "yes"


def _saved(name: str, directory: Path, groups: Any) -> str:
    model = _saved_and_loaded(name, directory)
    other = tiny(name, seed=1)
    load_weights(other, directory)
    _same(_alone(other, groups), _alone(tiny(name), groups))
    _same(_alone(model, groups), _alone(tiny(name), groups))
    return "yes"


def _synced(name: str, directory: Path, groups: Any) -> str:
    """What the sampler in plain transformers holds after it has taken the weights of a second policy in place."""
    for seed in (0, 1):
        _saved_and_loaded(name, directory / str(seed), seed=seed)
    first = sampler_copy(directory / "0", directory / "copy")
    sampler = TransformersSampler(first, SamplingConfig(engine="transformers"))
    sampler.load_weights(sampler_copy(directory / "1", directory / "copy"))
    pairs = [(group.prompt_token_ids, answer) for group in groups for answer in group.candidate_token_ids]
    scored = iter(sampler.score(pairs))
    found = [[sum(next(scored)) for _ in group.candidate_token_ids] for group in groups]
    _same(found, _alone(tiny(name, seed=1), groups))
    return "yes"


def _adapted(name: str, directory: Path, groups: Any) -> str:
    _saved_and_loaded(name, directory / "base")
    model, _ = load_policy(directory / "base", device="cpu")
    mixture = is_mixture(model)
    adapter = Adapter(model, LoraConfig(rank=4, alpha=8), seed=0)
    for weight_name, weight in model.named_parameters():
        if ".lora_B" in weight_name:
            torch.nn.init.normal_(weight, std=0.1)
    adapter.save(tiny_tokenizer(VOCABULARY), directory / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(
        merge(directory / "base", directory / "adapter", directory / "merged"), attn_implementation="sdpa"
    )
    _same(_alone(merged.eval(), groups), _alone(model, groups))
    return "yes, on attention" if mixture else "yes"


def _saved_and_loaded(name: str, directory: Path, seed: int = 0) -> Any:
    save_policy(tiny(name, seed), tiny_tokenizer(VOCABULARY), directory)
    return load_policy(directory, device="cpu")[0]


def _alone(model: Any, groups: Any) -> list[list[float]]:
    with torch.inference_mode():
        return [plain_logps(model, group).tolist() for group in groups]


def _same(found: list[list[float]], expected: list[list[float]]) -> None:
    """Sums near 50 nats in float32, added up in another order, differ by some 1e-5."""
    gap = max(abs(a - b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))
    if not gap < 1e-3:
        raise AssertionError(f"{gap:.3g} nats a sequence apart, and neither refused nor right")


def _short(error: RondoError, directory: str) -> str:
    """The sentence without the remedy, and without what changes from one computation to the next."""
    sentence = str(error).partition(": ")[0]
    sentence = re.sub(rf" {re.escape(directory)}\S*", "", sentence)
    return re.sub(r"\d[\d.e+-]* nats", "some nats", sentence).replace("|", "/")


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(f"{BEGIN}\n")
    PAGE.write_text(f"{head}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

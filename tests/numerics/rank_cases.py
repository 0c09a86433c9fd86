"""The updates that one rank and two ranks both make."""

from typing import Any

import torch
from numerics.tiny_models import SHAPE, build, changed, token_groups, with_reference
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping

from pipeline.config import LoraConfig, UpdateConfig
from pipeline.dpo.update import PreferenceGroup
from pipeline.model.logprobs import sequence_logps

SEED = 4
# A large epsilon: Adam would else move weights whose gradient is zero but for rounding, such as biases of keys, by the
# whole learning rate.
SETTINGS = UpdateConfig(batch_size=4, learning_rate=1e-2, adam_epsilon=1e-2)
LONG = changed(SETTINGS, epochs=2, schedule="cosine", weight_decay=0.1)
UNEVEN = changed(SETTINGS, batch_size=5, token_budget=35)
"""Packs of one to two preferences each, an odd number a step; the last step has 3 preferences of 13."""
RANKINGS = changed(UNEVEN, objective={"plackett_luce": 1.0}, token_budget=60, nll_weight=0.1)
LORA = LoraConfig(rank=4, alpha=8)
ONE = changed(SETTINGS, batch_size=1)
"""A preference a step: one rank has nothing to do."""
CASES = {
    "pairs": ("llama", UNEVEN, 2),
    "pairs, tied": ("llama tied", UNEVEN, 2),
    "pairs, gpt2": ("gpt2", LONG, 2),
    "pairs, mixture": ("mixtral", changed(UNEVEN, router_loss_weight=0.1), 2),
    "rankings": ("llama", RANKINGS, 4),
    "one at a time": ("llama", ONE, 2),
    "wpo": ("llama", changed(UNEVEN, wpo=True), 2),
    "checkpointing": ("llama", changed(UNEVEN, gradient_checkpointing=True), 2),
    "bfloat16": ("llama", changed(SETTINGS, precision="bfloat16", batch_size=13), 2),
}
"""Model, settings, and candidates a prompt."""


CARRIED = ("llama tied", "gpt_neox", "mixtral")
"""Models whose weights are saved by one rank, loaded by two, and saved again."""


def built(name: str, seed: int = 0) -> Any:
    if name in ("gpt_neox", "mixtral"):
        model = build(name, seed)
        # As from_pretrained leaves it; on ranks the model's class is another one, for which there are no rules.
        model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)
        return model
    if name != "llama tied":
        return build(name, seed)
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True, attn_implementation="sdpa")).eval()


def references() -> dict[str, list[list[float]]]:
    """Log-probabilities of each case's candidates under the model as it is built."""
    return {
        case: sequence_logps(built(name), token_groups(13, candidates, seed=1), 200)
        for case, (name, _, candidates) in CASES.items()
    }


def preferences(case: str, references: dict[str, list[list[float]]]) -> list[PreferenceGroup]:
    """Thirteen preferences. The references are handed on as numbers: processes may differ in the last digit."""
    groups = token_groups(13, CASES[case][2], seed=1)
    return with_reference(groups, references[case])

"""Tiny models with random weights, one of each shape, and plain log-probabilities to compare with."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from pipeline.config import UpdateConfig
from pipeline.dpo.types import PreferenceGroup
from pipeline.packing.packing import TokenGroup

VOCABULARY = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped-query attention
    "max_position_embeddings": 64,
    # ten times the usual scale: a model whose distribution is far from uniform, so that a wrong mask shows
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="sdpa")),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, attn_implementation="sdpa")),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=8, attn_implementation="sdpa")),
    "gemma2": lambda: Gemma2ForCausalLM(
        # eager, because only that applies the cap on attention scores
        Gemma2Config(**SHAPE, head_dim=8, sliding_window=5, final_logit_softcapping=2.0, attn_implementation="eager")
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5, attn_implementation="sdpa")),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            initializer_range=0.2,
            attn_implementation="sdpa",
        )
    ),
    # The following have other names in files than in memory: the head, or experts, which are stacked in memory.
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, attn_implementation="sdpa")),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, attn_implementation="sdpa")
    ),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SHAPE,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            mlp_only_layers=[1],
            attn_implementation="sdpa",
        )
    ),
    # Its layers apply dropout by themselves, and leave layers out, while they train.
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            dropout=0.3,
            layerdrop=0.3,
            init_std=0.2,
            bos_token_id=1,
            eos_token_id=2,
            attn_implementation="sdpa",
        )
    ),
}


def changed(config: UpdateConfig, **fields: Any) -> UpdateConfig:
    """The same update with other fields, beyond a recipe's limits where a test needs that."""
    return config.model_copy(update=fields)


def build(name: str = "llama", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return BUILDERS[name]().eval()


def token_groups(count: int, candidates: int = 2, seed: int = 0, longest: int = 9) -> list[TokenGroup]:
    draw = random.Random(seed)

    def ids(least: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(draw.randint(least, longest))]

    return [TokenGroup(f"prompt-{i}", ids(2), [ids(1) for _ in range(candidates)]) for i in range(count)]


def with_reference(
    groups: Sequence[TokenGroup], logps: Iterable[Sequence[float]], **fields: Any
) -> list[PreferenceGroup]:
    """Preferences among the candidates of these groups, whose reference gives them these log-probabilities."""
    return [
        PreferenceGroup(
            prompt_id=group.prompt_id,
            prompt_token_ids=group.prompt_token_ids,
            candidate_token_ids=group.candidate_token_ids,
            reference_logps=reference,
            **fields,
        )
        for group, reference in zip(groups, logps, strict=True)
    ]


def plain_logps(model: Any, group: TokenGroup) -> torch.Tensor:
    """Candidate sums by `transformers` alone: one unpacked sequence at a time, shape [K]."""
    sums = []
    for candidate in group.candidate_token_ids:
        ids = torch.tensor([[*group.prompt_token_ids, *candidate]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_token_ids) - 1 : -1]
        sums.append(torch.log_softmax(logits.float(), dim=-1).gather(1, torch.tensor(candidate)[:, None]).sum())
    return torch.stack(sums)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """A copy of each weight's gradient; the model's own is cleared."""
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found

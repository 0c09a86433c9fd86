"""vLLM in a process of its own against plain transformers, eager and one sequence at a time, for a type of model.

    python -m support.engine_of_type TYPE DIRECTORY        forked, see ``support.vllm_imported``

Scores under the weights that the engine starts with, drops them, takes other weights in place, from a file and out of
memory, scores again, and samples. A wrong value is an AssertionError.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from pipeline.config import SamplingConfig
from pipeline.model.sampler_copy import sampler_copy
from pipeline.sampling.base import SamplingRequest, finish
from pipeline.sampling.vllm_engine import VllmSampler
from support.sent_weights import send
from support.tiny import tiny_tokenizer

CONTEXT = 32
# Float32 on both sides, in another order, over a few tokens.
TOLERANCE = 2e-4
SHAPE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SEQUENCES = [([5, 6, 7, 8], [9, 10, 2]), ([1, 2, 3, *range(20, 40)], [50, 51, 52, 2]), ([4], [90])]


def configurations() -> dict[str, Callable[[], Any]]:
    """A tiny configuration of each type that is tried here."""
    longrope = {
        "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": CONTEXT,
        "short_factor": [1 + 0.02 * place for place in range(16)], "long_factor": [4.0 * (1 + p) for p in range(16)],
    }  # fmt: skip
    return {
        "gemma2": lambda: hf.Gemma2Config(
            **SHAPE, head_dim=32, query_pre_attn_scalar=32, sliding_window=16, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        "cohere": lambda: hf.CohereConfig(**SHAPE, logit_scale=0.25),
        "granite": lambda: hf.GraniteConfig(**SHAPE, logits_scaling=8.0, tie_word_embeddings=True),
        "longrope": lambda: hf.Phi3Config(
            **SHAPE, original_max_position_embeddings=CONTEXT, rope_parameters=longrope
        ),
        "gpt2": lambda: hf.GPT2Config(
            vocab_size=96, n_positions=64, n_embd=64, n_layer=2, n_head=2, initializer_range=0.2, bos_token_id=1,
            eos_token_id=2, pad_token_id=0,
        ),
        "opt": lambda: hf.OPTConfig(
            vocab_size=96, hidden_size=64, word_embed_proj_dim=64, ffn_dim=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, init_std=0.2, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        ),
        "mixtral": lambda: hf.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
        "own head": lambda: hf.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    }  # fmt: skip


def checkpoint(kind: str, directory: Path, seed: int) -> Path:
    """Random weights of a type, as the sampler gets them."""
    torch.manual_seed(seed)
    source = directory / str(seed)
    hf.AutoModelForCausalLM.from_config(configurations()[kind]()).save_pretrained(source)
    tiny_tokenizer(96).save_pretrained(source)
    if kind == "own head":  # beside a flag that says that there is none
        tensors = load_file(source / "model.safetensors")
        tensors["lm_head.weight"] = 0.2 * torch.randn(96, 64)
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return sampler_copy(source, directory / f"copy of {seed}")


def expected(directory: Path) -> list[list[float]]:
    """Log-probabilities of each answer's tokens by transformers alone."""
    model = hf.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype="float32").eval()
    found = []
    for prompt, answer in SEQUENCES:
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logps = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        found.append(logps.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist())
    return found


def assert_close(found: list[list[float]], right: list[list[float]]) -> None:
    """Every number is within the tolerance."""
    gaps = [
        abs(one - two) for row, other in zip(found, right, strict=True) for one, two in zip(row, other, strict=True)
    ]
    assert max(gaps) < TOLERANCE, (max(gaps), found, right)


def drop(sampler: VllmSampler) -> None:
    """Has the engine sleep without its weights; vLLM drops none on a CPU, and is asked for zeros instead."""
    sampler.sleep(keeps_weights=False)
    sampler._engine.collective_rpc("reset_weights")


def main() -> None:
    """Compares before and after new weights, for answers that are given and for answers that are sampled."""
    kind, directory = sys.argv[1], Path(sys.argv[2])
    first, second = checkpoint(kind, directory, 0), checkpoint(kind, directory, 1)
    config = SamplingConfig(
        context=CONTEXT, cache_gib=0.1, max_sequences=16, candidates=3, temperature=0.7, top_p=0.9, max_tokens=8
    )
    sampler = VllmSampler(first, config)
    assert_close(sampler.score(SEQUENCES), expected(first))
    drop(sampler)
    sampler.load_weights(second)
    assert_close(sampler.score(SEQUENCES), expected(second))
    third = checkpoint(kind, directory, 2)
    drop(sampler)
    send(sampler, directory / "2")
    assert_close(sampler.score(SEQUENCES), expected(third))
    sampler.load_weights(second)
    send(sampler, directory / "2")
    assert sampler._engine.get_weight_version() == "policy of 2"
    assert_close(sampler.score(SEQUENCES), expected(third))
    for candidate in finish(sampler.sample([SamplingRequest("p", [5, 6, 7], 0)], config)):
        assert_close([candidate.logprobs], sampler.score([([5, 6, 7], candidate.token_ids)]))

"""Types whose lengths, ends or scales stand elsewhere: what the transformers engine samples, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from pipeline.config import SamplingConfig
from pipeline.errors import ConfigError, UnsupportedModelError
from pipeline.model.policy import choose_context, max_context
from pipeline.model.sampler_copy import SAMPLED_TIED
from pipeline.sampling import SamplingRequest, finish
from pipeline.sampling.base import stop_tokens
from pipeline.sampling.check import check_engine
from pipeline.sampling.transformers_engine import TransformersSampler
from support.tiny import tiny_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 12,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 8.0, 16.0, 32.0],
}  # fmt: skip
PHI3 = hf.Phi3Config(**SHAPE, original_max_position_embeddings=12, rope_parameters=LONGROPE)
GEMMA2 = hf.Gemma2Config(**SHAPE, head_dim=8, attn_logit_softcapping=1.0, final_logit_softcapping=3.0)
# Float32 over a few tokens, computed in another order.
TOLERANCE = 1e-4


def saved(config: Any, directory: Path) -> Path:
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tiny_tokenizer(64).save_pretrained(directory)
    return directory


def plain(directory: Path, prompt: list[int], answer: list[int]) -> list[float]:
    """By transformers alone: eager attention, one sequence."""
    model = hf.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logps = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logps.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()


@pytest.mark.parametrize("kind", [PHI3, GEMMA2], ids=lambda config: config.model_type)
def test_log_probabilities_are_those_of_the_sequence_alone(kind: Any, tmp_path: Path) -> None:
    """Answers that stay below the length of 12, that begin beyond it, and that grow beyond it on the way."""
    directory = saved(kind, tmp_path / "policy")
    config = SamplingConfig(candidates=4, temperature=1.0, top_p=1.0, max_tokens=6)
    sampler = TransformersSampler(directory, config)
    prompts = {f"{count}": [1, *range(5, 4 + count)] for count in (2, 8, 9, 20)}
    requests = [SamplingRequest(name, ids, 10 * place) for place, (name, ids) in enumerate(prompts.items())]
    candidates = finish(sampler.sample(requests, config))
    totals = {len(prompts[found.prompt_id]) + len(found.token_ids) for found in candidates}
    assert min(totals) <= 12 < max(totals)
    for found in candidates:
        right = plain(directory, prompts[found.prompt_id], found.token_ids)
        assert found.logprobs == pytest.approx(right, abs=TOLERANCE)
        (scored,) = sampler.score([(prompts[found.prompt_id], found.token_ids)])
        assert scored == pytest.approx(right, abs=TOLERANCE)


def test_a_token_beyond_the_boundary_is_drawn_from_the_long_sequence_alone(tmp_path: Path) -> None:
    """With top-p near zero each token is the most probable one of what came before, rotated as a whole."""
    directory = saved(PHI3, tmp_path / "policy")
    prompt = [1, *range(5, 14)]
    config = SamplingConfig(candidates=2, temperature=1.0, top_p=1e-6, max_tokens=8)
    found, _ = finish(TransformersSampler(directory, config).sample([SamplingRequest("p", prompt, 0)], config))
    model = hf.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    ids = list(prompt)
    for token in found.token_ids:
        with torch.no_grad():
            assert token == int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        ids.append(token)
    assert len(ids) > 13


def test_lengths_are_read_where_the_type_keeps_them(tmp_path: Path) -> None:
    gpt2 = saved(hf.GPT2Config(vocab_size=64, n_positions=48, n_embd=32, n_layer=1, n_head=2), tmp_path / "gpt2")
    assert max_context(gpt2) == 48
    chunked = {**SHAPE, "num_local_experts": 2, "attention_chunk_size": 24, "head_dim": 8}
    llama4 = saved(hf.Llama4TextConfig(**chunked), tmp_path / "llama4")
    assert choose_context(llama4, 20) == 20
    with pytest.raises(ConfigError, match=r"sampling\.context 25 .* own 24 \(attention_chunk_size\)"):
        choose_context(llama4, 25)
    bloom = saved(hf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4), tmp_path / "bloom")
    assert choose_context(bloom, 500) == 500
    with pytest.raises(ConfigError, match=r"does not say how many tokens.*set sampling\.context"):
        choose_context(bloom, None)


def test_a_wrapper_says_its_lengths_and_ends_inside(tmp_path: Path) -> None:
    vision = {
        "hidden_size": 16, "image_size": 28, "intermediate_size": 16, "num_hidden_layers": 1, "patch_size": 14,
        "num_attention_heads": 2,
    }  # fmt: skip
    text = {**SHAPE, "head_dim": 8, "sliding_window": 5}
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    directory = saved(config, tmp_path / "gemma3")
    assert max_context(directory) == 64
    (directory / "generation_config.json").unlink(missing_ok=True)
    assert stop_tokens(directory)
    assert len(TransformersSampler(directory, SamplingConfig()).score([([5, 6], [7, 2])])[0]) == 2


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config)


def test_longrope_in_vllm_stays_on_one_side_of_its_boundary() -> None:
    check_engine("transformers", model_of(PHI3), 64)
    check_engine("vllm", model_of(PHI3), 12)
    with pytest.raises(UnsupportedModelError, match=r"LongRoPE.*set sampling\.context to 12 or less, or sampling\.eng"):
        check_engine("vllm", model_of(PHI3), 13)


def test_dynamic_positions_are_refused_in_vllm() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    with pytest.raises(UnsupportedModelError, match=r"'dynamic'.*sampling\.engine to transformers"):
        check_engine("vllm", model_of(hf.LlamaConfig(**SHAPE, rope_parameters=rope)), 64)


def test_a_type_that_vllm_knows_tied_has_no_head_of_its_own() -> None:
    check_engine("vllm", model_of(GEMMA2), 64)
    untied = hf.CohereConfig(**SHAPE, tie_word_embeddings=False)
    assert untied.model_type in SAMPLED_TIED
    with pytest.raises(UnsupportedModelError, match=r"'cohere' only with the embeddings as its head"):
        check_engine("vllm", model_of(untied), 64)

"""The warm start: a tokenizer that is exact, a loss that falls, weights that come out alike to the bit."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from pipeline.config import WarmStartPolicy
from pipeline.data.corpora import TEXT_CORPORA
from pipeline.errors import ConfigError
from pipeline.model.warm_start import train_warm_start, warm_start_digest

TINY = WarmStartPolicy(
    source="warm_start", corpus="film_reviews", examples=400, steps=12, batch_size=8, hidden_size=32, layers=1, heads=1,
    vocabulary=512, context=96,
)  # fmt: skip
SUMS = TINY.model_copy(update={"corpus": "additions", "vocabulary": 258, "context": 48})


@pytest.fixture(scope="module", params=[TINY, SUMS], ids=["film_reviews", "additions"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[WarmStartPolicy, Path]:
    directory = tmp_path_factory.mktemp("warm_start")
    train_warm_start(request.param, directory)
    return request.param, directory


def test_prompt_and_answer_are_tokenised_alike_apart_and_together(saved: tuple[WarmStartPolicy, Path]) -> None:
    config, directory = saved
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for prompt, answer in TEXT_CORPORA[config.corpus].texts(300, seed=5):
        apart = tokenizer(prompt).input_ids + tokenizer(answer).input_ids
        assert tokenizer(prompt + answer).input_ids == apart
        assert tokenizer.decode(apart) == prompt + answer
        assert tokenizer.decode(tokenizer(answer).input_ids, skip_special_tokens=True) == answer


def test_digits_stand_alone(saved: tuple[WarmStartPolicy, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved[1])
    assert tokenizer.convert_ids_to_tokens(tokenizer("27+58=85").input_ids) == list("27+58=85")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_warm_start(TINY.model_copy(update={"steps": 1}), directory)
    return AutoTokenizer.from_pretrained(directory)


@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_model_is_a_llama_with_a_head_of_its_own(saved: tuple[WarmStartPolicy, Path]) -> None:
    config, directory = saved
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    assert model.config.model_type == "llama"
    assert model.config.tie_word_embeddings is False
    assert model.dtype == torch.float32
    assert model.config.max_position_embeddings == config.context
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert tokenizer.bos_token is None
    assert len(tokenizer) == model.config.vocab_size <= config.vocabulary


def test_the_loss_begins_at_the_uniform_distribution_and_falls(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    config = SUMS.model_copy(update={"steps": 40, "learning_rate": 1e-2})
    report = train_warm_start(config, tmp_path, on_step=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == list(range(1, 41))
    # Initial logits have a spread near 0.1, which moves the loss from ln V by about half its square.
    assert seen[0][1] == report.first_loss == pytest.approx(math.log(report.vocabulary), abs=0.1)
    assert report.last_loss < 0.6 * report.first_loss
    assert report.last_loss == seen[-1][1]


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def test_the_same_recipe_gives_the_same_files_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    train_warm_start(TINY, tmp_path / "first")
    torch.manual_seed(2)  # the caller's random numbers play no part
    train_warm_start(TINY, tmp_path / "again")
    train_warm_start(TINY.model_copy(update={"seed": 1}), tmp_path / "other")
    assert digests(tmp_path / "first") == digests(tmp_path / "again")
    assert digests(tmp_path / "first")["model.safetensors"] != digests(tmp_path / "other")["model.safetensors"]


def test_it_leaves_the_callers_torch_as_it_was(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train_warm_start(SUMS.model_copy(update={"steps": 1}), tmp_path, threads=threads + 1)
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


def test_the_digest_follows_the_recipe_and_the_machine() -> None:
    changes = ({"seed": 1}, {"steps": 13}, {"corpus": "additions"}, {"hidden_size": 64})
    configs = [TINY, *(TINY.model_copy(update=change) for change in changes)]
    names = [warm_start_digest(config) for config in configs] + [warm_start_digest(TINY, threads=2)]
    assert len(set(names)) == len(names)
    assert warm_start_digest(TINY) == names[0]


def test_recipes_that_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy.vocabulary 200 cannot hold the 256 bytes and 2 special tokens"):
        train_warm_start(TINY.model_copy(update={"vocabulary": 200}), tmp_path)
    with pytest.raises(ConfigError, match=r"has \d\d tokens, and policy.context is 16: raise it"):
        train_warm_start(TINY.model_copy(update={"context": 16}), tmp_path)

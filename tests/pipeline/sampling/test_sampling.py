"""What the engines share: the table of candidates, the limits, and the configuration of a checkpoint."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pipeline.errors import ConfigError, DataError, PromptTooLongError
from pipeline.model.policy import choose_context, max_context
from pipeline.records import CANDIDATES
from pipeline.sampling import Candidate, SamplingRequest, candidates_table, check_lengths
from pipeline.sampling.base import stop_tokens
from support.tiny import tiny_llama, tiny_tokenizer


def test_the_table_has_the_ids_as_sampled_and_their_text() -> None:
    # Ids 0 to 3 are special, so that token 4 + n is the word w<n>, and 2 ends a sequence.
    candidates = [
        Candidate("p", 0, [4, 9, 2], [-0.5, -1.0, -0.25], "stop", 2**47),
        Candidate("p", 1, [5, 5], [-1.5, -2.0], "length", 2**47 + 1),
    ]
    table = candidates_table(candidates, {"p": [1, 7]}, tiny_tokenizer(), "abc")
    assert table.schema.equals(CANDIDATES, check_metadata=True)
    assert table.to_pylist() == [
        {
            "prompt_id": "p",
            "candidate": 0,
            "token_ids": [4, 9, 2],
            "text": " w0 w5",
            "logprobs": [-0.5, -1.0, -0.25],
            "finish_reason": "stop",
            "seed": 2**47,
            "policy": "abc",
        },
        {
            "prompt_id": "p",
            "candidate": 1,
            "token_ids": [5, 5],
            "text": " w1 w1",
            "logprobs": [-1.5, -2.0],
            "finish_reason": "length",
            "seed": 2**47 + 1,
            "policy": "abc",
        },
    ]


def test_a_prompt_may_fill_the_context_and_no_more() -> None:
    check_lengths([SamplingRequest("fits", [4] * 10, 0)], 6, 16)
    with pytest.raises(PromptTooLongError, match=r"prompt long has 11 tokens, and with max_tokens 6 .* 16"):
        check_lengths([SamplingRequest("fits", [4] * 10, 0), SamplingRequest("long", [4] * 11, 1)], 6, 16)
    with pytest.raises(DataError, match="prompt empty has no tokens"):
        check_lengths([SamplingRequest("empty", [], 0)], 6, 16)


def test_the_context_is_the_models_own_or_less(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path, context=32)
    assert choose_context(directory, None) == 32
    assert choose_context(directory, 16) == 16
    with pytest.raises(ConfigError, match=r"sampling\.context 33 is more than the model's own 32"):
        choose_context(directory, 33)
    with pytest.raises(ConfigError, match="there is no directory"):
        max_context(tmp_path / "nowhere")


def test_stop_tokens_are_those_of_generation_before_those_of_the_model(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    assert stop_tokens(directory) == {2}
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert stop_tokens(directory) == {7, 8}
    (directory / "generation_config.json").unlink()
    assert stop_tokens(directory) == {2}


def sentence_piece() -> PreTrainedTokenizerFast:
    """Words that begin with a mark of their space, which decoding strips from the first word of all."""
    words = ["<s>", "</s>", "▁the", "▁fox", "es", "<0xC3>", "<0xA9>"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<s>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("prompt", "completion", "text"),
    [
        ([0, 2], [3, 4, 1], " foxes"),  # decoded alone: "foxes"
        ([0, 2, 3], [4, 1], "es"),
        ([0, 2, 5], [6, 3], "é fox"),  # a character whose first byte is in the prompt
        ([0, 2], [5], "\ufffd"),
        ([0], [3], "fox"),
        ([0, 2], [1], ""),
    ],
)
def test_prompt_and_text_are_the_decoded_whole(prompt: list[int], completion: list[int], text: str) -> None:
    tokenizer = sentence_piece()
    candidate = Candidate("p", 0, completion, [-1.0] * len(completion), "stop", 0)
    (found,) = candidates_table([candidate], {"p": prompt}, tokenizer, "abc")["text"].to_pylist()
    assert found == text
    before = tokenizer.decode(prompt, skip_special_tokens=True).removesuffix("\ufffd")
    assert before + found == tokenizer.decode([*prompt, *completion], skip_special_tokens=True)

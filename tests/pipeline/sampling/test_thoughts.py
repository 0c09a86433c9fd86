"""Where a thought ends: marks that are tokens, special tokens or plain text, begun by the completion or the prompt."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pipeline.config import SamplingConfig, ThoughtMarks
from pipeline.judges.support.tables import judge_items
from pipeline.records import CANDIDATES, PROMPTS, THINKING_CANDIDATES, to_table
from pipeline.sampling import Candidate, SamplingRequest, candidates_table, finish, make_sampler
from pipeline.sampling.thoughts import KNOWN_MARKS, Thought, find_thoughts, thought_marks
from support.tiny import CHAT_TEMPLATE, OPENING_TEMPLATE, THINKING_TEMPLATE, tiny_llama, tiny_tokenizer

# Ids: </s> 2, <think> 8, </think> 9, w0 10, w1 11, ...
THINKING = tiny_tokenizer(thinking=THINKING_TEMPLATE)
THINK = KNOWN_MARKS[0]
PROMPT, OPENED, CLOSED = [1, 5, 7], [1, 5, 7, 8], [1, 5, 7, 8, 9]


def spelling(*pieces: str, special: tuple[str, ...] = ()) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """Makes a tokenizer whose tokens are these pieces of text, joined without spaces, and their ids."""
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys((*pieces, "?")))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer, [tokenizer.convert_tokens_to_ids(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("prompt", "completion", "thought"),
    [
        (PROMPT, [8, 10, 11, 9, 12, 13, 2], Thought(4, "w2 w3")),
        (PROMPT, [10, 11, 2], None),
        (PROMPT, [10, 8, 11, 9, 12, 2], None),  # what comes later between marks is of the answer
        (PROMPT, [10, 9, 11, 2], None),
        (PROMPT, [8, 10, 9, 11, 9, 12], Thought(3, "w1 </think> w2")),
        (PROMPT, [8, 10, 11], Thought(3, None)),
        (PROMPT, [8, 10, 9], Thought(3, "")),
        (PROMPT, [8, 9, 12, 2], Thought(2, "w2")),
        (OPENED, [10, 9, 11, 2], Thought(2, "w1")),
        (OPENED, [9, 11, 2], Thought(1, "w1")),
        (OPENED, [10, 11, 2], Thought(3, None)),
        (OPENED, [8, 10, 9, 11, 2], Thought(3, "w1")),  # opened once more
        (CLOSED, [10, 11, 2], None),
        (CLOSED, [8, 10, 9, 11], Thought(3, "w1")),
        ([1, 4, 7, 8, 2, 1, 5, 7], [10, 9, 11], None),  # the user's own mark opens nothing
    ],
)
def test_marks_that_are_tokens(prompt: list[int], completion: list[int], thought: Thought | None) -> None:
    assert find_thoughts(THINKING, THINK, prompt, [completion]) == [thought]


def test_marks_that_are_plain_text_may_share_a_token_with_the_answer() -> None:
    tokenizer, ids = spelling("Q:", "<", "think>", "so", "</thi", "nk>\n\nFo", "ur", ".")
    assert thought_marks(tokenizer, None) is None
    assert thought_marks(tokenizer, THINK) == THINK
    assert find_thoughts(tokenizer, THINK, ids[:1], [ids[1:]]) == [Thought(5, "Four.")]


def test_marks_that_are_special_tokens_are_found_though_the_text_leaves_them_out() -> None:
    tokenizer, ids = spelling("Q:", "[THINK]", "so", "[/THINK]", "4", special=("[THINK]", "[/THINK]"))
    marks = thought_marks(tokenizer, None)
    assert marks == ThoughtMarks(begin="[THINK]", end="[/THINK]")
    candidate = Candidate("p", 0, ids[1:], [-1.0] * 4, "stop", 0)
    (row,) = candidates_table([candidate], {"p": ids[:1]}, tokenizer, "x", marks).to_pylist()
    assert (row["text"], row["thought_tokens"], row["answer"]) == ("so4", 3, "4")
    assert row["token_ids"] == ids[1:]


def test_whose_marks() -> None:
    own = ThoughtMarks(begin="(", end=")")
    assert thought_marks(THINKING, None) == THINK
    assert thought_marks(THINKING, own) == own
    assert thought_marks(tiny_tokenizer(chat_template=True), None) is None
    template_alone = tiny_tokenizer(chat_template=True)
    template_alone.chat_template = f"{CHAT_TEMPLATE}<think> </think>"
    assert thought_marks(template_alone, None) == THINK
    with pytest.raises(ValidationError, match=r"sampling.thought.end '\*\*' contains sampling.thought.begin '\*'"):
        ThoughtMarks(begin="*", end="**")


def test_hashes_without_marks_stay() -> None:
    assert "thought" not in SamplingConfig().hashed()
    assert SamplingConfig(thought=THINK).hashed()["thought"] == {"begin": "<think>", "end": "</think>"}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[int]], list[Candidate]]:
    """Completions of a tiny random model to two prompts, the second of which opens the thought."""
    directory = tiny_llama(tmp_path_factory.mktemp("thinking"), thinking=OPENING_TEMPLATE)
    prompts = {"closed": CLOSED, "opened": OPENED}
    config = SamplingConfig(engine="transformers", candidates=12, max_tokens=48)
    engine = make_sampler(config, directory, device="cpu", threads=1)
    requests = [SamplingRequest(name, ids, 100 * n) for n, (name, ids) in enumerate(prompts.items())]
    return prompts, finish(engine.sample(requests, config))


def test_what_an_engine_sampled_is_split_and_kept_whole(
    sampled: tuple[dict[str, list[int]], list[Candidate]],
) -> None:
    """Words are joined by spaces, so that the answer of each completion can be written by hand from its ids."""
    prompts, candidates = sampled
    table = candidates_table(candidates, prompts, THINKING, "x", THINK)
    assert table.schema.equals(THINKING_CANDIDATES, check_metadata=True)
    plain = candidates_table(candidates, prompts, THINKING, "x")
    assert plain.schema.equals(CANDIDATES, check_metadata=True)
    assert table.select(CANDIDATES.names).to_pylist() == plain.to_pylist()
    kinds = set()
    for row, candidate in zip(table.to_pylist(), candidates, strict=True):
        ids = candidate.token_ids
        thinks = candidate.prompt_id == "opened" or ids[0] == 8
        ends = ids.index(9) + 1 if thinks and 9 in ids else None
        tokens = (ends or len(ids)) if thinks else None
        words = None if ends is None else [THINKING.convert_ids_to_tokens(token) for token in ids[ends:] if token > 3]
        assert (row["thought_tokens"], row["answer"]) == (tokens, None if words is None else " ".join(words))
        kinds.add((thinks, ends is not None))
    assert kinds >= {(False, False), (True, False), (True, True)}  # seeds 0 to 11 and 100 to 111 have all three


def test_the_judge_sees_the_answer_of_what_was_sampled(sampled: tuple[dict[str, list[int]], list[Candidate]]) -> None:
    prompts, candidates = sampled
    rows: list[dict[str, Any]] = [
        {"prompt_id": name, "text": name, "messages": None, "token_ids": ids, "source": "test",
         "reference_answer": None, "split": "train"}
        for name, ids in prompts.items()
    ]  # fmt: skip
    table = candidates_table(candidates, prompts, THINKING, "x", THINK)
    items = {item.prompt_id: item for item in judge_items(to_table(rows, PROMPTS), table)}
    opened = table.to_pylist()[12:]
    assert [found.text for found in items["opened"].candidates] == [row["answer"] or "" for row in opened]
    assert [found.completion for found in items["opened"].candidates] == [row["text"] for row in opened]
    assert [found.token_ids for found in items["opened"].candidates] == [row["token_ids"] for row in opened]


def test_a_model_that_thinks_is_known_from_its_directory(tmp_path: Path) -> None:
    from pipeline.model.policy import load_tokenizer

    tiny_tokenizer(thinking=THINKING_TEMPLATE).save_pretrained(tmp_path)
    assert thought_marks(load_tokenizer(tmp_path), None) == THINK

"""Prompts from every source, the held-out split, lengths, and the slices that rounds take."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import DatasetPrompts, FilePrompts, GeneratedPrompts
from pipeline.data.prompts import check_lengths, load_prompts, round_slice
from pipeline.data.sources import check_count, read_prompts
from pipeline.errors import ConfigError, DataError, PromptTooLongError
from pipeline.records import PROMPTS, content_id, to_table
from support.tiny import tiny_tokenizer

PLAIN = tiny_tokenizer()
CHAT = tiny_tokenizer(chat_template=True)
TEXTS = [f"w{number} w{number + 1}" for number in range(20)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "w1"}, {"role": "user", "content": text}]


def test_generated_prompts_follow_the_schema() -> None:
    config = GeneratedPrompts(source="generated", corpus="additions", train=30)
    table = load_prompts(config, 10, 0, PLAIN)
    assert table.schema.equals(PROMPTS, check_metadata=True)
    assert Counter(table["split"].to_pylist()) == {"train": 30, "evaluation": 10}
    assert len(set(table["prompt_id"].to_pylist())) == 40
    row = table.to_pylist()[0]
    assert row["prompt_id"] == content_id(row["text"])
    assert row["reference_answer"].isdigit()
    assert row["messages"] is None


def test_texts_of_a_file_are_held_out_by_id_whatever_the_seed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": text, "answer": 7} for text in [*TEXTS, *TEXTS[:5]]])
    config = FilePrompts(source="jsonl", path=path, reference_column="answer")
    first, second = (load_prompts(config, 6, seed, PLAIN) for seed in (0, 1))
    assert first.equals(second)
    rows = first.to_pylist()
    assert len(rows) == 20  # the five that come twice are left out
    held_out = [row["prompt_id"] for row in rows if row["split"] == "evaluation"]
    assert held_out == sorted(map(content_id, TEXTS))[:6]
    train = [row["text"] for row in rows if row["split"] == "train"]
    assert train == [text for text in TEXTS if content_id(text) not in held_out]
    assert {row["reference_answer"] for row in rows} == {"7"}


def test_a_parquet_file_gives_the_same_as_jsonl(tmp_path: Path) -> None:
    rows = [{"prompt": conversation(text)} for text in TEXTS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    parquet = FilePrompts(source="parquet", path=str(tmp_path / "p.parquet"))
    lines = FilePrompts(source="jsonl", path=jsonl(tmp_path / "p.jsonl", rows))
    first, second = (load_prompts(config, 4, 0, CHAT).drop_columns("source") for config in (parquet, lines))
    assert first.equals(second)


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    """As many are held out as without them: those with the smallest ids among what is left."""
    long = [f"{text} w1 w1 w1" for text in TEXTS[:5]]
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in [*TEXTS, *long]])
    short, longer = (len(PLAIN(text).input_ids) for text in (TEXTS[0], long[0]))
    said: list[str] = []
    table = load_prompts(FilePrompts(source="jsonl", path=path, max_tokens=short), 6, 0, PLAIN, said.append)
    assert said == [f"5 of 25 prompts have more than {short} tokens and are left out"]
    assert Counter(table["split"].to_pylist()) == {"train": 14, "evaluation": 6}
    assert set(table["text"].to_pylist()) == set(TEXTS)
    held_out = [row["prompt_id"] for row in table.to_pylist() if row["split"] == "evaluation"]
    assert held_out == sorted(map(content_id, TEXTS))[:6]
    whole = load_prompts(FilePrompts(source="jsonl", path=path, max_tokens=longer), 6, 0, PLAIN, said.append)
    assert (whole.num_rows, len(said)) == (25, 1)


def test_conversations_go_through_the_chat_template_once(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": conversation(text)} for text in TEXTS])
    table = load_prompts(FilePrompts(source="jsonl", path=path), 4, 0, CHAT)
    row = table.to_pylist()[0]
    user = row["messages"][1]["content"]
    assert row["prompt_id"] == content_id(conversation(user))
    assert row["text"] == f"<s> system : w1 </s> <s> user : {user} </s> <s> assistant : "
    # As many beginnings as the template wrote, and none before them.
    assert [CHAT.decode(token) for token in row["token_ids"]].count("<s>") == 3
    assert CHAT.decode(row["token_ids"]) == row["text"].strip()


class Bracketing:
    """A tokenizer of characters that, as some do, begins and closes every text by itself."""

    bos_token, eos_token, eos_token_id, chat_template = "^", "$", ord("$"), None

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        text = f"^{text}$" if add_special_tokens else text
        return type("Encoding", (), {"input_ids": [ord(letter) for letter in text]})()


@pytest.mark.parametrize(("text", "seen"), [("ab", "^ab"), ("^ab", "^ab"), ("ab$", "^ab$$")])
def test_a_text_prompt_begins_once_and_stays_open(tmp_path: Path, text: str, seen: str) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": text}, {"prompt": "other"}])
    rows = load_prompts(FilePrompts(source="jsonl", path=path), 1, 0, Bracketing()).to_pylist()
    ids = next(row["token_ids"] for row in rows if row["text"] == text)
    assert "".join(map(chr, ids)) == seen


def test_datasets_saved_to_disk_and_directories_of_files(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"question": TEXTS})
    datasets.DatasetDict({"train": rows, "test": rows.select(range(8))}).save_to_disk(str(tmp_path / "dict"))
    rows.save_to_disk(str(tmp_path / "flat"))
    (tmp_path / "hub").mkdir()
    rows.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    counts = [
        load_prompts(
            DatasetPrompts(source="datasets", name=str(tmp_path / name), split=split, column="question"), 3, 0, PLAIN
        ).num_rows
        for name, split in (("dict", "test"), ("dict", "train"), ("flat", "train"), ("hub", "train"))
    ]
    assert counts == [8, 20, 20, 20]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FilePrompts(source="jsonl", path="no/such.jsonl"), r"'no/such.jsonl' is not a file"),
        (FilePrompts(source="parquet", path="{dir}/bad.parquet"), r"not readable parquet"),
        (FilePrompts(source="jsonl", path="{dir}/p.jsonl", column="text"), r"no column 'text': it has prompt"),
        (FilePrompts(source="jsonl", path="{dir}/empty.jsonl"), r"there is no row in it"),
        (FilePrompts(source="jsonl", path="{dir}/bad.jsonl"), r"line 2 of .* is not JSON"),
        (FilePrompts(source="jsonl", path="{dir}/list.jsonl"), r"line 1 of .* give one JSON object a line"),
        (FilePrompts(source="jsonl", path="{dir}/chat.jsonl"), r"no chat template: choose a policy"),
        (FilePrompts(source="jsonl", path="{dir}/few.jsonl"), r"evaluation.prompts 3 leaves none of the 2"),
        (DatasetPrompts(source="datasets", name="{dir}/saved", split="test"), r"split 'test'\) cannot be read"),
        (DatasetPrompts(source="datasets", name="{dir}/nothing"), r"nothing' .* cannot be read"),
        (DatasetPrompts(source="datasets", name="{dir}/saved", column="text"), r"no column 'text': it has prompt"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, config: Any, message: str) -> None:
    jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in TEXTS])
    jsonl(tmp_path / "few.jsonl", [{"prompt": text} for text in [*TEXTS[:2], *TEXTS[:2]]])
    jsonl(tmp_path / "chat.jsonl", [{"prompt": conversation(text)} for text in TEXTS])
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "w1"}\n{"prompt": \n')
    (tmp_path / "bad.parquet").write_text("PAR?")
    (tmp_path / "list.jsonl").write_text('["w1"]\n')
    prompts = datasets.Dataset.from_dict({"prompt": TEXTS})
    datasets.DatasetDict({"train": prompts}).save_to_disk(str(tmp_path / "saved"))
    field = "path" if isinstance(config, FilePrompts) else "name"
    there = config.model_copy(update={field: getattr(config, field).replace("{dir}", str(tmp_path))})
    with pytest.raises(ConfigError, match=message):
        load_prompts(there, 3, 0, PLAIN)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "give a text or a list of messages"),
        ([], "give a text or a list of messages"),
        (None, "give a text or a list of messages"),
        (3, "give a text or a list of messages"),
        (["w1"], "give role and content as texts"),
        ([{"role": "user"}], "give role and content as texts"),
        ([{"role": "user", "content": [{"type": "image"}]}], "give role and content as texts"),
        ([{"role": "assistant", "content": "w1"}], "ends with an assistant's message"),
    ],
)
def test_what_is_no_prompt(tmp_path: Path, value: object, message: str) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "w1"}, {"prompt": value}])
    with pytest.raises(DataError, match=rf"row 2 of jsonl:p.jsonl, column 'prompt'.*{message}"):
        load_prompts(FilePrompts(source="jsonl", path=path), 1, 0, CHAT)


def prompts_of(lengths: list[int], split: str = "train") -> pa.Table:
    rows = [
        {
            "prompt_id": f"p{number}", "text": "w1", "messages": None, "token_ids": [1] * length,
            "source": "test", "reference_answer": None, "split": split,
        }
        for number, length in enumerate(lengths)
    ]  # fmt: skip
    return to_table(rows, PROMPTS)


def test_a_prompt_and_its_answer_must_fit_the_context() -> None:
    check_lengths(prompts_of([4, 6]), max_tokens=10, context=16)
    with pytest.raises(PromptTooLongError, match=r"p1 has 7 tokens .* 10, more than the context of 16 \(1 of 2"):
        check_lengths(prompts_of([4, 7]), max_tokens=10, context=16)


@given(total=st.integers(1, 60), per_round=st.integers(1, 60), seed=st.integers(0, 3))
def test_no_prompt_comes_twice_in_a_pass(total: int, per_round: int, seed: int) -> None:
    table = pa.concat_tables([prompts_of([1] * total), prompts_of([1] * 5, "evaluation")])
    if per_round > total:
        with pytest.raises(ConfigError, match=f"prompts_per_round is {per_round}, but there are {total}"):
            round_slice(table, 1, per_round, seed)
        return
    rounds_per_pass = total // per_round
    for number in range(2):
        slices = [round_slice(table, number * rounds_per_pass + r + 1, per_round, seed) for r in range(rounds_per_pass)]
        taken = [row for rows in slices for row in rows]
        assert len(taken) == len(set(taken)) == rounds_per_pass * per_round
        assert set(taken) <= set(range(total))  # never one that is held out


def test_passes_and_seeds_differ_and_a_round_is_a_function_of_its_arguments() -> None:
    table = prompts_of([1] * 100)
    assert round_slice(table, 3, 20, 0) == round_slice(table, 3, 20, 0)
    first_pass, second_pass = ([round_slice(table, r + 5 * p, 20, 0) for r in range(1, 6)] for p in (0, 1))
    assert first_pass != second_pass
    assert round_slice(table, 1, 20, 1) != round_slice(table, 1, 20, 0)


def test_too_few_prompts_are_counted_with_those_held_out(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in [*TEXTS, *TEXTS[:5]]])
    prompts = read_prompts(FilePrompts(source="jsonl", path=path))
    check_count(len(prompts), 8, 12)
    message = r"prompts_per_round is 13, but there are 12 training prompts, for of 20 different ones 8 are held out"
    with pytest.raises(ConfigError, match=message):
        check_count(len(prompts), 8, 13)
    table = load_prompts(FilePrompts(source="jsonl", path=path), 8, 0, PLAIN)
    with pytest.raises(ConfigError, match=message):
        round_slice(table, 1, 13, 0)

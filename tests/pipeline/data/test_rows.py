"""Files and datasets that are broken, empty or odd: the cause and the place, in one sentence."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetPrompts, FilePrompts
from pipeline.data.sources import read_prompts
from pipeline.errors import ConfigError, DataError

GOOD = b'{"prompt": "w1", "answer": "1"}\n\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (rb'{"prompt": "cut \ud83d here"}', "half of a character"),
        (rb'{"prompt": "fine", "answer": "cut \ud83d"}', "half of a character"),
        (rb'{"prompt": "cut \ude00 here"}', "half of a character"),
        (b'{"prompt": "big", "id": ' + b"9" * 5000 + b"}", "number out of range"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion limit exceeded"),
        (b'{"prompt": "\xed\xa0\xbd"}', "invalid unicode"),
        (b'{"prompt": "\xff"}', "invalid unicode"),
        (b'{"prompt": "a" "b"}', "expected"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(GOOD + line + b"\n")
    with pytest.raises(ConfigError, match=f"line 3 of '.*p.jsonl' is not JSON that can be read: .*{message}"):
        read_prompts(FilePrompts(source="jsonl", path=str(path)))


def test_texts_come_back_as_given(tmp_path: Path) -> None:
    texts = [
        "👩‍👩‍👧‍👦🏳️‍🌈 family",
        "\u202eright to left \u05d0",
        "nul \0 char",
        "line\u2028sep\u2029",
        "\n\n\n",
        "tab\t\r\n crlf",
    ]
    path = tmp_path / "p.jsonl"
    lines = [json.dumps({"prompt": text}, ensure_ascii=number % 2 == 0) for number, text in enumerate(texts)]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert [prompt.content for prompt in read_prompts(FilePrompts(source="jsonl", path=str(path)))] == texts


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    broken = pa.array([b"w1", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": broken}), path)
    with pytest.raises(DataError, match=r"row 2 of parquet:p.parquet, column 'prompt' holds bytes that are no UTF-8"):
        read_prompts(FilePrompts(source="parquet", path=str(path)))


def saved(directory: Path) -> None:
    rows = datasets.Dataset.from_dict({"prompt": [f"w{number}" for number in range(10)]})
    datasets.DatasetDict({"train": rows, "test": rows.select(range(4))}).save_to_disk(str(directory / "dict"))
    rows.save_to_disk(str(directory / "flat"))
    named = datasets.Dataset.from_dict(
        {"prompt": ["w1", "w2"]}, split="test", info=datasets.DatasetInfo(config_name="main")
    )
    named.save_to_disk(str(directory / "named"))
    rows.select([]).save_to_disk(str(directory / "none"))
    rows.save_to_disk(str(directory / "broken"))
    for file in (directory / "broken").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:40])
    rows.save_to_disk(str(directory / "no state"))
    (directory / "no state" / "state.json").write_text("{")
    (directory / "empty").mkdir()


@pytest.mark.parametrize(
    ("name", "split", "subset", "texts"),
    [
        ("dict", "train[:3]", None, ["w0", "w1", "w2"]),
        ("dict", "test", None, ["w0", "w1", "w2", "w3"]),
        ("dict", "train[80%:]+test[:1]", None, ["w8", "w9", "w0"]),
        ("flat", "train[-2:]", None, ["w8", "w9"]),
        ("named", "test", "main", ["w1", "w2"]),
    ],
)
def test_splits_and_slices_of_a_saved_dataset(
    tmp_path: Path, name: str, split: str, subset: str | None, texts: list[str]
) -> None:
    saved(tmp_path)
    config = DatasetPrompts(source="datasets", name=str(tmp_path / name), split=split, subset=subset)
    assert [prompt.content for prompt in read_prompts(config)] == texts


@pytest.mark.parametrize(
    ("name", "split", "subset", "message"),
    [
        ("dict", "dev", None, r"split 'dev'\) cannot be read: .*train \(10 rows\), test \(4 rows\)"),
        ("dict", "train[", None, r"split 'train\['\) cannot be read"),
        ("dict", "train[5:5]", None, "there is no row in it"),
        ("dict", "train", "main", "prompts.subset 'main' chooses nothing"),
        ("flat", "test", None, r"split 'test'\) cannot be read: .*train \(10 rows\)"),
        ("flat", "train", "main", "prompts.subset 'main' chooses nothing"),
        ("named", "train", None, r"split 'train'\) cannot be read: .*test \(2 rows\)"),
        ("named", "test", "other", "of 'main', so that prompts.subset 'other' chooses nothing"),
        ("none", "train", None, "there is no row in it"),
        ("broken", "train", None, "broken' .* cannot be read"),
        ("no state", "train", None, "no state' .* cannot be read"),
        ("empty", "train", None, "empty' .* cannot be read"),
    ],
)
def test_what_a_saved_dataset_does_not_have(
    tmp_path: Path, name: str, split: str, subset: str | None, message: str
) -> None:
    saved(tmp_path)
    with pytest.raises(ConfigError, match=message):
        read_prompts(DatasetPrompts(source="datasets", name=str(tmp_path / name), split=split, subset=subset))

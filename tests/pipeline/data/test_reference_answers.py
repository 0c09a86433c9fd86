"""What a column holds as the text that a judge compares with."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DatasetPrompts, FilePrompts
from pipeline.data.reference_answers import reference_answer
from pipeline.data.sources import check_reference_answers, read_prompts
from pipeline.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("18", "18"), ("", ""), ("nan", "nan"), (18, "18"), (-3, "-3"), (18.0, "18"), (-0.0, "0"), (0.1, "0.1"),
        (1e22, "1" + "0" * 22), (1e-7, "0.0000001"), (-2.5, "-2.5"), (2**70, str(2**70)), (None, None),
        (float("nan"), None), (Decimal("NaN"), None), (Decimal("18.00"), "18"), (Decimal("18.50"), "18.5"),
        (Decimal("1E+2"), "100"), (Decimal("0.00"), "0"),
    ],
)  # fmt: skip
def test_numbers_and_texts(value: object, answer: str | None) -> None:
    assert reference_answer(value, "here", "answer") == answer


@pytest.mark.parametrize(
    "value", [True, ["18"], [], {}, b"18", float("inf"), datetime.date(2026, 1, 2), Decimal("Infinity")]
)
def test_what_is_no_answer_names_its_place(value: object) -> None:
    with pytest.raises(DataError, match=r"row 3, column 'answer' holds .*: give the answer as a text or a number"):
        reference_answer(value, "row 3, column 'answer'", "answer")


def test_a_struct_offers_its_fields() -> None:
    with pytest.raises(DataError, match=r"fields truth, style: choose one, as prompts.reference_column: a.truth"):
        reference_answer({"truth": "1", "style": "rule"}, "row 1, column 'a'", "a")


def parquet(path: Path, answers: pa.Array) -> FilePrompts:
    prompts = pa.array([f"w{row}" for row in range(len(answers))])
    pq.write_table(pa.table({"prompt": prompts, "answer": answers}), path)
    return FilePrompts(source="parquet", path=str(path), reference_column="answer")


@pytest.mark.parametrize(
    "kind", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint64(), pa.decimal128(10, 3), pa.string()]
)
def test_columns_of_every_width(tmp_path: Path, kind: pa.DataType) -> None:
    given: list[Any] = ["18", None] if kind == pa.string() else [18, None]
    fraction = pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    values = pa.array([*given, *([Decimal("0.1") if pa.types.is_decimal(kind) else 0.1] if fraction else [])], kind)
    found = [prompt.reference_answer for prompt in read_prompts(parquet(tmp_path / "p.parquet", values))]
    assert found == ["18", None, *(["0.1"] if fraction else [])]


def test_a_field_of_a_column_in_every_source(tmp_path: Path) -> None:
    import datasets

    config = parquet(tmp_path / "p.parquet", pa.array([{"truth": 18.0}, None]))
    (tmp_path / "p.jsonl").write_text('{"prompt": "w0", "answer": {"truth": 18.0}}\n{"prompt": "w1", "answer": null}\n')
    datasets.Dataset.from_parquet(str(tmp_path / "p.parquet")).save_to_disk(str(tmp_path / "saved"))
    for source in (
        config.model_copy(update={"reference_column": "answer.truth"}),
        FilePrompts(source="jsonl", path=str(tmp_path / "p.jsonl"), reference_column="answer.truth"),
        DatasetPrompts(source="datasets", name=str(tmp_path / "saved"), reference_column="answer.truth"),
    ):
        assert [prompt.reference_answer for prompt in read_prompts(source)] == ["18", None]
    with pytest.raises(DataError, match=r"row 1 of parquet:p.parquet, column 'answer' has no field 'no'.* has truth"):
        read_prompts(config.model_copy(update={"reference_column": "answer.no"}))
    with pytest.raises(ConfigError, match=r"no column 'other.truth': it has answer, prompt"):
        read_prompts(config.model_copy(update={"reference_column": "other.truth"}))
    # A column whose own name has a point is that column.
    pq.write_table(pa.table({"prompt": ["w0"], "a.b": ["7"]}), tmp_path / "dots.parquet")
    dots = FilePrompts(source="parquet", path=str(tmp_path / "dots.parquet"), reference_column="a.b")
    assert [prompt.reference_answer for prompt in read_prompts(dots)] == ["7"]


def test_a_judge_that_needs_answers_names_the_first_row_without(tmp_path: Path) -> None:
    prompts = read_prompts(parquet(tmp_path / "p.parquet", pa.array([1.0, float("nan"), None])))
    with pytest.raises(DataError, match=r"row 2 of parquet:p.parquet, .* nor have 1 others of 3, and the judge math"):
        check_reference_answers(prompts, "math")

"""The table of docs/models.md says what holds now."""

import pytest
from numerics import models_table
from numerics.models_table import BEGIN, END, HEADER, SHAPES, on_page, row

from pipeline.errors import UnsupportedModelError


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_the_page_has_a_row_for_each_type() -> None:
    header, _, *rows = on_page().splitlines()
    assert cells(header) == list(HEADER)
    assert [cells(line)[0] for line in rows] == list(SHAPES)
    assert models_table.PAGE.read_text(encoding="utf-8").count(BEGIN) == 1


@pytest.mark.parametrize("name", SHAPES)
def test_the_row_is_current(name: str) -> None:
    """Otherwise: PYTHONPATH=.:tests python tests/numerics/models_table.py."""
    (line,) = [line for line in on_page().splitlines() if cells(line)[0] == name]
    assert cells(line) == row(name)


def test_what_is_neither_right_nor_refused_makes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison would not pass wrong numbers for a yes."""
    monkeypatch.setattr(
        models_table, "_alone", lambda _model, groups: [[0.0] * len(g.candidate_token_ids) for g in groups]
    )
    monkeypatch.setattr(models_table, "sequence_logps", lambda *_: [[-1.0, -2.0]] * 4)
    with pytest.raises(AssertionError, match=r"2 nats a sequence apart, and neither refused nor right"):
        row("llama")


def test_a_refusal_is_named_without_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedModelError("the model is odd: take another")

    monkeypatch.setattr(models_table, "check_model", refuse)
    assert row("llama")[2] == "refused: the model is odd"
    assert END in models_table.PAGE.read_text(encoding="utf-8")

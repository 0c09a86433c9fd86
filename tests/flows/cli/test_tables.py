"""Results in the terminal: what does not fit is never cut without a word."""

import csv
import io
import json
from typing import Any

import pytest
from rich.cells import cell_len

from flows.cli.options import Format
from flows.cli.tables import print_rows, shorten

SHA = "e24fe9ea" * 4


def printed(capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], **more: Any) -> str:
    print_rows(rows, title="rows", empty="none", **more)
    return capsys.readouterr().out


@pytest.mark.parametrize(("width", "as_table"), [("80", False), ("200", True)])
def test_ids_and_figures_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: str, as_table: bool
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    rows = [{"round": number, "policy": SHA, "reference": SHA[::-1], "time": "2026-11-25T21:50Z"} for number in (1, 2)]
    text = printed(capsys, rows)
    assert (text.count(SHA), text.count(SHA[::-1]), text.count("2026-11-25T21:50Z")) == (2, 2, 2)
    assert max(map(len, text.splitlines())) <= int(width)
    assert any("policy" in line and "reference" in line for line in text.splitlines()) is as_table, (
        "a table names its columns once, a list those of each row"
    )


def test_a_text_is_never_squeezed_into_a_narrow_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    texts = dict.fromkeys(("prompt", "before", "after"), "The costumes felt wonderful throughout")
    assert "wonderful" in printed(capsys, [{"id": SHA, "score": 0.25, **texts}])
    assert printed(capsys, [{"score": 0.25, **texts}]).count("score") == 1


def test_a_long_text_gets_six_lines_of_the_terminal_and_an_ellipsis(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (60, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        # A table of one column leaves it all but the margins: one character to the left, two to the right.
        for text in ("x" * 2000, "漢" * 1000):
            lines = printed(capsys, [{"text": text}]).splitlines()[4:-1]
            assert "".join(lines).replace(" ", "").endswith("…")
            assert len(lines) == 6
            assert sum(line.count(text[0]) for line in lines) == 6 * ((width - 3) // cell_len(text[0])) - 1
        assert "".join(printed(capsys, [{"text": "x" * 2000}], full=True).split()).count("x" * 2000) == 1


def test_a_prompt_keeps_its_end_because_that_may_be_the_question() -> None:
    text = "\n".join(f"line {number}" for number in range(100))
    assert shorten(text, 40) == "line 0\nline 1\nline 2\nline 3\nline 4\nline…"
    assert shorten(text, 40, keep_end=True) == "line 0\nline 1\nline…line 97\nline 98\nline 99"
    assert shorten("a few words", 4, keep_end=True) == "a few words", "three lines of four"


ROWS: list[dict[str, Any]] = [
    {
        "prompt_id": "a1",
        "candidate": 0,
        "score": 0.123456,
        "text": "one, two\n<b>three</b> | `four`",
        "parts": {"x": [1]},
    },
    {"prompt_id": "a2", "candidate": 1, "score": None, "text": "*five* [six](seven)", "parts": None},
]


def test_json_lines_and_csv_have_everything_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(printed(capsys, ROWS, format=Format.json)) == ROWS
    assert [json.loads(line) for line in printed(capsys, ROWS, format=Format.jsonl).splitlines()] == ROWS
    read = list(csv.DictReader(io.StringIO(printed(capsys, ROWS, format=Format.csv))))
    assert [row["text"] for row in read] == [row["text"] for row in ROWS]
    assert [(row["candidate"], row["score"], row["parts"]) for row in read] == [
        ("0", "0.123456", '{"x": [1]}'), ("1", "", ""),
    ]  # fmt: skip


def test_a_document_and_records_are_for_machines_and_rows_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    shown, records, document = [{"a": 1}], [{"b": 2}, {"b": 3}], {"ok": True}
    said = {
        format: printed(capsys, shown, format=format, records=records, document=document).strip() for format in Format
    }
    assert json.loads(said[Format.json]) == document
    assert [json.loads(line) for line in said[Format.jsonl].splitlines()] == records
    assert said[Format.csv].split() == ["b", "2", "3"]
    assert said[Format.markdown].splitlines()[-1] == "| 1 |"
    assert "a" in said[Format.table]
    assert "b" not in said[Format.table]


def test_markdown_says_completion_and_escapes_what_a_model_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, ROWS, format=Format.markdown).splitlines()
    assert lines[0] == "| prompt_id | completion | score | text | parts |"
    assert lines[2].startswith("| a1 | 0 | 0.1235 | one, two<br>\\<b\\>three\\</b\\> \\| \\`four\\` |")
    assert "\\*five\\* \\[six\\](seven)" in lines[3]


@pytest.mark.parametrize("format", [Format.csv, Format.jsonl])
def test_of_no_row_a_machine_reads_nothing(capsys: pytest.CaptureFixture[str], format: Format) -> None:
    assert printed(capsys, [], format=format) == ""


def test_rows_are_ruled_if_their_texts_take_several_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rules = [
        sum(set(line.strip()) == {"─"} for line in printed(capsys, [{"n": 1, "text": text}] * 3).splitlines())
        for text in ("a few words", "so many words that no line holds them " * 3)
    ]
    assert rules[0] == 1, "below the header alone"
    assert rules[1] > 3


def test_colours_are_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in printed(capsys, ROWS)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" in printed(capsys, ROWS)

"""Results in the terminal: what does not fit is never cut without a word."""

import pytest

from flows.cli.tables import print_rows

SHA = "e24fe9ea" * 4


def printed(capsys: pytest.CaptureFixture[str], rows: list[dict[str, object]], **more: int) -> str:
    print_rows(rows, title="rows", as_json=False, empty="none", **more)
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


def test_a_long_cell_ends_with_an_ellipsis(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert f"{'x' * 159}…" in printed(capsys, [{"text": "x" * 200}])
    assert "x" * 200 in printed(capsys, [{"text": "x" * 200}], longest=1000)

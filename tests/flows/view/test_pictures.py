"""Charts as pictures that a browser asks for: what they show, in which colours, and for how long."""

import html
import json
import re
from pathlib import Path

import pytest

from flows.report.rendering import DARK, LIGHT
from flows.view import pictures
from flows.view.pictures import Pictures
from flows.view.site import Site
from storage.log.store import Store
from support.finished_run import finished_run
from support.view_pages import visitor


def spec(title: str) -> str:
    values = [{"x": 0, "y": 1}, {"x": 1, "y": 3}]
    encoding = {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}}
    return json.dumps({"mark": "line", "description": title, "data": {"values": values}, "encoding": encoding})


def test_a_picture_has_the_colours_of_its_mode_and_no_variable() -> None:
    kept = Pictures()
    key = kept.keep(spec("a < b"))
    light, dark = kept.drawn(key, "light"), kept.drawn(key, "dark")
    assert light is not None
    assert dark is not None
    assert LIGHT["s1"] in light
    assert DARK["s1"] in dark
    assert "var(" not in light + dark
    assert 'aria-label="a &lt; b"' in light


def test_those_that_were_shown_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_KEPT", 2)
    kept = Pictures()
    first, second = (kept.keep(spec(title)) for title in ("first", "second"))
    assert kept.keep(spec("first")) == first
    third = kept.keep(spec("third"))
    assert [kept.drawn(key, "light") is not None for key in (first, second, third)] == [True, False, True]


def test_the_page_of_a_run_names_pictures_that_can_be_had(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    finished_run(store)
    asking = visitor(Site(store))
    page = asking.get("/run/small").text
    shown = re.findall(
        r'<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)"><img src="([^"]+)" alt="([^"]+)"', page
    )
    assert len(shown) > 8
    assert len({path for dark, light, _ in shown for path in (dark, light)}) == 2 * len(shown)
    assert "<svg" not in page.partition("<main")[2]
    dark, light, words = shown[0]
    assert words.startswith("Held-out reward. from ")
    for path, colours in ((light, LIGHT), (dark, DARK)):
        answer = asking.get(path)
        assert answer.headers["content-type"] == "image/svg+xml"
        assert colours["s1"] in answer.text
        assert f'aria-label="{words}"' in answer.text or html.unescape(words) in html.unescape(answer.text)
    assert asking.get(f"/chart/{'0' * 32}/light.svg").status_code == 404
    assert asking.get(light.replace("light", "blue")).status_code == 400

"""The table of completions: its facets, what it marks, and texts that would like to be more than text."""

import html
import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from flows.view.app import make_app
from flows.view.filters import Filter
from flows.view.pages import completions as completions_page
from flows.view.pages.completions import page, pattern
from flows.view.rendering import marked
from flows.view.security import Guard
from flows.view.site import OpenRun, Site
from storage.log.store import Store
from support.sampled_run import sampled_run, training

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202egnp.exe\u2066\"'&{{7*7}}"
LONG = "lorem <b>" * 120_000 + "needle" + " ipsum" * 1000
"""More than 1 MB."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(Store.open(tmp_path_factory.mktemp("completions")))
    sampled_run(site.store)
    yield site
    site.close()


@pytest.fixture(scope="module")
def visitor(site: Site) -> TestClient:
    return TestClient(make_app(site, Guard("127.0.0.1")), base_url="http://127.0.0.1")


def facets(opened: OpenRun, **query: str) -> dict[str, dict[str, int]]:
    found = page(opened, Filter.parse(query.items())).values["facets"]
    return {facet.title: {choice.label: choice.count for choice in facet.choices} for facet in found}


def test_facets_count_what_is_left_by_the_rest_of_the_filter(site: Site) -> None:
    opened = site.run("sampled")
    assert facets(opened) == {
        "round": {"2": 4, "1": 14, "0": 2},
        "kind": {"training": 16, "held-out": 4},
        "role": {"dropped": 8, "chosen": 2, "rejected": 2, "none": 8},
        "dropped for": {"agree": 4, "unjudged": 4},
        "tie": {"no": 8, "yes": 4},
        "finish": {"stop": 18, "length": 2},
        "verdict": {"ok": 17, "unparsable": 3},
        "judge": {"vader": 20},
    }
    found = facets(opened, q="red", role="chosen")
    assert found["role"] == {"chosen": 2, "none": 2, "dropped": 1}
    assert found["round"] == {"2": 1, "1": 1}
    assert found["finish"] == {"stop": 2}
    # What is chosen stays, although nothing has it.
    assert facets(opened, drop="agree", round="2")["dropped for"] == {"agree": 0}


def test_a_facet_leads_to_its_completions_and_back(site: Site) -> None:
    opened = site.run("sampled")
    for facet in page(opened, Filter()).values["facets"]:
        for choice in facet.choices:
            chosen = Filter.parse(choice.query.items())
            assert page(opened, chosen).values["total"] == choice.count
            again = next(f for f in page(opened, chosen).values["facets"] if f.title == facet.title)
            (back,) = [c for c in again.choices if c.chosen]
            assert (back.label, back.count, back.query) == (choice.label, choice.count, {})


def test_many_rounds_are_shortened_but_the_chosen_one_stays(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    monkeypatch.setattr(completions_page, "_MOST_VALUES", 1)
    shown = page(site.run("sampled"), Filter(chosen={"round": 0})).values["facets"][0]
    assert ([choice.label for choice in shown.choices], shown.more) == (["2", "0"], 1)


def test_the_page_marks_hits_and_links_each_row_to_its_prompt(visitor: TestClient) -> None:
    answer = visitor.get("/run/sampled/completions?q=apple+RED&sort=-score")
    assert answer.status_code == 200
    assert "<mark>Red</mark> <mark>apple</mark>s" in answer.text
    assert "<mark>apple</mark> <mark>red</mark>" in answer.text
    rows = re.findall(r"<tr data-row>.*?</tr>", answer.text, re.DOTALL)
    assert [re.search(r'href="([^"]*)"', row)[1] for row in rows] == [  # type: ignore[index]
        "/run/sampled/prompt/t0?round=1&amp;kind=training&amp;candidate=0",
        "/run/sampled/prompt/t1?round=1&amp;kind=training&amp;candidate=1",
    ]
    assert answer.text.count('aria-sort="descending"') == 1
    assert "Tell me of t0." in rows[0]
    assert "0.500" in rows[1]
    assert "dropped: agree" in rows[1]
    assert 'name="q" value="apple RED"' in answer.text


def test_what_was_not_measured_is_not_0(visitor: TestClient) -> None:
    unread = visitor.get("/run/sampled/completions?status=unparsable").text
    assert unread.count("not measured") == 3
    first = visitor.get("/run/sampled/completions?round=0").text
    assert first.count("not measured") == 2  # the log-ratio of round 0's own completions


def test_a_mistyped_address_is_a_sentence_and_no_fit_says_so(visitor: TestClient) -> None:
    wrong = visitor.get("/run/sampled/completions?score_min=<b>")
    assert wrong.status_code == 400
    assert "score_min &#39;&lt;b&gt;&#39; in the address: give a number" in wrong.text
    assert "No completion fits" in visitor.get("/run/sampled/completions?q=nowhere").text
    assert "There is no page 7" in visitor.get("/run/sampled/completions?page=7").text
    assert visitor.get("/run/nobody/completions").status_code == 404


def test_texts_stay_texts_and_long_ones_are_cut_around_the_hit() -> None:
    store = Store.open("memory://")
    sampled_run(store, training(1, "t0", (HOSTILE, 3, 1.0), (LONG, 4, 0.5), ("x" * 400, 2, 0.25), ("y" * 401, 2, 0.0)))
    visitor = TestClient(make_app(Site(store), Guard("127.0.0.1")), base_url="http://127.0.0.1")
    every = visitor.get("/run/sampled/completions").text
    assert len(every) < 60_000
    assert "<script>" not in every
    assert "<img" not in every
    assert "\x1b" not in every
    assert "\u202e" not in every
    assert "\\x1b[31m\\u202egnp.exe" in html.unescape(every)
    assert "{{7*7}}" in every
    assert "x" * 400 + "</div>" in every
    assert "y" * 400 + "…</div>" in every
    hit = visitor.get("/run/sampled/completions?q=NEEDLE+lorem").text
    assert "<mark>needle</mark> ipsum" in hit
    assert "…em &lt;b&gt;<mark>lorem</mark>" in hit  # 60 letters before the first word
    assert len(hit) < 60_000
    # A word that is markup is searched for as the text that it is, and shown so in the form.
    form = visitor.get('/run/sampled/completions?q="><script>').text
    assert 'value="&#34;&gt;&lt;script&gt;"' in form
    assert "<script>" not in form
    script = visitor.get("/run/sampled/completions?q=<script>").text
    assert "<mark>&lt;script&gt;</mark>alert(1)" in script


def test_marks_are_of_whole_hits_the_longest_first() -> None:
    assert marked("a <ab> ABC", pattern(["a", "abc"])) == ("<mark>a</mark> &lt;<mark>a</mark>b&gt; <mark>ABC</mark>")
    assert marked("a.b axb", pattern(["a.b"])) == "<mark>a.b</mark> axb"
    assert marked("\x1b<", pattern(["<"])) == "\\x1b<mark>&lt;</mark>"
    assert marked("<", pattern([])) == "&lt;"

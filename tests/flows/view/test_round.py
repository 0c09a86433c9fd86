"""A round's page: its numbers by hand, bins that lead to just their completions, and rounds that are not finished."""

import html
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from flows.cli.main import app as cli
from flows.report.advice import advice
from flows.view.addresses import Exported, served
from flows.view.app import make_app
from flows.view.filters import Filter
from flows.view.pages import completions as completions_page
from flows.view.pages import round as round_page
from flows.view.pages.round import page
from flows.view.rendering import render
from flows.view.round_charts import Bin, histogram
from flows.view.security import Guard
from flows.view.site import OpenRun, Site
from pipeline.config import PreferencesConfig, SamplingConfig
from pipeline.evaluation.base_rate import BaseRate
from pipeline.evaluation.held_out import alarms, initial_alarms
from pipeline.records import PREFERENCES, to_table
from storage.errors import NotCommittedError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.queries.sql import select
from storage.tables.shards import write_table
from support.finished_run import finished_run, small_recipe
from support.sampled_run import ROWS, THIRD, sampled_run, training

ALARMS = ("entropy collapse: 0.5 nats per token, less than 50% of the initial policy's 2.00", "<b>news</b>: \x1b[1m")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(Store.open(tmp_path_factory.mktemp("round")))
    sampled_run(site.store, alarms=ALARMS)
    yield site
    site.close()


@pytest.fixture(scope="module")
def visitor(site: Site) -> TestClient:
    return TestClient(make_app(site, Guard("127.0.0.1")), base_url="http://127.0.0.1")


def tiles(opened: OpenRun, number: int) -> dict[str, Any]:
    return {tile.label: (tile.value, *tile.details) for tile in page(opened, number).values["tiles"]}


def test_tiles_say_what_was_sampled_preferred_and_dropped(site: Site) -> None:
    opened = site.run("sampled")
    assert tiles(opened, 1) == {
        "Prompts, training": ("3", "12 completions", "K = 4"),
        "Prompts, held-out": ("2", "2 completions", "K = 1"),
        "Preferences kept": ("1", "from 1 of 3 prompts", "mean margin 1"),
        "Dropped: agree": ("1", "of 3 prompts"),
        "Dropped: unjudged": ("1", "of 3 prompts"),
        "Held-out reward": ("+0.500", "±0.125 standard error", "judge vader"),
        "Tokens/s": ("150", "while sampling"),
        "Most of the time": ("sample 50%", "sample: 2.0 s", "weight sync: 1.0 s", "judge: 1.0 s"),
    }
    assert list(tiles(opened, 0)) == ["Prompts, held-out", "Held-out reward", "Tokens/s", "Most of the time"]


def test_a_tile_leads_to_the_completions_that_it_counts(site: Site) -> None:
    opened = site.run("sampled")
    found = {
        tile.label: completions_page.page(opened, Filter.parse(tile.query.items())).values["total"]
        for tile in page(opened, 1).values["tiles"]
        if tile.query is not None
    }
    assert found == {
        "Prompts, training": 12, "Prompts, held-out": 2, "Preferences kept": 1, "Dropped: agree": 4,
        "Dropped: unjudged": 4, "Held-out reward": 2,
    }  # fmt: skip


def test_of_several_pairs_of_a_prompt_some_may_be_dropped() -> None:
    """Of t0 two pairs are kept, which leave completion 2 out, and two dropped; of t1 all; of t2 only one is kept.

    A completion in a pair that is kept is not dropped, and has no reason; t2 has two completions, both in its pair.
    """
    store = Store.open("memory://")
    scored = {"t0": 4, "t1": 2, "t2": 2}
    rows = [row for prompt, count in scored.items() for row in training(1, prompt, *[("w", 2, 0.5)] * count)]
    run = sampled_run(store, rows, finished=0)
    kept = {"t0": [(0, 1), (3, 1)], "t1": [], "t2": [(0, 1)]}
    dropped = {"t0": ["tie", "tie"], "t1": ["tie", "tie", "tie"], "t2": ["tie"]}
    with run.writer() as writer:
        writer.commit(
            Key(1, "preferences", inputs="people"),
            [write_table(store, run.name, 1, "preferences", to_table(_preferences(kept, dropped), PREFERENCES))],
        )
    opened = Site(store).run(run.name)
    found = {tile.label: tile for tile in page(opened, 1).values["tiles"]}
    assert (found["Dropped: tie"].value, found["Dropped: tie"].details) == ("3", ["of 3 prompts"])
    assert found["Preferences kept"].value == "3"
    for query, expected in {
        "role=dropped": {("t0", 2), ("t1", 0), ("t1", 1)},
        "drop=tie": {("t0", 2), ("t1", 0), ("t1", 1)},
        "role=chosen": {("t0", 0), ("t0", 3), ("t2", 0)},
        "role=rejected": {("t0", 1), ("t2", 1)},
    }.items():
        shown = completions_page.page(opened, Filter.parse(parse_qsl(query))).values
        assert {(row["prompt_id"], row["candidate"]) for row in shown["rows"]} == expected
        there = select(store, opened.run, shown["sql"]).to_pylist()
        assert {(row["prompt_id"], row["candidate"]) for row in there} == expected


def test_a_tile_that_counts_prompts_without_a_dropped_completion_leads_nowhere() -> None:
    store = Store.open("memory://")
    run = sampled_run(store, training(1, "t0", ("w", 2, 0.5), ("v", 2, 0.25)), finished=0)
    with run.writer() as writer:
        rows = to_table(_preferences({"t0": [(0, 1)]}, {"t0": ["tie"]}), PREFERENCES)
        files = [write_table(store, run.name, 1, "preferences", rows)]
        writer.commit(Key(1, "preferences", inputs="people"), files)
    (tile,) = [tile for tile in page(Site(store).run(run.name), 1).values["tiles"] if "Dropped" in tile.label]
    assert (tile.value, tile.query) == ("1", None)


def _preferences(kept: dict[str, list[tuple[int, int]]], dropped: dict[str, list[str]]) -> list[dict[str, Any]]:
    """What people said of pairs: those that are kept, and the reasons of those that are not."""
    common = {"ranks": None, "soft_label": None, "rule": "labelled", "policy": "x"}
    none = {"candidates": [], "scores": [], "reference_logps": [], "token_counts": [], "margin": None}
    pair = {"scores": [1.0, 0.0], "reference_logps": [-1.0, -1.0], "token_counts": [2, 2], "margin": 1.0}
    return [
        {**common, **pair, "prompt_id": prompt, "kind": "pair", "candidates": list(both), "drop_reason": None}
        for prompt, pairs in kept.items()
        for both in pairs
    ] + [
        {**common, **none, "prompt_id": prompt, "kind": "dropped", "drop_reason": reason}
        for prompt, reasons in dropped.items()
        for reason in reasons
    ]


def bins(opened: OpenRun, number: int) -> dict[str, list[Any]]:
    return {found.figure.title: list(found.bins) for found in page(opened, number).values["histograms"]}


def test_each_bin_leads_to_just_its_completions(site: Site) -> None:
    opened = site.run("sampled")
    for number, sizes in {
        1: {"Scores": 9, "Lengths": 12, "Margins": 1, "Log-ratio, held-out": 2, "Scores, held-out": 2},
        0: {"Scores": 2, "Lengths": 2},
    }.items():
        found = bins(opened, number)
        assert {title: sum(one.count for one in of_title) for title, of_title in found.items()} == sizes
        for of_title in found.values():
            for one in of_title:
                asked = Filter.parse(parse_qsl(one.to))
                assert completions_page.page(opened, asked).values["total"] == one.count


def test_bins_of_scores_and_of_whole_numbers_by_hand(site: Site) -> None:
    found = bins(site.run("sampled"), 1)
    # From 0 to 1 in 24 bins: 0.25 begins the seventh, 0.1 + 0.2 lies in the eighth, 0.5 begins the thirteenth.
    assert [(round(one.low * 24), one.count, one.first, one.last) for one in found["Scores"]] == [
        (0, 1, 0.0, 0.0), (6, 1, 0.25, 0.25), (7, 1, THIRD, THIRD), (12, 5, 0.5, 0.5), (23, 1, 1.0, 1.0),
    ]  # fmt: skip
    # Lengths 2 to 10: a bin for each number, which stands in its middle.
    assert [(one.low, one.high, one.count) for one in found["Lengths"]] == [
        (1.5, 2.5, 1), (2.5, 3.5, 5), (3.5, 4.5, 1), (4.5, 5.5, 2), (5.5, 6.5, 1), (9.5, 10.5, 2),
    ]  # fmt: skip
    assert [(one.low, one.high, one.first, one.last) for one in found["Margins"]] == [(0.5, 1.5, 1.0, 1.0)]
    assert found["Scores"][0].span == "0"
    histograms = page(site.run("sampled"), 1).values["histograms"]
    assert histograms[0].figure.chart.description == "Scores. 9 values from 0 to 1, mean 0.45."
    assert histograms[3].figure.chart.description == "Log-ratio, held-out. 2 values from -1.5 to 0.25, mean -0.625."


def test_prompts_with_the_same_score_stand_out(site: Site, visitor: TestClient) -> None:
    shown = page(site.run("sampled"), 1).values
    assert shown["tied_total"] == 1
    (row,) = shown["tied"]
    assert row == {"prompt_id": "t1", "score": 0.5, "completions": 4, "texts": 3, "question": "Tell me of t1."}
    text = visitor.get("/run/sampled/round/1").text
    assert 'href="/run/sampled/prompt/t1?round=1&amp;kind=training"' in text
    assert 'href="/run/sampled/completions?round=1&amp;kind=training&amp;tie=yes"' in text
    assert page(site.run("sampled"), 2).values["tied"] == []


def test_bars_and_points_are_links_without_the_script(visitor: TestClient) -> None:
    text = visitor.get("/run/sampled/round/1").text
    targets = [html.unescape(target) for target in re.findall(r'<a xlink:href="([^"]*)"', text)]
    bars = [target for target in targets if target.startswith("/run/sampled/completions?round=1&")]
    points = [target for target in targets if target.startswith("/run/sampled/prompt/")]
    assert len(bars) == 5 + 6 + 1 + 2 + 2
    assert sorted(points) == sorted(
        f"/run/sampled/prompt/{row['prompt_id']}?round=1&kind=training"
        for row in ROWS
        if row["round"] == 1 and row["kind"] == "training" and row["score"] is not None
    )
    assert len(targets) == len(bars) + len(points)


def test_an_export_without_these_pages_has_no_links_in_its_charts(site: Site) -> None:
    shown = page(site.run("sampled"), 1)
    files = Exported(
        {f"/static/{name}": name for name in ("page.css", "page.js", "colours.css", "charts.js", "icon.svg")}
    )
    assert "<a xlink:href" not in render(shown, files, exported=True)
    assert "<a xlink:href" in render(shown, served)


def test_rounds_lead_to_their_neighbours(visitor: TestClient) -> None:
    text = visitor.get("/run/sampled/round/1").text
    assert '<a rel="prev" href="/run/sampled/round/0">' in text
    assert '<a rel="next" href="/run/sampled/round/2">' in text
    assert 'rel="prev"' not in visitor.get("/run/sampled/round/0").text
    assert 'rel="next"' not in visitor.get("/run/sampled/round/2").text


def test_a_round_that_is_not_finished_shows_what_there_is(site: Site, visitor: TestClient) -> None:
    text = visitor.get("/run/sampled/round/2").text
    assert "<b>Not finished.</b> The run stopped in it" in text
    assert 'data-events="/events/sampled"' in text
    assert tiles(site.run("sampled"), 2) == {
        "Prompts, training": ("1", "4 completions", "K = 4"),
        "Preferences kept": ("1", "from 1 of 1 prompt", "mean margin 0.75"),
        "Tokens/s": ("not measured", "while sampling"),
    }
    assert "Not finished" not in visitor.get("/run/sampled/round/1").text
    with site.run("sampled").run.writer() as writer:
        writer.commit(Key(3, "handover"), [])
        assert "The run is at work on it" in visitor.get("/run/sampled/round/3").text
    empty = visitor.get("/run/sampled/round/3")  # nothing of it can be drawn
    assert empty.status_code == 200
    assert "<svg" not in empty.text


def test_the_time_of_a_round_at_work_is_that_of_its_pieces() -> None:
    store = Store.open("memory://")
    run = sampled_run(store)
    with run.writer() as writer:
        for shard, (start, end, tokens) in enumerate([(0, 2, 100), (2, 4, 300)]):
            meta = {"span": [1e9 + start, 1e9 + end], "device": "cuda:0", "tokens": tokens}
            writer.commit(Key(3, "handover", shard), [], meta)
            writer.commit(Key(3, "judgments", shard), [], {"span": [1e9 + end, 1e9 + end + 0.5], "device": "cpu"})
    shown = page(Site(store).run(run.name), 3).values
    found = {tile.label: (tile.value, *tile.details) for tile in shown["tiles"]}
    assert found["Tokens/s"] == ("100", "while sampling")  # 400 tokens in 4 seconds
    assert found["Most of the time"] == ("sample on cuda:0 80%", "sample on cuda:0: 4.0 s", "judge on cpu: 1.0 s")
    assert [section.title for section in shown["sections"]] == ["Where the time goes"]


def test_sql_and_command_of_a_round_are_taken(site: Site) -> None:
    opened = site.run("sampled")
    shown = page(opened, 1).values
    (row,) = select(opened.store, opened.run, shown["sql"]).to_pylist()
    assert (row["round"], row["reward"]) == (1, 0.5)
    result = CliRunner().invoke(cli, [*shlex.split(shown["command"])[1:], "--limit", "99", "--format", "json"])
    assert len(json.loads(result.stdout)) == 12
    assert page(opened, 2).values["sql"] is None


def test_a_round_that_is_not_there_is_said_in_a_sentence(site: Site, visitor: TestClient) -> None:
    with pytest.raises(NotCommittedError, match="there is no round 9 of run 'sampled': it has rounds 0 to"):
        page(site.run("sampled"), 9)
    assert visitor.get("/run/sampled/round/9").status_code == 404
    for wrong in ("x", "-1", "99999999999"):
        assert visitor.get(f"/run/sampled/round/{wrong}").status_code == 400


def test_many_points_are_sampled_and_said_to_be(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    monkeypatch.setattr(round_page, "_MOST_POINTS", 4)
    figure = page(site.run("sampled"), 1).values["scatter"]
    assert figure.caption.endswith("A sample of 4 of 9.")
    assert figure.chart.description.startswith("Reward against length. 4 completions of")
    monkeypatch.undo()
    assert "sample" not in page(site.run("sampled"), 1).values["scatter"].caption


def test_alarms_say_what_they_mean_and_stay_text(visitor: TestClient) -> None:
    text = visitor.get("/run/sampled/round/1").text
    assert "entropy collapse: 0.5 nats per token" in text
    assert "its completions become alike" in text
    assert 'href="/run/sampled/completions?round=1&amp;kind=held-out">Completions that show it' in text
    assert "&lt;b&gt;news&lt;/b&gt;: \\x1b[1m" in text
    assert "The round raised no alarm" in visitor.get("/run/sampled/round/0").text


def every_alarm() -> list[str]:
    """Every alarm that a round can raise, by those who raise them."""
    initial = {"length": 10.0, "entropy_per_token": 2.0}
    bad = {
        "preference_share": 0.01, "dropped": {"agree": 99}, "chosen_fell": 0.9, "chosen_change": -2.0, "length": 99.0,
        "entropy_per_token": 0.1, "kl_initial": 9.0, "set_aside": 3, "unparsable": 0.5,
        "unscored": ["it gave no score"], "over_optimised": ["it fell"], "drifted": ["it moved"], "truncated": 1.0,
    }  # fmt: skip
    evaluation = small_recipe().evaluation
    found = alarms(bad, initial, evaluation, PreferencesConfig(), SamplingConfig())
    found += alarms({**bad, "no_update": "1 of 9 prompts"}, initial, evaluation)
    for scores, verdicts in (((0.0, 0.0), True), ((1.0, 1.0), True), ((0.5, 0.5), False)):
        rate = BaseRate(judge="vader", scores=scores, verdicts=verdicts)
        found += initial_alarms({"base_rate_alarm": rate.alarm}, SamplingConfig())
    return [*found, "went on without 3 labels, after 5 minutes"]


def test_there_is_advice_for_every_alarm() -> None:
    said = every_alarm()
    kinds = {known.begins for alarm in said if (known := advice(alarm)) is not None}
    assert [alarm for alarm in said if advice(alarm) is None] == []
    assert len(kinds) == 13
    assert advice("judge drift: x").begins == "judge drift"  # type: ignore[union-attr]
    assert advice("something new") is None
    for alarm in said:
        Filter.parse(dict(advice(alarm).look).items())  # type: ignore[union-attr]


def test_a_large_round_stays_below_a_megabyte() -> None:
    store = Store.open("memory://")
    rows = [
        row
        for n in range(250)
        for row in training(1, f"t{n:03}", *((f"w{n} {k}", (n * k) % 97, n * k / 7) for k in range(8)))
    ]  # fmt: skip
    sampled_run(store, rows)
    visitor = TestClient(make_app(Site(store), Guard("127.0.0.1")), base_url="http://127.0.0.1")
    answer = visitor.get("/run/sampled/round/1")
    assert "A sample of 800 of 2,000." in answer.text
    assert len(answer.content) < 1_000_000


@pytest.mark.parametrize(
    ("top", "ticks"),
    [
        (1, [0, 1]),
        (2, [0, 1, 2]),
        (5, [0, 1, 2, 3, 4, 5]),
        (6, [0, 2, 4, 6]),
        (11, [0, 5, 10]),
        (480, [*range(0, 401, 100)]),
    ],
)
def test_counts_have_whole_ticks(top: int, ticks: list[int]) -> None:
    chart = histogram("t", [Bin(0.0, 1.0, top, 0.0, 1.0, "")], 0.5, "score").to_dict()
    assert chart["layer"][0]["encoding"]["y"]["axis"]["values"] == ticks


def test_values_that_differ_by_rounding_share_a_bin(tmp_path: Path) -> None:
    """0.1 + 0.2 and 0.3 are two numbers, and so are 0.23 - 0.2 and 0.03."""
    store = Store.open(tmp_path)
    finished_run(store)
    found = page(Site(store).run("small"), 2).values["histograms"]
    (margins,) = [one for one in found if one.figure.title == "Margins"]
    assert [(one.low, one.high, one.count) for one in margins.bins] == [(pytest.approx(-0.47), pytest.approx(0.53), 3)]

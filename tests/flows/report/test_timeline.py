"""The timeline of rounds, from commits that say when they worked: lanes, shares, cuts, and how they are shown."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.report.gantt import gantt
from flows.report.rendering import to_svg
from flows.report.report import write_report
from flows.report.timeline import Lane, Timeline, duration, lane_rows, timeline
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from storage.log.writer import Writer
from support.finished_run import finished_run

START = 1_800_000_000.0
Work = Mapping[tuple[int, str, int | None], Mapping[str, Any]]


def at(start: float, end: float, device: str = "cpu", **more: Any) -> dict[str, Any]:
    """The meta of a commit whose work ran from ``start`` to ``end``, in seconds of the test."""
    return {"span": [START + start, START + end], "device": device, **more}


ROUND: Work = {
    (1, "candidates", 0): at(0, 2, tokens=200),
    (1, "candidates", 1): at(2, 4, tokens=300),
    (1, "judgments", 0): at(2, 3),
    (1, "judgments", 1): at(4, 5),
    (1, "preferences", None): at(5, 5.5),
    (1, "checkpoint", None): at(5.5, 8.5, train_tokens=600, seconds=2.5),
    (1, "handover", None): at(8.5, 9),
    (1, "eval_candidates", 0): at(9, 9.5, tokens=50),
    (1, "eval_judgments", 0): at(9.5, 9.75),
    (1, "eval_logps", None): at(9.5, 10),
}


def run_of(work: Work, name: str = "timed") -> Run:
    """A run of nothing but commits that say when they worked."""
    store = Store.open("memory://")
    run = store.create_run(name, {})
    with run.writer() as writer:
        for (number, stage, shard), meta in work.items():
            writer.commit(Key(number, stage, shard), [], dict(meta))
    return run


def lanes_of(found: Timeline | None) -> dict[str, Lane]:
    assert found is not None
    return {lane.name: lane for lane in found.lanes}


def test_lanes_say_how_long_they_worked() -> None:
    found = timeline(run_of(ROUND), [1])
    lanes = lanes_of(found)
    assert list(lanes) == ["sample on cpu", "judge on cpu", "update on cpu"]
    assert found is not None
    assert (found.started, found.seconds, found.ends, found.cuts) == (START, 10.0, {1: 10.0}, [])
    sample, judge, update = lanes.values()
    assert sample.by_kind == {"training": 4.0, "evaluation": 0.5, "weight sync": 0.5}
    assert (sample.busy, sample.idle, sample.share) == (5.0, 5.0, 0.5)
    # 550 tokens in the 4.5 seconds of sampling: the weight sync has none, and does not count.
    assert sample.tokens_per_second == pytest.approx(550 / 4.5)
    assert judge.by_kind == {"training": 2.5, "evaluation": 0.25, "weight sync": 0.0}
    assert judge.tokens_per_second is None
    assert update.by_kind == {"training": 3.0, "evaluation": 0.5, "weight sync": 0.0}
    assert update.tokens_per_second == pytest.approx(200)


def test_pieces_that_overlap_count_once_in_a_lane() -> None:
    # Two shards at once with one judge; and an update in pieces, of which it waited for the second.
    work = {
        (1, "judgments", 0): at(0, 6),
        (1, "judgments", 1): at(2, 8),
        (1, "checkpoint", None): {
            **at(1, 10, train_tokens=100),
            "busy": [[START + 1, START + 3], [START + 7, START + 10]],
        },
    }
    judge, update = lanes_of(timeline(run_of(work), [1])).values()
    assert (judge.busy, judge.share) == (8.0, 0.8)
    assert update.busy == 5.0
    assert update.tokens_per_second == pytest.approx(20)


def test_replicas_have_lanes_of_their_own() -> None:
    work = {(1, "candidates", shard): at(shard, shard + 1, f"replica {shard % 2}", tokens=10) for shard in range(4)}
    lanes = lanes_of(timeline(run_of(work), [1]))
    assert {name: lane.busy for name, lane in lanes.items()} == {"sample on replica 0": 2.0, "sample on replica 1": 2.0}


def test_what_was_sampled_ahead_belongs_to_the_round_in_which_it_ran() -> None:
    # Round 2's candidates were sampled while round 1 was updated.
    work = {
        **ROUND,
        (2, "candidates", 0): at(6, 8, tokens=100),
        (2, "checkpoint", None): at(10, 14, train_tokens=400),
        (2, "eval_candidates", 0): at(14, 15, tokens=50),
    }
    run = run_of(work)
    first, second = timeline(run, [1]), timeline(run, [2])
    ahead = lanes_of(first)["sample on cpu"]
    assert ahead.busy == 7.0
    assert [span.round for span in ahead.spans] == [1, 1, 2, 1, 1]
    assert second is not None
    assert (second.started - START, second.seconds) == (10.0, 5.0)
    assert lanes_of(second)["sample on cpu"].busy == 1.0
    both = timeline(run, [1, 2])
    assert both is not None
    assert (both.seconds, both.ends) == (15.0, {1: 10.0, 2: 15.0})
    (early,) = (span for lane in both.lanes for span in lane.spans if both.is_ahead(span))
    assert (early.round, early.stage, early.start) == (2, "candidates", 6.0)
    assert to_svg(gantt("Test", both)).count('opacity="0.4"') == 1


def test_the_time_between_a_kill_and_the_resume_is_cut_out() -> None:
    hours = 3 * 3600.0
    resumed = {key: meta for key, meta in ROUND.items() if key[1] in ("candidates", "judgments")}
    resumed |= {
        key: {**meta, "span": [time + hours for time in meta["span"]]}
        for key, meta in ROUND.items()
        if key not in resumed
    }
    found = timeline(run_of(resumed), [1])
    assert found is not None
    (cut,) = found.cuts
    assert (cut.start, cut.seconds) == (5.0, hours)
    assert found.seconds == pytest.approx(10)
    assert lanes_of(found)["update on cpu"].busy == pytest.approx(3.5)
    drawing = to_svg(gantt("Test", found))
    assert "cut: 3 h 0 min in which nothing ran" in drawing
    # A pause shorter than a quarter of the work, or than ten seconds, stays.
    short = {(1, "candidates", 0): at(0, 2), (1, "judgments", 0): at(11, 12)}
    kept = timeline(run_of(short), [1])
    assert kept is not None
    assert (kept.cuts, kept.seconds) == ([], 12.0)


@pytest.mark.parametrize("meta", [{}, {"span": None}, {"span": [3.0]}, {"span": [3.0, 1.0]}, {"span": ["a", "b"]}])
def test_commits_without_times_have_no_timeline(meta: dict[str, Any]) -> None:
    assert timeline(run_of({(1, "candidates", 0): meta, (1, "unknown", 0): at(0, 1)}), [1]) is None
    partly = timeline(run_of({(1, "candidates", 0): meta, (1, "checkpoint", None): {"span": [START, START + 1]}}), [1])
    assert list(lanes_of(partly)) == ["update"]


def bars_drawn(drawing: str) -> list[tuple[float, float, float, float, str]]:
    """Left, top, width, height and colour of the bars of a timeline."""
    marks = drawing.partition("layer_0_marks")[2].partition("</g>")[0]
    shape = r'd="M(-?[\d.]+),(-?[\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+Z" fill="var\(--(s\d)\)"'
    return [
        (float(x), float(y), float(width), float(height), colour)
        for x, y, width, height, colour in re.findall(shape, marks)
    ]


def test_a_chart_has_a_bar_for_each_piece_in_its_colour() -> None:
    found = timeline(run_of(ROUND), [1])
    assert found is not None
    drawing = to_svg(gantt("Round <1>", found))
    label = "Round &lt;1&gt;. 10.0 seconds: sample on cpu busy 50%; judge on cpu busy 28%; update on cpu busy 35%."
    assert f'aria-label="{label}"' in drawing
    widths: dict[str, list[float]] = {"s1": [], "s2": [], "s3": []}
    for _, _, width, _, colour in bars_drawn(drawing):
        widths[colour].append(width)
    training, evaluation, weight_sync = widths.values()
    assert (len(training), len(evaluation), len(weight_sync)) == (6, 3, 1)
    # The update takes 3 s, and the weight sync half a second; coordinates have three decimals.
    assert max(training) / weight_sync[0] == pytest.approx(6, abs=0.01)


def test_pieces_at_the_same_time_stand_one_below_the_other() -> None:
    # The second shard runs beside the first one; the third begins a moment before the second has ended.
    work = {(1, "candidates", 0): at(0, 9), (1, "candidates", 1): at(2, 8), (1, "candidates", 2): at(7.99, 10)}
    found = timeline(run_of(work), [1])
    assert found is not None
    bars = bars_drawn(to_svg(gantt("Test", found)))
    tops = [y for _, y, *_ in bars]
    bottoms = [y + height for _, y, _, height, _ in bars]
    first, second, third = zip(tops, bottoms, strict=True)
    assert first[1] == pytest.approx(second[0], abs=0.02)
    assert third == second
    assert second[1] - second[0] == pytest.approx(first[1] - first[0], abs=0.02)


def test_very_many_pieces_make_a_light_chart() -> None:
    work = {(1, "candidates", shard): at(shard, shard + 0.999, tokens=1) for shard in range(900)}
    found = timeline(run_of(work), [1])
    assert found is not None
    assert lanes_of(found)["sample on cpu"].busy == pytest.approx(899.1)
    assert len(to_svg(gantt("Test", found))) < 60_000


def committed(writer: Writer, number: int) -> None:
    """A round of ten seconds after the one before: the update takes six, the weight sync one."""
    begin = 10.0 * number
    if number:
        writer.commit(Key(number, "checkpoint"), [], at(begin + 1, begin + 7, "cuda:0", train_tokens=1200))
    writer.commit(Key(number, "handover"), [], at(begin + 7, begin + 8, "cuda:1"))
    writer.commit(Key(number, "judge_probe"), [], at(begin + 8, begin + 10, "cuda:2"))


def test_the_report_shows_the_last_rounds(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "root")
    page = Path(write_report(store, finished_run(store, rounds=2, also=committed))).read_text()
    assert "Timeline of rounds 1 and 2" in page
    # Both updates take six of twenty seconds less the first, in which nothing had begun.
    assert "update on cuda:0 busy 63%" in page
    row = re.search(r"<caption>Time of rounds 1 and 2</caption>.*?</table>", page, re.DOTALL)
    assert row is not None
    assert [text.strip() for text in re.findall(r">([^<]+)</td>", row[0])][-8:] == [
        "cuda:0", "12.0", "63%", "12.0", "0.0", "0.0", "200", "7.0",
    ]  # fmt: skip


def test_the_command_shows_a_round(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    finished_run(Store.open(root), also=committed)
    shown = CliRunner().invoke(app, ["timeline", "small@3", "--root", root])
    assert shown.exit_code == 0, shown.output
    assert "small@3, 9.0 s" in shown.output
    # Of 9 seconds the update takes six from the first on: 48 marks, two thirds of them.
    row, marks = (line.split() for line in shown.output.splitlines() if "cuda:0" in line)
    assert row == ["update", "cuda:0", "6.0", "67%", "200", "3.0"]
    assert marks == ["update", "on", "cuda:0", 32 * "█" + 16 * "·"]
    found = json.loads(CliRunner().invoke(app, ["timeline", "small@3", "--root", root, "--json"]).output)
    assert found["seconds"] == 9.0
    assert [lane["device"] for lane in found["lanes"]] == ["cuda:1", "cuda:2", "cuda:0"]
    finished_run(Store.open(root), "old")
    assert "recorded no times" in CliRunner().invoke(app, ["timeline", "old@1", "--root", root]).output


def test_rows_are_for_people() -> None:
    found = timeline(run_of(ROUND), [1])
    assert found is not None
    assert lane_rows(found)[0] == {
        "part": "sample", "device": "cpu", "busy, s": "5.0", "share": "50%", "training, s": "4.0",
        "evaluation, s": "0.5", "weight sync, s": "0.5", "tokens/s": "122", "idle, s": "5.0",
    }  # fmt: skip
    assert [duration(seconds) for seconds in (4.4, 59, 3599, 3661, 90_000, 400_000)] == [
        "4 s", "59 s", "1 h 0 min", "1 h 1 min", "25 h 0 min", "5 days",
    ]  # fmt: skip

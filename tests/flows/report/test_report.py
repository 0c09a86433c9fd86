"""The report of a run in a real store: what it says, that it needs nothing else, and that nothing escapes."""

import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from flows.registry.round_summary import rows_of, summaries
from flows.report.charts import Axes, curves, histograms, reliability, side_by_side
from flows.report.data import step_points
from flows.report.rendering import LIGHT, PAPER, svg_of, to_svg
from flows.report.report import write_report
from flows.report.sections import summary_chart
from pipeline.errors import DataError
from storage.errors import DamagedFileError
from storage.log.run import Run
from storage.log.store import Store
from support.finished_run import STEPS_PER_ROUND, finished_run, small_recipe

HOSTILE = "</p><script>alert(\"x\")</script> & 'quoted' <b>bold</b>"
_VOID = {"meta", "br", "img", "link", "input", "hr"}


@dataclass
class Page(HTMLParser):
    """A page, parsed: its elements with their attributes, and the text inside each kind of element."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def parse(cls, page: str) -> "Page":
        parsed = cls()
        parsed.feed(page)
        parsed.close()
        assert not parsed.open, f"elements that are not closed: {parsed.open}"
        return parsed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [value for found, attributes in self.elements if found == tag and (value := attributes.get(name))]

    @property
    def text(self) -> str:
        return " ".join(self.texts["body"][0].split())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A run with three rounds, and its page."""
    store = Store.open(tmp_path_factory.mktemp("three"))
    run = finished_run(store)
    return run, Path(write_report(store, run)).read_text()


@pytest.fixture(scope="module")
def whole(three: tuple[Run, str]) -> str:
    """The page of a run with three rounds."""
    return three[1]


def test_says_what_the_rounds_say(three: tuple[Run, str]) -> None:
    run, page = three[0], Page.parse(three[1])
    cells = {text.strip() for tag in ("th", "td") for text in page.texts[tag]}
    for row in rows_of(summaries(run.rounds())):
        for column, value in row.items():
            assert {column, value} <= cells
    assert page.texts["h1"] == ["small"]
    assert "A small run." in page.text
    assert "finished, 3 of 3 rounds" in page.text
    # Held-out scores of round 0 are all zero. In round n prompt e<k> has 0.1 n (k + 1), but e2 its negative, so that
    # their mean in round 3 is 0.3 (1 + 2 - 3 + 4 + 5) / 5.
    assert "Held-out reward +0.540 +0.000 in round 0" in page.text
    assert "Win rate against round 0 80.0% 80.0% against round 2" in page.text


def test_shows_the_updates_and_their_checks(whole: str) -> None:
    page = Page.parse(whole)
    columns = [text.strip() for text in page.texts["th"]]
    first = columns.index("preferences")
    assert columns[first : first + 11] == [
        "preferences", "dropped", "steps", "first loss", "off by", "last loss", "accuracy", "drift", "tokens/s",
        "weight sync, s", "sample, s",
    ]  # fmt: skip
    last_row = [text.strip() for text in page.texts["td"][-11:]]
    assert last_row == ["3", "none", "4", "0.6931", "+2e-07", "0.5000", "75.0%", "1e-06", "500", "0.1", "2.0"]


def test_thoughts_are_shown_of_policies_that_think(store: Store, whole: str) -> None:
    changes = {"thought_length": 30.5, "answer_length": 4.25, "cut_in_thought": 0.25, "cut_in_answer": 0.125}
    page = Page.parse(Path(write_report(store, finished_run(store, changes=changes))).read_text())
    assert "25.0% within the thought" in page.text
    assert "Tokens of thought 30.5 4.2 of the answer" in page.text
    for title in ("Length of thought and answer", "Truncated within thought or answer"):
        assert title in page.text
        assert title not in whole
    assert "Tokens of thought" not in whole


def test_alarms_are_at_the_top(store: Store, whole: str) -> None:
    # KL to round 0 is 0.2 n plus 0.02, above the limit of 0.5 in round 3 only.
    page = Page.parse(whole)
    header = " ".join(page.texts["header"][0].split())
    assert "Round 3: drift: KL to the initial policy is 0.62 nats, above 0.5" in header
    assert "What to do: Read the held-out completions with the largest log-ratio" in header
    calm = finished_run(store, rounds=0)
    assert "No round raised an alarm." in Page.parse(Path(write_report(store, calm)).read_text()).text


def test_completions_that_changed_most_come_first(whole: str) -> None:
    page = Page.parse(whole)
    articles = [" ".join(text.split()) for text in page.texts["article"]]
    # By the size of the change in score, 0.3 times 5, 4, 3 (downwards), 2 and 1; equal answers none.
    assert [re.search(r"Tell me of (e\d)", article)[1] for article in articles] == ["e4", "e3", "e2", "e1", "e0"]  # type: ignore[index]
    assert articles[0] == (
        "Tell me of e4. Round 0 +0.000 answer 0 to e4 in round 0 Round 3 +1.500 answer 0 to e4 in round 3"
    )


def test_every_curve_is_there(whole: str) -> None:
    titles = {title.strip() for title in Page.parse(whole).texts["h3"]}
    assert titles >= {
        "Held-out reward", "Win rate", "Judge grammar", "Scores of the completions", "KL divergence",
        "Log-probability of the pairs", "Likelihood displacement", "Entropy and surprise", "Length",
        "Truncated completions", "Loss", "Implicit rewards", "Accuracy", "Gradient norm",
    }  # fmt: skip
    assert "Where the time goes" not in whole  # nothing in this run says when it was done


def test_the_judge_is_watched(store: Store, whole: str) -> None:
    # Four candidates of three tokens each: no rank of length, and no tie. The grammar sees no difference in round 0.
    page = Page.parse(whole)
    titles = {title.strip() for title in page.texts["h3"]}
    assert "What the judge leaves open" in titles
    assert not titles & {"Score and length", "Drift of the judge"}
    columns = [text.strip() for text in page.texts["th"]]
    first = columns.index("unjudged")
    assert columns[first : first + 10] == [
        "unjudged", "ties", "unparsable", "flips", "score and length", "chosen longer by", "replayed", "rounds old",
        "agrees with grammar", "ahead of grammar",
    ]  # fmt: skip
    changes = {
        "gaps": {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}, "agreement": {"a": 0.75}, "judge_drift": {"llm": 0.1},
        "length_correlation": 0.5, "replayed": 7, "replayed_age": 1.5, "flipped": 0.25,
    }  # fmt: skip
    page = Page.parse(Path(write_report(store, finished_run(store, changes=changes))).read_text())
    assert {title.strip() for title in page.texts["h3"]} >= {
        "Rise over held-out judges", "Rise over held-out judges: d", "Agreement with held-out judges: a",
        "Score and length", "Drift of the judge: llm",
    }  # fmt: skip
    assert [text.strip() for text in page.texts["td"]].count("1.5") == 1


def test_a_single_scored_answer_has_no_error(store: Store) -> None:
    changes = {"reward_se": None, "kl_initial_se": None, "kl_previous_se": None, "judges": {}, "win_rate_initial": None}
    page = Path(write_report(store, finished_run(store, changes=changes))).read_text()
    assert "one scored answer" in page
    assert "nats per sequence" in page


def test_a_line_that_is_not_drawn_is_not_spoken_of(store: Store, whole: str) -> None:
    """With staleness, a round starts from another policy than its reference, and its first loss has no known value."""
    assert "The dashed line is the value of the first step" in whole
    finished_run(store, "stale", changes={"first_loss_expected": None})
    write_report(store, store.run("stale"))
    page = (store.report_path("stale") or Path()).read_text()
    assert "The dashed line is the value of the first step" not in page


def test_figures_and_tables_can_be_read_aloud(whole: str) -> None:
    page = Page.parse(whole)
    drawings = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(drawings) == whole.count("<figure>")
    assert {attributes["role"] for attributes in drawings} == {"img"}
    labels = [attributes["aria-label"] for attributes in drawings]
    assert "Held-out reward. from 0 in round 0 to 0.54 in 3." in labels
    assert f"Loss. from 0.693 in optimizer step 0 to 0.543 in {3 * STEPS_PER_ROUND - 1}." in labels
    assert all(len(captions) == whole.count("<table>") for captions in (page.texts["caption"], page.texts["thead"]))
    assert set(page.attributes("th", "scope")) == {"col", "row"}
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_needs_no_network_and_no_script(whole: str) -> None:
    page = Page.parse(whole)
    assert {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "foreignobject"} == set()
    for _, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name == "src"}
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", whole))
    assert "@import" not in whole
    assert "default-src 'none'" in page.attributes("meta", "content")[-1]
    assert set(re.findall(r"https?://[^\"\s]*", whole)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_ids_are_unique_and_found(whole: str) -> None:
    page = Page.parse(whole)
    ids = [identifier for _, attributes in page.elements if (identifier := attributes.get("id"))]
    assert len(ids) == len(set(ids))
    asked = re.findall(r"url\(#([^)]*)\)", whole) + re.findall(r'(?:href="#|labelledby=")([^"]*)"', whole)
    assert asked
    assert set(asked) <= set(ids)


def test_follows_light_and_dark_mode(whole: str) -> None:
    assert "@media (prefers-color-scheme: dark)" in whole
    drawings = "".join(re.findall(r"<svg.*?</svg>", whole, re.DOTALL))
    assert re.findall(r"#[0-9a-f]{3,6}\b", drawings) == []  # every colour is a variable of the page
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", whole))
    charts, charts_dark, others, others_dark = re.findall(r":root \{(.*?)\}", whole, re.DOTALL)
    colours = set(re.findall(r"(--[a-z0-9-]+):", charts_dark + others_dark))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", charts + others))
    assert used - colours == {"--font", "--mono", "--radius"}


def test_text_is_escaped_everywhere(store: Store) -> None:
    recipe = small_recipe(description=HOSTILE)
    gaps = {f"{HOSTILE} 1": 0.1, f"{HOSTILE} 2": 0.2}
    changes = {"alarms": [HOSTILE], "judges": {HOSTILE: 0.5}, "dropped": {HOSTILE: 1}, "gaps": gaps}
    run = finished_run(store, recipe=recipe, text=lambda *which: f"{HOSTILE} {which}", changes=changes)
    written = Path(write_report(store, run)).read_text()
    page = Page.parse(written)
    assert {tag for tag, _ in page.elements} & {"script", "b"} == set()
    assert "<script" not in written
    assert HOSTILE in page.text
    assert f"Round 3: {HOSTILE}" in page.text
    assert f"Judge {HOSTILE}" in page.text
    assert any(f"Judge {HOSTILE}" in label for label in page.attributes("svg", "aria-label"))
    assert {f"{HOSTILE} 1", f"{HOSTILE} 2"} <= set(page.texts["text"])  # the legend of a chart
    assert all(HOSTILE in article for article in page.texts["article"])


def test_what_the_judge_says_is_beside_each_completion(store: Store) -> None:
    """That of round 0 and that of the last round, as text; a judge that says nothing has no place."""

    def rationale(number: int, prompt_id: str, _index: int) -> str:
        return "" if prompt_id == "e1" else f"{HOSTILE} of {prompt_id} in round {number}"

    written = Path(write_report(store, finished_run(store, rationale=rationale))).read_text()
    page = Page.parse(written)
    said = [
        tuple(re.findall(r"The judge: (.*?)(?= Round 3|$)", " ".join(text.split()))) for text in page.texts["article"]
    ]
    assert said == [
        () if prompt_id == "e1" else tuple(f"{HOSTILE} of {prompt_id} in round {number}" for number in (0, 3))
        for prompt_id in ("e4", "e3", "e2", "e1", "e0")
    ]
    assert {tag for tag, _ in page.elements} & {"script", "b"} == set()


def test_the_recipe_and_the_commands_are_complete(store: Store) -> None:
    run = finished_run(store, rounds=1)
    page = Page.parse(Path(write_report(store, run)).read_text())
    assert yaml.safe_load(page.texts["pre"][-1]) == run.header["recipe"]
    assert "stopped, 1 of 3 rounds" in page.text
    commands = "\n".join(page.texts["pre"][:-1])
    assert f"rondo run small.yaml --name small-again --rounds 1 --root {store.root}" in commands
    assert f"rondo resume small --rounds 2 --root {store.root}" in commands
    assert run.header["packages"]["torch"] in page.text


def test_the_commands_work(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = Page.parse(Path(write_report(store, finished_run(store, rounds=1))).read_text())
    look = page.texts["pre"][1].strip().splitlines()
    assert [command.split()[1] for command in look] == ["rounds", "show", "export"]
    for command in look:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "pairs" / "README.md").exists()


def test_a_fork_says_whose_it_is_and_what_it_changed(store: Store) -> None:
    finished_run(store, "parent", rounds=0)
    recipe = small_recipe(update={"beta": 0.7}, rounds=5)
    child = finished_run(store, "child", rounds=0, recipe=recipe, parent={"run": "parent", "round": 0})
    page = Page.parse(Path(write_report(store, child)).read_text())
    assert "forked from parent@0" in page.text
    assert "rondo fork parent@0 --name child-again --run --rounds 1 --set update.beta=0.7 --root" in page.text
    orphan = finished_run(store, "orphan", rounds=0, parent={"run": "gone", "round": 1})
    assert "rondo fork gone@1" in Path(write_report(store, orphan)).read_text()


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_young_run_has_a_report_too(store: Store, rounds: int) -> None:
    page = Page.parse(Path(write_report(store, finished_run(store, rounds=rounds))).read_text())
    titles = {title.strip() for title in page.texts["h3"]}
    assert ("Win rate" in titles) == ("Loss" in titles) == ("article" in page.texts) == bool(rounds)
    assert "Held-out reward" in titles
    assert f"stopped, {rounds} of 3 rounds" in page.text


def test_a_run_without_rounds_has_none(store: Store) -> None:
    run = store.create_run("young", {"recipe": {}})
    with pytest.raises(DataError, match="run 'young' has no finished round to report: 'rondo resume young'"):
        write_report(store, run)
    path = store.report_path("young")
    assert path is not None
    assert not path.exists()


def test_a_report_replaces_the_one_before_as_a_whole(store: Store) -> None:
    run = finished_run(store, rounds=1)
    path = Path(write_report(store, run))
    assert path == store.report_path("small")
    first = path.read_bytes()
    assert write_report(store, run) == str(path)
    assert path.read_bytes() == first  # the same run gives the same bytes
    (file,) = run.files(1, "metrics")
    damaged = store.objects.local_path(file.path)
    assert damaged is not None
    damaged.unlink()
    with pytest.raises(DamagedFileError):
        write_report(store, run)
    assert path.read_bytes() == first
    assert {entry.name for entry in path.parent.iterdir()} == {"log", "rounds", "summaries", "report.html"}


def test_a_store_elsewhere_holds_its_report() -> None:
    store = Store.open("memory://")
    run = finished_run(store, rounds=1)
    for _ in range(2):
        key = write_report(store, run)
        assert key == store.report_key("small")
    assert Page.parse(store.objects.read(key).decode()).texts["h1"] == ["small"]


def points_drawn(drawing: str) -> list[tuple[float, float]]:
    """The corners of the only line in a chart of one curve."""
    (path,) = re.findall(r'<path d="([^"]*)" stroke="var\(--s1\)"', drawing)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", path)]


BY_ROUND = Axes()


def one_curve(xs: list[float], ys: list[float | None], axes: Axes = BY_ROUND, error: float | None = None) -> str:
    rows = [{"curve": "", "x": x, "y": y, "error": error} for x, y in zip(xs, ys, strict=True)]
    return to_svg(curves("Test", rows, axes))


def test_a_curve_goes_where_its_numbers_say() -> None:
    (x0, y0), (x1, y1), (x2, y2) = points_drawn(one_curve([0, 1, 3], [1.0, 2.0, 4.0], Axes(x="step")))
    # Coordinates are written with three decimals.
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, abs=1e-3)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(3, abs=1e-3)
    assert y0 > y1 > y2  # downwards in SVG


def test_an_interval_is_as_wide_as_its_standard_errors_say() -> None:
    drawing = one_curve([0, 1], [1.0, 2.0], error=0.5)
    (_, y0), (_, y1) = points_drawn(drawing)
    (band,) = re.findall(r'<path d="([^"]*)" fill="var\(--s1\)" opacity="0.16"', drawing)
    ys = [float(y) for y in re.findall(r",(-?[\d.]+)", band)]
    # The curve rises by 1, the band by that and by 1.96 standard errors of 0.5 on either side.
    assert (max(ys) - min(ys)) / (y0 - y1) == pytest.approx(1 + 2 * 1.96 * 0.5, abs=1e-3)


def test_what_was_not_measured_is_a_gap_and_not_a_zero() -> None:
    drawing = one_curve([0, 1, 2, 3, 4], [5.0, 6.0, None, 6.0, 7.0])
    (path,) = re.findall(r'<path d="([^"]*)" stroke="var\(--s1\)"', drawing)
    assert path.count("M") == 2
    assert len(points_drawn(drawing)) == 4
    assert drawing.count('fill="var(--s1)"') == 4  # a marker each
    assert ">0</text>" not in drawing.partition("round</text>")[2]  # the axis of values begins far above zero
    steps = {1: pa.table({"loss": [0.5, float("nan"), None, float("inf")], "unmeasured": [None, None, None, None]})}
    assert [point["y"] for point in step_points(steps, {"": "loss"})] == [0.5, None, None, None]
    assert step_points(steps, {"": "unmeasured"}) == []


def test_a_share_that_hardly_moves_looks_like_it() -> None:
    def height(ys: list[float | None]) -> float:
        (_, y0), (_, y1) = points_drawn(one_curve([1, 2], ys, Axes(percent=True, x="step")))
        return abs(y1 - y0)

    # The axis spans ten points at least, so that one point takes a tenth of the height that twenty points fill.
    assert 4 < height([0.4, 0.6]) / height([0.5, 0.51]) < 12
    assert height([0.99, 1.0]) == pytest.approx(height([0.0, 0.01]), rel=0.1)


def test_a_single_round_stands_alone_on_its_axis() -> None:
    drawing = one_curve([4], [0.5], error=0.1)
    below, _, _ = drawing.partition(">round</text>")
    assert re.findall(r">(-?[\d.]+)</text>", below) == ["4"]
    assert 'aria-label="Test. 0.5 in round 4."' in drawing


def test_histograms_of_one_value_are_drawn() -> None:
    drawing = to_svg(histograms("Scores", {1: [1.0, 1.0], 2: [1.0]}, "score"))
    assert 'aria-label="Scores. Mean by round: round 1: 1, round 2: 1."' in drawing
    assert [text for text in re.findall(r">([^<]*)</text>", drawing) if "round" in text] == ["round 1", "round 2"]


def test_charts_follow_the_schema_of_vega_lite() -> None:
    """Drawing does not check them: a misspelt property would be left out without a word."""
    rows = [{"curve": curve, "x": x, "y": 0.1 * x, "error": 0.1} for curve in "ab" for x in range(3)]
    bins = [{"confidence": 0.6, "accuracy": 0.5, "pairs": 3}, {"confidence": 0.9, "accuracy": 0.9, "pairs": 5}]
    for chart in (
        curves("Test", rows, Axes(unit="nats", percent=True, reference=0.5, boundaries=[1], interval="bar")),
        histograms("Test", {1: [0.1, 0.2]}, "score"),
        reliability("Test", bins),
        side_by_side("Test", {"left": curves("Test", rows), "right": curves("Test", rows)}),
    ):
        chart.to_dict(validate=True)
        assert to_svg(chart) == to_svg(chart)


def test_every_colour_is_the_themes() -> None:
    rows = [{"curve": curve, "x": x, "y": 0.1 * x, "error": 0.1} for curve in "abc" for x in range(3)]
    bins = [{"confidence": 0.6, "accuracy": 0.5, "pairs": 3}]
    for chart in (
        curves("Test", rows, Axes(reference=0.5, boundaries=[1])),
        histograms("Test", {1: [0.1, 0.2]}, "score"),
        reliability("Test", bins),
    ):
        colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', to_svg(chart)))
        assert all(colour.startswith("var(--") for colour in colours - {"none", "transparent"}), colours


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_picture_stands_alone(store: Store, rounds: int) -> None:
    run = finished_run(store, rounds=rounds)
    picture = to_svg(summary_chart("A <run> & $x$", summaries(run.rounds())), PAPER)
    root = ET.fromstring(picture)  # noqa: S314  our own text
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["aria-label"].startswith("A <run> & $x$. held-out reward. ")
    assert "A <run> & $x$" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "var(" not in picture
    assert set(re.findall(r'font-family="([^"]*)"', picture)) == {"sans-serif"}  # what every viewer has
    assert set(re.findall(r"#[0-9a-f]{3,6}\b", picture)) <= set(LIGHT.values())
    assert LIGHT["card"] in picture


def test_only_what_draws_imports_the_charts() -> None:
    """Altair takes half a second to import, and neither a run nor a list of runs needs it."""
    program = (
        "import sys, flows.cli.main, flows.run.start, flows.analysis.train_judge, flows.cli.timeline; "
        "print([name for name in ('altair', 'vl_convert', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_finished_run_has_its_newest_report(tmp_path: Path) -> None:
    """As after a SIGKILL between the last round and its report."""
    store = Store.open(tmp_path)
    finished_run(store)
    path = Path(write_report(store, store.run("small")))
    path.write_text("of today")
    resume = ["resume", "small", "--root", str(tmp_path)]
    assert CliRunner().invoke(app, resume, catch_exceptions=False).exit_code == 0
    assert path.read_text() == "of today"
    os.utime(path, (0, 0))
    assert str(path) in CliRunner().invoke(app, resume, catch_exceptions=False).output.replace("\n", "")
    assert path.read_text() != "of today"


def test_a_chart_shows_what_no_svg_may_have_as_escapes() -> None:
    """At such a character the library that draws would end the whole process."""
    spec = {
        "data": {"values": [{"name": "a\x1b\x00\ufffe\ud800b", "y": 1}]},
        "mark": "bar",
        "encoding": {"x": {"field": "name", "type": "nominal"}, "y": {"field": "y", "type": "quantitative"}},
        "description": "bell \x07",
    }
    drawn = svg_of(spec)
    assert r"a\u001b\u0000\ufffe\ud800b" in drawn
    assert r'aria-label="bell \u0007"' in drawn

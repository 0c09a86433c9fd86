"""``rondo view`` in a real Chromium: links, keys, charts, and what changes while a run is written."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.log.store import Store
from storage.tables.shared_values import Labels
from support.finished_run import finished_run
from support.view_page import Visitor, chromium, needs_chromium, served

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("view") / "root"
    store = Store.open(root)
    parent = finished_run(store, rationale=lambda _round, prompt, index: f"reason {index} for {prompt}")
    finished_run(store, "fork", rounds=2, parent={"run": parent.name, "round": 1})
    return root


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with served(root) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visitor(browser, address) -> Iterator[Visitor]:
    visitor = Visitor(browser, address)
    yield visitor
    visitor.page.close()
    assert visitor.complaints == []


def test_runs_by_keys_to_a_run_and_its_round(visitor: Visitor) -> None:
    page = visitor.open("/")
    assert page.locator("tbody tr").count() == 2
    assert "forked from small@1" in page.locator("tbody tr").nth(1).inner_text()
    visitor.picture("runs")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/run/small")
    assert page.locator("h1").inner_text() == "small"
    assert page.locator(".chart picture").count() > 8
    page.wait_for_function("() => document.querySelector('.chart img').naturalWidth > 0")
    visitor.picture("run")
    page.keyboard.press("?")
    assert page.locator("dialog[open] h2").inner_text() == "Keys"
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_two_runs_are_compared(visitor: Visitor) -> None:
    page = visitor.open("/")
    page.get_by_label("Compare small").check()
    page.get_by_role("button", name="Compare").click()
    assert "tick two or three" in page.locator(".problem").inner_text()
    page.go_back()
    page.get_by_label("Compare fork").check()
    page.get_by_label("Compare small").check()
    page.get_by_role("button", name="Compare").click()
    assert page.locator("h1").inner_text() == "Runs against each other"
    assert page.locator(".chart picture").count() == 4
    assert "their recipes are the same" in page.locator("main").inner_text()
    visitor.picture("compare")
    (refused,) = visitor.complaints  # of the one run that was ticked first
    assert "status of 400" in refused
    visitor.complaints.clear()


def test_a_chart_answers_to_the_pointer_and_a_point_opens_its_round(visitor: Visitor) -> None:
    page = visitor.open("/run/small")
    chart = page.locator(".chart").first
    chart.hover()
    chart.locator(".vega-embed svg").wait_for()
    points = chart.locator(".mark-symbol path")
    assert points.count() == 4
    points.nth(2).hover()
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert tip.locator("tr").first.inner_text().split() == ["round", "2"]
    points.nth(2).click()
    page.wait_for_url("**/run/small/round/2")


def test_a_round_is_read_by_keys_down_to_the_token(visitor: Visitor) -> None:
    """A bar of a histogram is a filter; from there to a prompt, a completion's tokens, and the round before."""
    page = visitor.open("/run/small/round/2")
    visitor.picture("round")
    page.keyboard.press("]")
    page.wait_for_url("**/round/3")
    page.keyboard.press("[")
    page.wait_for_url("**/round/2")
    page.locator("figure", has_text="Lengths").locator("a").first.click()
    page.wait_for_url("**/completions?**length_min=**")
    page.goto(f"{visitor.address}/run/small/completions?round=2&kind=training")
    assert page.locator("tr[data-row]").count() == 12
    visitor.picture("completions")
    page.keyboard.press("/")
    page.keyboard.type("answer t1")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=answer**")
    assert page.locator("tr[data-row]").count() == 4
    assert page.locator("tr[data-row] mark").first.inner_text() in ("answer", "t1")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/prompt/t1?**")
    assert page.locator(".chosen").count() >= 1
    visitor.picture("prompt")
    page.keyboard.press("]")
    page.wait_for_url("**round=3**")
    page.get_by_role("link", name="3 tokens").first.click()
    page.wait_for_url("**/tokens/3/training/t1/**")
    assert "-1.000" in page.locator(".tiles").inner_text()
    visitor.picture("tokens")


def test_pairs_are_labelled_and_a_choice_is_undone_by_keys(visitor: Visitor, root: Path) -> None:
    page = visitor.open("/run/small/label?round=2")
    page.get_by_label("Who labels").fill("bea")
    page.get_by_role("button", name="Begin").click()
    for number, key in enumerate(["ArrowLeft", "u", "t", "ArrowRight", "s"]):
        before = page.locator(".progress").inner_text()
        visitor.wait_for_keys()
        page.keyboard.press("1")
        page.keyboard.press(key)
        page.wait_for_function("before => document.querySelector('.progress')?.innerText !== before", arg=before)
        assert number or "1 of 3" in page.locator(".progress").inner_text()
    visitor.picture("label")
    choices = [choice["choice"] for choice in Labels(Store.open(root)).newest() if choice["labeller"] == "bea"]
    assert sorted(choices) == ["better", "skip", "tie"]


PAGES = (
    "/", "/compare?run=small&run=fork", "/nothing", "/run/small", "/run/small/round/0", "/run/small/round/2",
    "/run/small/completions", "/run/small/prompt/t0?round=2", "/run/small/prompt/e1", "/run/small/judges",
    "/run/small/tokens/2/training/t1/0", "/run/small/label", "/run/small/ask", "/run/small/try",
    "/run/small/ask?sql=select+round,count(*)+n+from+candidates+group+by+1&as=bar",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_scrolls_no_page_sideways(browser, address, scheme: str) -> None:
    visitor = Visitor(browser, address, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    for path in PAGES:
        page = visitor.open(path)
        assert not visitor.scrolls_sideways(), path
        assert page.locator("h1").count() == 1, path
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(19, 20, 23)") == (scheme == "dark")
        visitor.picture(f"phone-{scheme}{path.partition('?')[0].replace('/', '-')}")
    visitor.page.close()
    assert [said for said in visitor.complaints if "status of 404" not in said] == []


def test_without_scripts_every_page_and_filter_is_there(browser, address) -> None:
    visitor, drawn = Visitor(browser, address, java_script_enabled=False), list[int]()
    visitor.page.on("response", lambda got: "/chart/" in got.url and drawn.append(got.status))
    for path in PAGES:
        visitor.page.goto(address + path)
        assert visitor.page.locator("h1").count() == 1, path
    assert set(drawn) == {200}, "the pictures of curves"
    visitor.page.goto(f"{address}/run/small")
    visitor.page.get_by_role("link", name="Round 2", exact=True).first.click()
    assert "/round/2" in visitor.page.url
    visitor.page.locator(".chart a").first.click()
    assert "/completions" in visitor.page.url
    visitor.page.goto(f"{address}/run/small/completions")
    visitor.page.get_by_role("link", name="held-out").first.click()
    assert "kind=held-out" in visitor.page.url


def test_a_page_catches_up_when_it_was_busy_away_or_cut_off(browser, address) -> None:
    """The page counts how often it was renewed; the events are told here, as the run is finished."""
    visitor = Visitor(browser, address)
    page = visitor.page
    page.add_init_script("""
        window.sources = [];
        window.EventSource = class { constructor() { sources.push(this); } close() { this.closed = true; } };
        window.hide = (hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        };
        window.tell = (data) => sources.at(-1).onmessage({ data });
    """)
    renewed = "count => document.body.dataset.renewed === count"
    visitor.open("/run/small")
    page.evaluate("tell('1')")
    page.evaluate("""() => {
        const box = document.createElement("input");
        document.getElementById("main").append(box);
        box.focus();
        tell("2");
    }""")
    assert page.evaluate("document.body.dataset.renewed") is None
    page.evaluate("document.activeElement.blur()")
    page.wait_for_function(renewed, arg="1")

    page.evaluate("hide(true)")
    assert page.evaluate("[sources.length, sources.at(-1).closed]") == [1, True]
    page.evaluate("hide(false)")
    assert page.evaluate("[sources.length, sources.at(-1).closed === true]") == [2, False]
    page.evaluate("tell('3')")
    page.wait_for_function(renewed, arg="2")

    page.route("**/run/small", lambda route: route.abort(), times=1)
    page.evaluate("tell('4')")
    page.wait_for_function(renewed, arg="3", timeout=20_000)  # it is asked for again after 5 s
    page.close()


def test_a_page_follows_a_run_that_is_written(browser, tmp_path: Path) -> None:
    """The run is written by this process; its third round is held back until the browser has the page."""
    store, go_on = Store.open(tmp_path), threading.Event()
    writing = threading.Thread(
        target=finished_run, args=(store,), kwargs={"also": lambda _writer, number: number < 3 or go_on.wait(60)}
    )
    writing.start()
    try:
        with served(tmp_path) as address:
            visitor = Visitor(browser, address)
            page = visitor.open("/run/small")
            page.get_by_text("At work on round 3").wait_for()
            assert "running, 2 of 3 rounds" in page.locator(".facts").inner_text()
            page.evaluate("scrollTo(0, 300)")
            go_on.set()
            page.get_by_text("finished, 3 of 3 rounds").wait_for(timeout=20_000)
            assert page.get_by_text("At work on round").count() == 0
            assert page.evaluate("scrollY") == 300
            assert visitor.complaints == []
    finally:
        go_on.set()
        writing.join()

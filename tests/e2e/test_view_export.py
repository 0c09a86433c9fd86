"""An exported run in a real Chromium, opened from its files: nothing is refused, and nothing else is asked for."""

from pathlib import Path

from flows.view.export import export
from storage.log.store import Store
from support.finished_run import finished_run
from support.view_page import Visitor, chromium, needs_chromium

pytestmark = needs_chromium


def test_the_pages_open_from_their_files(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "root")
    finished_run(store)
    copy = tmp_path / "copy"
    export("small", store.root, copy, say=lambda _text: None)
    with chromium() as browser:
        visitor = Visitor(browser, f"file://{copy}")
        page = visitor.open("/index.html")
        assert page.locator(".chart svg").count() > 8
        assert page.evaluate("getComputedStyle(document.querySelector('.tile')).borderRadius") != "0px"
        page.locator(".chart svg").first.hover()
        page.wait_for_selector(".chart[data-alive] .vega-embed svg, .chart[data-alive] div svg")
        page.locator(".chart[data-alive] .mark-symbol path").first.hover()
        page.wait_for_selector("#vg-tooltip-element.visible")
        visitor.picture("export")
        page.get_by_role("link", name="Round 3", exact=True).first.click()
        page.get_by_role("link", name="training completions").click()
        page.wait_for_url("**/completions-3-training.html")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url("**/prompt-3-training-t0.html")
        assert page.locator(".chosen").count() > 0
        page.get_by_role("link", name="The 3 tokens of completion 0").first.click()
        page.wait_for_url("**/tokens-3-training-t0-0.html")
        page.get_by_role("link", name="prompt t0").click()
        page.wait_for_url("**/prompt-3-training-t0.html")
        page.get_by_role("link", name="Previous round").click()
        page.wait_for_url("**/prompt-2-training-t0.html")
        page.get_by_role("link", name="Ask").click()
        page.get_by_role("link", name="Preferences with the smallest margins").click()
        page.wait_for_url("**/ask-*.html")
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert page.locator("tr.here").count() == 1
        assert page.locator("tbody tr").nth(1).get_attribute("class") == "here"
        assert not visitor.scrolls_sideways()
        assert visitor.complaints == []

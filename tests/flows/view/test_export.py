"""The pages of a run as files: what is written, what links lead to, and which directories are left alone."""

import html
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app as commands
from flows.view import export as exporting
from flows.view.export import export
from flows.view.questions import questions_for
from flows.view.rendering import STATIC
from pipeline.errors import ConfigError
from pipeline.records import PREFERENCE_LOGPS, to_table
from storage.errors import RunNotFoundError, StoreError
from storage.log.store import Store
from storage.queries.sql import columns_of
from support.finished_run import HELD_OUT, TRAIN, commit, finished_run, small_recipe
from support.rejudged import judge_again

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e\ufffe"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.open(tmp_path_factory.mktemp("root"))
    parent = finished_run(store, text=lambda _round, prompt, index: HOSTILE)
    judge_again(store, {1: TRAIN, 2: TRAIN, 3: TRAIN[:1]})
    finished_run(store, "fork", rounds=1, parent={"run": parent.name, "round": 0})
    return store


def exported(store: Store, source: str, to: Path) -> list[str]:
    """Exports, and returns what was said."""
    said: list[str] = []
    assert export(source, store.root, to, say=said.append) == to / "index.html"
    return said


def test_every_page_is_there_and_every_link_leads_to_one(store: Store, tmp_path: Path) -> None:
    said = exported(store, "small", tmp_path / "new" / "copy")
    to = tmp_path / "new" / "copy"
    questions = list(questions_for(columns_of(store, store.run("small"))))
    # Round 0 has held-out completions alone; the others have those of 3 training prompts and 5 held-out ones.
    places = [(0, "held-out"), *((number, kind) for number in (1, 2, 3) for kind in ("training", "held-out"))]
    ids = {"training": TRAIN, "held-out": HELD_OUT}
    pages = {
        "index.html", "ask.html", "judges.html", "completions.html",
        *(f"ask-{place}.html" for place in range(1, len(questions) + 1)),
        "rejudged-newest-other.html", "rejudged-1-other.html", "rejudged-2-other.html",  # round 3 in part alone
        *(f"round-{number}.html" for number in range(4)),
        *(f"completions-{number}-{kind}.html" for number, kind in places),
        *(f"prompt-{number}-{kind}-{prompt}.html" for number, kind in places for prompt in ids[kind]),
        *(
            f"tokens-{number}-{kind}-{prompt}-{candidate}.html"
            for number, kind in places for prompt in ids[kind] for candidate in range(4 if kind == "training" else 1)
        ),
    }  # fmt: skip
    assert {path.name for path in to.glob("*.html")} == pages
    assert said == [f"{len(pages)} pages of run small, rounds 0 to 3: open {to / 'index.html'}"]
    targets = set()
    for page in to.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        links = [html.unescape(link).partition("#")[0] for link in re.findall(r'(?:href|src|action)="([^"]*)"', text)]
        assert [link for link in links if link and not (to / link).is_file()] == []
        targets.update(links)
        assert {"page.css", "page.js", "colours.css"} <= set(links)
        assert "Content-Security-Policy" in text
        assert "http://127" not in text
        assert "<form" not in text
        assert "data-events" not in text
        assert 'data-charts="charts.js"' in text
        assert "<script>alert" not in text
        assert "A copy of run small, rounds 0 to 3" in text
    assert pages <= targets  # each can be reached
    assert {path.name for path in to.iterdir()} == {*pages, *STATIC, "rondo-view.json"}


def test_one_round_alone_and_a_fork(store: Store, tmp_path: Path) -> None:
    assert "run small, round 2:" in exported(store, "small@2", tmp_path / "a")[0]
    assert json.loads((tmp_path / "a" / "rondo-view.json").read_text())["rounds"] == [2]
    assert {path.name for path in (tmp_path / "a").glob("rejudged*")} == {
        "rejudged-newest-other.html",
        "rejudged-2-other.html",
    }
    assert "rounds 0 to 1" in exported(store, "fork", tmp_path / "b")[0]
    index = (tmp_path / "b" / "index.html").read_text()
    assert "forked from small@0</li>" in index  # whose pages are not here


@pytest.mark.parametrize("names", [("other", "other-1"), ("other", "1-other")])
def test_judges_whose_names_look_like_pages_have_pages_of_their_own(tmp_path: Path, names: tuple[str, str]) -> None:
    store = Store.open(tmp_path / "root")
    finished_run(store, rounds=1)
    for name in names:
        judge_again(store, {1: TRAIN}, name)
    exported(store, "small", tmp_path / "a")
    for name in names:
        for which in ("newest", "1"):
            page = (tmp_path / "a" / f"rejudged-{which}-{name}.html").read_text()
            assert f"<h1>Judged again by {name}</h1>" in page
    assert len(list((tmp_path / "a").glob("rejudged-*.html"))) == 4


def test_prompts_beyond_the_limit_are_counted(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds 1 to 3 have 3 prompts and 5 held-out ones each, round 0 the latter alone: 29, of which 20 remain."""
    monkeypatch.setattr(exporting, "MOST_PROMPTS", 20)
    assert "9 pages of prompts beyond 20 left out" in exported(store, "small", tmp_path / "a")[0]
    assert "9 pages of prompts beyond 20 left out" in (tmp_path / "a" / "index.html").read_text()


def test_tokens_beyond_the_limit_are_counted(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts of round 3 that are kept are its 3 of training, with 4 completions each, the newest ones first."""
    monkeypatch.setattr(exporting, "MOST_PROMPTS", 3)
    monkeypatch.setattr(exporting, "MOST_TOKENS", 5)
    said = exported(store, "small", tmp_path / "a")[0]
    assert "26 pages of prompts beyond 3 left out; the tokens of 7 completions beyond 5 pages left out" in said
    assert {path.name for path in (tmp_path / "a").glob("tokens-*")} == {
        *(f"tokens-3-training-t0-{candidate}.html" for candidate in range(4)), "tokens-3-training-t1-0.html",
    }  # fmt: skip
    tokens = (tmp_path / "a" / "tokens-3-training-t1-0.html").read_text()
    assert 'href="prompt-3-training-t1.html"' in tokens
    assert "tokens-3-training-t1-1" not in tokens
    prompt = (tmp_path / "a" / "prompt-3-training-t1.html").read_text()
    assert "as Markdown" not in prompt, "there is no such page"


def test_tokens_by_change_are_pages_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of round 1's preference of t0, completions 3 and 0 were measured; 1 and 2 have the page by surprise alone."""
    nothing = dict.fromkeys(PREFERENCE_LOGPS.names)
    tokens = {"after_tokens": [[-0.5, -1.0, -0.5], [-5.0, -5.5, -4.5]], "reference_tokens": None}
    sums = {"candidates": [3, 0], "reference": [-3.0, -3.0], "after": [-2.0, -15.0], "loss_after": 0.5}
    table = to_table([{**nothing, "prompt_id": "t0", **sums, **tokens}], PREFERENCE_LOGPS)
    store = Store.open(tmp_path / "root")
    finished_run(
        store, rounds=1,
        also=lambda writer, round: round and commit(store, writer, "small", 1, "preference_logps", table),
    )  # fmt: skip
    exported(store, "small@1", tmp_path / "a")
    by_change = {path.name for path in (tmp_path / "a").glob("tokens-*-update.html")}
    assert by_change == {"tokens-1-training-t0-0-update.html", "tokens-1-training-t0-3-update.html"}
    page, surprise = ((tmp_path / "a" / f"tokens-1-training-t0-3{end}.html").read_text() for end in ("-update", ""))
    assert "+1.000 nats in sum" in page  # -2.0 less the -3.0 with which it was sampled
    assert 'href="tokens-1-training-t0-3.html"' in page
    assert 'href="tokens-1-training-t0-3-update.html"' in surprise
    assert "-update.html" not in (tmp_path / "a" / "tokens-1-training-t0-1.html").read_text()
    # Completion 0 has two pages, 1 and 2 one each; 3 needs two, and one place is left. 12 + 5 completions less 3.
    monkeypatch.setattr(exporting, "MOST_TOKENS", 5)
    said = exported(store, "small@1", tmp_path / "b")[0]
    assert "the tokens of 14 completions beyond 5 pages left out" in said
    assert {path.name for path in (tmp_path / "b").glob("tokens-*")} == {
        *(f"tokens-1-training-t0-{end}.html" for end in ("0", "0-update", "1", "2")),
    }  # fmt: skip


def test_an_export_is_replaced_and_nothing_else(store: Store, tmp_path: Path) -> None:
    to = tmp_path / "a"
    to.mkdir()
    exported(store, "small", to)
    exported(store, "fork", to)
    assert json.loads((to / "rondo-view.json").read_text())["run"] == "fork"
    (to / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in to.iterdir()}
    with pytest.raises(ConfigError, match="not an empty directory"):
        exported(store, "small", to)
    other = tmp_path / "b"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    (tmp_path / "c").write_text("mine")
    for taken in (other, tmp_path / "c"):
        with pytest.raises(ConfigError, match="not an empty directory"):
            exported(store, "small", taken)
    assert {path: path.read_bytes() for path in to.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_what_cannot_be_exported_is_a_sentence_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    store.create_run("begun", {"recipe": small_recipe().model_dump(mode="json"), "parent": None})
    to = tmp_path / "a"
    with pytest.raises(ConfigError, match="run 'begun' has no round"):
        exported(store, "begun", to)
    with pytest.raises(ConfigError, match="round 9 of run 'small' is not finished"):
        exported(store, "small@9", to)
    with pytest.raises(RunNotFoundError):
        exported(store, "none", to)
    damaged = finished_run(store, "damaged", rounds=1)
    path = Path(store.root) / damaged.files(1, "candidates")[0].path
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(StoreError, match="candidates"):
        exported(store, "damaged", to)
    assert list(tmp_path.iterdir()) == []


def test_the_command_needs_a_run(store: Store, tmp_path: Path) -> None:
    ran = CliRunner().invoke(commands, ["view", "--export", str(tmp_path / "a"), "--root", store.root])
    assert isinstance(ran.exception, ConfigError)
    assert "needs a run" in str(ran.exception)
    ran = CliRunner().invoke(commands, ["view", "small@1", "--export", str(tmp_path / "a"), "--root", store.root])
    assert ran.exit_code == 0
    assert "of run small, round 1" in ran.stdout


def test_an_id_of_a_prompt_is_no_path() -> None:
    """A store may come from anybody; the ids that rondo gives are letters and digits."""
    assert exporting._safe("0dbc092bc6aba826") == "0dbc092bc6aba826"
    for hostile in ("../../x", "a/b", "", ".", "x" * 300, "a\0b", "\udc80"):
        assert re.fullmatch("[0-9a-f]{64}", exporting._safe(hostile))

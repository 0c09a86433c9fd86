"""The page that labels, over a run with three rounds: what it asks, what it keeps, and what it must not show."""

import html
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from flows.analysis.labelling import Labelling
from flows.errors import WaitingForLabelsError
from flows.registry.catalog import list_runs
from flows.view.app import make_app
from flows.view.security import Guard
from flows.view.site import Site
from pipeline.judges.support.human_labels import digest
from storage.log.manifest import Key
from storage.log.store import Store
from storage.tables.shards import read_table, write_table
from storage.tables.shared_values import Labels
from support.finished_run import finished_run, score_of, small_recipe

HOSTILE = '</div><script>alert("x")</script> & \x1b[2J \u202e turned'
LLM = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:9/v1", "mode": "rubric", "criteria": "Be <kind>."}
ADDRESS = "/run/small/label"


def hostile(round: int, prompt_id: str, index: int) -> str:
    return f"{HOSTILE} {prompt_id} {index}"


def long(round: int, prompt_id: str, index: int) -> str:
    return f"{index} " + "long " * 200_000


class Page:
    """The page, asked by a browser that keeps cookies."""

    def __init__(self, root: Path) -> None:
        self.root, self.guard = root, Guard("127.0.0.1")
        app = make_app(Site(Store.open(root)), self.guard)
        self.client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)

    def get(self, status: int = 200, **query: Any) -> str:
        answer = self.client.get(ADDRESS, params=query)
        assert answer.status_code == status, answer.text
        return answer.text

    def post(self, form: Mapping[str, Any], status: int = 303, **headers: str) -> Any:
        answer = self.client.post(ADDRESS, data=dict(form), headers=headers)
        assert answer.status_code == status, answer.text
        return answer

    def form(self, choice: str, page: str | None = None, **query: Any) -> dict[str, Any]:
        """What the form of a page sends; the first form that writes, or that of undo."""
        text = page or self.get(**{"labeller": "ann", "round": 2, **query})
        forms = re.findall(r'<form method="post".*?</form>', text, re.DOTALL)
        found = forms[-1] if choice == "undo" else forms[0]
        return {"choice": choice, **dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', found))}

    def kept(self) -> list[dict[str, Any]]:
        return Labels(Store.open(self.root)).newest()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    recipe = small_recipe(evaluation={"prompts": 5, "judges": [{"kind": "grammar"}, LLM]})
    finished_run(Store.open(root), recipe=recipe, rounds=2, text=hostile, rationale=lambda *_: "THE JUDGE SAYS")
    return root


@pytest.fixture
def page(finished: Path, tmp_path: Path) -> Page:
    return Page(Path(shutil.copytree(finished, tmp_path / "root")))


def texts(page: str) -> list[str]:
    """The prompt and the two completions that a page shows."""
    return [html.unescape(text) for text in re.findall(r'<div class="text">(.*?)</div>', page, re.DOTALL)][:3]


def test_each_choice_is_kept_as_it_was_shown_and_leads_to_the_next(page: Page) -> None:
    seen = []
    for choice, tags in (("left", ["clear", "safe"]), ("right", []), ("tie", [])):
        text = page.get(round=2, labeller="ann")
        form = page.form(choice, text)
        answer = page.post({**form, "tag": tags, "note": "<b>why</b>" if tags else ""})
        assert answer.headers["location"] == f"{ADDRESS}?round=2&queue=asked&labeller=ann"
        seen.append((form["question"], texts(text)))
    kept = {choice["question"]: choice for choice in page.kept()}
    assert len({key for key, _ in seen}) == len(kept) == 3
    for (key, (_, left, right)), side in zip(seen[:2], (left_of, right_of), strict=True):
        shown = side(left, right)
        (better,) = [
            q for q in Labelling.open("small@2", "x", 0, str(page.root)).asked.by_key[key].answers
            if shown.endswith(q.text[-4:])
        ]  # fmt: skip
        assert kept[key]["better"] == digest(better.text)
    assert (kept[seen[0][0]]["tags"], kept[seen[0][0]]["note"]) == (["clear", "safe"], "<b>why</b>")
    assert kept[seen[2][0]]["choice"] == "tie"
    done = page.get(round=2, labeller="ann")
    assert "You have answered every pair of this round." in done
    assert "3 of 3 pairs answered, 0 left" in " ".join(done.split())
    assert page.get(round=2).count('name="choice"') == 1, "the name is remembered: only undo is left"


def left_of(left: str, _right: str) -> str:
    return left


def right_of(_left: str, right: str) -> str:
    return right


def test_the_same_form_twice_and_in_two_tabs_counts_once(page: Page) -> None:
    form = page.form("left")
    for _ in range(3):
        page.post(form)
    (choice,) = page.kept()
    assert (choice["choice"], choice["number"]) == ("better", 0)
    page.post({**form, "choice": "tie"})  # another tab, which still shows it: who says otherwise changes the choice
    (choice,) = page.kept()
    assert (choice["choice"], choice["number"]) == ("tie", 1)
    assert "1 of 3 pairs answered" in page.get(round=2, labeller="ann")


def test_undo_shows_the_question_of_the_last_choice_again_and_once(page: Page) -> None:
    for choice in ("left", "skip"):
        page.post(page.form(choice))
    last = page.form("undo")
    answer = page.post(last)
    assert answer.headers["location"].endswith(f"labeller=ann&question={last['question']}")
    assert page.form("tie", page.client.get(answer.headers["location"]).text)["question"] == last["question"]
    page.post(last)
    states = sorted((c["choice"], c["number"]) for c in page.kept())
    assert states == [("better", 0), ("withdrawn", 1)], "to undo the same again takes no other one back"
    assert page.form("undo")["question"] != last["question"]


def test_nothing_that_a_judge_has_said_shows_before_the_choice(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a run whose judge says the contrary is the same, but for the token and the root."""
    monkeypatch.setattr("support.finished_run.score_of", lambda *key: -score_of(*key))
    recipe = small_recipe(evaluation={"prompts": 5, "judges": [{"kind": "grammar"}, LLM]})
    finished_run(Store.open(tmp_path / "turned"), recipe=recipe, rounds=2, text=hostile)
    turned = Page(tmp_path / "turned")
    for queue in ("asked", "random", "margin"):
        pages = [
            p.get(round=2, labeller="ann", queue=queue).replace(p.guard.form_token, "").replace(str(p.root), "")
            for p in (page, turned)
        ]
        assert pages[0] == pages[1]
        assert "THE JUDGE SAYS" not in pages[0]
    first = [
        texts(page.get(round=2, labeller=f"labeller {n}", question=page.form("tie")["question"])) for n in range(20)
    ]
    assert {text[1][-1] for text in first} == {"0", "3"}, "who labels draws the order"


@pytest.mark.parametrize(
    ("change", "status", "sentence"),
    [
        ({"token": ""}, 403, "not of this rondo view, or of an earlier one"),
        ({"token": "wrong"}, 403, "not of this rondo view"),
        ({"question": "0123456789abcdef"}, 400, "is no question of small@2"),
        ({"question": "../../labels"}, 400, "is no question of small@2"),
        ({"labeller": "x" * 101}, 400, "is no name of a labeller"),
        ({"tag": "fun"}, 400, "is no reason that can be given"),
        ({"note": "x" * 2001}, 400, "the note has 2,001 characters"),
        ({"queue": "best"}, 400, "there is no queue"),
        ({"choice": "both"}, 400, "choice"),
        ({"round": "9"}, 404, "round 9 of run"),
    ],
)
def test_what_is_no_choice_is_refused_in_a_sentence(
    page: Page, change: dict[str, str], status: int, sentence: str
) -> None:
    answer = page.post({**page.form("left"), **change}, status)
    assert sentence in html.unescape(answer.text)
    assert page.kept() == []


def test_the_end_of_a_line_in_a_note_is_one_character(page: Page) -> None:
    """A browser sends two for it, but counts it as one: 700 lines of one letter have 1,399 or, as sent, 2,098."""
    page.post({**page.form("left"), "note": "\r\n".join("l" * 700)})
    assert [kept["note"] for kept in page.kept()] == ["\n".join("l" * 700)]


def test_the_command_is_for_the_same_root(page: Page) -> None:
    shown = html.unescape(page.get(labeller="ann", round=2))
    assert f"rondo label small@2 --queue asked --root {page.root}" in shown


def test_other_sites_cannot_write(page: Page) -> None:
    form = page.form("left")
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9"):
        page.post(form, 403, origin=origin)
    assert page.kept() == []
    answer = page.post(form, origin="http://127.0.0.1")
    assert re.search(r"rondo-labeller=ann; HttpOnly; .*SameSite=strict", answer.headers["set-cookie"])
    # With no-referrer, a browser would send "null" as the origin of our own forms.
    assert page.client.get(ADDRESS).headers["referrer-policy"] == "same-origin"


def test_hostile_and_long_texts_stay_texts(page: Page, tmp_path: Path) -> None:
    page.post({**page.form("left", labeller='<i>"ann"'), "labeller": '<i>"ann"'})
    text = page.get(round=2)
    assert "<script>alert" not in text
    assert "<i>" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J \\u202e turned" in text
    assert "Be &lt;kind&gt;." in text, "the rubric stands beside"
    finished_run(Store.open(tmp_path / "long"), rounds=1, text=long)
    text = Page(tmp_path / "long").get(round=1, labeller="ann")
    assert len(text) < 1_000_000
    assert "and 900,001 more characters" in text


def test_nobody_is_asked_without_a_name(page: Page) -> None:
    text = page.get()
    assert 'name="choice"' not in text
    assert "Who labels" in text
    assert "round 0 of run" in html.unescape(page.get(round=0)), "it has nothing to label"


def test_labellers_and_how_far_they_agree(page: Page) -> None:
    """Ann says what the judge says; Bob says the contrary of one, and skips one."""
    root = str(page.root)
    for question in Labelling.open("small@2", "ann", 0, root).asked.questions:
        for name in ("ann", "bob"):
            labelling = Labelling.open("small@2", name, 0, root)
            chosen = labelling.shown(question)[0] is question.answers[0]
            place = [q.key for q in labelling.asked.questions].index(question.key)
            if name == "ann" or place == 0:
                labelling.choose(question, "a" if chosen else "b")
            elif place == 1:
                labelling.choose(question, "b" if chosen else "a")
            else:
                labelling.choose(question, "skip")
    text = page.get(round=2)
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)]
    assert ["ann", "3", "of", "3", "0", "0"] in [row[:6] for row in rows]
    assert ["bob", "3", "of", "3", "0", "1"] in [row[:6] for row in rows]
    assert ["ann", "the", "judge", "vader", "3", "100.0%"] in [row[:6] for row in rows]
    assert ["bob", "the", "judge", "vader", "2", "50.0%"] in [row[:6] for row in rows]
    assert ["ann", "bob", "2", "50.0%"] in [row[:4] for row in rows]
    assert page.form("tie", labeller="cid", queue="people")["question"] == (
        Labelling.open("small@2", "cid", 0, root, "people").questions[0].key
    )


def test_a_run_that_waits_says_so_and_how_many_labels_are_missing(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    run = finished_run(store, recipe=small_recipe(rounds=4, people={"wait_for": 2}), rounds=2)
    copied = {stage: read_table(store, run.files(2, stage)) for stage in ("candidates", "judgments", "preferences")}
    with pytest.raises(WaitingForLabelsError), run.writer() as writer:  # noqa: PT012
        for stage, table in copied.items():
            writer.commit(Key(3, stage), [write_table(store, "small", 3, stage, table)])
        raise WaitingForLabelsError("waiting")
    page = Page(tmp_path)
    assert list_runs(str(tmp_path))[0]["state"] == "waiting for people"
    for text in (page.client.get("/").text, page.client.get("/run/small").text):
        assert f'href="{ADDRESS}?round=3"' in text
        assert "waiting for people" in text
    assert "The run waits for 2 more labels." in page.get(labeller="ann")
    page.post(page.form("left", round=3))
    assert "The run waits for 1 more label." in page.get(labeller="ann")
    page.post(page.form("skip", round=3))
    shown = html.unescape(page.get(labeller="ann"))
    assert f"'rondo resume small --root {tmp_path}', or its next scheduled run, goes on" in shown
    assert "The run waits" not in re.sub(r"<[^>]*>", "", page.get(labeller="ann", round=2))

    with store.run("small").writer() as writer:  # as one that waits in Prefect, and then goes on
        assert "waiting for people" not in page.client.get("/").text
        writer.commit(Key(3, "asked"), [])
        assert "waiting for people" in page.client.get("/").text
        assert "goes on by itself" in page.get(labeller="ann")
        writer.commit(Key(3, "preferences", inputs="people"), [])
        assert "waiting for people" not in page.client.get("/").text

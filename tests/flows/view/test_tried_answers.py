"""What people prefer of answers that they tried: what is kept, where it is shown, and how it is exported."""

import html
from pathlib import Path

import pytest
from datasets import load_dataset
from starlette.testclient import TestClient

from flows.analysis.queries import export_tried
from flows.publish import Style
from flows.registry.tried_labels import tried_pairs
from flows.view.app import make_app
from flows.view.security import Guard
from flows.view.site import Site
from flows.view.trial_engines import Engine
from flows.view.trials import Asked, Side, Trial
from flows.view.tried_answers import can_be_compared, keep
from flows.workers.references import PolicyRef
from flows.workers.trial import TrialSettings, Tried, TriedPrompt
from pipeline.errors import ConfigError, DataError
from pipeline.judges.base import JudgedCandidate, JudgeItem
from pipeline.judges.support.human_labels import Question, digest, share_for_first
from pipeline.records import content_id
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.shared_values import Labels
from support.finished_run import finished_run, small_recipe

HOSTILE = "<script>alert(1)</script> \x1b[31m good"
SETTINGS = TrialSettings(temperature=1.0, top_p=0.9, max_tokens=12, seed=7)
MESSAGES = [{"role": "user", "content": "w3 w4"}]
PROBE = FileRef("runs/small/probe.parquet", 1, "0" * 64, 1)


def tried(left: str = "good", right: str = "bad", *, user: str = "w3 w4", cut: str = "stop") -> Trial:
    """A prompt that rounds 0 and 2 of the run have answered, the second one with this end."""
    prompt = TriedPrompt(None, [{"role": "user", "content": user}], {}, False)
    sides = tuple(
        Side(
            "small", number, Engine("transformers", (), small_recipe()), PolicyRef(f"policy{number}", (), PROBE),
            prompt, answer=Tried(f"<user>{user}", text, 3, end, -1.5, 0.1),
        )
        for number, text, end in ((0, left, "stop"), (2, right, cut))
    )  # fmt: skip
    return Trial("key", "small", Asked(("small@0", "small@2"), "", user, SETTINGS), (sides[0], sides[1]), "done")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path)
    finished_run(store)
    return store


def test_what_is_kept_can_be_read_without_any_round(store: Store) -> None:
    labels = Labels(store)
    keep(labels, tried(HOSTILE), "ann", "left", " clearer ")
    (kept,) = Labels(store).newest()
    assert (kept["kind"], kept["run"], kept["round"]) == ("tried", "small", None)
    assert (kept["choice"], kept["better"], kept["note"]) == ("better", digest(HOSTILE), "clearer")
    assert kept["prompt"] == {"messages": MESSAGES}
    assert kept["shown"] == [digest(HOSTILE), digest("bad")]
    assert kept["sampling"] == {
        "engine": "transformers", "temperature": 1.0, "top_p": 0.9, "max_tokens": 12, "seed": 7,
    }  # fmt: skip
    assert [(answer["run"], answer["round"], answer["policy"], answer["text"]) for answer in kept["answers"]] == [
        ("small", 0, "policy0", HOSTILE),
        ("small", 2, "policy2", "bad"),
    ]


def test_it_is_no_label_of_a_round_that_has_this_prompt_with_these_texts(store: Store) -> None:
    answers = [
        JudgedCandidate(index=index, text=text, finish_reason="stop") for index, text in enumerate(("bad", "good"))
    ]
    item = JudgeItem(prompt_id=content_id(MESSAGES), prompt_text="", messages=MESSAGES, candidates=answers)
    of_round, labels = Question(item, (answers[0], answers[1])), Labels(store)
    labels.add(of_round.key, "ann", {"choice": "better", "better": digest("bad")})
    keep(labels, tried(), "ann", "left")
    assert share_for_first(of_round, labels.newest()) == 1.0, "what ann said blind still counts, and nothing beside it"
    (pair,) = tried_pairs(labels.newest(), "small")
    assert (pair.prompt_id, pair.share) == (content_id(MESSAGES), 1.0)


def test_the_majority_decides_and_a_choice_can_be_changed_and_taken_back(store: Store) -> None:
    labels = Labels(store)
    for person, choice in (("ann", "left"), ("bob", "right"), ("cid", "tie"), ("ann", "left")):
        keep(labels, tried(), person, choice)
    (pair,) = tried_pairs(labels.newest(), "small")
    assert pair.share == pytest.approx((1 + 0 + 0.5) / 3)
    assert pair.ordered is None
    assert len(labels.history(pair.choices[0]["question"], "ann")) == 1, "the same again is nothing new"
    keep(labels, tried(), "bob", "undo")
    (pair,) = tried_pairs(labels.newest(), "small")
    assert pair.share == 0.75
    assert pair.ordered is not None
    assert [answer["text"] for answer in pair.ordered] == ["good", "bad"]
    keep(labels, tried(), "ann", "right")
    (pair,) = tried_pairs(labels.newest(), "small")
    assert pair.ordered is not None
    assert [answer["text"] for answer in pair.ordered] == ["bad", "good"]
    assert tried_pairs(labels.newest(), "another") == []


def test_answers_that_are_one_text_or_none_are_no_question(store: Store) -> None:
    same, failed = tried("same", "same"), tried()
    failed.sides[1].answer = None
    for trial in (same, failed):
        assert not can_be_compared(trial)
        with pytest.raises(ConfigError, match="no two different answers"):
            keep(Labels(store), trial, "ann", "left")
    assert list(Labels(store).newest()) == []


def test_the_page_keeps_it_and_the_page_of_labels_shows_it_as_what_it_is(store: Store, monkeypatch) -> None:
    trial = tried(HOSTILE)
    monkeypatch.setattr("flows.view.trials.Trials.get", lambda _self, key: trial if key == "key" else None)
    guard = Guard("127.0.0.1")
    visitor = TestClient(make_app(Site(store), guard), base_url="http://127.0.0.1", follow_redirects=False)
    shown = visitor.get("/run/small/try?trial=key").text
    assert "Which is better?" in shown
    form = {"trial": "key", "labeller": "ann", "choice": "right", "note": "<b>", "token": guard.form_token}
    assert visitor.post("/run/small/try/label", data={**form, "token": "guessed"}).status_code == 400
    assert visitor.post("/run/small/try/label", data={**form, "trial": "gone"}).status_code == 400
    assert visitor.post("/run/small/try/label", data={**form, "labeller": " "}).status_code == 400
    assert visitor.post("/run/small/try/label", data=form, headers={"origin": "http://evil.example"}).status_code == 403
    assert list(Labels(store).newest()) == []
    sent = visitor.post("/run/small/try/label", data=form)
    assert (sent.status_code, sent.headers["location"]) == (303, "/run/small/try?trial=key")
    shown = visitor.get("/run/small/try?trial=key").text
    assert "small@2 is better" in shown
    assert 'value="ann"' in shown
    labels = visitor.get("/run/small/label").text
    assert "small@2 over small@0" in labels
    assert (
        '<th scope="row">small@0</th><td>small@2</td><td class="n">0</td><td class="n">0</td><td class="n">1</td>'
        in labels
    )
    assert "<script>alert" not in labels
    assert "\x1b" not in labels
    assert "ann, " in labels
    assert "&lt;b&gt;" in labels
    assert "0 of 3 pairs answered" in visitor.get("/run/small/label?labeller=ann").text, "it counts for no round"
    assert "Nobody yet." in labels
    assert "rondo export small --tried --to DIR" in html.unescape(labels)
    assert "rondo export" not in visitor.get("/run/small/label").text.partition("<h2>Tried")[0]


def test_they_are_exported_as_pairs_without_ties_and_cut_answers(store: Store, tmp_path: Path) -> None:
    told: list[str] = []

    def write(to: str, style: Style = Style.messages, source: str = "small", *, truncated: bool = False) -> int:
        return export_tried(source, str(store.root), tmp_path / to, style=style, truncated=truncated, say=told.append)

    labels = Labels(store)
    with pytest.raises(DataError, match="no preference between tried answers"):
        write("none")
    with pytest.raises(ConfigError, match="give small in place of small@2"):
        write("none", source="small@2")
    keep(labels, tried(), "ann", "right")
    keep(labels, tried(user="w5"), "ann", "tie")
    keep(labels, tried(user="w6", cut="length"), "ann", "left")
    assert write("pairs") == 1
    assert told == ["2 more are ties, or rest on answers cut at the limit (--truncated keeps the latter)"]
    (row,) = load_dataset(str(tmp_path / "pairs"), split="train", cache_dir=str(tmp_path / "cache")).to_list()
    assert row.pop("prompt_id") == content_id(MESSAGES)
    assert row == {
        "prompt": MESSAGES,
        "chosen": [{"role": "assistant", "content": "bad"}],
        "rejected": [{"role": "assistant", "content": "good"}],
        "finish_reason_chosen": "stop", "finish_reason_rejected": "stop",
        "policy_chosen": "small@2", "policy_rejected": "small@0", "people": 1,
    }  # fmt: skip
    assert write("texts", Style.text, truncated=True) == 2
    rows = load_dataset(str(tmp_path / "texts"), split="train", cache_dir=str(tmp_path / "cache")).to_list()
    assert [(row["prompt"], row["chosen"]) for row in rows] == [("<user>w3 w4", "bad"), ("<user>w6", "good")]
    card = (tmp_path / "texts" / "README.md").read_text()
    assert "put in order by people" in card
    assert "policy_chosen" in card

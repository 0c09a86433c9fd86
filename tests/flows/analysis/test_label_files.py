"""Labels from files of Argilla and Label Studio that are written by hand here, and there and back."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.analysis.label_files import export_labels, import_labels
from flows.analysis.labelling import Labelling
from flows.cli.main import app
from pipeline.errors import ConfigError, DataError
from pipeline.judges.support.human_labels import digest
from storage.errors import InvalidEntryError
from storage.log.store import Store
from storage.tables.shared_values import Labels
from support.finished_run import finished_run, say, score_of

SOURCE = "small@2"
USER = "b1e6d1f0-6e0f-4a55-9b7e-0d4f0c1f2a3b"


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    finished_run(Store.open(root), "small", rounds=2)
    return root


@pytest.fixture
def root(unlabelled: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(unlabelled, tmp_path / "root"))


def texts(prompt_id: str) -> tuple[str, str]:
    """The better and the worse answer by the judge: the last and the first of four."""
    return say(2, prompt_id, 3), say(2, prompt_id, 0)


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    return path


def kept(root: str) -> list[tuple[str, str, str, str | None, Any, Any]]:
    """What the store has, by prompt: labeller, choice, the better one's digest, reasons, note."""
    return sorted(
        (c["prompt_id"], c["labeller"], c["choice"], c["better"], c.get("tags"), c.get("note"))
        for c in Labels(Store.open(root)).newest()
    )


def argilla(prompt_id: str, preference: list[dict[str, Any]], *, fields: tuple[str, str] = ("response1", "response2"),
            **more: Any) -> dict[str, Any]:  # fmt: skip
    """A record as Argilla writes it: the judge's worse answer first."""
    better, worse = texts(prompt_id)
    return {
        "id": "7", "fields": {"prompt": f"Tell me of {prompt_id}.", fields[0]: worse, fields[1]: better},
        "metadata": {}, "suggestions": {}, "responses": {"preference": preference, **more}, "vectors": {},
        "_server_id": USER,
    }  # fmt: skip


def test_argilla_in_the_forms_of_its_versions(root: str, tmp_path: Path) -> None:
    """A ranking as names (version 2), as names with ranks (version 1), as a label; ties, drafts and discarded ones."""
    ranks = [{"value": "response-2", "rank": 2}, {"value": "response-1", "rank": 1}]
    ties = [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}]
    records = [
        argilla(
            "t0", [{"value": ["response2", "response1"], "user_id": USER}],
            reasons=[{"value": ["clear", "funny"], "user_id": USER}], note=[{"value": "so", "user_id": USER}],
        ),
        argilla("t1", [{"value": ranks, "user_id": "ann"}], fields=("response-1", "response-2")),
        argilla("t1", [{"value": ties, "user_id": "bob", "status": "submitted"}]),
        argilla("t2", [
            {"value": "Response 2", "user_id": "ann"}, {"value": "response1", "user_id": "bob", "status": "draft"},
            {"value": "response1", "user_id": "cid", "status": "discarded"},
        ]),
        argilla("t2", []) | {"fields": {"prompt": "another", "response1": "x", "response2": "y"}},
    ]  # fmt: skip
    found = import_labels(SOURCE, written(tmp_path, records), "argilla", root)
    assert (found.kept, found.known, found.others, found.unsure) == (5, 0, 1, 3), "three have no status"
    better, worse = ({name: digest(texts(name)[place]) for name in ("t0", "t1", "t2")} for place in (0, 1))
    assert kept(root) == [
        ("t0", f"argilla:{USER}", "better", better["t0"], ["clear", "funny"], "so"),
        ("t1", "argilla:ann", "better", worse["t1"], None, None),
        ("t1", "argilla:bob", "tie", None, None, None),
        ("t2", "argilla:ann", "better", better["t2"], None, None),
        ("t2", "argilla:cid", "skip", None, None, None),
    ]
    newest = Labels(Store.open(root)).newest()
    assert {choice["made_in"] for choice in newest} == {"argilla"}
    assert all(choice["shown"] == [worse[choice["prompt_id"]], better[choice["prompt_id"]]] for choice in newest)
    again = import_labels(SOURCE, tmp_path / "labels.json", "argilla", root)
    assert (again.kept, again.known) == (0, 5)
    assert all(choice["number"] == 0 for choice in Labels(Store.open(root)).newest()), "twice is as once"


def task(
    prompt_id: str, *annotations: dict[str, Any], keys: tuple[str, str] = ("answer1", "answer2")
) -> dict[str, Any]:
    """A task as Label Studio exports it: the judge's better answer on the left."""
    left, right = texts(prompt_id)
    return {
        "id": 3, "project": 1, "created_at": "2026-01-01T10:00:00Z", "drafts": [], "predictions": [],
        "data": {"prompt": f"Tell me of {prompt_id}.", keys[0]: left, keys[1]: right},
        "annotations": [
            {"id": 9, "was_cancelled": False, "ground_truth": False, "lead_time": 4.2, "completed_by": 10, **annotation}
            for annotation in annotations
        ],
    }  # fmt: skip


def result(kind: str, value: dict[str, Any], name: str = "comparison") -> dict[str, Any]:
    return {"id": "x1", "from_name": name, "to_name": name, "type": kind, "origin": "manual", "value": value}


def test_label_studio_left_right_tie_and_cancelled(root: str, tmp_path: Path) -> None:
    left, right = (result("pairwise", {"selected": side}) for side in ("left", "right"))
    reasons = result("choices", {"choices": ["safe"]}, "reasons")
    note = result("textarea", {"text": ["one", "two"]}, "note")
    tie = result("choices", {"choices": ["Tie"]}, "equal")
    tasks = [
        task("t0", {"result": [left, reasons, note], "completed_by": {"id": 10, "email": "ann@example.org"}}),
        task("t1", {"result": [right]}, {"result": [tie], "completed_by": 11}, keys=("text1", "text2")),
        task("t2", {"result": [], "was_cancelled": True}, {"result": [reasons], "completed_by": 12}),
    ]
    found = import_labels(SOURCE, written(tmp_path, tasks), "label-studio", root)
    assert (found.kept, found.known, found.others) == (4, 0, 0), "who chose nothing has said nothing"
    assert kept(root) == [
        ("t0", "ann@example.org", "better", digest(texts("t0")[0]), ["safe"], "one\ntwo"),
        ("t1", "label-studio:10", "better", digest(texts("t1")[1]), None, None),
        ("t1", "label-studio:11", "tie", None, None, None),
        ("t2", "label-studio:10", "skip", None, None, None),
    ]
    named = import_labels(SOURCE, written(tmp_path, tasks[:1]), "label-studio", root, "zoe")
    assert named.people == {"zoe"}
    assert len(kept(root)) == 5


@pytest.mark.parametrize("format", ["argilla", "label-studio"])
def test_there_and_back(root: str, unlabelled: Path, tmp_path: Path, format: str) -> None:
    """All that people have said, and the pairs that nobody has labelled; a skip only where the format has one."""
    ann, bob = (Labelling.open(SOURCE, name, 0, root) for name in ("ann", "Böb \u202e"))
    q = ann.asked.questions
    ann.choose(q[0], "a", ["clear", "safe"], 'a "note"\n<b>')
    ann.choose(q[1], "tie")
    bob.choose(q[0], "b")
    bob.choose(q[1], "skip")
    path = tmp_path / "out.json"
    assert export_labels(SOURCE, path, format, root) == (3, 3)
    fresh = str(shutil.copytree(unlabelled, tmp_path / "fresh"))
    found = import_labels(SOURCE, path, format, fresh)
    expected = [row for row in kept(root) if format == "label-studio" or row[2] != "skip"]
    assert kept(fresh) == expected
    assert (found.kept, found.others) == (len(expected), 0)
    assert import_labels(SOURCE, path, format, root).kept == 0
    with pytest.raises(ConfigError, match="exists: give a new file"):
        export_labels(SOURCE, path, format, root)


def newest(root: str, name: str) -> list[tuple[str, int]]:
    return [(c["choice"], c["number"]) for c in Labels(Store.open(root)).newest() if c["labeller"] == name]


@pytest.mark.parametrize("format", ["argilla", "label-studio"])
def test_an_export_takes_nothing_back_that_was_said_after_it(root: str, tmp_path: Path, format: str) -> None:
    """Ann says otherwise, and bob takes back, what the file still says; what only the file says is new."""
    ann, bob = (Labelling.open(SOURCE, name, 0, root) for name in ("ann", "bob"))
    question = ann.asked.questions[0]
    ann.choose(question, "a", ["safe", "clear"], "why")
    bob.choose(question, "tie")
    path = tmp_path / "out.json"
    export_labels(SOURCE, path, format, root)
    ann.choose(question, "skip")
    bob.withdraw(question)
    found = import_labels(SOURCE, path, format, root)
    assert (found.kept, found.known) == (0, 2)
    assert (newest(root, "ann"), newest(root, "bob")) == ([("skip", 1)], [("withdrawn", 1)])
    path.write_text(path.read_text().replace('"why"', '"why not"'))
    assert import_labels(SOURCE, path, format, root).kept == 1
    assert newest(root, "ann") == [("better", 2)]


def test_of_several_choices_of_one_person_the_last_in_the_file_counts(root: str, tmp_path: Path) -> None:
    """In one record, in two, and of two people whom `labeller` makes one: importing twice is as once."""
    path = written(tmp_path, [
        argilla("t0", [{"value": "response1", "user_id": "u"}, {"value": "response2", "user_id": "u"}]),
        argilla("t1", [{"value": "response1", "user_id": "u"}]),
        argilla("t1", [{"value": "tie", "user_id": "u"}]),
        argilla("t2", [{"value": "tie", "user_id": "u"}, {"value": "response1", "user_id": "v"}]),
    ])  # fmt: skip
    for kept_now in (3, 0):
        found = import_labels(SOURCE, path, "argilla", root, "ann")
        assert (found.kept, found.known) == (kept_now, 3 - kept_now)
        assert newest(root, "ann") == [(choice, 0) for choice, _ in newest(root, "ann")]
        assert [row[2:4] for row in kept(root)] == [
            ("better", digest(texts("t0")[0])), ("tie", None), ("better", digest(texts("t2")[1])),
        ]  # fmt: skip


def test_a_skip_keeps_its_reasons_and_its_note_in_label_studio(root: str, unlabelled: Path, tmp_path: Path) -> None:
    ann = Labelling.open(SOURCE, "ann", 0, root)
    ann.choose(ann.asked.questions[0], "skip", ["safe"], "both are rude")
    export_labels(SOURCE, tmp_path / "out.json", "label-studio", root)
    fresh = str(shutil.copytree(unlabelled, tmp_path / "fresh"))
    import_labels(SOURCE, tmp_path / "out.json", "label-studio", fresh)
    assert kept(fresh) == kept(root)
    assert kept(fresh)[0][2:] == ("skip", None, ["safe"], "both are rude")


@pytest.mark.parametrize("preference", [{}, {"value": "response1"}], ids=["no value", "a value"])
def test_what_is_discarded_in_argilla_is_a_skip(root: str, tmp_path: Path, preference: dict[str, Any]) -> None:
    discarded = {"user_id": "u", "status": "discarded"}
    record = argilla("t0", [preference | discarded], note=[{"value": "rude", **discarded}])
    assert import_labels(SOURCE, written(tmp_path, [record]), "argilla", root).kept == 1
    assert kept(root) == [("t0", "argilla:u", "skip", None, None, "rude")]


def test_what_the_client_of_argilla_writes_without_a_status_is_counted(root: str, tmp_path: Path) -> None:
    """As client 2.8.0 wrote it: a value and who gave it. What has no value, as something discarded, is no choice."""
    records = [
        argilla("t0", [{"value": "response2", "user_id": USER}]),
        argilla("t1", [{"value": None, "user_id": USER}]),
    ]
    path = written(tmp_path, records)
    said = CliRunner().invoke(app, ["import-labels", SOURCE, str(path), "--format", "argilla", "--root", root]).output
    assert f"1 label kept of argilla:{USER}, 0 known before" in said
    assert "which responses were submitted: 1 label may be drafts" in " ".join(said.split())
    assert kept(root) == [("t0", f"argilla:{USER}", "better", digest(texts("t0")[0]), None, None)]
    path.unlink()
    sure = written(tmp_path, [argilla("t2", [{"value": "tie", "user_id": USER, "status": "submitted"}])])
    assert import_labels(SOURCE, sure, "argilla", root).unsure == 0


def test_a_single_reason_and_a_note_as_text_stay_whole(root: str, tmp_path: Path) -> None:
    record = argilla(
        "t0", [{"value": "tie", "user_id": 7}],
        reasons=[{"value": "clear", "user_id": 7}], note=[{"value": "so", "user_id": 7}],
    )  # fmt: skip
    import_labels(SOURCE, written(tmp_path, [record]), "argilla", root)
    assert [row[4:] for row in kept(root)] == [(["clear"], "so")]
    tie, note = result("choices", {"choices": ["tie"]}, "tie"), result("textarea", {"text": " so \n"}, "note")
    reasons = result("choices", {"choices": "clear"}, "reasons")
    import_labels(SOURCE, written(tmp_path, [task("t1", {"result": [tie, note, reasons]})]), "label-studio", root)
    assert kept(root)[1][4:] == (["clear"], "so")


def test_an_export_that_finds_no_room_leaves_no_file(root: str, tmp_path: Path) -> None:
    """No file may grow beyond 100 bytes: that is EFBIG, after the file was made and something was written to it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"out.json' cannot be written: File too large"):
            export_labels(SOURCE, tmp_path / "out.json", "argilla", root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out.json").exists()
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        export_labels(SOURCE, tmp_path / "no" / "out.json", "argilla", root)


def test_the_order_in_a_file_is_not_the_judges(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """With the judge's scores turned round the file is the same, so that nobody can read them from it."""
    monkeypatch.setattr("support.finished_run.score_of", lambda *key: -score_of(*key))
    turned = str(tmp_path / "turned")
    finished_run(Store.open(turned), "small", rounds=2)
    preferred = [[q.answers[0].text for q in Labelling.open(SOURCE, "ann", 0, r).questions] for r in (root, turned)]
    assert all(one != other for one, other in zip(*preferred, strict=True)), "the judge says the contrary"
    for name, where in (("one.json", root), ("other.json", turned)):
        export_labels(SOURCE, tmp_path / name, "argilla", where)
    assert (tmp_path / "one.json").read_text() == (tmp_path / "other.json").read_text()


TIE, LEFT = [{"value": "tie", "user_id": "u"}], result("pairwise", {"selected": "left"})


def named(name: str) -> dict[str, Any]:
    return task("t0", {"result": [LEFT, result("textarea", {"text": [name]}, "labeller")]})


def test_a_file_that_is_too_deep_and_a_name_that_is_none_are_said_in_a_sentence(root: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"deep.json' has lists in lists too deep to be read"):
        import_labels(SOURCE, path, "argilla", root)
    good = written(tmp_path, [named("ann")])
    for name in (" ", "x" * 101, "\ud800"):
        with pytest.raises(InvalidEntryError, match="is no name of a labeller"):
            import_labels(SOURCE, good, "label-studio", root, name)
    assert kept(root) == []


@pytest.mark.parametrize(
    ("content", "format", "sentence"),
    [
        ({"records": []}, "argilla", "is no JSON list of records"),
        ([{"fields": {"prompt": "p", "text": "x"}}], "argilla", r"record 1 of .* has the fields prompt, text: the two"),
        ([argilla("t0", [{"value": "best", "user_id": "u"}])], "argilla", "has the preference 'best': it is resp"),
        ([argilla("t0", "response1")], "argilla", "record 1 of .* has not the form of argilla"),
        ([{"id": 1, "answer1": "x", "comparison": "left"}], "label-studio", "JSON-MIN: export it as JSON"),
        ([task("t0") | {"data": {"answer1": "x", "answer2": "y"}}], "label-studio", "none of the 1 records of"),
        ([], "csv", "there is no format 'csv': give one of argilla, label-studio"),
        ([argilla("t0", TIE, reasons=[{"value": 5, "user_id": "u"}])], "argilla", "1 of .* has the reasons 5: they"),
        ([argilla("t0", TIE, reasons=[{"value": [5], "user_id": "u"}])], "argilla", r"1 of .* has the reasons \[5\]: "),
        ([argilla("t0", TIE, note=[{"value": {"a": 1}, "user_id": "u"}])], "argilla", "has the note {.a.: 1}: it"),
        ([argilla("t0", TIE, note=[{"value": "x" * 2001, "user_id": "u"}])], "argilla", "1 of .* a note of 2,001 char"),
        ([task("t0", {"result": [LEFT, result("textarea", {"text": ["x" * 2001]}, "note")]})], "label-studio",
         "record 1 of .* a note of 2,001 characters: at most 2,000 are kept"),
        ([named("ann"), named("x" * 101)], "label-studio", "record 2 of .*: 'xxx*' is no name of a labeller: give one"),
        ([named("ann"), named(" ")], "label-studio", "record 2 of .*: ' ' is no name of a labeller"),
        ([named("ann"), named("\ud800")], "label-studio", r"record 2 of .*: '\\ud800' is no name of a labeller"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_in_a_sentence_and_nothing_is_kept(
    root: str, tmp_path: Path, content: Any, format: str, sentence: str
) -> None:
    good = argilla("t1", [{"value": "response1", "user_id": "ann"}])
    records = [*content, good] if format == "argilla" and isinstance(content, list) else content
    with pytest.raises((ConfigError, DataError), match=sentence):
        import_labels(SOURCE, written(tmp_path, records), format, root)
    assert kept(root) == []


def test_the_commands(root: str, tmp_path: Path) -> None:
    Labelling.open(SOURCE, "ann", 0, root).choose(Labelling.open(SOURCE, "ann", 0, root).asked.questions[0], "tie")
    run, to = CliRunner(), str(tmp_path / "out.json")
    done = run.invoke(app, ["export-labels", SOURCE, "--to", to, "--format", "argilla", "--root", root])
    assert f"written: {to}, with 3 pairs and 1 label" in done.output
    done = run.invoke(
        app, ["import-labels", SOURCE, to, "--format", "argilla", "--labeller", "bob", "--root", root]
    )  # fmt: skip
    assert "1 label kept of bob, 0 known before" in done.output

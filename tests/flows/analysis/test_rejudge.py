"""Stored completions judged again: what it costs, what is kept, and that the run itself knows nothing of it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

import rondo
from flows.analysis.rejudge import rejudge
from flows.cli.main import app
from flows.host.progress import Display
from flows.registry.judge_source import with_judge
from flows.run.fork_history import import_parent_rounds
from flows.workers.references import hashes
from pipeline.errors import ConfigError
from pipeline.judges import make_judge
from pipeline.records import content_id
from storage.errors import RunBusyError
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import table
from storage.retention.prune import create_fork
from support.chat_server import Response, chat_server, says
from support.finished_run import finished_run, say, small_recipe

Call = Callable[..., Result]


def text(round: int, prompt_id: str, index: int) -> str:
    """The answers, of which a later one is shorter: a judge of shortness turns every order round."""
    return say(round, prompt_id, index) + "!" * (9 - index)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run whose judge likes later completions, and one that likes long ones, in `mine.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RONDO_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "mine.py").write_text("def longer(*, answer, **_):\n    return float(len(answer))\n")
    finished_run(Store.open(tmp_path / "root"), text=text)
    return tmp_path / "root"


@pytest.fixture
def call(root: Path) -> Call:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), catch_exceptions=False)

    return call


def own_files(root: Path) -> dict[str, bytes]:
    """The files of the run itself."""
    run = root / "runs" / "small"
    paths = [path for path in run.rglob("*") if path.is_file() and "annexes" not in path.parts]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def judged(root: Path, name: str) -> list[dict[str, Any]]:
    """What was judged again, but for the times that it took."""
    annex = Store.open(root).run("small").annex(name)
    rows = [row for number in (1, 2, 3) for row in table(Store.open(root), annex, number, "rejudgments").to_pylist()]
    return [{key: value for key, value in row.items() if key != "latency"} for row in rows]


def test_another_judge_turns_every_pair_round(root: Path, call: Call) -> None:
    before = own_files(root)
    done = call("rejudge", "small", "--judge", "mine.py:longer", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    # Three prompts a round, a pair each: the best was the last, and the longest is the first.
    assert [(row["round"], row["pairs"]) for row in document["rounds"]] == [
        (1, [3, 3]), (2, [3, 3]), (3, [3, 3]), (None, [9, 9]),
    ]  # fmt: skip
    assert [row["flipped"] for row in document["rounds"]] == [3, 3, 3, 9]
    assert {(row["spearman"], row["kendall"]) for row in document["rounds"]} == {(-1.0, -1.0)}
    assert [(pair["chosen"], pair["rejected"], pair["change"]) for pair in document["pairs"]] == [(0, 3, "flipped")] * 9
    pair = document["pairs"][0]
    assert pair["view"] == f"/run/small/prompt/{pair['prompt_id']}"
    assert own_files(root) == before, "the run itself has not changed by a byte"

    shown = json.loads(call(*pair["show"].replace(f"--root {root}", "").split()[1:], "--json").stdout)
    assert [(row["candidate"], row["score"]) for row in shown] == [
        (index, float(len(text(pair["round"], pair["prompt_id"], index)))) for index in range(4)
    ]
    by_judge = "select judge, round, count(*) AS n from rejudgments group by all order by all"
    assert json.loads(call("sql", "small", by_judge, "--json").stdout) == [
        {"judge": "longer", "round": number, "n": 12} for number in (1, 2, 3)
    ]
    assert call("verify", "small").exit_code == 0
    assert rondo.open("small", root)[2].rejudged("longer").arrow().num_rows == 12


def test_a_dry_run_and_the_same_command_again(root: Path, call: Call) -> None:
    calls = root.parent / "calls"
    (root.parent / "counted.py").write_text(
        "def score(*, answer, path, **_):\n    open(path, 'a').write('x')\n    return float(len(answer))\n"
    )
    arguments = (
        "rejudge", "small@2-3", "--judge", "counted.py:score", "--set", f"judge.options={{path: {calls}}}", "--json",
    )  # fmt: skip
    costs = json.loads(call(*arguments, "--dry-run").stdout)["costs"]
    assert [(cost["round"], cost["completions"], cost["judged"], cost["left"]) for cost in costs] == [
        (2, 12, 0, 12), (3, 12, 0, 12),
    ]  # fmt: skip
    assert not calls.exists()
    assert Store.open(root).run("small").annexes == []
    first = json.loads(call(*arguments).stdout)
    assert len(calls.read_text()) == 24
    assert json.loads(call(*arguments).stdout) == first
    assert len(calls.read_text()) == 24, "nothing is judged twice"
    wider = json.loads(call("rejudge", "small", *arguments[2:], "--dry-run").stdout)["costs"]
    assert [cost["left"] for cost in wider] == [12, 0, 0]


def test_requests_are_counted_before_and_never_paid_for_twice(root: Path, call: Call) -> None:
    def script(_body: dict[str, Any], number: int) -> Response:
        return says(json.dumps({"score": 1 + number % 5}), {str(1 + number % 5): 1.0})

    with chat_server(script) as served:
        path = root.parent / "judge.yaml"
        path.write_text(yaml.safe_dump({"kind": "llm", "model": "m", "base_url": served.url, "mode": "rubric"}))

        def requests(*more: str) -> tuple[int, int]:
            costs = json.loads(call("rejudge", "small", "--judge", str(path), "--dry-run", "--json", *more).stdout)
            found = [cost["requests"] for cost in costs["costs"] if cost["requests"] is not None]
            return sum(one["new"] for one in found), sum(one["cached"] for one in found)

        assert requests() == (36, 0)
        assert call("judge", str(path), "small@1", "--limit", "4").exit_code == 0
        assert (len(served.bodies), requests()) == (4, (32, 4))
        assert call("rejudge", "small", "--judge", str(path)).exit_code == 0
        assert len(served.bodies) == 36, "as many as were counted"
        assert requests() == (0, 0), "all of it is judged"
        assert requests("--name", "again") == (0, 36), "under another name the replies serve"
        assert call("rejudge", "small", "--judge", str(path), "--name", "again").exit_code == 0
        assert len(served.bodies) == 36
    assert {row["judge"] for row in judged(root, "again")} == {"again"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_in_the_middle_and_given_again(root: Path, call: Call, when: str) -> None:
    """Killed at the commit of round 2: the rest is judged then, and the rows are those of a command left alone."""
    arguments = ["rejudge", "small", "--judge", "mine.py:longer"]
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-m", "support.killed", f"rejudgments:2:{when}", *arguments, "--name", "killed"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -9, done.stderr
    annex = Store.open(root).run("small").annex("killed")
    assert [entry.round for entry in annex.entries()] == ([1] if when == "before" else [1, 2])
    again = call(*arguments, "--name", "killed", "--json")
    whole = call(*arguments, "--name", "whole", "--json")
    assert again.exit_code == whole.exit_code == 0
    keys = [entry.key for entry in Store.open(root).run("small").annex("killed").entries()]
    assert len(keys) == len(set(keys)) == 3
    assert [row | {"judge": "whole"} for row in judged(root, "killed")] == judged(root, "whole")
    one, other = (json.loads(result.stdout) for result in (again, whole))
    assert [row | {"show": None} for row in one["rounds"]] == [row | {"show": None} for row in other["rounds"]]


def test_a_judge_that_was_edited_judges_again_and_is_found_again(root: Path, call: Call) -> None:
    arguments = ("rejudge", "small@1", "--judge", "mine.py:longer", "--json")
    source = root.parent / "mine.py"

    def shown() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(call("show", "small@1", "--judgments", "longer", "--json").stdout)
        return rows

    first = json.loads(call(*arguments).stdout)
    source.write_text("def longer(*, answer, **_):\n    return -float(len(answer))\n")
    second = json.loads(call(*arguments).stdout)
    assert second["version"] != first["version"]
    assert (first["rounds"][0]["flipped"], second["rounds"][0]["flipped"]) == (3, 0)
    assert all(
        row["score"] < 0 for row in json.loads(call("show", "small@1", "--judgments", "longer", "--json").stdout)
    )
    source.write_text("def longer(*, answer, **_):\n    return float(len(answer))\n")
    assert json.loads(call(*arguments, "--dry-run").stdout)["costs"][0]["left"] == 0, "the first version is there"
    assert json.loads(call(*arguments).stdout) == first
    assert all(
        row["score"] > 0 for row in json.loads(call("show", "small@1", "--judgments", "longer", "--json").stdout)
    )


def test_the_rule_alone_asks_nobody(root: Path, call: Call) -> None:
    """The run's own judge has judged already, and its version is the same: only preferences are built again."""
    store, judge = Store.open(root), small_recipe().judge
    source, run = store.run("small"), store.create_run("keyed", store.run("small").header)
    with run.writer() as writer:
        for number in source.finished:
            for entry in source.entries(number):
                assert entry.key is not None
                inputs = [hashes(source.files(number, "candidates")), [judge.hashed()], [make_judge(judge).version]]
                is_judged = entry.key.stage == "judgments"
                key = replace(entry.key, inputs=content_id(inputs)) if is_judged else entry.key
                writer.commit(key, entry.files, entry.meta)
            writer.finish_round(number, source.round_entry(number).meta)
    same, all_pairs = (
        json.loads(call("rejudge", "keyed", "--json", "--set", f"preferences.rule={rule}").stdout)
        for rule in ("best_vs_worst", "all_pairs")
    )
    assert same["name"] is None
    assert same["pairs"] == [], "what the run was trained on is what its judge and rule give"
    assert [row["same"] for row in same["rounds"]] == [3, 3, 3, 9]
    # Of a prompt's 6 pairs, which all have different scores, the run had one.
    assert [(row["pairs"], row["appeared"]) for row in all_pairs["rounds"][:1]] == [([3, 18], 15)]
    assert store.run("keyed").annexes == []
    call("rejudge", "keyed", "--name", "own")
    annex = store.run("keyed").annex("own")
    for number in (1, 2, 3):  # by reference, for a fork that is trained on them
        assert annex.files(number, "rejudgments") == store.run("keyed").files(number, "judgments")
    assert call("verify", "keyed").exit_code == 0
    assert "there is nothing to judge" in call("rejudge", "keyed", "--dry-run").stdout


def test_refusals(root: Path, call: Call) -> None:
    assert call("rejudge", "small@1", "--judge", "mine.py:longer").exit_code == 0
    with pytest.raises(ConfigError, match="another judge has judged run 'small' under the name 'longer': give"):
        call("rejudge", "small@1", "--judge", "vader", "--name", "longer")
    with pytest.raises(ConfigError, match="round 4 of run 'small' is not finished"):
        call("rejudge", "small@4", "--judge", "vader")
    with pytest.raises(ConfigError, match=r"--set 'update\.beta=1': only fields of judge and preferences matter"):
        call("rejudge", "small", "--judge", "vader", "--set", "update.beta=1")
    with pytest.raises(ConfigError, match="give --table completions or judgments"):
        call("show", "small@1", "--judgments", "longer", "--table", "preferences")
    store = Store.open(root)
    with store.run("small").annex("longer").writer():
        named = with_judge(store.run("small"), "mine:longer", [])
        with pytest.raises(
            RunBusyError, match=r"'longer' beside run 'small' is being written by process .*wait for it"
        ):
            rejudge(store, store.run("small"), [2], named, None, Display(), dry_run=False)


def test_a_run_at_work_is_judged_beside_its_work(root: Path, call: Call) -> None:
    store = Store.open(root)
    with store.run("small").writer():
        assert call("rejudge", "small@1", "--judge", "mine.py:longer").exit_code == 0
    assert store.run("small").annexes == ["longer"]


def test_rounds_that_a_fork_has_of_its_parent(root: Path, call: Call) -> None:
    store = Store.open(root)
    parent = store.run("small")
    child: Run = create_fork(store, parent, 2, "fork", {"recipe": small_recipe(seed=5).model_dump(mode="json")})
    with child.writer() as writer:
        import_parent_rounds(store, child, writer)
    arguments = ("--judge", "mine.py:longer", "--set", "preferences.rule=best_vs_random", "--json")
    of_fork, of_parent = (
        json.loads(call("rejudge", f"{name}@1-2", *arguments).stdout)["pairs"] for name in ("fork", "small")
    )
    plain = [[{**pair, "show": "", "view": ""} for pair in pairs] for pairs in (of_fork, of_parent)]
    assert plain[0] == plain[1], "drawn by the seed of the run that made the rounds"
    assert parent.annexes == child.annexes == ["longer"]


def test_judge_tries_and_stores_nothing(root: Path, call: Call) -> None:
    before = set(root.rglob("*"))
    done = call("judge", "mine.py:longer", "small@1", "--limit", "9", "--json")
    rows = json.loads(done.stdout)
    assert [(row["candidate"], row["score"]) for row in rows] == [
        (index, float(len(row["text"]))) for row, index in zip(rows, [*range(4)] * 2, strict=True)
    ], "two whole prompts of four"
    assert {row["prompt"] for row in rows} == {"Tell me of t1.", "… Tell me of t0."}, "what a conversation asks"
    of_initial = call("judge", "vader", "small@0", "--limit", "2")
    assert "vader on 2 held-out completions of small@0" in of_initial.stdout
    assert set(root.rglob("*")) == before
    (root.parent / "odd.py").write_text("def odd(*, answer, **_):\n    raise KeyError('x')\n")
    broken = CliRunner().invoke(app, ["judge", "odd.py:odd", "small@1", "--limit", "4"])
    assert str(broken.exception) == (
        "the judge 'odd' gave none of 4 completions a score; of 4 it says failed: KeyError: 'x'"
    )
    missing = CliRunner().invoke(app, ["judge", "odd.py:none", "small@1"])
    assert "judge.function 'odd:none' cannot be imported" in str(missing.exception)


def test_files_are_plain_parquet(root: Path, call: Call) -> None:
    call("rejudge", "small@1", "--judge", "mine.py:longer")
    (path,) = (root / "runs/small/annexes/longer/rounds/0001").glob("rejudgments-*.parquet")
    assert pq.read_table(path)["judge"].unique().to_pylist() == ["longer"]

"""Runs that people stop, wait for and watch in Prefect: a real server with all of its services, and real processes."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.analysis.labelling import Labelling
from flows.cli.main import INTERRUPTED
from flows.host.text import counted
from flows.registry.label_questions import questions_of
from flows.registry.resume import recipe_of
from storage.log.store import Store
from storage.tables.shards import read_table
from support.background_server import BackgroundServer, background_server
from support.compare import assert_same
from support.forkserver import Command, Done, ForkServer
from support.recipes import TINY

AUTOMATION = Path(__file__).parents[2] / "deploy" / "automations" / "crashed-runs.yaml"
HANGS = 300  # seconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundServer]:
    """With the automation that is shipped, which here waits for 40 s: longer than the 30 s between signs of life."""
    with background_server(tmp_path_factory.mktemp("background")) as server:
        automation = yaml.safe_load(AUTOMATION.read_text())
        automation["trigger"]["within"] = 40
        path = tmp_path_factory.mktemp("automation") / "crashed-runs.yaml"
        path.write_text(yaml.safe_dump(automation))
        command = [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(path)]
        subprocess.run(command, env={**os.environ, **server.variables}, check=True, capture_output=True, timeout=HANGS)
        yield server


@pytest.fixture(scope="module")
def watched(environment: dict[str, str], server: BackgroundServer) -> dict[str, str]:
    return {**environment, **server.variables}


@dataclass(frozen=True)
class Forked:
    """Commands in processes that are forked, and that see the server."""

    forks: ForkServer
    server: BackgroundServer
    outputs: Path

    def begin(self, module: str, *arguments: str) -> Command:
        return self.forks.start(module, *arguments, directory=self.outputs, environment=self.server.variables)

    def run(self, module: str, *arguments: str) -> Done:
        return self.begin(module, *arguments).wait(HANGS)

    def scheduled(self, recipe: Path, run: str, root: Path, rounds: int = 1) -> str:
        """What Prefect's runner does when a scheduled run is due; what is said meanwhile."""
        done = self.run("support.scheduled", str(recipe), run, str(root), str(rounds))
        assert done.returncode == 0, done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def forked_rondo(forks: ForkServer, server: BackgroundServer, tmp_path_factory: pytest.TempPathFactory) -> Forked:
    return Forked(forks, server, tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="module")
def killed(forked_rondo: Forked, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that was killed in round 1; Prefect finds it while the other tests run."""
    root = tmp_path_factory.mktemp("killed")
    command = ("finish_update:1:during", "run", str(tiny_recipe), "--name", "killed", "--root", str(root))
    done = forked_rondo.run("support.killed", *command)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return root


@pytest.mark.nightly
def test_a_run_that_is_stopped_again_and_again_ends_as_any_other(
    killed: Path, server: BackgroundServer, watched: dict[str, str], forked_rondo: Forked, tiny_recipe: Path,
    whole: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Paused in the UI, cancelled there, paused and cancelled by commands, here and from another host."""
    root = ["--root", str(tmp_path)]
    run = ["run", str(tiny_recipe), "--name", "stopped", *root]

    message = _stopped(run, "prepare_policy:0:held", watched, _rondo(watched, "cancel", "stopped", *root))
    assert "'rondo resume stopped' goes on" in message
    assert _states(server, "stopped") == ["Cancelled"]
    assert Store.open(tmp_path).run("stopped").state == "stopped"

    pause = {"type": "PAUSED", "name": "Suspended", "state_details": _suspended_for_300_s()}
    message = _stopped(
        ["resume", "stopped", *root], "finish_update:1:held", watched, lambda: server.set_state("stopped", pause)
    )
    assert "paused by Prefect" in message
    assert _states(server, "stopped")[0] == "Suspended"
    store = Store.open(tmp_path)
    assert store.run("stopped").pause
    assert "paused" in _rondo(watched, "runs", *root)()

    forked_rondo.scheduled(tiny_recipe, "stopped", tmp_path)
    assert _states(server, "stopped") == ["Skipped", "Suspended", "Cancelled"]
    assert len(store.run("stopped").rounds()) == 1

    pause_elsewhere = _rondo(watched, "pause", "stopped", *root, host="elsewhere")
    message = _stopped(["resume", "stopped", *root], "score:1:held", watched, pause_elsewhere)
    assert "paused by Prefect" in message
    states = [state for state in _states(server, "stopped") if state != "Skipped"]
    assert states[:2] == ["Suspended", "Cancelled"], "the flow run that another goes on for is over"

    cancel = {"type": "CANCELLING", "name": "Cancelling"}
    message = _stopped(
        ["resume", "stopped", *root], "finish_update:2:held", watched, lambda: server.set_state("stopped", cancel)
    )
    assert "interrupted by Prefect" in message
    assert _states(server, "stopped")[0] == "Cancelled"

    assert "paused from now on" in _rondo(watched, "pause", "stopped", *root)()
    _rondo(watched, "resume", "stopped", *root)()
    assert store.run("stopped").pause is None
    assert_same(whole, "whole", tmp_path, "stopped", range(3))
    assert "nothing to cancel" in _rondo(watched, "cancel", "stopped", *root)()


@pytest.mark.nightly
def test_people_label_in_time_and_not(
    server: BackgroundServer, forked_rondo: Forked, tmp_path: Path, receiver: list[dict[str, Any]]
) -> None:
    """Round 1 goes on when people have labelled, round 2 when their time is over; all of it is told and shown."""
    path = tmp_path / "recipe.yaml"
    people = {"wait_for": 3, "wait_minutes": 0.25, "on_timeout": "judge"}
    told = {"blocks": ["custom-webhook/team"], "events": ["labels", "alarm", "finished"]}
    path.write_text(yaml.safe_dump({**TINY, "seed": 11, "people": people, "notifications": told}))
    run = forked_rondo.begin("flows.cli.main", "run", str(path), "--name", "asked", "--root", str(tmp_path))
    _until(lambda: _states(server, "asked") == ["Paused"])
    session = Store.open(tmp_path).run("asked").session
    assert session is not None
    assert psutil.Process(session.meta["pid"]).children() == [], "who waits for people holds no device"
    labelling = Labelling.open("asked@1", "ann", 0, str(tmp_path))
    answered = {question.key for question in labelling.questions[:3]}
    for question in labelling.questions[:3]:
        labelling.choose(question, "a")
    done = run.wait(HANGS)
    assert done.returncode == 0, done.stderr
    store = Store.open(tmp_path)
    first, second = store.run("asked").rounds()[1:]
    # A round waits for three labels, or for as many as it has questions; one of ann's may be asked again.
    asked = {question.key for question in questions_of(store, store.run("asked"), 2, recipe_of(store.run("asked")))}
    again = asked & answered
    missing = min(3, len(asked)) - len(again)
    assert missing > 0
    assert (first.meta["labels_missing"], second.meta["labels_missing"]) == (None, missing)
    assert f"went on without {counted(missing, 'label')}, after 0.25 minutes" in second.meta["alarms"]
    rules = [read_table(store, store.run("asked").files(n, "preferences"))["rule"].to_pylist() for n in (1, 2)]
    assert [sum(rule.endswith(", people") for rule in found) for found in rules] == [3, len(again)]

    subjects = [message["subject"] for message in receiver]
    assert subjects[0] == "asked: labels are missing"
    assert {"asked: alarm in round 2", "asked: finished"} <= set(subjects)
    assert {message["token"] for message in receiver} == {"s3cret"}, "secrets are the block's"

    (flow_run,) = server.flow_runs("asked")
    shown = server.artifacts(flow_run["id"])
    assert len(json.loads(shown["rounds-asked"]["data"])) == 3
    assert "report.html" in shown["report-asked"]["data"]
    progress = shown["progress-asked"]
    assert (progress["data"], progress["description"]) == (100, "asked: 2 of 2 rounds")
    assert all(artifact["data"] == 100 for artifact in shown.values() if artifact["type"] == "progress")


def test_a_schedule_waits_for_people_and_goes_on_when_they_have_labelled(
    server: BackgroundServer, forked_rondo: Forked, tmp_path: Path, receiver: list[dict[str, Any]]
) -> None:
    """Nothing has failed where labels are missing: no flow run says so, and people are told what is wanted of them."""
    path, name, told = tmp_path / "recipe.yaml", "due", {"blocks": ["custom-webhook/team"]}
    changes = {"policy": {**TINY["policy"], "steps": 10}, "people": {"wait_for": 2}, "notifications": told}
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    before = len(receiver)
    said = forked_rondo.scheduled(path, name, tmp_path)
    assert "waiting for 2 labels: rondo label due@1" in said
    assert "Traceback" not in said
    assert _states(server, name) == ["AwaitingLabels"]
    assert [message["subject"] for message in receiver[before:]] == ["due: labels are missing"]
    store = Store.open(tmp_path)
    assert (store.run(name).state, store.run(name).pause) == ("stopped", None)

    labelling = Labelling.open("due@1", "ann", 0, str(tmp_path))
    for question in labelling.questions[:2]:
        labelling.choose(question, "b")
    forked_rondo.scheduled(path, name, tmp_path)
    assert _states(server, name) == ["Completed", "AwaitingLabels"]
    newest, *_ = server.flow_runs(name)
    assert len(json.loads(server.artifacts(newest["id"])["rounds-due"]["data"])) == 2, "it is where people look first"
    assert len(store.run(name).rounds()) == 2
    rules = read_table(store, store.run(name).files(1, "preferences"))["rule"].to_pylist()
    assert sum(rule.endswith(", people") for rule in rules) == 2


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ("custom-webhook/nobody", "has no block 'custom-webhook/nobody'"),
        ("secret/word", "'secret/word' is a block that cannot notify"),
    ],
)
def test_a_block_that_cannot_send_is_refused_before_there_is_a_run(
    forked_rondo: Forked, tiny_recipe: Path, tmp_path: Path, receiver: Any, block: str, sentence: str
) -> None:
    command = ("run", str(tiny_recipe), "--root", str(tmp_path), "--set", f"notifications.blocks=[{block}]")
    done = forked_rondo.run("flows.cli.main", *command)
    assert (done.returncode, done.stderr.count("error:"), "Traceback" in done.stderr) == (1, 1, False)
    assert sentence in done.stderr
    assert Store.open(tmp_path).run_names() == []


def test_a_killed_run_is_found_and_the_schedule_goes_on(
    killed: Path, server: BackgroundServer, forked_rondo: Forked, whole: Path, tmp_path: Path
) -> None:
    """Its flow runs give no sign of life: the automation marks them, and the next scheduled run continues.

    The schedule's recipe says another mode by now, which changes nothing of what comes out.
    """
    streaming = tmp_path / "streaming.yaml"
    streaming.write_text(yaml.safe_dump({**TINY, "mode": "streaming"}))
    _until(lambda: _states(server, "killed") == ["Crashed"])
    forked_rondo.scheduled(streaming, "killed", killed, rounds=2)
    assert _states(server, "killed") == ["Completed", "Crashed"]
    session = Store.open(killed).run("killed").session
    assert session is not None
    assert session.meta["changes"] == ["mode: phased -> streaming"]
    assert_same(whole, "whole", killed, "killed", range(3))


@pytest.fixture(scope="module")
def receiver(watched: dict[str, str]) -> Iterator[list[dict[str, Any]]]:
    """What an HTTP server is sent by the block custom-webhook/team; there is also one that cannot notify."""
    messages: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            messages.append({**json.loads(body), "token": self.headers["x-token"]})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        code = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
CustomWebhookNotificationBlock(
    name="team", url=sys.argv[1], json_data={"subject": "{{subject}}", "body": "{{body}}"},
    headers={"x-token": "{{token}}"}, secrets={"token": "s3cret"},
).save("team")
Secret(value="-").save("word")
"""
        url = f"http://127.0.0.1:{listening.server_port}/"
        subprocess.run([sys.executable, "-c", code, url], env=watched, check=True, timeout=HANGS)
        yield messages
        listening.shutdown()


def _command(*arguments: str, at: str | None = None) -> list[str]:
    return [sys.executable, "-m", *(["support.killed", at] if at else ["flows.cli.main"]), *arguments]


def _stopped(arguments: list[str], at: str, variables: dict[str, str], stop: Callable[[], Any]) -> str:
    """What a run says at its end that is held at a stage, with its three workers, and then stopped."""
    command, pipe = _command(*arguments, at=at), subprocess.PIPE
    with subprocess.Popen(command, env=variables, stdout=pipe, stderr=pipe, text=True) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "held\n"
            process = psutil.Process(run.pid)
            _until(lambda: len(process.children()) == 3)
            family = process.children(recursive=True)
            began = time.monotonic()
            stop()
            _, messages = run.communicate(timeout=HANGS)
        finally:
            run.kill()
    assert run.returncode == INTERRUPTED, messages
    assert "Traceback" not in messages
    assert not [member for member in family if member.is_running()]
    assert time.monotonic() - began < 60  # about 3 s, with room for a busy machine
    return messages.splitlines()[-1]


def _rondo(variables: dict[str, str], *arguments: str, host: str | None = None) -> Callable[[], str]:
    """A call of rondo that returns what it prints; on another host, as far as it can tell."""
    command = _command(*arguments)
    if host:
        code = "import socket, sys; host = sys.argv.pop(1); socket.gethostname = lambda: host\n"
        code += "from flows.cli.main import main; main()"
        command = [sys.executable, "-c", code, host, *arguments]

    def call() -> str:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=HANGS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def _states(server: BackgroundServer, name: str) -> list[str]:
    return [run["state_name"] for run in server.flow_runs(name)]


def _suspended_for_300_s() -> dict[str, Any]:
    until = (datetime.now(UTC) + timedelta(seconds=300)).isoformat()
    return {"pause_timeout": until, "pause_reschedule": True, "deferred": False, "untrackable_result": False}


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)

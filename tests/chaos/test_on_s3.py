"""A whole run in a bucket, as moto serves it over HTTP: killed, resumed, looked at; the same as on a local disk."""

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.log.store import Store
from storage.tables.checkpoints import KEPT_COPIES
from support import chaos
from support.compare import TIMES, WAYS
from support.small_run import Rondo, Whole
from support.unreliable_s3 import UnreliableS3

ROUNDS = 4
HANGS = 900  # seconds
STRUCK = (
    "file warm_starts/model.safetensors", "entry commit 0/checkpoint", "table 0000/eval_candidates-00000.parquet",
    "table 0001/candidates-00000.parquet", "entry commit 1/update_state 3", "file 0001/checkpoint/model.safetensors",
    "entry commit 1/checkpoint", "entry round 1/round", "report.html",
)  # fmt: skip


@pytest.fixture
def bucket(s3_environment: None) -> str:
    return f"s3://rondo/{uuid.uuid4().hex}"


@pytest.fixture
def environment_of(s3: UnreliableS3, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The variables of a command: how to reach the bucket, and a directory for what is temporary."""
    (tmp_path / "tmp").mkdir()
    return lambda **more: {**s3.environment, "TMPDIR": str(tmp_path / "tmp"), **more}


@pytest.fixture
def elsewhere(forked: dict[str, str]) -> Iterator[dict[str, str]]:
    """The variable of a client whose bucket of the same name lies at another endpoint."""
    command = [sys.executable, "-m", "support.unreliable_s3"]
    with subprocess.Popen(command, env=forked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield {"AWS_ENDPOINT_URL": server.stdout.readline().strip()}


def test_killed_and_resumed(
    rondo: Rondo, whole: Whole, bucket: str, environment_of: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """The run ends as the one on a local disk: same tables, same weights; every command works on it."""
    covered = tmp_path / "covered"
    faults = chaos.settings(covered, "after", only=STRUCK)
    command = rondo.start()
    while (done := rondo(*command, "--root", bucket, environment=environment_of(**faults), ok=False)).returncode:
        assert done.returncode == -signal.SIGKILL, done.stderr
        command = ["resume", "small"]
    # The flow and the trainer may come to two of them at one time, and then one kill is that of both.
    assert set(covered.read_text().splitlines()) == set(STRUCK)
    whole.assert_same(bucket)
    assert f"report: {Store.open(bucket).report_key('small')}" in done.stdout.replace("\n", "")
    for question in (
        ["rounds", "small"],
        ["show", "small@1", "--limit", "1000"],
        ["show", "small@1", "--where", "score > 0"],
    ):
        here, there = (
            json.loads(rondo(*question, "--root", str(root), "--json", environment=environment_of()).stdout)
            for root in (bucket, whole.root)
        )
        assert _timeless(here) == _timeless(there)
    assert b"</html>" in Store.open(bucket).objects.read(
        rondo("report", "small", "--root", bucket, environment=environment_of()).stdout.strip()
    )


def _timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leaves out times, and by which way weights came: what is resumed reads them, what runs on has them."""
    return [{key: value for key, value in row.items() if key not in (*TIMES, *WAYS)} for row in rows]


@pytest.mark.nightly
def test_copies_do_not_pile_up(
    rondo: Rondo, bucket: str, environment_of: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """Killed at the end of round 4, a run has left no more copies than it needs; resumed, it leaves nothing."""
    faults = chaos.settings(tmp_path / "covered", "after", only=[f"entry commit {ROUNDS}/eval_logps"])
    command = [*rondo.start(), "--root", bucket, "--rounds", str(ROUNDS)]
    killed = rondo(*command, environment=environment_of(**faults), ok=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (scratch,) = (tmp_path / "tmp").glob("rondo-*-*")
    assert 1 <= len(list((scratch / "checkpoints").iterdir())) <= KEPT_COPIES
    rondo("resume", "small", "--root", bucket, environment=environment_of())
    assert list((tmp_path / "tmp").glob("rondo-*")) == []


@pytest.mark.nightly
def test_the_same_names_at_two_endpoints(
    rondo: Rondo,
    whole: Whole,
    bucket: str,
    elsewhere: dict[str, str],
    environment_of: Callable[..., dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two runs at once on one machine: neither takes the other's local copies for its own, or removes them."""
    both = (environment_of(), environment_of(**elsewhere))
    command = [*rondo.start(), "--root", bucket]
    for begun in [rondo.begin(*command, environment=environment) for environment in both]:
        done = begun.wait(HANGS)
        assert done.returncode == 0, done.stderr
    assert list((tmp_path / "tmp").glob("rondo-*-*")) == []
    times = []
    for environment in both:
        rondo("verify", "small", "--root", bucket, environment=environment)
        monkeypatch.setenv("AWS_ENDPOINT_URL", environment["AWS_ENDPOINT_URL"])
        whole.assert_same(bucket)
        times.append([entry.time for entry in Store.open(bucket).run("small").rounds()])
    (first, last), (other_first, other_last) = times
    assert first < other_last, "they were not at work at once"
    assert other_first < last, "they were not at work at once"


def test_over_an_unreliable_network(
    rondo: Rondo, whole: Whole, s3: UnreliableS3, bucket: str, environment_of: Callable[..., dict[str, str]]
) -> None:
    """Every seventh request meets a fault, each kind in turn; the run does not notice."""
    faults = ("error", "slow down", "cut", "too many", "slow", "lost reply", "reset")

    def choose(number: int, method: str, _path: str) -> str:
        fault = faults[number // 7 % len(faults)] if number % 7 == 0 else ""
        return "" if fault == "cut" and method != "GET" else fault

    s3.reset(choose)
    rondo(*rondo.start(), "--root", bucket, environment=environment_of())
    met = s3.faults
    s3.reset()
    assert set(met) == set(faults)
    whole.assert_same(bucket)


def test_a_bucket_that_overwrites_is_refused_before_any_work(
    rondo: Rondo, s3: UnreliableS3, bucket: str, environment_of: Callable[..., dict[str, str]]
) -> None:
    s3.reset(lambda number, method, path: "overwrite")
    done = rondo(*rondo.start(), "--root", bucket, environment=environment_of(), ok=False)
    s3.reset()
    assert done.returncode == 1
    assert "overwrites objects that it is asked to create" in done.stderr.replace("\n", " ")

"""Faults of the network between the store and a bucket, injected into real HTTP exchanges."""

import re
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from store_faults import contents, small_run

from storage.errors import BackendError, UnsupportedStoreError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.tables.checkpoints import local_directory, stage_directory
from support.unreliable_s3 import HANG_SECONDS, Choose, UnreliableS3

FAULTS: dict[str, Choose] = {
    "error": lambda number, method, path: "error" if number % 3 == 0 else "",
    "slow down": lambda number, method, path: "slow down" if number % 3 == 0 else "",
    "too many": lambda number, method, path: "too many" if number % 3 == 0 else "",
    "conflict": lambda number, method, path: "conflict" if method == "PUT" and number % 3 == 0 else "",
    "lost reply": lambda number, method, path: "lost reply" if method == "PUT" and number % 2 == 0 else "",
    "reset": lambda number, method, path: "reset" if number % 5 == 0 else "",
    "cut": lambda number, method, path: "cut" if method == "GET" and number % 5 == 0 else "",
    "slow": lambda number, method, path: "slow" if number % 4 == 0 else "",
    "hang": lambda number, method, path: "hang" if number % 12 == 0 else "",
}


@pytest.fixture
def bucket(s3_environment: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root of its own, for a client that loses patience before the end of a ``hang``."""
    monkeypatch.setenv("AWS_TIMEOUT", f"{HANG_SECONDS - 0.5:.0f}s")
    return f"s3://rondo/{uuid.uuid4().hex}"


@pytest.mark.parametrize("fault", FAULTS)
def test_run_over_an_unreliable_network(s3: UnreliableS3, bucket: str, tmp_path: Path, fault: str) -> None:
    """The client tries again; a write that it repeats without need is recognised as its own."""
    store = Store.open(bucket)
    reference = Store.open("memory://")
    small_run(reference)
    s3.reset(FAULTS[fault])
    small_run(store)
    seen = contents(store, tmp_path / "a")
    assert s3.faults[fault] >= 4
    s3.reset()
    assert seen == contents(store, tmp_path / "a") == contents(reference, tmp_path / "b")
    numbers = [int(key[-15:-5]) for key in store.objects.keys("runs/small/log")]
    assert numbers == list(range(len(reference.objects.keys("runs/small/log")))), "no entry twice, none missing"
    assert store.run("small").find(Key(2, "checkpoint")) is not None


def test_large_file_whose_last_reply_is_lost(s3: UnreliableS3, bucket: str, tmp_path: Path) -> None:
    """Parts of 10 MiB each; the request that joins them takes place, and its reply is lost."""
    store = Store.open(bucket)
    store.objects.patience.seconds = 4.0  # the client asks for the reply that long
    weights = bytes(range(256)) * (25 * 2**12)  # 25 MiB

    def stage() -> None:
        with stage_directory(store, "a", 1, "checkpoint") as staged:
            (staged.path / "model.safetensors").write_bytes(weights)
        assert local_directory(store, staged.files, tmp_path / "cache")

    s3.reset(lambda number, method, path: "lost reply" if method == "POST" and number > 2 else "")
    with pytest.raises(BackendError, match=r"model\.safetensors"):
        stage()
    assert s3.faults["lost reply"] >= 1
    s3.reset(lambda number, method, path: "error" if method == "PUT" and number % 3 == 0 else "")
    stage()
    assert s3.faults["error"] >= 1


@pytest.mark.parametrize("where", ["first", "part", "join"])
def test_a_large_file_that_meets_a_conflict_is_sent_again(
    s3: UnreliableS3, bucket: str, tmp_path: Path, where: str
) -> None:
    """At the request that begins it, at one of its parts, at the one that joins them: its client gives up at each."""
    objects, data = Store.open(bucket).objects, bytes(range(256)) * (12 * 2**12)  # 12 MiB: two parts
    (tmp_path / "source").write_bytes(data)
    for key, source in (("written", None), ("copied", tmp_path / "source")):
        seen: list[str] = []

        def choose(_number: int, method: str, _path: str, seen: list[str] = seen) -> str:
            seen.append(method)
            hit = {"first": method == "POST", "part": method == "PUT", "join": seen.count("POST") == 2}[where]
            return "conflict" if hit and not s3.faults else ""

        s3.reset(choose)
        with objects.sink(key, source) as sink:
            for start in range(0, len(data), 2**20):
                sink.write(data[start : start + 2**20])
        assert s3.faults == {"conflict": 1}
        assert seen.count("POST") == 3 + (where == "join")
        assert seen.count("DELETE") == (where != "first"), "no parts are left that nobody sees, and somebody pays for"
        assert objects.read(key) == data


def test_a_conflict_is_no_answer(s3: UnreliableS3, bucket: str) -> None:
    """Nothing is there: a writer that took it for another's entry would have to end."""
    objects = Store.open(bucket).objects
    s3.reset(lambda number, method, path: "conflict" if number == 1 else "")
    assert objects.create("a", b"x") is True
    s3.reset(lambda number, method, path: "conflict" if number == 1 else "")
    assert objects.create("a", b"y") is False, "this time there is something"
    assert objects.read("a") == b"x"


def test_a_bucket_that_refuses_all_is_waited_for(s3: UnreliableS3, bucket: str, monkeypatch) -> None:
    """In every operation; the client alone gives up after a second. People are told once, and when it is over."""
    monkeypatch.setattr("storage.objects.patience.TELL_SECONDS", 0.3)
    store = Store.open(bucket)
    objects, said = store.objects, list[str]()
    objects.patience.say = said.append
    assert objects.create("old", b"x")

    def write() -> None:
        with objects.sink("new") as sink:
            sink.write(b"x")

    operations: dict[str, Callable[[], object]] = {
        "create": lambda: objects.create("b", b"x"), "read": lambda: objects.read("old"), "sink": write,
        "keys": lambda: objects.keys("runs"), "range": lambda: objects.open("old").read(),
        "delete": lambda: objects.delete(["old"]),
    }  # fmt: skip
    for name, operation in operations.items():
        said.clear()
        end = time.monotonic() + 1.2
        s3.reset(lambda number, method, path, end=end: "slow down" if time.monotonic() < end else "")
        operation()
        assert s3.faults["slow down"] > 4, name
        assert re.fullmatch(
            rf"{bucket} does not answer as it should \(503 [\w ]+\): waiting, 300 s at most", said[0]
        ), (name, said)
        assert [line for line in said[1:] if not line.startswith(f"{bucket} answers again, after ")] == []


def test_patience_ends(s3: UnreliableS3, bucket: str) -> None:
    store = Store.open(bucket)
    store.objects.patience.seconds = 1.0
    s3.reset(lambda number, method, path: "slow down")
    began = time.monotonic()
    with pytest.raises(BackendError, match=r"failed at runs.*503"):
        store.run_names()
    assert time.monotonic() - began < 20  # two rounds of the client's own tries


def test_a_wait_can_be_ended(s3: UnreliableS3, bucket: str) -> None:
    """By whoever provides the pause: nothing else interrupts what waits in a client."""

    def refuse(_seconds: float) -> None:
        raise KeyboardInterrupt

    objects = Store.open(bucket).objects
    objects.patience.waiting = lambda: nullcontext(refuse)
    s3.reset(lambda number, method, path: "slow down")
    with pytest.raises(KeyboardInterrupt):
        objects.read("x")


def test_a_wrong_address_is_not_waited_for_long(s3: UnreliableS3, bucket: str, monkeypatch) -> None:
    """Nobody has ever answered there. Once somebody has, a connection that fails is waited for like all else."""
    monkeypatch.setattr("storage.objects.patience.FIRST_SECONDS", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store, began = Store.open(bucket), time.monotonic()
    with pytest.raises(BackendError, match="error sending request"):
        store.run_names()
    assert time.monotonic() - began < 20
    store.objects.patience.reached, store.objects.patience.seconds = True, 1.0
    began = time.monotonic()
    with pytest.raises(BackendError, match="error sending request"):
        store.run_names()
    assert time.monotonic() - began > 0.5


def test_bucket_that_is_gone(s3: UnreliableS3, s3_environment: None) -> None:
    with pytest.raises(BackendError, match=r"failed at runs/a"):
        Store.open("s3://no-such-bucket/root").create_run("a", {})


def test_bucket_without_put_if_absent_is_refused(s3: UnreliableS3, bucket: str) -> None:
    """At the first write of a run, and at the first one of each writer."""
    store = Store.open(bucket)
    run = store.create_run("kept", {})
    s3.reset(lambda number, method, path: "overwrite")
    for start in (lambda: store.create_run("a", {}), lambda: run.writer().__enter__()):
        with pytest.raises(UnsupportedStoreError, match="overwrites objects that it is asked to create"):
            start()

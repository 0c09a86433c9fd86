"""Worker processes: errors keep their class, death is noticed, and no worker outlives its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

import flows.remote.worker_process
from flows.errors import WorkerDiedError, WorkerError
from flows.host.processes import lives
from flows.remote.worker_process import WorkerProcess
from flows.round.step import is_worth_another_try
from pipeline.errors import DataError
from pipeline.judges import make_judge
from pipeline.judges.grammar import GrammarConfig
from pipeline.records import CANDIDATES, PROMPTS, to_table
from storage.log.store import Store
from storage.tables.shards import write_table
from support.recipes import TINY
from support.workers import use

OF_PARTS = {**TINY, "judge": {"kind": "python", "function": "support.judge_of_parts:length"}}
TESTS = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}


@pytest.fixture
def make(tmp_path: Path) -> Callable[[], WorkerProcess]:
    """A judge in a process of its own: the worker that starts quickest."""
    arguments = {"root": str(tmp_path / "root"), "run": "r", "recipe": TINY, "scratch": str(tmp_path)}
    Store.open(tmp_path / "root").create_run("r", {})
    return lambda: WorkerProcess("judge", arguments, tmp_path / "judge.log", {})


def test_a_call_is_answered(make: Callable[[], WorkerProcess]) -> None:
    worker = make()
    assert use(worker, lambda: worker.call("versions")) == ["3.3.2", grammar_version()]
    assert worker.pid is None


def grammar_version() -> str:
    return make_judge(GrammarConfig(kind="grammar")).version


def test_a_users_error_keeps_its_class_and_its_sentence(make: Callable[[], WorkerProcess], tmp_path: Path) -> None:
    """Candidates whose prompt is missing: the judge raises DataError in the child, and so does the call here."""
    store = Store.open(tmp_path / "root")
    prompts = write_table(store, "r", 0, "prompts", to_table([], PROMPTS))
    orphan = {
        "prompt_id": "lost", "candidate": 0, "token_ids": [1], "text": "a", "logprobs": [-1.0],
        "finish_reason": "stop", "seed": 1, "policy": "p",
    }  # fmt: skip
    candidates = write_table(store, "r", 1, "candidates", to_table([orphan], CANDIDATES), 0)
    worker = make()

    def call() -> Coroutine[Any, Any, Any]:
        return worker.call(
            "judge", prompts=[prompts.to_json()], candidates=candidates.to_json(), round=1, stage="judgments",
            shard=0, judges=[0],
        )  # fmt: skip

    with pytest.raises(DataError, match="prompt lost"):
        use(worker, call)


def test_a_fault_of_ours_names_the_log(make: Callable[[], WorkerProcess]) -> None:
    worker = make()
    with pytest.raises(WorkerError, match=r"has no method '_serve'.*judge\.log"):
        use(worker, lambda: worker.call("_serve"))


def test_wrong_arguments_are_refused(make: Callable[[], WorkerProcess]) -> None:
    worker = make()
    with pytest.raises(WorkerError, match="judges"):
        use(worker, lambda: worker.call("judge", prompts=[], candidates={}, round=1, stage="x", shard=0, judges="many"))


def test_a_killed_worker_is_started_again_at_the_next_call(make: Callable[[], WorkerProcess]) -> None:
    worker = make()

    async def work() -> None:
        first = await worker.call("versions")
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="ended with status -9"):
            await worker.call("versions")
        assert await worker.call("versions") == first
        assert worker.starts == 2

    use(worker, work)


def test_a_worker_that_hangs_is_killed_and_started_again(
    make: Callable[[], WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start, seconds of imports, is slow work and no hang; stopped by SIGSTOP it says and computes nothing."""
    monkeypatch.setattr(flows.remote.worker_process, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(flows.remote.worker_process, "HUNG_SECONDS", 4.0)
    worker = make()

    async def work() -> None:
        first = await worker.call("versions")
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(
            WorkerDiedError, match=r"the judge process hung, with no word and no work for 4 s.*judge\.log"
        ):
            await worker.call("versions")
        assert await worker.call("versions") == first
        assert worker.starts == 2

    use(worker, work)


def test_a_child_that_is_gone_takes_no_call_of_its_successor_with_it(make: Callable[[], WorkerProcess]) -> None:
    """Something that a child left behind holds its pipe, so that its end is read when another one is at work."""
    worker = make()

    async def work() -> Any:
        await worker.start()
        first = worker.pid
        with _answers_of(first):
            os.kill(first, signal.SIGKILL)
            while worker.pid == first:
                await asyncio.sleep(0.01)
            await worker.start()
            os.kill(worker.pid, signal.SIGSTOP)
            call = asyncio.create_task(worker.call("versions"))
            await asyncio.sleep(0.05)
        await asyncio.wait({call}, timeout=0.5)
        os.kill(worker.pid, signal.SIGCONT)
        return await call

    assert use(worker, work)[0] == "3.3.2"
    assert worker.starts == 2


def test_who_gives_up_while_a_failed_engine_is_ended_takes_nobody_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two requests to a sampler the first fails and is given up just then: the other may still be made again."""
    Store.open(tmp_path / "root").create_run("r", {})
    arguments = {"root": str(tmp_path / "root"), "run": "r", "recipe": TINY, "scratch": str(tmp_path)}
    worker = WorkerProcess("sampler", arguments, tmp_path / "sampler.log", {}, capacity=2)
    probe = {"path": "runs/r/rounds/0000/probe.parquet", "bytes": 1, "sha256": "0" * 64}
    unsaved = {"digest": "unsaved 1", "files": [], "probe": probe}  # which a sampler that is new cannot have
    end, calls = WorkerProcess._kill, list[asyncio.Task[Any]]()

    async def ending(process: asyncio.subprocess.Process) -> int:
        if not calls[0].cancelling():
            calls[0].cancel()
            await asyncio.sleep(0)
        return await end(process)

    async def work() -> list[Any]:
        await worker.start()
        monkeypatch.setattr(WorkerProcess, "_kill", staticmethod(ending))
        calls.extend(asyncio.create_task(worker.call("use", policy=unsaved)) for _ in range(2))
        return await asyncio.gather(*calls, return_exceptions=True)

    given_up, other = use(worker, work)
    assert isinstance(given_up, asyncio.CancelledError)
    assert is_worth_another_try(other), repr(other)


def _answers_of(pid: int) -> IO[bytes]:
    """The end of the pipe of answers that a child writes to, held open here too."""
    pipes = [file for file in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(file).startswith("pipe:")]
    writable = [file for file in pipes if int(_flags(pid, file.name), 8) & os.O_WRONLY]
    (answers,) = writable
    return answers.open("wb")


def _flags(pid: int, descriptor: str) -> str:
    lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("flags:"))


@pytest.mark.parametrize("hangs", [False, True])
def test_the_parts_of_a_worker_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    monkeypatch.setattr(flows.remote.worker_process, "GRACE_SECONDS", 0.5 if hangs else 30.0)
    Store.open(tmp_path / "root").create_run("r", {})
    arguments = {"root": str(tmp_path / "root"), "run": "r", "recipe": OF_PARTS, "scratch": str(tmp_path)}
    worker = WorkerProcess("judge", arguments, tmp_path / "judge.log", ENVIRONMENT)

    async def work() -> psutil.Process:
        await worker.start()
        assert worker.pid is not None
        (part,) = psutil.Process(worker.pid).children()
        if hangs:
            os.kill(worker.pid, signal.SIGSTOP)
        return part

    assert _ended(use(worker, work))


def _ended(process: psutil.Process, seconds: float = 30) -> bool:
    """Whether a process ends soon; usually it takes milliseconds, on a busy machine longer."""
    deadline = time.monotonic() + seconds
    while lives(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not lives(process)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """The parent is SIGKILLed, so that none of its own cleaning up can run; the child is gone within seconds, and what
    it has started is too.
    """
    Store.open(tmp_path / "root")
    script = tmp_path / "parent.py"
    script.write_text(
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from flows.remote.worker_process import WorkerProcess\n"
        "async def main():\n"
        f"    arguments = {{'root': {str(tmp_path / 'root')!r}, 'run': 'r', 'recipe': {OF_PARTS!r}, 'scratch': '.'}}\n"
        f"    worker = WorkerProcess('judge', arguments, Path({str(tmp_path / 'log')!r}), {{}})\n"
        "    await worker.start()\n"
        "    print(worker.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        (part,) = child.children()
        parent.kill()
        parent.wait()
    assert _ended(child)
    assert _ended(part)

"""A worker of two ranks: an error or the death of one is noticed at once, and none is left behind."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from flows import ranks as starting
from flows.errors import WorkerDiedError
from flows.process import WorkerProcess
from pipeline.config import Recipe
from pipeline.errors import OutOfMemoryError
from pipeline.records import PROMPTS, to_table
from storage.checkpoints import stage_directory
from storage.shards import write_table
from storage.store import Store
from support.recipes import TINY
from support.tiny import tiny_llama

TESTS = Path(__file__).parents[1]


def family(worker: WorkerProcess) -> list[psutil.Process]:
    """Torchrun and its ranks, in the order of their numbers."""
    torchrun = psutil.Process(worker.pid)
    ranks = [rank for rank in torchrun.children() if "RANK" in rank.environ()]
    return [torchrun, *sorted(ranks, key=lambda rank: int(rank.environ()["RANK"]))]


def gone(processes: Sequence[psutil.Process]) -> bool:
    """Usually within half a second; a busy machine may take much longer."""
    return not psutil.wait_procs(processes, timeout=300)[1]


@pytest.mark.timeout(900)
def test_faults_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trainer, started three times: a rank fails in its work, a rank is killed, torchrun itself is killed."""
    store = Store.open(tmp_path / "root")
    store.create_run("r", {})
    with stage_directory(store, "r", 0, "checkpoint") as staged:
        tiny_llama(staged.path)
    row = {
        "prompt_id": "p", "text": "w1 w2", "messages": None, "token_ids": [5, 6, 7], "source": "test",
        "reference_answer": None, "split": "train",
    }  # fmt: skip
    prompts = write_table(store, "r", 0, "prompts", to_table([row], PROMPTS))
    inputs: dict[str, Any] = {
        "checkpoint": [file.to_json() for file in staged.files],
        "prompts": [prompts.to_json()],
    }
    monkeypatch.setattr(starting, "RANKS", "support.faulty_rank")
    recipe = {**TINY, "devices": {"trainer_ranks": 2}}
    arguments = {"root": store.root, "run": "r", "recipe": recipe, "scratch": str(tmp_path)}
    environment = {
        "FAULT": str(tmp_path / "fault"),
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path),
    }
    worker = WorkerProcess("trainer", arguments, tmp_path / "log", environment, ranks=2)

    async def work() -> None:
        probe = await worker.call("probe", **inputs)
        assert probe["rows"] == 1
        ranks = family(worker)
        assert len(ranks) == 3
        addresses = [one.laddr.ip for rank in ranks for one in rank.net_connections() if one.status == "LISTEN"]
        assert set(addresses) == {"127.0.0.1"}
        (tmp_path / "fault").touch()
        started = time.monotonic()
        with pytest.raises(OutOfMemoryError, match=r"^the memory of one of 2 devices is full$"):
            await worker.call("probe", **inputs)
        # The first rank waited for the second in a sum over both, and gloo alone would wait for half an hour.
        assert time.monotonic() - started < 300
        assert gone(ranks)

        (tmp_path / "fault").unlink()
        for victim in (2, 0):  # the second rank, torchrun
            await worker.start()
            ranks = family(worker)
            os.kill(ranks[victim].pid, signal.SIGSTOP if victim else signal.SIGKILL)
            if victim:  # stopped first, so that it dies in the middle of the work
                asyncio.get_running_loop().call_later(1, ranks[victim].kill)
            with pytest.raises(WorkerDiedError):
                await worker.call("probe", **inputs)
            assert gone(ranks)
        assert worker.starts == 3

    async def run() -> None:
        try:
            await work()
        finally:
            await worker.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("update", "trainer", "words"),
    [
        ({"optimizer": "adamw_8bit"}, "cuda", "adamw_8bit"),
        ({"compile": True}, "cpu", "update.compile"),
        ({}, "cuda:1", "'cuda:1', which is one GPU"),
    ],
)
def test_what_ranks_do_not_go_with_is_refused(update: dict[str, Any], trainer: str, words: str) -> None:
    recipe = {**TINY, "update": update, "devices": {"trainer_ranks": 2, "trainer": trainer}}
    with pytest.raises(ValidationError, match=rf"devices\.trainer_ranks 2 does not go with .*{words}"):
        Recipe.model_validate(recipe)
    Recipe.model_validate({**recipe, "devices": {"trainer": trainer}})

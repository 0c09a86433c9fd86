"""A worker of two ranks: an error or the death of one is noticed at once, and none is left behind."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.errors import WorkerDiedError
from flows.remote import torchrun
from flows.remote.worker_process import WorkerProcess
from pipeline.errors import OutOfMemoryError
from pipeline.recipe import Recipe
from storage.log.store import Store
from support.ranks import family, gone, listening, probe_inputs
from support.recipes import TINY
from support.workers import use

TESTS = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_faults_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trainer, started three times: a rank fails in its work, a rank is killed, torchrun itself is killed."""
    store = Store.open(tmp_path / "root")
    inputs = probe_inputs(store)
    monkeypatch.setattr(torchrun, "RANKS", "support.faulty_rank")
    recipe = {**TINY, "devices": {"cpu_threads": 1, "trainer_ranks": 2}}
    arguments = {"root": store.root, "run": "r", "recipe": recipe, "scratch": str(tmp_path)}
    environment = {
        "FAULT": str(tmp_path / "fault"),
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path),
    }
    worker = WorkerProcess("trainer", arguments, tmp_path / "log", environment, torchrun.Torchrun(2))

    async def work() -> None:
        probe = await worker.call("probe", **inputs)
        assert probe["rows"] == 1
        ranks = family(worker.pid)
        assert len(ranks) == 3
        assert listening(ranks) == {"127.0.0.1"}
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
            ranks = family(worker.pid)
            ranks[2].suspend()  # first, or the work might be done before the death is noticed
            asyncio.get_running_loop().call_later(1, ranks[victim].kill)
            with pytest.raises(WorkerDiedError):
                await worker.call("probe", **inputs)
            if victim == 0:  # it ends by itself once it runs again
                ranks[2].resume()
            assert gone(ranks)
        assert worker.starts == 3

    use(worker, work)


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

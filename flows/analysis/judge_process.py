"""A judge in a process of its own, asked about completions that are in the store already."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from flows.host.allotment import Allotment
from flows.host.scratch import scratch_directory
from flows.registry.judge_source import NamedJudge
from flows.remote.calls import Client
from flows.remote.worker_process import WorkerProcess, worker_environment
from flows.workers.rejudge import RejudgeWorker
from storage.log.store import Store

Result = TypeVar("Result")
Judging = Callable[[Client[RejudgeWorker]], Awaitable[Result]]


def with_judge_process(
    store: Store, name: str, judge: NamedJudge, work: Judging[Result], *, say: Callable[[str], None]
) -> Result:
    """Returns what the work returns, which is given the judge; its process ends with it.

    Args:
        name: of the run, or of the annex, in whose directory it writes.
        say: hears what the judge has to say to people.

    Raises:
        JudgeError: the judge cannot be loaded, or failed as a whole.
        WorkerDiedError: its process died.
    """

    async def run() -> Result:
        with scratch_directory(f"judging {name} in {store.root}") as scratch:
            carrier = _process(store, name, judge, scratch)
            try:
                return await work(Client(carrier, say=say))
            finally:
                await carrier.stop()

    return asyncio.run(run())


def _process(store: Store, name: str, judge: NamedJudge, scratch: Path) -> WorkerProcess:
    allotment = Allotment.of(judge.recipe)
    recipe = allotment.recipe(judge.recipe, "judge").model_dump(mode="json")
    arguments = {"root": store.root, "run": name, "recipe": recipe, "scratch": str(scratch)}
    environment = worker_environment(allotment.threads["judge"])
    if judge.directory is not None:
        found = [str(judge.directory), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(found)
    return WorkerProcess("rejudge", arguments, scratch / "judge.log", environment)

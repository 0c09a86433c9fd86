"""A judge in a worker may start threads and processes in every way, and dies with all of them."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.errors import WorkerDiedError
from flows.remote.worker_process import WorkerProcess
from pipeline.records import CANDIDATES, PROMPTS, to_table
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.shards import read_table, write_table
from support.judge_with_processes import WAYS, score, value
from support.recipes import TINY
from support.workers import use

TESTS = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
ANSWERS = ["four", "The film is 4 of 5."]


class Bench:
    """A run with two answers to one prompt, and a worker whose judges are given."""

    def __init__(self, directory: Path, judges: Sequence[dict[str, Any]]) -> None:
        self.store = Store.open(directory / "root")
        self.store.create_run("r", {})
        prompt = {
            "prompt_id": "p", "text": "t", "messages": None, "token_ids": [1], "source": "test",
            "reference_answer": None, "split": "train",
        }  # fmt: skip
        rows = [
            {
                "prompt_id": "p", "candidate": number, "token_ids": [1], "text": text, "logprobs": [-1.0],
                "finish_reason": "stop", "seed": 1, "policy": "p",
            }
            for number, text in enumerate(ANSWERS)
        ]  # fmt: skip
        prompts = write_table(self.store, "r", 0, "prompts", to_table([prompt], PROMPTS))
        candidates = write_table(self.store, "r", 1, "candidates", to_table(rows, CANDIDATES), 0)
        self._call = {
            "prompts": [prompts.to_json()], "candidates": candidates.to_json(), "round": 1, "stage": "judgments",
            "shard": 0, "judges": list(range(len(judges))),
        }  # fmt: skip
        first, *others = judges
        recipe = {**TINY, "judge": first, "evaluation": {**TINY["evaluation"], "judges": others}}
        arguments = {"root": self.store.root, "run": "r", "recipe": recipe, "scratch": str(directory)}
        self.worker = WorkerProcess("judge", arguments, directory / "judge.log", ENVIRONMENT)

    async def judge(self) -> list[dict[str, Any]]:
        judged = await self.worker.call("judge", **self._call)
        return list(read_table(self.store, [FileRef.from_json(judged["file"])]).to_pylist())


def test_scores_are_those_of_the_function_called_outside(tmp_path: Path) -> None:
    """All ways in one worker, one after the other: threads that one leaves behind must not harm the next."""
    judges = [
        {
            "kind": "python", "function": "support.judge_with_processes:score", "options": {"way": way},
            "name": way.replace(" ", "-"),
        }
        for way in WAYS
    ]  # fmt: skip
    bench = Bench(tmp_path, judges)
    judged = use(bench.worker, bench.judge)
    found = {(row["judge"], row["candidate"]): row["score"] for row in judged}
    outside = {
        (way.replace(" ", "-"), number): score(answer, way) for way in WAYS for number, answer in enumerate(ANSWERS)
    }
    assert found == outside
    assert {number: found["threads", number] for number in (0, 1)} == dict(enumerate(map(value, ANSWERS)))


def test_a_worker_whose_child_holds_its_pipes_is_missed_at_once(tmp_path: Path) -> None:
    """Its pipe has no end, for the child is there; and the child ends with it, though it is nobody's by then."""
    place = tmp_path / "child"
    judge = {"kind": "python", "function": "support.judge_with_processes:leave", "options": {"place": str(place)}}
    bench = Bench(tmp_path, [judge])

    async def work() -> float:
        with pytest.raises(WorkerDiedError, match="ended with status -9"):
            await bench.judge()
        return time.time() - place.stat().st_mtime

    # Half a second; a busy machine may take longer, and what is awaited by the pipe takes 900 s.
    assert use(bench.worker, work) < 30
    with contextlib.suppress(psutil.NoSuchProcess):
        left = psutil.Process(int(place.read_text()))
        assert psutil.wait_procs([left], timeout=30)[1] == []

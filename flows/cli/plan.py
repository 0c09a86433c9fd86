"""`rondo plan`: what a recipe's round takes on a number of devices; each metric is measured or assumed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flows.cli import tables
from flows.cli.options import Changes, Commands, Format, Output, RecipePath, Root
from flows.host.text import quantity
from flows.registry import DEFAULT_ROOT

if TYPE_CHECKING:
    from pipeline.planning.plan import Plan

app = Commands("Run")


@app.command()
def plan(
    recipe: RecipePath,
    gpus: Annotated[int | None, typer.Option(min=1, help="devices; as many as the recipe names if empty")] = None,
    device: Annotated[
        str | None, typer.Option(help="such as h100; a wrong name is answered with those that are known")
    ] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="mean length of a prompt, in tokens")] = None,
    answer_tokens: Annotated[float | None, typer.Option(min=1, help="mean length of a completion")] = None,
    gpu_hour_usd: Annotated[float | None, typer.Option(min=0, help="price of a device for an hour")] = None,
    calibrate: Annotated[
        str | None, typer.Option(metavar="RUN@ROUND", help="take lengths and speeds that this round measured")
    ] = None,
    root: Root = DEFAULT_ROOT,
    set_: Changes = None,
    format: Output = Format.table,
) -> None:
    """Say what a round takes on so many devices: time, memory, store, money, and what limits it."""
    from flows.analysis.capacity import plan_recipe
    from flows.host.progress import doing
    from flows.registry.recipes import load_recipe
    from pipeline.planning.devices import Fact

    with doing("reading what the plan rests on"):
        found = plan_recipe(
            load_recipe(recipe, set_ or []), device, gpus, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens,
            usd_per_hour=gpu_hour_usd, calibrate=calibrate, root=root,
        )  # fmt: skip
    size = f"{found.work.policy.parameters / 1e6:,.4g} M weights, {found.devices} x {found.device.name}"
    title = f"{found.work.recipe.name}, rounds: {found.work.recipe.rounds}, {size}"
    facts = [(name, float(fact), fact.source) for name, fact in vars(found.device).items() if isinstance(fact, Fact)]
    records = _records(found)
    rows = [{**row, "value": quantity(row["value"], row["unit"])} for row in records]
    rows = [{name: value for name, value in row.items() if name != "unit"} for row in rows]
    document = {"metrics": records, "rests on": facts, "warnings": found.warnings}
    tables.print_rows(rows, title=title, format=format, records=records, document=document)
    lines = [f"{name} {value:.3g}: {source}" for name, value, source in facts]
    lines += [f"warning: {warning}" for warning in found.warnings]
    for line in lines if format.is_for_people else ():
        Console().print(line, markup=False, highlight=False, soft_wrap=True)


def _records(plan: "Plan") -> list[dict[str, Any]]:
    """Makes a record of each metric: its value in seconds, bytes or USD, what it is made of, and its basis."""
    partly = "partly measured" if plan.measured else "assumed"
    bases = {**dict.fromkeys(plan.measured, "measured"), "evaluate": partly}
    metrics = [(name, "s", parts, bases.get(name, "assumed")) for name, parts in plan.stages.items()]
    metrics += [("round", "s", {"": plan.seconds}, partly), ("run", "s", {"": plan.run_seconds}, partly)]
    metrics += [(f"memory, {part}", "B", sizes, "assumed") for part, sizes in plan.memory.items()]
    metrics += [("store, round", "B", plan.store, "assumed"), ("store, run", "B", {"": plan.run_store}, "assumed")]
    metrics += [] if plan.usd is None else [("cost, run", "USD", {"": plan.usd}, partly)]
    return [
        {"metric": name, "value": sum(parts.values()), "unit": unit, "made of": _made_of(parts, unit), "basis": basis}
        for name, unit, parts, basis in metrics
    ]


def _made_of(parts: Mapping[str, float], unit: str) -> str:
    largest_first = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {quantity(size, unit)}" for name, size in largest_first if name and size)

"""What a round of a run measured, in the planner's terms: lengths, preferences, and how far the arithmetic is off."""

from dataclasses import replace
from statistics import fmean

from flows.host.allotment import Allotment
from flows.registry.catalog import existing_store, run_at_round
from flows.registry.round_summary import RoundSummary
from pipeline.errors import ConfigError
from pipeline.planning.devices import DEVICES, Device
from pipeline.planning.plan import plan_round
from pipeline.planning.work import Workload
from pipeline.recipe import Recipe
from storage.log.run import Run
from storage.queries.round_query import table


def calibrated(work: Workload, device: Device, source: str, root: str) -> tuple[Workload, dict[str, float]]:
    """Gives a workload what RUN@ROUND counted, and says by how much that round's stages were slower than on paper.

    ConfigError if it is round 0 or had no update, or the run is of another policy or on another kind of device.
    """
    store = existing_store(root)
    run, number = run_at_round(store, source)
    recipe, recorded = work.recipe, Recipe.model_validate(run.header["recipe"])
    if number == 0 or recorded.policy != recipe.policy or (recorded.devices.trainer == "cpu") != (device.name == "cpu"):
        raise ConfigError(f"--calibrate {source}: name a round from 1 on of a run of this policy on '{device.name}'")
    summary = RoundSummary.model_validate(run.round_entry(number).meta)
    if summary.no_update is not None:
        raise ConfigError(f"--calibrate {source}: round {number} had no update to measure: name one that had")
    lengths = [len(ids) for ids in table(store, run, 0, "prompts", ["token_ids"])["token_ids"].to_pylist()]
    sampled = [entry.meta for entry in run.work(number, "candidates") if "tokens" in entry.meta]
    tokens = sum(meta["tokens"] for meta in sampled) / sum(meta["candidates"] for meta in sampled)
    preferences = max(1, (summary.preferences or 0) + (summary.replayed or 0))
    each = (summary.train_tokens or 0) / (preferences * recorded.update.epochs)
    used = DEVICES["cpu"].with_threads(_threads(run, recorded)) if device.name == "cpu" else device
    theirs = Workload(recorded, work.policy, work.judge, fmean(lengths), tokens, preferences, each)
    scaled = round(preferences * recipe.sampling.prompts_per_round / recorded.sampling.prompts_per_round)
    steps: float = run.entries(number, "checkpoint")[-1].meta["seconds"]
    return replace(theirs, recipe=recipe, preferences=max(1, scaled)), _factors(summary, steps, theirs, used)


def _threads(run: Run, recorded: Recipe) -> int:
    """Returns the threads of the trainer in the run's last session; an earlier version had those of the recipe."""
    allotment = run.session.meta.get("allotment") if run.session is not None else None
    threads: int = (allotment or Allotment.of(recorded).record())["threads"]["trainer"]
    return threads


def _factors(summary: RoundSummary, steps: float, work: Workload, device: Device) -> dict[str, float]:
    stages = plan_round(work, device).stages
    totals, evaluation = {name: sum(parts.values()) for name, parts in stages.items()}, stages["evaluate"]
    paper = {
        "sample": (totals["sample"] + evaluation["sample"]) * summary.sampled_tokens / work.sampled_tokens,
        "judge": totals["judge"] + evaluation["judge"],
        "update": next(iter(stages["update"].values())),  # of the optimizer steps alone
        "sync weights": totals["sync weights"],
    }
    seconds = {"sync weights": summary.seconds["hand over"], **summary.seconds, "update": steps}
    return {name: seconds[name] / reckoned for name, reckoned in paper.items() if name in seconds and reckoned}

"""What a recipe's round takes on devices of a kind: on paper, or with the lengths and speeds that a round measured."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from flows.host.allotment import Allotment
from flows.registry import DEFAULT_ROOT
from flows.registry.catalog import existing_store, run_at_round
from flows.registry.round_summary import RoundSummary
from pipeline.config import PretrainedPolicy
from pipeline.errors import ConfigError
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.model.gguf_files import find_gguf
from pipeline.planning.devices import DEVICES, Device
from pipeline.planning.plan import Plan, plan_round
from pipeline.planning.shapes import KNOWN_SHAPES, ModelShape, shape_of_config, shape_of_warm_start
from pipeline.planning.work import Workload, workload_of
from pipeline.recipe import Recipe
from storage.log.forebears import forebears
from storage.log.tombstones import parent_of


def plan_recipe(
    recipe: Recipe, device: str | None = None, devices: int | None = None, *, prompt_tokens: float | None = None,
    answer_tokens: float | None = None, usd_per_hour: float | None = None, calibrate: str | None = None,
    root: str = DEFAULT_ROOT,
) -> Plan:  # fmt: skip
    """Plans a round of a recipe on devices of ``DEVICES``; what is not given follows from the recipe or is assumed.

    Lengths are means, and a price is that of one device. ``calibrate`` is a RUN@ROUND under ``root`` whose lengths and
    speeds are taken. ConfigError if a device or a size is not known, or that round says nothing of this plan.
    """
    name = device or ("cpu" if recipe.devices.trainer == "cpu" else "h100")
    if name not in DEVICES:
        raise ConfigError(f"--device '{name}' is not known: choose among {', '.join(DEVICES)}")
    allotment, policy = Allotment.of(recipe), recipe.policy
    kind = DEVICES[name].with_threads(allotment.threads["trainer"])
    if name == "cpu" and "bfloat16" in (allotment.precision, recipe.update.precision):
        kind = replace(kind, drift=Device.drift)
    shape = _shape(policy.path, "policy") if isinstance(policy, PretrainedPolicy) else shape_of_warm_start(policy)
    judges = [_shape(part.path, "judge") for part in recipe.all_judge_parts if isinstance(part, RewardModelConfig)]
    judge = max(judges, key=lambda shape: shape.parameters, default=None)
    work = workload_of(recipe, shape, judge, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
    if calibrate is not None and (prompt_tokens or answer_tokens):
        raise ConfigError(f"--calibrate {calibrate} takes that round's lengths: leave --prompt-tokens and others out")
    work, measured = (work, {}) if calibrate is None else _calibrated(work, kind, calibrate, root)
    return plan_round(work, kind, devices, usd_per_hour=usd_per_hour, measured=measured)


def _shape(path: str, field: str) -> ModelShape:
    config, file = Path(path) / "config.json", find_gguf(path)
    name = file.name if file else path
    if config.is_file():
        return shape_of_config(json.loads(config.read_text("utf-8")), path)
    shape = next((shape for known, shape in KNOWN_SHAPES.items() if known.partition("/")[2] in name), None)
    if shape is None:
        raise ConfigError(
            f"the size of '{path}' is not known here, and no hub is asked: --set {field}.path to a directory with its "
            f"config.json, or to the nearest of {', '.join(KNOWN_SHAPES)}"
        )
    return shape if file is None else replace(shape, half=False)  # its weights are made float32


def _calibrated(work: Workload, device: Device, source: str, root: str) -> tuple[Workload, dict[str, float]]:
    """Gives a workload what RUN@ROUND counted, and says by how much that round's stages were slower than on paper.

    ConfigError if it is round 0 or had no update, or the run is of another policy or on another kind of device.
    """
    from storage.queries.round_query import table  # brings DuckDB, which a forecast does not need

    run, number = run_at_round(store := existing_store(root), source)
    for other in forebears(store, run):  # up to the one that ran the round, which a fork has from its parent
        run, parent = other, parent_of(other.header)
        if parent is None or number > parent[1]:
            break
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
    theirs = Workload(recorded, work.policy, work.judge, fmean(lengths), tokens, preferences, each)
    allotted = run.finished_by(number).meta.get("allotment") or Allotment.of(recorded).record()
    stages = plan_round(theirs, DEVICES[device.name].with_threads(allotted["threads"]["trainer"])).stages
    evaluation, totals = stages["evaluate"], {name: sum(parts.values()) for name, parts in stages.items()}
    gate = stages.get("gate", {})
    on_paper = {
        "sample": (totals["sample"] + evaluation["sample"] + gate.get("sample", 0.0))
        * summary.sampled_tokens
        / theirs.sampled_tokens,
        "judge": totals["judge"] + evaluation["judge"] + gate.get("judge", 0.0),
        "update": next(iter(stages["update"].values())),  # of the optimizer steps alone
        "sync weights": totals["sync weights"],
    }
    steps: float = run.entries(number, "checkpoint")[-1].meta["seconds"]
    seconds = {"sync weights": summary.seconds["hand over"], **summary.seconds, "update": steps}
    factors = {name: seconds[name] / paper for name, paper in on_paper.items() if name in seconds and paper}
    scaled = round(preferences * recipe.sampling.prompts_per_round / recorded.sampling.prompts_per_round)
    return replace(theirs, recipe=recipe, preferences=max(1, scaled)), factors

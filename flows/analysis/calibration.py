"""What a run's rounds took, in the terms of ``pipeline/planning``: for `rondo plan --calibrate` and `--compare`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import fmean, median

from flows.registry.round_summary import RoundSummary, summaries
from pipeline.config import Recipe
from pipeline.errors import ConfigError
from pipeline.planning import Device, Factors, ModelShape, Plan, Workload, plan_round, workload_of
from storage.log.manifest import Entry
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import table

_TABLES = (
    "candidates",
    "judgments",
    "preferences",
    "metrics",
    "probe",
    "eval_candidates",
    "eval_judgments",
    "eval_logps",
)


@dataclass(frozen=True)
class Measured:
    """A finished round, measured. Seconds are those of the work alone; ``round_seconds`` is from round to round.

    ``judge_seconds`` is None in runs that did not record it.
    """

    round: int
    sampled_tokens: int
    sample_seconds: float
    judge_seconds: float | None
    train_tokens: int
    update_seconds: float
    hand_over_seconds: float
    round_seconds: float
    table_bytes: int
    checkpoint_bytes: int


def measured_round(run: Run, number: int) -> Measured:
    """What a round after round 0 took.

    Raises:
        ConfigError: it is round 0, which has no update.
    """
    if number == 0:
        raise ConfigError(f"round 0 of run '{run.name}' has no update to compare with: name a later round")
    summary = RoundSummary.model_validate(run.round_entry(number).meta)
    times = [datetime.fromisoformat(run.round_entry(round).time) for round in (number - 1, number)]
    return Measured(
        round=number,
        sampled_tokens=summary.sampled_tokens,
        sample_seconds=summary.seconds["sample"],
        judge_seconds=summary.seconds.get("judge"),
        train_tokens=summary.train_tokens or 0,
        update_seconds=summary.seconds["update"],
        hand_over_seconds=summary.seconds["hand over"],
        round_seconds=(times[1] - times[0]).total_seconds(),
        table_bytes=sum(_bytes(run.work(number, stage)) for stage in _TABLES),
        checkpoint_bytes=_bytes(run.work(number, "checkpoint")),
    )


def measured_work(store: Store, run: Run, number: int, recipe: Recipe) -> Workload:
    """The work of the round after this one, if its answers are as long and its judge leaves as many preferences."""
    summary = summaries(run.rounds())[number]
    lengths = [len(ids) for ids in table(store, run, 0, "prompts", ["token_ids"])["token_ids"].to_pylist()]
    sampled = [entry.meta for entry in run.work(number, "candidates") if "tokens" in entry.meta]
    answers, tokens = (sum(meta[name] for meta in sampled) for name in ("candidates", "tokens"))
    work = workload_of(recipe, prompt_tokens=fmean(lengths), answer_tokens=tokens / answers)
    preferences = max(1, (summary.preferences or 0) + (summary.replayed or 0))
    seen = preferences * recipe.update.epochs
    return replace(work, preferences=preferences, counted_preference_tokens=(summary.train_tokens or 0) / seen)


def measured_factors(
    run: Run, last: int, recipe: Recipe, shape: ModelShape, device: Device, work: Workload, judge: ModelShape | None
) -> Factors:
    """By how much the run's rounds up to ``last`` were slower than the arithmetic for one device of this kind a part.

    Medians of the rounds' rates, so that a round on a busy machine does not decide.
    """
    rounds = [measured_round(run, number) for number in range(1, last + 1)]
    ranks = recipe.devices.trainer_ranks
    paper = plan_round(recipe, shape, device, ranks, work, judge=judge)
    alone = plan_round(recipe, shape, device, 1, work, judge=judge) if ranks > 1 else paper
    trained = recipe.update.epochs * work.preferences * work.preference_tokens
    judged = [found.judge_seconds for found in rounds if found.judge_seconds is not None]
    return Factors(
        sample=_slower(
            [found.sample_seconds / found.sampled_tokens for found in rounds], alone.sampling / work.sampled_tokens
        ),
        judge=_slower(judged, alone.judging) if judged else 1.0,
        update=_slower(
            [found.update_seconds / max(1, found.train_tokens) for found in rounds], paper.update.steps / trained
        ),
        sync_weights=_slower([found.hand_over_seconds for found in rounds], _hand_over(paper)),
    )


def compared(plan: Plan, found: Measured) -> list[dict[str, str | float]]:
    """Figures of a plan beside those that were measured, and by how much they differ."""
    pairs = {
        "sampled tokens": (plan.work.sampled_tokens, found.sampled_tokens),
        "sampling, s": (plan.sampling, found.sample_seconds),
        "judging, s": (plan.judging, found.judge_seconds),
        "optimizer steps, s": (plan.update.steps * plan.factors.update, found.update_seconds),
        "hand over, s": (_hand_over(plan), found.hand_over_seconds),
        "round, s": (plan.seconds, found.round_seconds),
        "tables, bytes": (plan.disk["tables"], found.table_bytes),
        "checkpoint, bytes": (plan.disk["checkpoint"], found.checkpoint_bytes),
    }
    return [
        {
            "figure": name,
            "on paper": on_paper,
            "measured": measured,
            "paper / measured": on_paper / max(measured, 1e-12),
        }
        for name, (on_paper, measured) in pairs.items()
        if measured is not None
    ]


def _hand_over(plan: Plan) -> float:
    return next(stage.seconds for stage in plan.stages if stage.name == "hand over")


def _slower(measured: Sequence[float], on_paper: float) -> float:
    """1 where the arithmetic has nothing, as for people who judge."""
    return median(measured) / on_paper if on_paper else 1.0


def _bytes(entries: Sequence[Entry]) -> int:
    return sum(file.bytes for entry in entries for file in entry.files)

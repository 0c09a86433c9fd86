"""The end of a round: its metrics, its alarms, and the one entry that makes it visible."""

from typing import Any

from prefect import get_run_logger

from flows.host.work_spans import busy_seconds, shared_seconds, spans_of
from flows.registry.gate_result import GateResult
from flows.registry.judge_usage import judge_usage
from flows.registry.round_summary import RoundSummary, rows_of, summaries
from flows.round.context import RoundContext
from flows.round.provenance import round_origin
from flows.round.round_steps import describe
from flows.round.update_state import drop_states
from pipeline.evaluation.held_out import alarms, initial_alarms


async def finish_round(
    context: RoundContext, number: int, evaluation: dict[str, Any], gate: GateResult | None = None
) -> RoundSummary:
    """Makes the round visible as a whole: it counts from here on, and no reader sees it before."""
    metrics, recipe = {**evaluation, **_costs(context, number)}, context.recipe
    if not number:
        metrics["alarms"] = initial_alarms(evaluation, recipe.sampling)
        context.display.say(f"round 0: {evaluation['base_rate']}")
    if number:
        trained = {key: value for key, value in _checkpoint(context, number).items() if key != "seconds"}
        replayed = [entry.meta for entry in context.run.entries(round=number, stage="replayed")]
        metrics |= {**await describe(context, number), **(replayed[-1] if replayed else {}), **trained}
        initial = context.run.rounds()[0].meta
        metrics["alarms"] = alarms(metrics, initial, recipe.evaluation, recipe.preferences, recipe.sampling)
        for entry in context.run.entries(round=number, stage="unlabelled"):
            metrics["labels_missing"] = entry.meta["missing"]
            metrics["alarms"] = [*metrics["alarms"], entry.meta["why"]]
    if gate is not None and gate.why is not None:
        metrics["alarms"] = [gate.why, *metrics["alarms"]]
    summary = RoundSummary(
        round=number,
        policy=context.policies.digest(number),
        handover_drift=context.policies.weight_sync(number).meta["per_token"],
        weights_from=context.policies.weight_sync(number).meta.get("source"),
        origin=round_origin(context, number),
        gate=gate,
        **{key: value for key, value in metrics.items() if key in RoundSummary.model_fields and key != "policy"},
    )
    # Tracked before it counts: if the command is killed in between, it is tracked again and replaces what was.
    meta = summary.model_dump(mode="json")
    means = {} if gate is None else {"gate": {one.name: one.mean for one in gate.measures}}
    context.monitors.tracker.round(number, context.steps_before(number) + (summary.steps or 0), meta | means)
    drop_states(context.run, context.writer, number)  # nobody would come back to it once the round is finished
    context.writer.finish_round(number, meta)
    logger = get_run_logger()
    logger.info("round %d: held-out reward %.4f", number, summary.reward)
    if summary.off_policy is not None:
        error = f" ± {summary.off_policy_se:.2f}" if summary.off_policy_se is not None else ""
        context.display.say(
            f"round {number}: its completions were given; log p - log q is {summary.off_policy:+.2f}{error} nats for "
            "each, p the policy that the update started from, q the one that sampled"
        )
    for alarm in summary.alarms:
        context.display.say(f"alarm in round {number}: {alarm}")
        logger.warning("alarm in round %d: %s", number, alarm)
    if summary.alarms:
        context.monitors.notifier.tell("alarm", f"{context.name}: alarm in round {number}", "\n".join(summary.alarms))
    context.monitors.artifacts.rounds(rows_of(summaries(context.run.rounds())))
    return summary


def _checkpoint(context: RoundContext, number: int) -> dict[str, Any]:
    return context.run.entries(round=number, stage="checkpoint")[-1].meta


def _costs(context: RoundContext, number: int) -> dict[str, Any]:
    """Sums the round's tokens, the time in which each part of it was at work, and the prompts that were skipped."""

    def metas(*stages: str) -> list[dict[str, Any]]:
        return [entry.meta for stage in stages for entry in context.run.work(number, stage)]

    kinds = ("", "eval_", "served_", "gate_", "gate_baseline_", "gate_eval_")
    sampled = [meta for meta in metas(*(f"{kind}candidates" for kind in kinds)) if "tokens" in meta]
    seconds = {
        "sample": busy_seconds(spans_of(sampled)),
        "judge": busy_seconds(spans_of(metas(*(f"{kind}judgments" for kind in kinds)))),
        "hand over": context.policies.weight_sync(number).meta["seconds"],
    }
    tokens = sum(meta["tokens"] for meta in sampled)
    metrics = {"sampled_tokens": tokens, "seconds": seconds, "judge_usage": judge_usage(context.run, number)}
    if number:
        updated = [_checkpoint(context, number)]
        # With the checks of the reference and the saving; a checkpoint of an earlier version has its steps' time alone.
        seconds["update"] = busy_seconds(spans_of(updated)) or updated[0]["seconds"]
        metrics["set_aside"] = sum(meta.get("set_aside", 0) for meta in metas("candidates"))
        ahead = context.run.work(number + 1, "candidates")
        if context.recipe.staleness:
            seconds["ahead"] = shared_seconds(spans_of(updated), spans_of(entry.meta for entry in ahead))
    return metrics

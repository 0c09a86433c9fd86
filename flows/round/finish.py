"""The end of a round: its metrics, its alarms, and the one entry that makes it visible."""

from typing import Any

from prefect import get_run_logger

from flows.registry.round_summary import RoundSummary, row_of, summaries
from flows.registry.work_spans import busy_seconds, shared_seconds, spans_of
from flows.round.context import Session, current
from flows.round.provenance import round_origin
from flows.round.round_steps import describe
from pipeline.evaluation.held_out import alarms


async def finish_round(run: str, number: int, evaluation: dict[str, Any]) -> RoundSummary:
    """Makes the round visible as a whole: after this it counts, before it never was."""
    session = current()
    metrics = {**evaluation, **_costs(session, number)}
    if number:
        trained = {key: value for key, value in _checkpoint(session, number).items() if key != "seconds"}
        replayed = [entry.meta for entry in session.run.entries(round=number, stage="replayed")]
        metrics |= {**await describe(run, number), **(replayed[-1] if replayed else {}), **trained}
        metrics["alarms"] = alarms(metrics, session.run.rounds()[0].meta, session.recipe.evaluation)
        for entry in session.run.entries(round=number, stage="unlabelled"):
            metrics["labels_missing"] = entry.meta["missing"]
            metrics["alarms"] = [*metrics["alarms"], entry.meta["why"]]
    summary = RoundSummary(
        round=number,
        policy=session.policy_hash(number),
        handover_drift=session.weight_sync(number).meta["per_token"],
        origin=round_origin(session, number),
        **{key: value for key, value in metrics.items() if key in RoundSummary.model_fields and key != "policy"},
    )
    # Before it counts: killed in between, it is tracked again and replaces what was.
    meta = summary.model_dump(mode="json")
    session.tracker.round(number, session.steps_before(number) + (summary.steps or 0), meta)
    session.release_states(number)  # nobody would come back to it once the round is finished
    session.writer.finish_round(number, meta)
    logger = get_run_logger()
    logger.info("round %d: held-out reward %.4f", number, summary.reward)
    for alarm in summary.alarms:
        session.display.say(f"alarm in round {number}: {alarm}")
        logger.warning("alarm in round %d: %s", number, alarm)
    if summary.alarms:
        session.notifier.tell("alarm", f"{run}: alarm in round {number}", "\n".join(summary.alarms))
    session.artifacts.rounds([row_of(finished) for finished in summaries(session.run.rounds())])
    return summary


def _checkpoint(session: Session, number: int) -> dict[str, Any]:
    return session.run.entries(round=number, stage="checkpoint")[-1].meta


def _costs(session: Session, number: int) -> dict[str, Any]:
    """Tokens, and time in which each part of the round was at work; prompts that were set aside."""

    def metas(*stages: str) -> list[dict[str, Any]]:
        return [entry.meta for stage in stages for entry in session.run.work(number, stage)]

    sampled = [meta for meta in metas("candidates", "eval_candidates") if "tokens" in meta]
    seconds = {
        "sample": busy_seconds(spans_of(sampled)),
        "judge": busy_seconds(spans_of(metas("judgments", "eval_judgments"))),
        "hand over": session.weight_sync(number).meta["seconds"],
    }
    metrics: dict[str, Any] = {"sampled_tokens": sum(meta["tokens"] for meta in sampled), "seconds": seconds}
    if number:
        updated = [_checkpoint(session, number)]
        seconds["update"] = updated[0]["seconds"]
        metrics["set_aside"] = sum(meta.get("set_aside", 0) for meta in metas("candidates"))
        ahead = session.run.work(number + 1, "candidates")
        if session.recipe.staleness:
            seconds["ahead"] = shared_seconds(spans_of(updated), spans_of(entry.meta for entry in ahead))
    return metrics

"""A small finished run, written through the storage API from the pipeline's own tables and metrics; no model."""

from collections.abc import Callable, Container, Mapping
from typing import Any

import pyarrow as pa

from flows.registry.resume import header
from flows.registry.round_summary import RoundSummary
from pipeline.evaluation.held_out import alarms, describe_evaluation
from pipeline.evaluation.round_metrics import RoundMetrics
from pipeline.preferences import build_preferences
from pipeline.recipe import Recipe
from pipeline.records import CANDIDATES, EVALUATION_LOGPS, JUDGMENTS, PROMPTS, STEPS, to_table
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from storage.log.writer import Writer
from storage.tables.shards import write_table

LN2 = 0.6931471805599453
TRAIN, HELD_OUT = ("t0", "t1", "t2"), ("e0", "e1", "e2", "e3", "e4")
STEPS_PER_ROUND = 4
Row = dict[str, Any]
Text = Callable[[int, str, int], str]


def small_recipe(**changes: Any) -> Recipe:
    """A recipe of three rounds with four candidates and a second judge."""
    return Recipe.model_validate({
        "name": "small",
        "description": "A small run.",
        "rounds": 3,
        "policy": {"source": "pretrained", "path": "model"},
        "prompts": {"source": "jsonl", "path": "prompts.jsonl"},
        "sampling": {"prompts_per_round": 3, "candidates": 4},
        "judge": {"kind": "vader"},
        "evaluation": {"prompts": 5, "judges": [{"kind": "grammar"}], "kl_limit": 0.5},
        **changes,
    })  # fmt: skip


def say(round: int, prompt_id: str, index: int) -> str:
    """The answer of a candidate."""
    return f" answer {index} to {prompt_id} in round {round}"


def score_of(round: int, prompt_id: str, index: int) -> float:
    """Its score: later rounds do better, and held-out prompt ``e2`` gets worse."""
    change = -round if prompt_id == "e2" else round
    return 0.1 * change * (1 + int(prompt_id[1:])) + 0.01 * index


def finished_run(
    store: Store, name: str = "small", *, rounds: int = 3, recipe: Recipe | None = None, text: Text = say,
    rationale: Text | None = None, changes: Mapping[str, Any] | None = None,
    also: Callable[[Writer, int], None] | None = None,
    seconds: Mapping[str, float] = {"sample": 2.0, "hand over": 0.1}, cut: Container[tuple[str, int]] = (),
    prompts: pa.Table | None = None, **more: Any,
) -> Run:  # fmt: skip
    """A run with this many finished rounds after round 0.

    Args:
        text: the answers.
        rationale: what the judge says of each; nothing, if there is none.
        changes: fields of the last round's summary to put in place of the measured ones.
        seconds: what each round's summary says of its time.
        also: what commits more to a round, before it is finished.
        cut: prompt and index of candidates for training that were cut at the limit.
        prompts: in place of those of `prompts_table`.
        more: fields of the run's header, such as ``parent``.
    """
    recipe = recipe or small_recipe()
    run = store.create_run(name, {**header(recipe), **more})
    with run.writer() as writer:
        commit(store, writer, name, 0, "prompts", prompts_table() if prompts is None else prompts)
        for number in range(rounds + 1):
            metrics = _evaluated(store, writer, run, number, text, rationale)
            if number:
                metrics |= _trained(store, writer, run, number, recipe, text, cut)
                metrics["alarms"] = alarms(metrics, run.rounds()[0].meta, recipe.evaluation)
            if number == rounds:
                metrics |= changes or {}
            summary = RoundSummary(
                round=number, policy=f"policy{number}", handover_drift=1e-6, sampled_tokens=1000,
                seconds=dict(seconds), **metrics,
            )  # fmt: skip
            if also is not None:
                also(writer, number)
            writer.finish_round(number, summary.model_dump(mode="json"))
    run.refresh()
    return run


def commit(store: Store, writer: Writer, run: str, round: int, stage: str, table: pa.Table) -> None:
    """One table as one commit."""
    writer.commit(Key(round, stage), [write_table(store, run, round, stage, table)])


def prompts_table() -> pa.Table:
    """Training and held-out prompts; ``t0`` is a conversation, the others are plain text."""
    rows: list[Row] = []
    for prompt_id in (*TRAIN, *HELD_OUT):
        conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of t0."}]
        rows.append({
            "prompt_id": prompt_id, "text": f"Tell me of {prompt_id}.", "token_ids": [1, 2], "source": "test",
            "messages": conversation if prompt_id == "t0" else None, "reference_answer": None,
            "split": "train" if prompt_id in TRAIN else "evaluation",
        })  # fmt: skip
    return to_table(rows, PROMPTS)


def _evaluated(store: Store, writer: Writer, run: Run, number: int, text: Text, rationale: Text | None) -> Row:
    candidates = to_table([_candidate(number, prompt_id, 0, text) for prompt_id in HELD_OUT], CANDIDATES)
    judged = {round: _judgments(round, HELD_OUT, 1, ("vader", "grammar"), rationale) for round in range(number + 1)}
    logps = None
    if number:
        logps = to_table([_logps(number, prompt_id) for prompt_id in HELD_OUT], EVALUATION_LOGPS)
        commit(store, writer, run.name, number, "eval_logps", logps)
    commit(store, writer, run.name, number, "eval_candidates", candidates)
    commit(store, writer, run.name, number, "eval_judgments", judged[number])
    return describe_evaluation(
        candidates=candidates, judgments=judged[number], previous=judged[number - 1] if number else None,
        initial=judged[0] if number else None, logps=logps, judges=["vader", "grammar"],
    )  # fmt: skip


def _trained(
    store: Store, writer: Writer, run: Run, number: int, recipe: Recipe, text: Text, cut: Container[tuple[str, int]]
) -> Row:
    rows = [
        _candidate(number, prompt_id, index, text)
        | {"finish_reason": "length" if (prompt_id, index) in cut else "stop"}
        for prompt_id in TRAIN
        for index in range(4)
    ]
    candidates, judgments = to_table(rows, CANDIDATES), _judgments(number, TRAIN, 4, ("vader",))
    preferences = build_preferences(candidates, judgments, recipe.preferences, seed=0)
    metrics = steps_table(STEPS_PER_ROUND)
    tables = {"candidates": candidates, "judgments": judgments, "preferences": preferences, "metrics": metrics}
    for stage, table in tables.items():
        commit(store, writer, run.name, number, stage, table)
    found = RoundMetrics()
    found.add_judged(candidates, judgments)
    found.add_preferences(preferences)
    return found.metrics() | {
        "reference": f"policy{number - 1}", "first_loss": LN2 + 2e-7, "first_loss_expected": LN2, "last_loss": 0.5,
        "steps": STEPS_PER_ROUND, "train_tokens": 100, "train_accuracy": 0.75, "chosen_fell": 0.25,
        "chosen_change": 0.5, "rejected_change": -0.5,
    }  # fmt: skip


def _candidate(number: int, prompt_id: str, index: int, text: Text) -> Row:
    return {
        "prompt_id": prompt_id, "candidate": index, "token_ids": [index + 3, number, 0], "logprobs": [-1.0, -1.5, -0.5],
        "text": text(number, prompt_id, index), "finish_reason": "stop", "seed": index, "policy": f"policy{number}",
    }  # fmt: skip


def _judgments(
    number: int, prompt_ids: tuple[str, ...], count: int, judges: tuple[str, ...], rationale: Text | None = None
) -> pa.Table:
    return to_table([
        {
            "prompt_id": prompt_id, "candidate": index, "score_std": None, "components": [],
            "rationale": rationale(number, prompt_id, index) if rationale and judge == "vader" else None,
            "score": score_of(number, prompt_id, index) if judge == "vader" else 0.9, "judge": judge,
            "judge_version": "1", "status": "ok", "latency": 0.0, "raw": None,
        }
        for judge in judges for prompt_id in prompt_ids for index in range(count)
    ], JUDGMENTS)  # fmt: skip


def _logps(number: int, prompt_id: str) -> Row:
    return {
        "prompt_id": prompt_id, "candidate": 0, "policy": -3.0, "previous": -3.1 - 0.01 * int(prompt_id[1:]),
        "initial": -3.0 - 0.2 * number - 0.01 * int(prompt_id[1:]), "tokens": 3,
    }  # fmt: skip


def steps_table(count: int) -> pa.Table:
    """The metrics of so many optimizer steps."""
    return to_table([_step(step) for step in range(count)], STEPS)


def _step(step: int) -> Row:
    half = 0.05 * step
    return {
        "step": step, "epoch": 0, "loss": LN2 - half, "reward_chosen": half, "reward_rejected": -half,
        "reward_margin": 2 * half, "accuracy": 0.5 + 0.1 * step, "logp_chosen": -3.0, "logp_rejected": -4.0,
        "logp_chosen_change": 0.0, "logp_rejected_change": 0.0, "grad_norm": 1.0 + step, "learning_rate": 1e-4,
        "kl": 0.01, "tokens": 10, "seconds": 0.1, "router_loss": None,
    }  # fmt: skip

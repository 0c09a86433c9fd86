"""What became of each token of a completion: its log-probability under one policy minus that under another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.view.site import OpenRun
from flows.view.stored_rows import prefix_of, rows_of
from flows.view.update_effects import started_from
from storage.errors import DamagedFileError

_HELD_OUT = ("candidate", "policy_tokens", "previous_tokens", "initial_tokens")
_HELD_OUT_TABLES = "eval_candidates AS c JOIN eval_logps AS l USING (round, prompt_id, candidate)"
_HELD_OUT_SQL = "unnest(coalesce(l.policy_tokens, c.logprobs))::DOUBLE - unnest(l.{name}_tokens)::DOUBLE"

_MEASURED_TABLES = """candidates AS c JOIN preference_logps AS l
    ON l.round = c.round AND l.prompt_id = c.prompt_id AND l.origin_round IS NULL AND l.candidates = {candidates}"""
_MEASURED_SQL = """unnest(l.after_tokens[{place}])::DOUBLE
    - unnest(coalesce(l.reference_tokens[{place}], c.logprobs))::DOUBLE"""

_UNMEASURED = {
    "served": "completions that are sampled as one would serve",
    "gate": "answers to the gate's prompts",
}
_MEASURED = ("candidates", "origin_round", "after_tokens", "reference_tokens")


@dataclass(frozen=True)
class Change:
    """A difference of log-probabilities, in nats, that tokens can be coloured by.

    Attributes:
        name: as an address has it.
        label: which two policies.
        values: of each token.
        sql: the same as an expression over ``tables``, which are named c and l.
    """

    name: str
    label: str
    values: Sequence[float]
    sql: str
    tables: str


@dataclass(frozen=True)
class Changes:
    """The differences that were measured of a completion; or why there are none."""

    found: Sequence[Change]
    missing: str | None


def changes_of(opened: OpenRun, round: int, kind: str, prompt_id: str, row: Mapping[str, Any]) -> Changes:
    """Finds what was measured of a completion.

    Of a held-out one, which is sampled after the update, the policy is compared with the one that the round started
    from, and with that of round 0. Of one for training, the policy after the update with its reference, if it is in a
    preference that was measured.

    Args:
        row: the completion's, with its index and the log-probabilities with which it was sampled.
    """
    if kind in _UNMEASURED:
        return Changes((), f"{_UNMEASURED[kind]} are measured under no other policy")
    if round == 0:
        return Changes((), "round 0 has no update")
    try:
        return (_of_held_out if kind == "held-out" else _of_training)(opened, round, prompt_id, row)
    except DamagedFileError:  # which is noted
        return Changes((), "the file with what was measured is damaged")


def names_of_changes(opened: OpenRun, round: int, kind: str, prompt_id: str) -> dict[int, list[str]]:
    """Returns the names of the changes that were measured of each completion of a prompt."""
    rows = rows_of(opened, round, f"{prefix_of(kind)}candidates", prompt_id, ["candidate", "logprobs"])
    return {
        row["candidate"]: [change.name for change in changes_of(opened, round, kind, prompt_id, row).found]
        for row in rows
    }


def _of_held_out(opened: OpenRun, round: int, prompt_id: str, row: Mapping[str, Any]) -> Changes:
    rows = rows_of(opened, round, "eval_logps", prompt_id, _HELD_OUT)
    scored = next((found for found in rows if found["candidate"] == row["candidate"]), None)
    if scored is None or scored.get("previous_tokens") is None:
        return Changes((), _not_kept(opened, round) if rows else "the round has not measured it yet")
    policy, labels = (
        scored["policy_tokens"] or row["logprobs"],
        {"previous": started_from(opened, round), "initial": "round 0"},
    )
    found = [
        Change(
            name, f"policy minus {label}", _minus(policy, scored[f"{name}_tokens"]), _HELD_OUT_SQL.format(name=name),
            _HELD_OUT_TABLES,
        )
        for name, label in labels.items()
    ]  # fmt: skip
    return Changes(found, None)


def _of_training(opened: OpenRun, round: int, prompt_id: str, row: Mapping[str, Any]) -> Changes:
    rows = rows_of(opened, round, "preference_logps", prompt_id, _MEASURED)
    for found in rows:
        if found["origin_round"] is None and row["candidate"] in found["candidates"]:
            if found["after_tokens"] is None:
                return Changes((), _not_kept(opened, round))
            place = found["candidates"].index(row["candidate"])
            reference = found["reference_tokens"] and found["reference_tokens"][place]
            values = _minus(found["after_tokens"][place], reference or row["logprobs"])
            sql = _MEASURED_SQL.format(place=place + 1)
            tables = _MEASURED_TABLES.format(candidates=found["candidates"])
            return Changes((Change("update", "after the update minus the reference", values, sql, tables),), None)
    measured = "it is in none of the preferences that the update measured again at its end"
    return Changes((), measured if round in opened.run.finished else "the round has not measured it yet")


def _not_kept(opened: OpenRun, round: int) -> str:
    recipe = opened.recipe_of_round(round)
    if recipe is not None and not recipe.update.token_logprobs:
        return "update.token_logprobs is off in the recipe"
    return "the round is of a version that kept no log-probabilities of tokens but the sampler's"


def _minus(logps: Sequence[float], others: Sequence[float]) -> list[float]:
    return [logp - other for logp, other in zip(logps, others, strict=True)]

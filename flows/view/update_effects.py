"""What a round's update did to the completions of a prompt, as far as the store has measured it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.registry.round_summary import RoundSummary, start_among
from flows.view.site import OpenRun
from flows.view.stored_rows import Rows, rows_beside, rows_of, table_of

_STAGE = "preference_logps"
_SUMS = ("candidates", "origin_round", "reference", "before", "after", "loss_before", "loss_after")

_LOGPS = "SELECT candidate, policy, previous, initial FROM logps WHERE round = $round AND prompt_id = $prompt"


@dataclass(frozen=True)
class Effect:
    """Log-probabilities of a completion in nats, summed over its tokens; None is not measured.

    Attributes:
        candidate: which completion of the prompt.
        beta: of the recipe of the run that trained the round, for the implicit rewards; None if that run is gone.
        sampled: under the policy that sampled it.
        before, after: under the policies that the round's update started from, and ended with.
        reference: under the reference of that update.
    """

    candidate: int
    beta: float | None
    sampled: float | None
    before: float | None
    after: float | None
    reference: float | None

    @property
    def reward_before(self) -> float | None:
        """Returns beta times the log-ratio of policy and reference before the update, which is the implicit reward."""
        return self._reward(self.before)

    @property
    def reward_after(self) -> float | None:
        """Returns the same after the update."""
        return self._reward(self.after)

    def _reward(self, logp: float | None) -> float | None:
        if logp is None or self.reference is None or self.beta is None:
            return None
        return self.beta * (logp - self.reference)


@dataclass(frozen=True)
class _Policies:
    """Digests of the weights that a round had to do with; None if they are not known."""

    initial: str | None
    start: str | None
    reference: str | None

    @classmethod
    def of(cls, rounds: Sequence[RoundSummary], round: int) -> "_Policies":
        policies = {summary.round: summary.policy for summary in rounds}
        reference = next((summary.reference for summary in rounds if summary.round == round), None)
        return cls(policies.get(0), policies.get(start_among(rounds, round)), reference)

    def logp_of_reference(self, logps: Mapping[str | None, float | None]) -> float | None:
        """Returns that of these log-probabilities, given by the policy they are of, which is the reference's."""
        return None if self.reference is None else logps.get(self.reference)


def effects(
    opened: OpenRun, round: int, kind: str, prompt_id: str, answers: Sequence[Mapping[str, Any]]
) -> list[Effect]:
    """Returns what the update of a round did to the completions of a prompt, in their order.

    Those for training were sampled before it. Of these some preferences' are measured again after it, and in rounds of
    earlier versions a few chosen ones for the probe of the weight sync. Of the held-out ones, which are sampled after
    it, all are. What was sampled as one would serve is not, and no answer to the gate's prompts.

    Args:
        answers: the rows of the completions, as the pages' table ``answers`` has them.
    """
    policies = _Policies.of(opened.rounds, round)
    recipe, parameters = opened.recipe_of_round(round), {"round": round, "prompt": prompt_id}
    softer = next((one.gate.beta for one in opened.rounds if one.round == round and one.gate is not None), None)
    beta = None if recipe is None else softer or recipe.update.beta
    if kind == "held-out":
        logps = {row["candidate"]: row for row in opened.tables.ask(_LOGPS, parameters)}
        return [_held_out(row, logps.get(row["candidate"], {}), policies, beta) for row in answers]
    if kind != "training":
        return [_training(row, {}, policies, beta) for row in answers]
    measured, probed = measured_preferences(opened, round, prompt_id), _probed(opened, round, prompt_id)
    found = {row["candidate"]: _training(row, probed.get(row["candidate"], {}), policies, beta) for row in answers}
    for preference in measured:
        for place, candidate in enumerate(preference["candidates"]):
            if candidate in found:
                found[candidate] = _measured(found[candidate], preference, place)
    return list(found.values())


def started_from(opened: OpenRun, round: int) -> str:
    """Says whose policy a round started from: the round before's, if that did not fail its gate."""
    start = start_among(opened.rounds, round)
    return "the round before" if start == round - 1 else f"round {start}"


def measured_preferences(opened: OpenRun, round: int, prompt_id: str) -> Rows:
    """Returns the round's own preferences of a prompt that were measured after the update, as the store has them."""
    found = rows_beside(opened, round, _STAGE, prompt_id, _SUMS)
    return [row for row in found if row["origin_round"] is None]


def measured_prompts(opened: OpenRun, round: int) -> list[str] | None:
    """Returns the prompts whose preferences were measured after the update of a round: one for each preference.

    None if a file with what was measured is damaged.
    """
    rows = table_of(opened, round, _STAGE, ["prompt_id", "origin_round"])
    return None if rows is None else [row["prompt_id"] for row in rows if row["origin_round"] is None]


def _measured(effect: Effect, preference: Mapping[str, Any], place: int) -> Effect:
    """Puts what was measured of a preference's candidate in the place of what is known without it."""
    before = effect.before if preference["before"] is None else preference["before"][place]
    return replace(effect, before=before, after=preference["after"][place], reference=preference["reference"][place])


def steps(opened: OpenRun, round: int) -> Rows | None:
    """Returns the means of the round's first and last optimizer step over their preferences; none without an update.

    None if the file with the steps is damaged.
    """
    rows = table_of(opened, round, "metrics")
    return None if rows is None else rows[:1] + rows[1:][-1:]


def _probed(opened: OpenRun, round: int, prompt_id: str) -> dict[int, dict[str, Any]]:
    """Finds the completions of a prompt in the probe of a round, which knows its sequences by their tokens alone."""
    prompts = rows_of(opened, 0, "prompts", prompt_id, ["token_ids"])
    probe = table_of(opened, round, "probe") or []
    measured = {
        tuple(row["token_ids"]): row for row in probe for p in prompts if row["prompt_token_ids"] == p["token_ids"]
    }
    candidates = rows_of(opened, round, "candidates", prompt_id, ["candidate", "token_ids"]) if measured else []
    return {
        row["candidate"]: measured[found] for row in candidates if (found := tuple(row["token_ids"])) in measured
    }  # fmt: skip


def _held_out(answer: Mapping[str, Any], logps: Mapping[str, float], policies: _Policies, beta: float | None) -> Effect:
    before = logps.get("previous")
    reference = policies.logp_of_reference({policies.initial: logps.get("initial"), policies.start: before})
    return Effect(answer["candidate"], beta, answer["logp"], before, logps.get("policy"), reference)


def _training(answer: Mapping[str, Any], probe: Mapping[str, float], policies: _Policies, beta: float | None) -> Effect:
    sampled, start = answer["logp"], policies.start
    before = probe.get("previous_logp")
    if before is None and start is not None and answer["policy"] == start:
        before = sampled
    reference = policies.logp_of_reference({start: before, answer["policy"]: sampled})
    return Effect(answer["candidate"], beta, sampled, before, probe.get("logp"), reference)

"""What a round's update did to the completions of a prompt, as far as the store has measured it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.registry.round_summary import RoundSummary
from flows.view.site import OpenRun
from flows.view.stored_rows import rows_of

_LOGPS = "SELECT candidate, policy, previous, initial FROM logps WHERE round = $round AND prompt_id = $prompt"

# The sequences of the probe are known by their tokens alone.
_PROBED = """
    SELECT c.candidate, any_value(p.logp) AS logp, any_value(p.previous_logp) AS previous_logp
    FROM candidates AS c JOIN probe AS p ON p.token_ids = c.token_ids
    WHERE c.prompt_id = $prompt
        AND p.prompt_token_ids IN (SELECT token_ids FROM prompts WHERE prompt_id = $prompt)
    GROUP BY c.candidate"""

_STEPS = """
    SELECT step, loss, reward_chosen, reward_rejected, accuracy FROM metrics
    WHERE step IN (SELECT min(step) FROM metrics UNION ALL SELECT max(step) FROM metrics) ORDER BY step"""


@dataclass(frozen=True)
class Effect:
    """Log-probabilities of a completion in nats, summed over its tokens; None is not measured.

    Attributes:
        candidate: which completion of the prompt.
        beta: of the recipe, for the implicit rewards.
        sampled: under the policy that sampled it.
        before, after: under the policies that the round's update started from, and ended with.
        reference: under the reference of that update.
    """

    candidate: int
    beta: float
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
        return None if logp is None or self.reference is None else self.beta * (logp - self.reference)


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
        return cls(policies.get(0), policies.get(round - 1), reference)

    def logp_of_reference(self, logps: Mapping[str | None, float | None]) -> float | None:
        """Returns that of these log-probabilities, given by the policy they are of, which is the reference's."""
        return None if self.reference is None else logps.get(self.reference)


def effects(
    opened: OpenRun, round: int, kind: str, prompt_id: str, answers: Sequence[Mapping[str, Any]]
) -> list[Effect]:
    """Returns what the update of a round did to the completions of a prompt, in their order.

    Those for training were sampled before it. Of these a few are measured again after it, for the probe of the weight
    sync; of the held-out ones, which are sampled after it, all. What was sampled as one would serve is not.

    Args:
        answers: the rows of the completions, as the pages' table ``answers`` has them.
    """
    policies = _Policies.of(opened.rounds, round)
    beta, parameters = opened.recipe.update.beta, {"round": round, "prompt": prompt_id}
    if kind == "held-out":
        logps = {row["candidate"]: row for row in opened.tables.ask(_LOGPS, parameters)}
        return [_held_out(row, logps.get(row["candidate"], {}), policies, beta) for row in answers]
    rows: list[dict[str, Any]] = []
    if kind == "training":
        rows = rows_of(opened, _PROBED, ("candidates", "probe"), round, {"prompt": prompt_id}, also="prompts")
    probed = {row["candidate"]: row for row in rows}
    return [_training(row, probed.get(row["candidate"], {}), policies, beta) for row in answers]


def steps(opened: OpenRun, round: int) -> list[dict[str, Any]]:
    """Returns the means of the round's first and last optimizer step over their preferences; none without an update."""
    return rows_of(opened, _STEPS, ("metrics",), round, {})


def _held_out(answer: Mapping[str, Any], logps: Mapping[str, float], policies: _Policies, beta: float) -> Effect:
    before = logps.get("previous")
    reference = policies.logp_of_reference({policies.initial: logps.get("initial"), policies.start: before})
    return Effect(answer["candidate"], beta, answer["logp"], before, logps.get("policy"), reference)


def _training(answer: Mapping[str, Any], probe: Mapping[str, float], policies: _Policies, beta: float) -> Effect:
    sampled, start = answer["logp"], policies.start
    before = probe.get("previous_logp")
    if before is None and start is not None and answer["policy"] == start:
        before = sampled
    reference = policies.logp_of_reference({start: before, answer["policy"]: sampled})
    return Effect(answer["candidate"], beta, sampled, before, probe.get("logp"), reference)

"""What the gate found in a round, as the round's summary keeps it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class GateMeasure(BaseModel):
    """One measure of the gate in a round: more is better in each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="name of a judge of the gate, text, or reward")
    mean: float = Field(description="mean score; of the text the log-probability of a token, in nats")
    prompts: int = Field(description="prompts, or windows of the text")
    unscored: int = Field(0, description="answers without a score, which count as the lowest score of either round")
    best: int | None = Field(None, description="the best round before, which it is compared with; none in the first")
    best_mean: float | None = Field(None, description="that round's mean on the same prompts")
    loss: float | None = Field(None, description="probability of so low a difference if nothing has changed")
    gain: float | None = Field(None, description="probability of so high a difference if nothing has changed")
    failed: bool = Field(False, description="whether the loss is certain at the level, and above the tolerance")
    next_best: int = Field(description="the round that the next one is compared with")


class GateResult(BaseModel):
    """Whether the next round goes on from this one, and what the gate knows by now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    why: str | None = Field(None, description="why it failed, in a sentence")
    level: float = Field(description="significance level of each test")
    measures: list[GateMeasure]
    failures: int = Field(0, description="rounds in a row that failed, up to this one")
    learning_rate: float | None = Field(None, description="of the round's update, if failures before have changed it")
    beta: float | None = Field(None, description="the same of beta")
    ends: Literal["failures", "patience"] | None = Field(None, description="why the run ends with this round")
    conditions: str = Field(description="hash of what is measured and how: other ones cannot be compared")
    since: int = Field(description="the round from which on it was measured like that")

    def measure(self, name: str) -> GateMeasure:
        """Returns the measure of that name."""
        return next(measure for measure in self.measures if measure.name == name)


def gate_of(meta: dict[str, Any]) -> GateResult | None:
    """Reads what the summary of a finished round says of its gate; None if it had none."""
    found = meta.get("gate")
    return None if found is None else GateResult.model_validate(found)


def gate_words(gate: GateResult | None) -> str:
    """Says in a word or two how a round came through the gate."""
    if gate is None:
        return "-"
    if not gate.passed:
        return "failed"
    return "passed" if any(measure.best is not None for measure in gate.measures) else "first"

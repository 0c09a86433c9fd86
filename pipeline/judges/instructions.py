"""Whether an answer fulfils the constraints that its prompt sets."""

from collections.abc import Sequence
from statistics import mean
from typing import Literal

from pydantic import Field

from pipeline.data.corpora.constraints import CHECKS_VERSION, nearness, read_instruction
from pipeline.data.words import WORDS_VERSION
from pipeline.errors import DataError, JudgeError
from pipeline.judges.base import JudgeConfig, JudgedCandidate, JudgeItem, RuleJudge, Verdict
from pipeline.judges.registry import judge


class InstructionsConfig(JudgeConfig):
    """1 if a completion fulfils all constraints of its prompt, which the reference answer states; else a part, or 0."""

    kind: Literal["instructions"]
    partial_credit: float = Field(
        0.0, ge=0, lt=1, description="score of a completion that misses some of them, times how near it is; 0: none"
    )

    GIVES_VERDICTS = True

    @property
    def gives_partial_credit(self) -> bool:
        return self.partial_credit > 0

    @property
    def needs_reference(self) -> bool:
        return True


@judge(InstructionsConfig)
class InstructionsJudge(RuleJudge[InstructionsConfig]):
    """1 if all constraints hold, else ``partial_credit`` times the mean of how near the answer is to each of them.

    The kinds of constraints, and how a reference answer states them, are in ``pipeline.data.corpora.constraints``. The
    mean of the scores without partial credit is the strict accuracy of IFEval, arXiv:2311.07911, over prompts.
    """

    def depends_on(self) -> Sequence[object]:
        return [CHECKS_VERSION, WORDS_VERSION]

    def verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Checks each constraint. Components: how near, 1 if it holds; the rationale names those that do not hold.

        Raises:
            JudgeError: the reference answer states no constraints, or not in their form.
        """
        try:
            constraints = read_instruction(item.reference_answer or "").constraints
        except DataError as error:
            raise JudgeError(f"prompt {item.prompt_id}, for the judge {self.name}: {error}") from error
        found = nearness(candidate.text, constraints)
        missed = [kind for kind, near in found.items() if near < 1]
        score = 1.0 if not missed else self.config.partial_credit * mean(found.values())
        reason = ", ".join(kind if constraints[kind] is True else f"{kind} {constraints[kind]}" for kind in missed)
        return Verdict(score=score, components=found, rationale=f"does not hold: {reason}" if reason else None)

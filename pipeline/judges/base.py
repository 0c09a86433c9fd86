"""What a judge is, what it is given, and what it says."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.records import JUDGMENTS, to_table

Status = Literal["ok", "unparsable", "timed_out", "non_finite", "too_long"]


@dataclass(frozen=True, kw_only=True)
class JudgedCandidate:
    """An answer to judge: its index among the K of its prompt, its text, and why it ended."""

    index: int
    text: str
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class JudgeItem:
    """A prompt with its candidates: the text as the policy read it, and the conversation where it came from one."""

    prompt_id: str
    prompt_text: str
    messages: Sequence[Mapping[str, str]] | None = None
    reference_answer: str | None = None
    candidates: Sequence[JudgedCandidate]


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """What a judge says of one candidate: a row of the ``JUDGMENTS`` table. No score unless the status is ok."""

    prompt_id: str
    candidate: int
    score: float | None
    score_std: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    rationale: str | None = None
    judge: str
    judge_version: str
    status: Status = "ok"
    latency: float


class Judge(Protocol):
    """Scores candidates. A name and a version say who judged; equal versions give equal scores."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """One judgment for each candidate, in the order of items and candidates.

        Raises:
            JudgeError: the judge failed as a whole; of a single candidate the status tells.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The part of a judgment that a rule decides: see ``judge_each``."""

    score: float
    components: Mapping[str, float] = field(default_factory=dict)
    rationale: str | None = None


def judge_each(
    judge: Judge, items: Sequence[JudgeItem], rule: Callable[[JudgeItem, JudgedCandidate], Verdict]
) -> list[Judgment]:
    """Applies a rule to each candidate by itself, and times it."""
    judgments = []
    for item in items:
        for candidate in item.candidates:
            start = time.perf_counter()
            verdict = rule(item, candidate)
            finite = math.isfinite(verdict.score)
            judgments.append(Judgment(
                prompt_id=item.prompt_id,
                candidate=candidate.index,
                score=verdict.score if finite else None,
                components=verdict.components,
                rationale=verdict.rationale,
                judge=judge.name,
                judge_version=judge.version,
                status="ok" if finite else "non_finite",
                latency=time.perf_counter() - start,
            ))  # fmt: skip
    return judgments


def judge_items(prompts: pa.Table, candidates: pa.Table) -> list[JudgeItem]:
    """Joins prompts and candidates: one item for each prompt that has candidates, in the candidates' order.

    Raises:
        DataError: a candidate of a prompt that is not among the prompts.
    """
    answers: dict[str, list[JudgedCandidate]] = {}
    for row in candidates.select(["prompt_id", "candidate", "text", "finish_reason"]).to_pylist():
        answer = JudgedCandidate(index=row["candidate"], text=row["text"], finish_reason=row["finish_reason"])
        answers.setdefault(row["prompt_id"], []).append(answer)
    columns = ["prompt_id", "text", "messages", "reference_answer"]
    found = prompts.select(columns).to_pylist()
    rows = {row["prompt_id"]: row for row in found if row["prompt_id"] in answers}
    if missing := answers.keys() - rows.keys():
        raise DataError(f"prompt {min(missing)} has candidates, but is not among the prompts: give it too")
    return [
        JudgeItem(
            prompt_id=prompt_id,
            prompt_text=rows[prompt_id]["text"],
            messages=rows[prompt_id]["messages"],
            reference_answer=rows[prompt_id]["reference_answer"],
            candidates=judged,
        )
        for prompt_id, judged in answers.items()
    ]


def judgments_table(judgments: Sequence[Judgment]) -> pa.Table:
    """Judgments as a table of the ``JUDGMENTS`` schema."""
    rows = [{**asdict(judgment), "components": list(judgment.components.items())} for judgment in judgments]
    return to_table(rows, JUDGMENTS)

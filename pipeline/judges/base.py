"""What a judge is, what it is given, and what it says."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import JudgeConfig
from pipeline.data.conversations import Message, messages_of
from pipeline.errors import DataError, JudgeError
from pipeline.records import JUDGMENTS, content_id, to_table

Status = Literal["ok", "unparsable", "timed_out", "non_finite", "too_long", "failed", "alone", "unlabelled"]
"""Why a candidate has no score, where it is not ok: the judge's reply had not the form asked for; it took too long; it
was no number; the candidate was longer than the judge reads; the judge's own code failed on it; or the judge compares
candidates, and the prompt had but one; or nobody has been asked about it, or decided."""


@dataclass(frozen=True, kw_only=True)
class JudgedCandidate:
    """An answer to judge: its index among the K of its prompt, its text, why it ended, its length and its token ids."""

    index: int
    text: str
    finish_reason: str
    tokens: int | None = None
    token_ids: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class JudgeItem:
    """A prompt with its candidates: text and tokens as the policy read them, the conversation if it is from one.

    ``read_special_tokens``: whether those that its text spells are control tokens for the policy.
    """

    prompt_id: str
    prompt_text: str
    messages: Sequence[Message] | None = None
    prompt_token_ids: Sequence[int] | None = None
    reference_answer: str | None = None
    read_special_tokens: bool = False
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
    raw: str | None = None


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


class ResponseCache(Protocol):
    """Keeps what was paid for: JSON values under the SHA-256 of what was asked, written once."""

    def get(self, key: str) -> dict[str, Any] | None: ...

    def put(self, key: str, value: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The part of a judgment that a rule decides: see ``judge_each``."""

    score: float | None
    score_std: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    rationale: str | None = None
    status: Status = "ok"
    raw: str | None = None


def judge_each(
    judge: Judge, items: Sequence[JudgeItem], rule: Callable[[JudgeItem, JudgedCandidate], Verdict]
) -> list[Judgment]:
    """Applies a rule to each candidate by itself, and times it."""
    judgments = []
    for item in items:
        for candidate in item.candidates:
            start = time.perf_counter()
            verdict = rule(item, candidate)
            judgments.append(judgment_of(judge, item, candidate, verdict, time.perf_counter() - start))
    return judgments


def judgment_of(
    judge: Judge, item: JudgeItem, candidate: JudgedCandidate, verdict: Verdict, latency: float
) -> Judgment:
    """A judge's verdict on a candidate; a number that is not finite is none."""
    numbers = (verdict.score or 0.0, verdict.score_std or 0.0, *verdict.components.values())
    finite = all(map(math.isfinite, numbers))
    scored = verdict.status == "ok" and finite
    return Judgment(
        prompt_id=item.prompt_id,
        candidate=candidate.index,
        score=verdict.score if scored else None,
        score_std=verdict.score_std if scored else None,
        components={name: value for name, value in verdict.components.items() if math.isfinite(value)},
        rationale=verdict.rationale,
        judge=judge.name,
        judge_version=judge.version,
        status=verdict.status if finite else "non_finite",
        latency=latency,
        raw=verdict.raw,
    )


BEATS = "beats."
"""A judge that states pairwise probabilities gives each candidate components of this name and another's index: the
probability that it beats that one."""


def pair_components(candidate: int, beats: Mapping[tuple[int, int], float]) -> dict[str, float]:
    """A candidate's components that say with what probability it beats each other one of its prompt.

    Args:
        beats: ``beats[a, b]`` is the probability that candidate a is better than candidate b, by their indices.
    """
    return {f"{BEATS}{b}": probability for (a, b), probability in beats.items() if a == candidate}


def judge_version(config: JudgeConfig, *parts: object) -> str:
    """Hash of a judge's settings, its name apart, and of what else its scores depend on."""
    return content_id([config.scoring(), *parts])


def require_references(judge: Judge, items: Sequence[JudgeItem]) -> None:
    """Checks that there is something to compare with.

    Raises:
        JudgeError: a prompt has no reference answer.
    """
    for item in items:
        if item.reference_answer is None:
            raise JudgeError(
                f"prompt {item.prompt_id} has no reference answer, which the judge {judge.name} compares with: name "
                "the prompts' reference_column, or choose a judge that needs none"
            )


def judge_items(prompts: pa.Table, candidates: pa.Table, *, read_special_tokens: bool = False) -> list[JudgeItem]:
    """Joins prompts and candidates: one item for each prompt that has candidates, in the candidates' order.

    Args:
        read_special_tokens: as the recipe's prompts say.

    Raises:
        DataError: a candidate of a prompt that is not among the prompts.
    """
    answers: dict[str, list[JudgedCandidate]] = {}
    for row in candidates.select(["prompt_id", "candidate", "text", "finish_reason", "token_ids"]).to_pylist():
        answer = JudgedCandidate(
            index=row["candidate"],
            text=row["text"],
            finish_reason=row["finish_reason"],
            tokens=len(row["token_ids"]),
            token_ids=row["token_ids"],
        )
        answers.setdefault(row["prompt_id"], []).append(answer)
    columns = ["prompt_id", "text", "messages", "reference_answer", "token_ids"]
    found = prompts.filter(pc.field("prompt_id").isin(list(answers))).select(columns).to_pylist()
    asked = {row["prompt_id"]: row for row in found}
    if missing := answers.keys() - asked.keys():
        raise DataError(f"prompt {min(missing)} has candidates, but is not among the prompts: give it too")
    return [
        JudgeItem(
            prompt_id=prompt_id,
            prompt_text=asked[prompt_id]["text"],
            messages=messages_of(asked[prompt_id]["messages"]),
            prompt_token_ids=asked[prompt_id]["token_ids"],
            reference_answer=asked[prompt_id]["reference_answer"],
            read_special_tokens=read_special_tokens,
            candidates=judged,
        )
        for prompt_id, judged in answers.items()
    ]


def judgments_table(judgments: Sequence[Judgment]) -> pa.Table:
    """Judgments as a table of the ``JUDGMENTS`` schema."""
    rows = [
        {
            **asdict(judgment),
            "components": [{"name": name, "value": value} for name, value in judgment.components.items()],
        }
        for judgment in judgments
    ]
    return to_table(rows, JUDGMENTS)

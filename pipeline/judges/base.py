"""What a judge is, how it is configured, what it is given, and what it says.

A recipe needs the configurations of all judges, and their files hold both: so nothing heavy is imported here, or at
the top of a judge's file.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import Field

from pipeline.config.base import Config, Later
from pipeline.errors import JudgeError
from pipeline.usage import Usage


class JudgeConfig(Config):
    """Base of the judges' configurations."""

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset({"name"})
    """Fields on which no score depends."""
    GIVES_VERDICTS: ClassVar[bool] = False
    """Whether a score of 1 means right, and one of 0 wrong; a fraction between them is neither."""
    MEMBER: ClassVar[bool] = True
    """Whether an ensemble can have it as a member: it is made of no other judges, and needs nothing but the answers."""

    kind: str
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        examples=["helpfulness"],
        description="name in the tables; the kind if empty",
    )
    sees_thought: Annotated[bool, Later(False)] = Field(
        False,
        description="of a policy that thinks, judge the whole completion, in place of the answer after the thought",
    )

    @property
    def label(self) -> str:
        """Returns the judge's name in the tables."""
        return self.name or self.kind

    @property
    def states_uncertainty(self) -> bool:
        """Says whether its scores have standard deviations, which soft labels need."""
        return False

    @property
    def compares(self) -> bool:
        """Says whether its scores only order the candidates of one prompt, so that one answer alone has none."""
        return False

    @property
    def drifts(self) -> bool:
        """Says whether equal versions may score differently at another time, as an endpoint whose model is changed."""
        return False

    @property
    def comes_early(self) -> bool:
        """Says whether it can judge a round's candidates before the round begins."""
        return True

    @property
    def has_budget(self) -> bool:
        """Says whether it counts what it spends, which one process has to do."""
        return False

    @property
    def gives_partial_credit(self) -> bool:
        """Says whether a judge of verdicts also gives fractions between 0 and 1, to answers that are nearly right."""
        return False

    @property
    def needs_reference(self) -> bool:
        """Says whether each prompt must have a reference answer; of several judges as one, each of ``parts`` tells."""
        return False

    def parts(self) -> "tuple[JudgeConfig, ...]":
        """Returns this judge, and those that it is made of."""
        return (self,)

    def scoring(self) -> dict[str, Any]:
        """Returns all fields on which a score depends, as JSON: judges that differ in none of them score alike."""
        return self.hashed(exclude=self.OPERATIONAL)


Status = Literal["ok", "unparsable", "timed_out", "non_finite", "too_long", "refused", "failed", "alone", "unlabelled"]
"""Why a candidate has no score, if the status is not ok.

In this order: the judge's reply had not the form asked for. It took too long. It was no number. The candidate was
longer than the judge reads. The judge, or a filter before it, would not answer. The judge's own code failed on it. The
judge compares candidates, and the prompt had but one. Nobody has been asked about it, or has decided.
"""


@dataclass(frozen=True, kw_only=True)
class JudgedCandidate:
    """An answer to judge, of a policy that thinks without the thought before it.

    Attributes:
        index: among the K of its prompt.
        text: of the answer; empty if the thought never ended.
        finish_reason: why the completion ended.
        tokens: length of the answer.
        token_ids: of the whole completion.
        completion: text of the whole completion, if a thought comes before the answer.
    """

    index: int
    text: str
    finish_reason: str
    tokens: int | None = None
    token_ids: Sequence[int] | None = None
    completion: str | None = None

    @property
    def with_thought(self) -> "JudgedCandidate":
        """Returns the whole completion as an answer to judge."""
        if self.completion is None:
            return self
        tokens = self.tokens if self.token_ids is None else len(self.token_ids)
        return replace(self, text=self.completion, tokens=tokens, completion=None)


@dataclass(frozen=True, kw_only=True)
class JudgeItem:
    """A prompt with its candidates: text and tokens as the policy read them, the conversation if it is from one.

    ``read_special_tokens``: whether those that its text spells are control tokens for the policy.
    """

    prompt_id: str
    prompt_text: str
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt_token_ids: Sequence[int] | None = None
    reference_answer: str | None = None
    read_special_tokens: bool = False
    candidates: Sequence[JudgedCandidate]


def seen_by(config: JudgeConfig, items: Sequence[JudgeItem]) -> Sequence[JudgeItem]:
    """Returns the items as a judge with these settings is to see them: with thoughts if it asks for them."""
    if not config.sees_thought:
        return items
    return [
        replace(item, candidates=[candidate.with_thought for candidate in item.candidates]) for item in items
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """What a judge says of one candidate: a row of the ``JUDGMENTS`` table. No score unless the status is ok.

    ``usage`` is what a language model's replies took, of which no score depends; None if the judge asks none.
    """

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
    usage: Usage | None = None


class Judge(Protocol):
    """Scores candidates. A name and a version say who judged; equal versions give equal scores."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Returns one judgment for each candidate, in the order of items and candidates.

        Raises:
            JudgeError: the judge failed as a whole; if it failed on a single candidate, the status says so.
        """
        ...


class ResponseCache(Protocol):
    """Keeps what was paid for: JSON values under the SHA-256 of what was asked, written once."""

    def get(self, key: str) -> dict[str, Any] | None: ...

    def put(self, key: str, value: dict[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a judge may need beside its configuration.

    Attributes:
        device, threads: those of a reward model, and of policies.
        cache: where a language model's replies are kept; without one they are asked for again.
    """

    device: str = "cpu"
    threads: int = 1
    cache: ResponseCache | None = None


ON_CPU = Resources()


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


AnyConfig = TypeVar("AnyConfig", bound=JudgeConfig)


class RuleJudge(Generic[AnyConfig]):
    """A judge that says of each candidate by itself what ``verdict`` returns."""

    def __init__(self, config: AnyConfig, _resources: Resources = ON_CPU) -> None:
        self.config = config
        self.name = config.kind
        self.version = judge_version(config, *self.depends_on())

    def depends_on(self) -> Sequence[object]:
        """Returns what its scores depend on beside its configuration, such as the version of a library."""
        return ()

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Judges each candidate by itself; see ``Judge``.

        Raises:
            JudgeError: a prompt has no reference answer, and the judge compares with it.
        """
        if self.config.needs_reference:
            require_references(self, items)
        return judge_each(self, items, self.verdict)

    def verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Judges one candidate."""
        raise NotImplementedError


def judgment_of(
    judge: Judge,
    item: JudgeItem,
    candidate: JudgedCandidate,
    verdict: Verdict,
    latency: float,
    usage: Usage | None = None,
) -> Judgment:
    """Makes a judgment of a judge's verdict on a candidate; a number that is not finite is left out."""
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
        usage=usage,
    )


def judge_version(config: JudgeConfig, *parts: object) -> str:
    """Hashes a judge's settings, its name apart, and what else its scores depend on."""
    from pipeline.records import content_id  # with pyarrow, which a recipe does not need

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


_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)


def last_block(text: str, languages: tuple[str, ...]) -> str | None:
    """Gives the content of the last closed block of one of these languages ('' if none is named); None without any."""
    blocks = [content for language, content in _FENCE.findall(text) if language.lower() in languages]
    return blocks[-1] if blocks else None

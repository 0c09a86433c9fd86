"""A language model as a judge, behind any endpoint that speaks OpenAI's chat completions.

How it is asked and what its replies come to is in ``support/llm_interview.py``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SerializationInfo, field_serializer, field_validator, model_validator

from pipeline.config.base import Config, Later, for_a_hash
from pipeline.errors import JudgeError
from pipeline.judges.base import ON_CPU, JudgeConfig, JudgeItem, Judgment, Resources, judge_version, require_references
from pipeline.judges.registry import judge

STATEMENTS = 2
"""Counts what it states of how sure it is: earlier, standard deviations alone, and of lists that of one shuffle."""
DIGITS = 9
"""A score of one digit is one token for every tokenizer, so that its distribution can be read off."""


class Rubric(Config):
    """Each completion by itself gets a score from 1 to ``scale``."""

    kind: Literal["rubric"]
    scale: int = Field(5, ge=2, le=100, description="the best score; the worst is 1")
    score: Literal["expected", "parsed"] = Field(
        "expected",
        description="mean over the score token's log-probabilities, with its standard deviation; or the written score",
    )

    @model_validator(mode="after")
    def _one_token(self) -> "Rubric":
        if self.score == "expected" and self.scale > DIGITS:
            raise ValueError(
                f"scale {self.scale} has scores of two digits, whose probabilities are not one token's: "
                f"lower it to {DIGITS}, or set score to parsed"
            )
        return self

    def requests(self, _completions: int) -> float:
        """Counts the requests for each of a prompt's completions."""
        return 1.0


class Pairwise(Config):
    """Two completions at a time, each two of them in both orders; verdicts that turn with the order are ties."""

    kind: Literal["pairwise"]
    opponents: int | None = Field(
        None, ge=2, le=1000, multiple_of=2, description="opponents of each completion, drawn by the seed; all if empty"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the drawing")

    def requests(self, completions: int) -> float:
        """Counts the requests for each of a prompt's completions: two for each pair, which two of them share."""
        return min(self.opponents or completions - 1, completions - 1)


class Listwise(Config):
    """All completions of a prompt at once, in shuffled positions; the score is the mean place, from 0 (last) to 1."""

    kind: Literal["listwise"]
    shuffles: int = Field(
        2, ge=1, le=16, description="how often each prompt is asked; every second order is the one before, reversed"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of the shuffles")

    def requests(self, completions: int) -> float:
        """Counts the requests for each of a prompt's completions, which share those of the prompt."""
        return self.shuffles / completions


Mode = Annotated[Rubric | Pairwise | Listwise, Field(discriminator="kind")]


class Price(Config):
    """What a million tokens cost, in whatever currency."""

    input: float = Field(ge=0, description="of those that are read")
    output: float = Field(ge=0, description="of those that are written")


class LlmConfig(JudgeConfig):
    """A language model asked for a verdict in JSON.

    Requests are answered from the store's cache where the same has been asked before. A budget counts what was sent
    since the judge's process started; a resumed run has it again.
    """

    kind: Literal["llm"]
    model: str = Field(min_length=1, description="name of the model at the endpoint")
    base_url: str = Field(description="the endpoint, such as http://127.0.0.1:8000/v1")
    revision: str | None = Field(
        None, description="what stands for the model's version: change it when other weights answer to the same name"
    )
    api_key_env: str | None = Field(None, description="the environment variable that holds the key; never the key")
    mode: Mode = Field(description="rubric, pairwise or listwise, by name or with their settings")
    criteria: str = Field(
        "A good answer does what the prompt asks, is correct and clear, and is no longer than it needs to be.",
        min_length=1,
        description="what makes a completion good, as the model is told",
    )
    show_reference: bool = Field(False, description="show the model the prompt's reference answer")
    rationale: bool = Field(False, description="ask for a reason before the verdict, and keep it")
    structured: bool | None = Field(
        None, description="ask for JSON by a schema as response_format; if empty, if the endpoint takes one"
    )
    max_tokens: int = Field(256, ge=1, le=100_000, description="longest reply, in tokens")
    temperature: float = Field(0.0, ge=0, le=2, description="of the reply")
    extra_body: Mapping[str, Any] = Field(
        default_factory=dict, description="further fields of each request; null leaves one of ours out"
    )
    concurrency: int = Field(8, ge=1, le=1024, description="most requests at a time")
    timeout_seconds: float = Field(60.0, gt=0, le=3600, description="most seconds to wait for the whole of one reply")
    retries: int = Field(
        6, ge=0, le=100, description="tries after a failed one; 429 and its Retry-After are obeyed, others wait 0.5-8 s"
    )
    budget_requests: int | None = Field(None, ge=1, description="most requests, retries included")
    budget_tokens: int | None = Field(
        None, ge=1, description="no request is sent once so many tokens were read and written; those on the way count"
    )
    price_per_million: Annotated[Price | None, Later(None)] = Field(
        None, description="price of a million tokens, as {input: 0.15, output: 0.6}; with it, a round says its cost"
    )

    OPERATIONAL = JudgeConfig.OPERATIONAL | {
        "api_key_env", "concurrency", "timeout_seconds", "retries", "budget_requests", "budget_tokens",
        "price_per_million",
    }  # fmt: skip

    @field_serializer("structured")
    def _asks_the_same(self, structured: bool | None, info: SerializationInfo) -> bool | None:
        """Hashes a form that the endpoint may take or leave as none, its old default: it makes no other question."""
        return bool(structured) if for_a_hash(info) else structured

    @field_validator("mode", mode="before")
    @classmethod
    def _by_name(cls, mode: Any) -> Any:
        return {"kind": mode} if isinstance(mode, str) else mode

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username or parts.password:
            raise ValueError("base_url holds a name or password: leave it out, and name its variable in api_key_env")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"base_url '{url}' is no http address: give one such as http://127.0.0.1:8000/v1")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        # The value is not repeated: if somebody gave the key itself, it would be printed and logged.
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,99}", name):
            raise ValueError(
                "api_key_env is no name of an environment variable: give a name of capital letters, such as "
                "JUDGE_API_KEY, and put the key itself into that variable"
            )
        return name

    @property
    def states_uncertainty(self) -> bool:
        match self.mode:
            case Rubric(score=score):
                return score == "expected"
            case Listwise(shuffles=shuffles):
                return shuffles > 1
        return True

    @property
    def drifts(self) -> bool:
        return True

    @property
    def has_budget(self) -> bool:
        return bool(self.budget_requests or self.budget_tokens)

    @property
    def needs_reference(self) -> bool:
        return self.show_reference

    @property
    def compares(self) -> bool:
        return not isinstance(self.mode, Rubric)


@judge(LlmConfig)
class LlmJudge:
    """Scores by a language model at an OpenAI-compatible endpoint.

    - ``rubric``: the score itself, from 1 to the scale; as an expected value it has a standard deviation.
    - ``pairwise``: strengths (Bradley-Terry, with standard deviations) from comparisons in both orders.
    - ``listwise``: the mean place over several shuffles, from 0 to 1, and the standard error of that mean.

    Of each two candidates of a prompt it says how probable their order is: a rubric by the distributions of the scores,
    pairwise by the posterior of the strengths, listwise by the differences of the places.

    A reply that cannot be read is asked for once more; then the status is ``unparsable``.
    """

    name = "llm"

    def __init__(self, config: LlmConfig, resources: Resources = ON_CPU) -> None:
        from pipeline.judges.support.llm_interview import Interview
        from pipeline.judges.support.llm_questions import WORDING

        self._config = config
        self.version = judge_version(config, WORDING, STATEMENTS)
        self._interview = Interview(self, config, resources.cache)

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Asks side by side; must not be called from a running event loop.

        Components of a rubric are the written score and the probability that the named scores had together. Those of
        comparisons are their number, wins, losses, ties, flips (another verdict in the other order) and those without
        a verdict. Those of orders are the numbers of those with a verdict and without. Both say how sure the judge is
        of each order.

        Raises:
            BudgetError: the recipe allows no further request. What was judged is in the cache.
            JudgeError: the endpoint is gone, refuses, or answers nothing in time. What was judged is in the cache.
        """
        if self._config.show_reference:
            require_references(self, items)
        judgments = self._interview.judge(items)
        if judgments and all(judgment.status == "timed_out" for judgment in judgments):
            raise JudgeError(
                f"{self._config.base_url} answered none of {self._interview.requests} requests in time: see whether it "
                "runs, lower judge.concurrency or raise judge.timeout_seconds"
            )
        return judgments

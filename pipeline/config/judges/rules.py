"""Judges by rules, verifiers, and code: a score from the answer's text alone, or against the reference answer."""

from collections.abc import Mapping
from typing import Any, Literal

import regex
from pydantic import Field, JsonValue, field_validator, model_validator

from pipeline.config.judges.base import JudgeConfig


class VaderJudge(JudgeConfig):
    """Sentiment by the VADER lexicon: the compound score, from -1 to 1."""

    kind: Literal["vader"]


class ExactAnswerJudge(JudgeConfig):
    """1 where the answer equals the prompt's reference answer, else 0; surrounding white space is ignored."""

    kind: Literal["exact_answer"]
    after: str | None = Field(
        None, min_length=1, description="the answer is what follows the last of these marks; the whole text where empty"
    )

    @property
    def needs_reference(self) -> bool:
        return True


class GrammarJudge(JudgeConfig):
    """Share of an answer's clauses that the grammar of a generated corpus can produce, from 0 to 1."""

    kind: Literal["grammar"]
    corpus: Literal["film_reviews"] = Field("film_reviews", description="the corpus whose grammar is used")


class RegexJudge(JudgeConfig):
    """1 where the pattern is found in the answer, else 0."""

    kind: Literal["regex"]
    pattern: str = Field(min_length=1, description="regular expression, in the syntax of the package regex")
    ignore_case: bool = Field(False, description="letters match in either case")
    dot_all: bool = Field(False, description="a dot matches a line's end too")
    whole: bool = Field(False, description="the pattern has to match the whole answer, white space around it left out")
    timeout_seconds: float = Field(1.0, gt=0, le=60, description="most seconds for one answer; then it is timed_out")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"pattern '{pattern}' is no regular expression: {error}") from None
        return pattern


class JsonSchemaJudge(JudgeConfig):
    """1 where the answer is JSON that a JSON Schema accepts, else 0."""

    kind: Literal["json_schema"]
    definition: Mapping[str, JsonValue] = Field(description="the schema, written out; references within it alone")
    fenced: bool = Field(False, description="judge the last block between ``` marks in place of the whole answer")
    timeout_seconds: float = Field(1.0, gt=0, le=60, description="most seconds for one of the schema's patterns")


class LengthJudge(JudgeConfig):
    """0 up to the limit, or at the target; what is beyond costs its share: twice the limit scores -1."""

    kind: Literal["length"]
    limit: int | None = Field(None, ge=1, le=10_000_000, description="lengths up to this one cost nothing")
    target: int | None = Field(None, ge=1, le=10_000_000, description="lengths on either side of this one cost")
    unit: Literal["tokens", "characters"] = Field(
        "tokens", description="of the length; tokens are the policy's, the end of sequence included"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "LengthJudge":
        if (self.limit is None) == (self.target is None):
            raise ValueError("a judge of length takes either limit or target: give one of them")
        return self


class CharactersJudge(JudgeConfig):
    """Share of the answer's letters that belong to the named Unicode scripts; 1 where it has no letters."""

    kind: Literal["characters"]
    scripts: tuple[str, ...] = Field(min_length=1, description="Unicode scripts, such as Latin, Han, Cyrillic")

    @field_validator("scripts")
    @classmethod
    def _known(cls, scripts: tuple[str, ...]) -> tuple[str, ...]:
        for script in scripts:
            try:
                regex.compile(rf"\p{{Script_Extensions={script}}}")
            except regex.error:
                raise ValueError(f"'{script}' is no Unicode script: give names such as Latin, Han, Cyrillic") from None
        return scripts


class MathJudge(JudgeConfig):
    """1 where the answer's mathematics equals the prompt's reference answer by ``math-verify``, else 0."""

    kind: Literal["math"]
    timeout_seconds: int = Field(5, ge=1, le=600, description="most seconds to read, and to compare, one answer")

    @property
    def needs_reference(self) -> bool:
        return True


class CodeJudge(JudgeConfig):
    """1 where the answer's last Python block runs and passes, else 0. Runs what a model wrote: off unless allowed."""

    kind: Literal["code"]
    allow_execution: bool = Field(False, description="the consent to run code that a model wrote, on this machine")
    check: Literal["tests", "output"] = Field(
        "tests",
        description="the reference answer is Python that runs after the answer's (tests), or what it has to print",
    )
    isolation: Literal["namespaces", "limits"] = Field(
        "namespaces",
        description="namespaces: own file system, no network, no other processes; limits: time and memory alone",
    )
    timeout_seconds: float = Field(
        5.0, gt=0, le=600, description="most processor time of one answer; it may wait as long, too, and 4 s"
    )
    memory_mib: int = Field(256, ge=64, le=1_048_576, description="most memory of one answer's process, in MiB")

    @model_validator(mode="after")
    def _allowed(self) -> "CodeJudge":
        if not self.allow_execution:
            raise ValueError(
                "the judge code runs what a model wrote on this machine, and that is off: read what its isolation "
                "guards against, then set allow_execution to true"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        return True


class PythonJudge(JudgeConfig):
    """A Python function, by import path.

    It is called once for each answer with the keywords ``prompt``, ``messages``, ``reference_answer``, ``answer`` and
    ``finish_reason``, and with ``options``; it returns a number, or where ``gives_std`` is set a number and its
    standard deviation.
    """

    kind: Literal["python"]
    function: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        examples=["mine.judges:politeness"],
        description="import path, as package.module:function",
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="further keywords of the call")
    gives_std: bool = Field(False, description="it returns a standard deviation with each number")

    @property
    def states_uncertainty(self) -> bool:
        return self.gives_std

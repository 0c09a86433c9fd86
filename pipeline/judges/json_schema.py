"""Whether an answer is JSON of a given form."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import regex
from pydantic import Field, JsonValue

from pipeline.errors import JudgeError
from pipeline.judges.base import (
    ON_CPU,
    JudgeConfig,
    JudgedCandidate,
    JudgeItem,
    Resources,
    RuleJudge,
    Verdict,
    last_block,
)
from pipeline.judges.registry import judge

_REASON_LENGTH = 300


class JsonSchemaConfig(JudgeConfig):
    """1 if the completion is JSON that a JSON Schema accepts, else 0."""

    kind: Literal["json_schema"]
    definition: Mapping[str, JsonValue] = Field(description="the schema, written out; references within it alone")
    fenced: bool = Field(False, description="judge the last block between ``` marks in place of the whole completion")
    timeout_seconds: float = Field(1.0, gt=0, le=60, description="most seconds for one of the schema's patterns")

    GIVES_VERDICTS = True


@judge(JsonSchemaConfig)
class JsonSchemaJudge(RuleJudge[JsonSchemaConfig]):
    """1 if the schema accepts the answer, else 0, with the first fault as the rationale.

    Nothing is fetched: a reference that leads out of the schema is an error. Patterns are searched with a time limit,
    for the texts are a model's; formats (such as ``date``) are not checked.
    """

    def __init__(self, config: JsonSchemaConfig, resources: Resources = ON_CPU) -> None:
        import jsonschema
        import referencing
        from jsonschema.validators import extend, validator_for

        super().__init__(config, resources)
        schema = dict(config.definition)
        known = validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            known.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise JudgeError(f"judge.definition is no JSON Schema: {error.message}") from None
        checks = {"pattern": self._pattern, "patternProperties": self._pattern_properties}
        self._validator = extend(known, checks)(schema, registry=referencing.Registry())

    def depends_on(self) -> Sequence[object]:
        return [version("jsonschema")]

    def verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Checks the answer. Component ``parses``: whether it is JSON at all.

        Raises:
            JudgeError: the schema refers to something that is not in it.
        """
        import referencing.exceptions

        text = last_block(candidate.text, ("", "json")) if self.config.fenced else candidate.text
        if text is None:
            return Verdict(score=0.0, components={"parses": 0.0}, rationale="no block between ``` marks")
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return Verdict(score=0.0, components={"parses": 0.0}, rationale=f"no JSON: {error}"[:_REASON_LENGTH])
        try:
            fault = next(self._validator.iter_errors(value), None)
        except TimeoutError:
            return Verdict(score=None, status="timed_out", rationale="a pattern of the schema was still searching")
        except RecursionError:
            return Verdict(score=0.0, components={"parses": 1.0}, rationale="nested too deeply")
        except referencing.exceptions.Unresolvable as error:
            raise JudgeError(f"judge.definition refers to '{error.ref}', which is not in it: write it out") from error
        reason = None if fault is None else f"{fault.json_path}: {fault.message}"[:_REASON_LENGTH]
        return Verdict(score=float(fault is None), components={"parses": 1.0}, rationale=reason)

    def _found(self, pattern: str, text: str) -> bool:
        return regex.search(pattern, text, timeout=self.config.timeout_seconds) is not None

    def _pattern(self, _validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
        from jsonschema import ValidationError

        if isinstance(instance, str) and not self._found(pattern, instance):
            yield ValidationError(f"{instance!r} does not match {pattern!r}")

    def _pattern_properties(
        self, validator: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any
    ) -> Iterator[Any]:
        for pattern, subschema in patterns.items() if isinstance(instance, dict) else ():
            for key in instance:
                if self._found(pattern, key):
                    yield from validator.descend(instance[key], subschema, path=key, schema_path=pattern)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")

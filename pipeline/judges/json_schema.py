"""Whether an answer is JSON of a given form."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jsonschema
import referencing
import referencing.exceptions
import regex
from jsonschema.validators import extend, validator_for

from pipeline.config import JsonSchemaJudge
from pipeline.errors import JudgeError
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment, Verdict, judge_each, judge_version
from pipeline.judges.fences import last_block

_REASON_LENGTH = 300


class JsonSchema:
    """1 where the schema accepts the answer, else 0, with the first fault as the rationale.

    Nothing is fetched: a reference that leads out of the schema is an error. Patterns are searched with a time limit,
    for the texts are a model's; formats (such as ``date``) are not checked.
    """

    name = "json_schema"

    def __init__(self, config: JsonSchemaJudge) -> None:
        schema = dict(config.definition)
        known = validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            known.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise JudgeError(f"judge.definition is no JSON Schema: {error.message}") from None
        checks = {"pattern": self._pattern, "patternProperties": self._pattern_properties}
        self._validator = extend(known, checks)(schema, registry=referencing.Registry())
        self._config = config
        self.version = judge_version(config, version("jsonschema"))

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Component ``parses``: whether the answer is JSON at all.

        Raises:
            JudgeError: the schema refers to something that is not in it.
        """
        return judge_each(self, items, self._verdict)

    def _verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        text = last_block(candidate.text, ("", "json")) if self._config.fenced else candidate.text
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
        return regex.search(pattern, text, timeout=self._config.timeout_seconds) is not None

    def _pattern(self, _validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not self._found(pattern, instance):
            yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")

    def _pattern_properties(
        self, validator: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any
    ) -> Iterator[Any]:
        for pattern, subschema in patterns.items() if isinstance(instance, dict) else ():
            for key in instance:
                if self._found(pattern, key):
                    yield from validator.descend(instance[key], subschema, path=key, schema_path=pattern)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")

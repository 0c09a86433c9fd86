"""Whether an answer is JSON of a given form, and how near it comes to that."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal

import regex
from pydantic import Field, JsonValue, model_validator

from pipeline.config.base import Later
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
_MOST_OPENINGS = 32
"""Places at which an object is looked for within a text."""


class JsonSchemaConfig(JudgeConfig):
    """1 if the completion is JSON that a JSON Schema accepts, else 0, or with ``partial_credit`` a part."""

    kind: Literal["json_schema"]
    definition: Mapping[str, JsonValue] = Field(description="the schema, written out; references within it alone")
    fenced: bool = Field(False, description="judge the last block between ``` marks in place of the whole completion")
    timeout_seconds: float = Field(1.0, gt=0, le=60, description="most seconds for one of the schema's patterns")

    partial_credit: Annotated[float, Later(0.0)] = Field(
        0.0,
        ge=0,
        lt=1,
        description="score of a completion that nearly fits, times the share of the required keys whose values fit; "
        "half of that if other text is around the object; 0: none",
    )

    GIVES_VERDICTS = True

    @model_validator(mode="after")
    def _credit_has_keys(self) -> "JsonSchemaConfig":
        if self.partial_credit and not self.required:
            raise ValueError(
                f"partial_credit {self.partial_credit} counts the required keys that fit, and definition names none: "
                "list them under required, or set the former to 0"
            )
        return self

    @property
    def required(self) -> list[str]:
        """Returns the keys that the schema requires of the answer's object, as far as it names them at its top."""
        keys = self.definition.get("required")
        return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []

    @property
    def gives_partial_credit(self) -> bool:
        return self.partial_credit > 0


@judge(JsonSchemaConfig)
class JsonSchemaJudge(RuleJudge[JsonSchemaConfig]):
    """1 if the schema accepts the answer, else 0, with the first fault as the rationale.

    With ``partial_credit`` c, an answer that does not fit scores ``c * f * s``. Here f is 1 if all of the answer is an
    object, 1/2 if one stands amid other text, such as a fence or a greeting, and else 0. And s is the share of the
    schema's ``required`` keys that the object has with values that the schema accepts. So of two wrong answers the
    nearer one is the better one: this is what there is to learn from if few answers are right. It is a product, and no
    sum, for a policy that is paid for the form alone soon writes nothing else, such as ``{}``.

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
        credit = ["form times keys"] if self.config.partial_credit else []
        return [version("jsonschema"), *credit]

    def verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Checks the answer. Components: ``parses``, whether it is JSON; ``keys``, the share s, if there is credit.

        Raises:
            JudgeError: the schema refers to something that is not in it.
        """
        import referencing.exceptions

        text = last_block(candidate.text, ("", "json")) if self.config.fenced else candidate.text
        try:
            if text is None:
                return self._amid(candidate.text, "no block between ``` marks")
            value, reason = _parse(text)
            return self._of(value) if reason is None else self._amid(text, reason)
        except TimeoutError:
            return Verdict(score=None, status="timed_out", rationale="a pattern of the schema was still searching")
        except RecursionError:
            return Verdict(score=0.0, components={"parses": 1.0}, rationale="nested too deeply")
        except referencing.exceptions.Unresolvable as error:
            raise JudgeError(f"judge.definition refers to '{error.ref}', which is not in it: write it out") from error

    def _of(self, value: object) -> Verdict:
        """Judges an answer that is JSON as a whole."""
        fault = next(self._validator.iter_errors(value), None)
        if fault is None:
            return Verdict(score=1.0, components={"parses": 1.0} | self._keys(1.0))
        return self._nearly(value, 1.0, f"{fault.json_path}: {fault.message}"[:_REASON_LENGTH])

    def _amid(self, text: str, reason: str) -> Verdict:
        """Judges an answer that is no JSON, but may have an object in it."""
        found = _object_within(text) if self.config.partial_credit else None
        if found is None:
            return Verdict(score=0.0, components={"parses": 0.0} | self._keys(0.0), rationale=reason)
        return self._nearly(found, 0.5, reason)

    def _nearly(self, value: object, form: float, reason: str) -> Verdict:
        share = self._fitting_share(value) if self.config.partial_credit else 0.0
        score = self.config.partial_credit * form * share
        return Verdict(score=score, components={"parses": float(form == 1)} | self._keys(share), rationale=reason)

    def _keys(self, share: float) -> dict[str, float]:
        return {"keys": share} if self.config.partial_credit else {}

    def _fitting_share(self, value: object) -> float:
        if not isinstance(value, dict):
            return 0.0
        unfit = {next(iter(error.absolute_path), None) for error in self._validator.iter_errors(value)}
        required = self.config.required
        return sum(key in value and key not in unfit for key in required) / len(required)

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


def _parse(text: str) -> tuple[object, str | None]:
    """Reads a text as JSON; returns its value, or None and the reason why it has none."""
    try:
        return json.loads(text, parse_constant=_refuse), None
    except (ValueError, RecursionError) as error:
        return None, f"no JSON: {error}"[:_REASON_LENGTH]


def _object_within(text: str) -> dict[str, Any] | None:
    """Finds the first JSON object that stands in a text, among its first opening braces."""
    decoder, start = json.JSONDecoder(parse_constant=_refuse), -1
    for _ in range(_MOST_OPENINGS):
        start = text.find("{", start + 1)
        if start < 0:
            return None
        try:
            found: dict[str, Any] = decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
        return found
    return None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")

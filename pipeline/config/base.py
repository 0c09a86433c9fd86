"""What every part of a recipe shares."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

TextCorpus = Literal["film_reviews", "additions"]
"""Generated corpora with answers that a warm start can learn from; their prompts are texts."""
Corpus = Literal[TextCorpus, "json_objects", "instructions"]
"""All generated corpora; what each has is said in ``pipeline.data.corpora``."""
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$", examples=["cpu", "cuda", "cuda:1"])]
Devices = Annotated[
    str,
    Field(
        pattern=r"^(cpu(,cpu){0,63}|cuda|cuda:\d+(,cuda:\d+){0,63})$",
        examples=["cpu", "cuda", "cuda:1,cuda:2,cuda:3", "cpu,cpu"],
    ),
]


_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_HASHED = {"hashed": True}


def _say_limits(schema: dict[str, Any]) -> None:
    """Adds the limits of a field to its description, which is all of them that a form made of the schema shows."""
    for field in schema.get("properties", {}).values():
        kinds = (field, *field.get("anyOf", ()))
        limits = [f"{words} {kind[bound]:,.12g}" for kind in kinds for bound, words in _BOUNDS.items() if bound in kind]
        if limits and "description" in field:
            field["description"] += f" ({', '.join(limits)})"


@dataclass(frozen=True)
class Later:
    """Marks a field that version 0.1.0 did not have: ``field: Annotated[float, Later(0.0)]``.

    Attributes:
        without: the value that leaves what a round makes as 0.1.0 made it. A hash that is kept on disk leaves the
            field out at it, so that what that version has finished is found.
    """

    without: Any


class Config(BaseModel):
    """Base of every part of a recipe: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_say_limits)

    OLD_NAMES: ClassVar[Mapping[str, str]] = {}
    """Names that fields had in version 0.1.0, each with today's: recipes may use them, and hashes on disk do."""

    def hashed(self, *, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """Returns all fields as JSON, for a hash that is kept on disk, in the form that version 0.1.0 gave them.

        What a run of that version has finished is found by the hash of its settings. So a field has its old name, and
        one that came later is left out while it changes nothing.
        """
        return self.model_dump(mode="json", exclude=set(exclude), context=_HASHED)

    @model_validator(mode="before")
    @classmethod
    def _take_old_names(cls, content: Any) -> Any:
        if not cls.OLD_NAMES or not isinstance(content, Mapping):
            return content
        for old, new in cls.OLD_NAMES.items():
            if old in content and new in content:
                raise PydanticCustomError("old_name", f"{old} is the old name of {new}: give one of them")
        return {cls.OLD_NAMES.get(name, name): value for name, value in content.items()}

    @model_serializer(mode="wrap")
    def _in_old_form(self, fields: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        content: dict[str, Any] = fields(self)
        if not for_a_hash(info):
            return content
        for name, field in type(self).model_fields.items():
            later = [mark for mark in field.metadata if isinstance(mark, Later)]
            if any(getattr(self, name) == mark.without for mark in later):
                content.pop(name, None)
        for old, new in self.OLD_NAMES.items():
            if new in content:
                content[old] = content.pop(new)
        return content


def for_a_hash(info: SerializationInfo) -> bool:
    """Says whether a part is being serialised for ``Config.hashed``, in the form of version 0.1.0."""
    return info.context == _HASHED


def among(found: Iterable[str], names: Iterable[str]) -> str | None:
    """Returns the first of the found ones that is one of those names; None if none is."""
    known = set(names)
    return next((name for name in found if name in known), None)

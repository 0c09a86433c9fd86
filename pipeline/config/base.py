"""What every part of a recipe shares."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializationInfo

Corpus = Literal["film_reviews", "additions"]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$", examples=["cpu", "cuda", "cuda:1"])]


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


class Config(BaseModel):
    """Base of every part of a recipe: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_say_limits)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after version 0.1.0; at their defaults a part means what it meant without them."""

    def hashed(self, *, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """All fields as JSON, for a hash that is kept on disk.

        A name that has changed since version 0.1.0 keeps its old form here, and a field that is ``LATER`` is left out
        at its default: what a run of that version has finished is found by the hash of its settings.
        """
        content = self.with_old_names(exclude=exclude)
        self._leave_out_later(content)
        return content

    def with_old_names(self, *, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """All fields as JSON, with the names that they had in version 0.1.0."""
        return self.model_dump(mode="json", exclude=set(exclude), context=_HASHED)

    def _leave_out_later(self, content: dict[str, Any]) -> None:
        for name, value in self:
            if name in self.LATER and value == type(self).model_fields[name].default:
                content.pop(name, None)
            elif isinstance(value, Config) and isinstance(content.get(name), dict):
                value._leave_out_later(content[name])


def for_a_hash(info: SerializationInfo) -> bool:
    """Whether a part is being serialised for ``Config.hashed``, with the names of version 0.1.0."""
    return info.context == _HASHED


def among(found: Iterable[str], names: Iterable[str]) -> str | None:
    """The first of the found ones that is one of those names."""
    known = set(names)
    return next((name for name in found if name in known), None)

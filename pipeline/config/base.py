"""What every part of a recipe shares."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Corpus = Literal["film_reviews", "additions"]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]


class Config(BaseModel):
    """Base of every part of a recipe: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def among(found: Iterable[str], names: Iterable[str]) -> str | None:
    """The first of the found ones that is one of those names."""
    known = set(names)
    return next((name for name in found if name in known), None)

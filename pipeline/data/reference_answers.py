"""Reference answers: the text that a judge compares with, of whatever a column holds."""

import math
from collections.abc import Mapping
from decimal import Decimal

import numpy as np

from pipeline.errors import DataError


def reference_answer(value: object, place: str, column: str) -> str | None:
    """Gives the answer as text. Numbers are written in full, whole ones without a point; null and NaN are no answer.

    Args:
        place: where the value stands, for messages.
        column: the name under which the recipe asked for it.

    Raises:
        DataError: neither a text nor a finite number; names a field to choose if it has some.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal):
        if math.isnan(value):
            return None
        if math.isfinite(value):
            return _decimal(value)
    if isinstance(value, Mapping) and value:
        fields = ", ".join(map(str, value))
        raise DataError(
            f"{place} holds a struct with the fields {fields}: choose one, as prompts.reference_column: "
            f"{column}.{next(iter(value))}"
        )
    raise DataError(f"{place} holds {value!r:.80}, a {type(value).__name__}: give the answer as a text or a number")


def _decimal(value: float | Decimal) -> str:
    """Writes all digits of a number, without an exponent, and without zeros at the end of its fraction."""
    if not value:
        return "0"  # also of -0.0
    if isinstance(value, Decimal):
        digits = format(value, "f")
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return np.format_float_positional(value, trim="-")

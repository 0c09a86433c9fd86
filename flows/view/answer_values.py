"""The values of an answer as Python has them; those that Python has no date for are texts, as DuckDB writes them."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_UNREADABLE = (OverflowError, ValueError, pa.ArrowException)
_LARGEST = {pa.date32(): 2**31 - 1}
"""By type, what DuckDB calls infinity, where that is not the largest number of 64 bits."""


def rows_of_answer(table: pa.Table) -> list[tuple[Any, ...]]:
    """Returns the rows of a table by the places of the columns: two of them may have one name."""
    return list(zip(*(_values(column) for column in table.columns), strict=True))


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except _UNREADABLE:
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    if not scalar.is_valid:
        return None
    try:
        return scalar.as_py()
    except _UNREADABLE:
        pass
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(part) for name, part in scalar.items()}
    if isinstance(scalar, pa.ListScalar):  # a map too, which is a list of keys and values
        return [_value(part) for part in scalar.values]
    return _text(scalar)


def _text(scalar: pa.Scalar) -> str:
    largest = _LARGEST.get(scalar.type, 2**63 - 1)
    number = getattr(scalar, "value", None)
    if number is not None and abs(number) == largest:
        return "infinity" if number > 0 else "-infinity"
    try:
        return str(pc.cast(scalar, pa.string()).as_py())
    except _UNREADABLE:
        return str(number)

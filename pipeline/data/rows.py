"""Rows of prompts as files and datasets hold them: read, counted, and each with its place for messages to people."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from pipeline.config import DatasetPrompts, FilePrompts
from pipeline.data.saved_datasets import open_saved
from pipeline.errors import ConfigError, DataError


@dataclass(frozen=True)
class Row:
    """A row: its number from 1, of a JSONL file that of its line; its prompt, and its reference answer or None."""

    number: int
    prompt: object
    answer: object


@dataclass(frozen=True)
class Rows:
    """All rows of a source.

    Attributes:
        source: where they come from, such as ``jsonl:prompts.jsonl``.
        padded: absent fields of structs are null, as Arrow keeps them; in JSON a null was written by somebody.
    """

    source: str
    rows: list[Row]
    padded: bool

    def place(self, row: Row, column: str | None) -> str:
        """Says where a value stands, in words."""
        return f"row {row.number} of {self.source}, column '{column}'"


def read_rows(config: FilePrompts | DatasetPrompts) -> Rows:
    """Reads the prompts' column and that of the reference answers; a name with dots may be a field of a column.

    Raises:
        ConfigError: there is no such file, dataset, split or column, it cannot be read, or it has no rows.
        DataError: a row that cannot be read, with its place.
    """
    if isinstance(config, DatasetPrompts):
        source, rows = f"datasets:{config.name}/{config.split}", _read_dataset(config)
    else:
        path = Path(config.path)
        if not path.is_file():
            raise ConfigError(f"prompts.path '{config.path}' is not a file: give that of a {config.source} file")
        source = f"{config.source}:{path.name}"
        rows = (_read_parquet if config.source == "parquet" else _read_jsonl)(config, path, source)
    if not rows:
        raise ConfigError(f"prompts from {source}: there is no row in it")
    return Rows(source, rows, padded=config.source != "jsonl")


def _read_jsonl(config: FilePrompts, path: Path, source: str) -> list[Row]:
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    except OSError as error:
        raise ConfigError(f"prompts.path '{config.path}' cannot be read: {error}") from error
    rows = []
    # Only a line feed ends a line: a U+2028 may stand within a text.
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            fields, place = _object(line, number, config.path), f"row {number} of {source}"
            prompt = _value(fields, config.column, place)
            answer = _value(fields, config.reference_column, place) if config.reference_column else None
            rows.append(Row(number, prompt, answer))
    return rows


def _object(line: bytes, number: int, path: str) -> Mapping[str, Any]:
    try:
        fields = from_json(line)
    except ValueError as error:  # also for lone surrogates, and for numbers and nesting beyond its limits
        reason = str(error).replace(" at line 1 column ", " at column ")
        if "hex escape" in reason:
            reason += ", perhaps half of a character, as \\ud83d alone is"
        raise ConfigError(f"line {number} of '{path}' is not JSON that can be read: {reason}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"line {number} of '{path}' holds {line[:80]!r}: give one JSON object a line")
    return fields


def _read_parquet(config: FilePrompts, path: Path, source: str) -> list[Row]:
    columns = [config.column, *([config.reference_column] if config.reference_column else [])]
    try:
        present = pq.read_schema(path).names
        heads = [_head(column, present, config.path) for column in columns]
        table = pq.read_table(path, columns=list(dict.fromkeys(heads)))
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"prompts.path '{config.path}' is not readable parquet: {error}") from error
    return _table_rows(table, config, source)


def _read_dataset(config: DatasetPrompts) -> list[Row]:
    import datasets  # takes seconds to import, and most runs do not need it

    columns = [config.column, *([config.reference_column] if config.reference_column else [])]
    saved = Path(config.name)
    try:
        if (saved / "dataset_dict.json").is_file() or (saved / "state.json").is_file():
            dataset = open_saved(config.name, config.subset, config.split)
        else:
            dataset = datasets.load_dataset(config.name, config.subset, split=config.split)
        heads = [_head(column, dataset.column_names, config.name) for column in columns]
        table = dataset.select_columns(list(dict.fromkeys(heads))).with_format("arrow")[:]
    except ConfigError:
        raise
    except Exception as error:  # the library's own errors, and whatever a broken file makes of it
        raise ConfigError(
            f"the dataset '{config.name}' (subset {config.subset}, split '{config.split}') cannot be read: "
            f"check its name and the network; {type(error).__name__}: {error}"
        ) from error
    return _table_rows(table, config, f"datasets:{config.name}/{config.split}")


def _table_rows(table: pa.Table, config: FilePrompts | DatasetPrompts, source: str) -> list[Row]:
    prompts, answers = (
        _column(table, name, source) if name else [None] * table.num_rows
        for name in (config.column, config.reference_column)
    )
    return [Row(number, *values) for number, values in enumerate(zip(prompts, answers, strict=True), start=1)]


def _column(table: pa.Table, name: str, source: str) -> list[object]:
    head = _head(name, table.column_names, source)
    values = _python_values(table[head], lambda row: f"row {row} of {source}, column '{head}'")
    if head == name:
        return values
    return [_value({head: value}, name, f"row {row} of {source}") for row, value in enumerate(values, start=1)]


def _python_values(column: pa.ChunkedArray, place: Callable[[int], str]) -> list[object]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        for row, scalar in enumerate(column, start=1):
            try:
                scalar.as_py()
            except UnicodeDecodeError as error:
                raise DataError(f"{place(row)} holds bytes that are no UTF-8: {error}") from error
        raise
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
        # As the shortest decimal of its own precision, so that 0.1 stays 0.1.
        narrow = np.float32 if pa.types.is_float32(column.type) else np.float16
        return [None if value is None else float(str(narrow(value))) for value in values]
    return values


def _head(name: str, present: Sequence[str], place: str) -> str:
    """Finds the column that a name begins with; the name may go on with fields of it."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if (head := ".".join(parts[:count])) in present:
            return head
    raise ConfigError(f"'{place}' has no column '{name}': it has {', '.join(sorted(present))}")


def _value(fields: Mapping[str, Any], name: str, place: str) -> object:
    head = name if name in fields else _head(name, list(fields), place)
    value = fields[head]
    for part in name.removeprefix(head).split(".")[1:]:
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            has = f"it has {', '.join(sorted(value))}" if isinstance(value, Mapping) else "it has no fields"
            raise DataError(f"{place}, column '{head}' has no field '{part}', which '{name}' names: {has}")
        value = value[part]
    return value

"""DuckDB as the questions use it: a connection that reaches neither files nor network, and errors of this package."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import duckdb

from storage.errors import DamagedFileError, QueryError

_UNREADABLE = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException)
_OF_A_TABLE = "Invalid Input Error: reading the stream registered as "
"""What DuckDB says if Arrow, which reads the files for it, failed."""


@contextmanager
def locked_connection(tables: Mapping[str, Any]) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens a connection that sees these Arrow tables and datasets, and nothing else; its settings are locked."""
    connection = duckdb.connect(":memory:")
    try:
        for name, table in tables.items():
            connection.register(name, table)
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        connection.close()


@contextmanager
def clear_errors(known: Iterable[str]) -> Iterator[None]:
    """Turns DuckDB's errors into those of the store.

    Args:
        known: phrases that say which tables or columns there are; they help whoever got a name wrong.
    """
    try:
        yield
    except duckdb.Error as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, _UNREADABLE) or _OF_A_TABLE in reason:
            raise DamagedFileError(f"a committed file cannot be read: {reason}") from error
        raise QueryError("; ".join([reason, *known])) from error

"""DuckDB as the questions use it: a connection that reaches neither files nor network, and errors of this package."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb

from storage.errors import DamagedFileError, QueryError

_UNREADABLE = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException)
_OF_A_TABLE = "Invalid Input Error: reading the stream registered as "
"""What DuckDB says if Arrow, which reads the files for it, failed."""


_AGAIN_SECONDS = 0.1
"""Between two interrupts: one that comes between two steps of a statement is lost."""


@dataclass(frozen=True)
class Limits:
    """What a statement may take of the machine; with them it writes no temporary files either.

    Attributes:
        seconds: it is stopped after these.
        memory: bytes that it may hold.
        threads: that it may use.
    """

    seconds: float
    memory: int
    threads: int = 2


def too_long(limits: Limits) -> QueryError:
    """Says that a statement took too much time."""
    return QueryError(
        f"the statement took longer than {limits.seconds:g} s and was stopped: ask for fewer rounds or rows"
    )


def too_large(limits: Limits) -> QueryError:
    """Says that a statement needs too much memory."""
    return QueryError(
        f"the statement needs more than {limits.memory / 1e9:g} GB of memory: ask for fewer rounds or rows, or "
        "sort and group fewer of them"
    )


@contextmanager
def locked_connection(
    tables: Mapping[str, Any], limits: Limits | None = None, *, large: bool = False
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens a connection that sees these Arrow tables and datasets, and nothing else; its settings are locked.

    Args:
        large: it gives Arrow's large types for texts and lists, which have no limit of 2 GB for the texts of an answer.
    """
    connection = duckdb.connect(":memory:")
    try:
        if large:
            connection.execute("SET arrow_large_buffer_size = true")
        for name, table in tables.items():
            connection.register(name, table)
        if limits is not None:
            connection.execute(f"SET memory_limit = '{limits.memory} bytes'")
            connection.execute("SET temp_directory = ''")
            connection.execute(f"SET threads = {limits.threads}")
        # A statement that names a function of an extension must not fetch that extension.
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute("SET autoload_known_extensions = false")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        connection.close()


@contextmanager
def within(limits: Limits | None, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Stops what the connection does in this block, if it takes too long.

    Raises:
        QueryError: it took more time, or more memory, than the limits allow.
    """
    if limits is None:
        yield
        return
    done = threading.Event()

    def stop() -> None:
        late = done.wait(limits.seconds)
        while not late:
            connection.interrupt()
            late = done.wait(_AGAIN_SECONDS)

    clock = threading.Thread(target=stop, daemon=True)
    clock.start()
    try:
        yield
    except duckdb.InterruptException as error:
        raise too_long(limits) from error
    except duckdb.OutOfMemoryException as error:
        raise too_large(limits) from error
    finally:
        done.set()
        clock.join()


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
        raise QueryError("; ".join([reason.rstrip("!."), *known])) from error

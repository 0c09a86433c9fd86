"""Questions in SQL in a process of their own, which is ended when one takes more than it may.

DuckDB looks at its limits between two steps of a statement. Within one step, such as a function of two long texts,
only the operating system can hold it: see ``apart_main.py``.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import IO

import pyarrow as pa

from storage import errors
from storage.errors import QueryError, StoreError
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.duckdb import Limits, too_large, too_long

_ENDED_BY_TIME = -signal.SIGALRM
_END_SECONDS = 10


class SelectProcess:
    """The process that answers questions, one at a time; it begins with the first, and again after one was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Returns its process id, if it runs."""
        return None if self._process is None else self._process.pid

    def select(
        self, store: Store, run: Run, sql: str, *, rows: int, offset: int, letters: int, limits: Limits
    ) -> pa.Table:
        """Answers as :func:`storage.queries.sql.select` does.

        Args:
            letters: texts, where a whole column is of them, are cut after so many.

        Raises:
            QueryError: as there; or its answer is too large.
            StoreError: what else the store has raised, with its own class.
        """
        asked = {
            "root": store.root, "run": run.name, "sql": sql, "rows": rows, "offset": offset, "letters": letters,
            "limits": asdict(limits),
        }  # fmt: skip
        process = self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
        try:
            return _answer(process.stdout)
        except EOFError:
            raise self._ended(limits) from None
        except BaseException as error:
            if not isinstance(error, StoreError):  # the rest of its answer would be taken for that of the next question
                self.close()
            raise

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it if it does not run, without waiting until it can answer."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            # Each thread that allocates takes an arena of 64 MB of addresses, which count towards the limit.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "storage.queries.apart_main"], env={**os.environ, "MALLOC_ARENA_MAX": "2"},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        return self._process

    def _ended(self, limits: Limits) -> QueryError:
        """Says why it ended without an answer."""
        assert self._process is not None
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            status = 0
        self.close()
        if status == _ENDED_BY_TIME:
            return too_long(limits)
        if status < 0:  # it was refused memory where it cannot go on without, or the system took it for another
            return too_large(limits)
        return QueryError(f"the process that answers questions ended with status {status}: ask again")


def _answer(pipe: IO[bytes]) -> pa.Table:
    head = pipe.readline()
    if not head.endswith(b"\n"):
        raise EOFError
    said = json.loads(head)
    if "error" in said:
        known = getattr(errors, said["error"], QueryError)
        raise known(said["message"])
    body = pipe.read(said["bytes"])
    if len(body) < said["bytes"]:
        raise EOFError
    return pa.ipc.open_stream(body).read_all()

"""Runs a Python program in the sandbox, and says how it ended."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.judges.support import sandbox

_OUTPUT_BYTES = 65_536


@dataclass(frozen=True)
class Ran:
    """How a program ended: its status, None if it had to be ended, and the starts of its output and its errors."""

    status: int | None
    output: str
    errors: str

    @property
    def not_isolated(self) -> bool:
        """Says whether it was not run at all, because it could not be isolated."""
        return self.status == sandbox.NOT_ISOLATED and self.errors.startswith("sandbox: ")


@dataclass(frozen=True, kw_only=True)
class CodeRunner:
    """Limits of each program.

    Attributes:
        isolation: ``namespaces`` or ``limits``, see ``sandbox.py``.
        seconds: most processor time.
        most_seconds: most time until it has ended.
        memory_mib: most memory, in MiB.
    """

    isolation: str
    seconds: float
    most_seconds: float
    memory_mib: int

    def run(self, program: str) -> Ran:
        """Runs a program until it ends, or until its time is over."""
        with tempfile.TemporaryDirectory(prefix="rondo-code-") as place:
            empty, output, errors = Path(place, "root"), Path(place, "output"), Path(place, "errors")
            empty.mkdir()
            settings = {
                "isolation": self.isolation, "seconds": self.seconds, "memory_mib": self.memory_mib, "root": str(empty),
            }  # fmt: skip
            command = [sys.executable, "-I", "-S", sandbox.__file__, json.dumps(settings)]
            with output.open("wb") as out, errors.open("wb") as err:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=out, stderr=err, cwd=empty, env={}, start_new_session=True
                )
                status: int | None
                try:
                    process.communicate(program.encode(errors="replace"), self.most_seconds)
                    status = process.returncode
                except subprocess.TimeoutExpired:
                    status = None
                finally:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            return Ran(status, _start_of(output), _start_of(errors))


def _start_of(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_OUTPUT_BYTES).decode(errors="replace")

"""What ``rondo up`` has started, as it is written down: the address of a Prefect server, and two processes.

A process is known by its id and the time of its start, so that another process with the same id is never taken for it.
Each command that needs Prefect reads the record, without an import of Prefect.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.errors import ServerError
from flows.host.processes import lives

HOME_VARIABLE = "RONDO_HOME"
DEFAULT_POOL = "rondo"
_SAME_START = 0.5  # seconds


@dataclass(frozen=True)
class Started:
    """A process that was started here.

    Attributes:
        pid: its id.
        after_boot: seconds from the start of the machine to its own; setting the clock does not change them.
    """

    pid: int
    after_boot: float

    @classmethod
    def of(cls, pid: int) -> "Started":
        """Describes a process that runs."""
        return cls(pid, _after_boot(psutil.Process(pid)))

    @property
    def process(self) -> psutil.Process | None:
        """Returns the process; None if it no longer runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(_after_boot(process) - self.after_boot) < _SAME_START
        except psutil.Error:
            return None
        return process if same and lives(process) else None


@dataclass(frozen=True)
class Record:
    """A Prefect server and a worker of this machine, which outlive the command that started them.

    Attributes:
        port: the server's, on loopback.
        pool: the work pool that the worker serves.
        server: the server's process.
        worker: the worker's; None until it is started.
    """

    port: int
    pool: str
    server: Started
    worker: Started | None = None

    @property
    def ui(self) -> str:
        """Returns the address of the UI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        """Returns the address of the API, for ``PREFECT_API_URL``."""
        return f"{self.ui}/api"


def home() -> Path:
    """Says where the background server keeps its database, logs and this record; by default below ``~/.rondo``."""
    return Path(os.environ.get(HOME_VARIABLE) or "~/.rondo").expanduser().absolute() / "prefect"


def read() -> Record | None:
    """Reads the record, whether or not its processes still run; None if nothing was started, or all of it was ended.

    Raises:
        ServerError: it cannot be read.
    """
    path = _path()
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        worker = Started(**written.pop("worker")) if written["worker"] else None
        return Record(**{**written, "server": Started(**written["server"]), "worker": worker})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ServerError(
            f"{path}, where 'rondo up' wrote down what it started, cannot be read ({error}): end what still runs of "
            "it by hand, and remove the file"
        ) from error


def write(record: Record) -> None:
    """Replaces the record as a whole."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(record)), encoding="utf-8")
    fresh.replace(path)


def remove() -> None:
    """Removes the record, if there is one."""
    _path().unlink(missing_ok=True)


def _path() -> Path:
    return home() / "up.json"


def _after_boot(process: psutil.Process) -> Any:
    return process.create_time() - psutil.boot_time()

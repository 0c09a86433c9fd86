"""The only place that builds paths.

::

    ROOT/runs/NAME/log/0000000000.json                         entry 0 is of kind "run" and holds the header
    ROOT/runs/NAME/summaries/000003-0000000042.json            round 3, whose "round" entry is number 42
    ROOT/runs/NAME/rounds/0003/<stage>-<shard or all>-<id>.parquet
    ROOT/runs/NAME/rounds/0003/<stage>-<id>/model.safetensors  a directory, such as weights
    ROOT/runs/NAME/report.html
    ROOT/runs/NAME/process-logs/trainer.log ...
    ROOT/runs/NAME/annexes/OTHER/log/0000000000.json           a log beside the run's, with files of its own below it
    ROOT/shared/<kind>/<digest>/manifest.json                  content-addressed, shared by all runs
    ROOT/shared/<kind>/<digest>/<id>/model.safetensors
    ROOT/shared/<kind>/<2 digits of it>/<digest>.json          a single value, such as a cached reply; never swept

Keys are POSIX paths relative to the root, on every backend. What takes the name of a run takes ``NAME/OTHER`` as well,
for the annex OTHER of the run NAME.
"""

import re
import uuid

from storage.errors import InvalidNameError

RUNS = "runs"
SHARED = "shared"
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STAGE = re.compile(r"[a-z0-9_-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f]{1,255}"
_RELATIVE = re.compile(f"{_SEGMENT}(?:/{_SEGMENT})*")
_ANNEXES = "annexes"
_RESERVED = frozenset({"runs", "shared", "reports", "latest", "all"})
_ENTRY = re.compile(r"(\d{10})\.json")
_SNAPSHOT = re.compile(r"(\d{6})-(\d{10})\.json")


def check_run_name(name: str) -> str:
    """Checks the name of a run, and returns it.

    Raises:
        InvalidNameError: it is not 1 to 100 letters, digits, dots, underscores and hyphens, or is reserved.
    """
    if not RUN_NAME.fullmatch(name):
        raise InvalidNameError(
            f"{name!r} is no run name: use 1 to 100 letters, digits, dots, underscores and hyphens, "
            "the first a letter or digit"
        )
    if name.lower() in _RESERVED:
        raise InvalidNameError(f"the run name {name!r} is reserved: choose another")
    return name


def is_run_name(name: str) -> bool:
    """Says whether :func:`check_run_name` accepts the name."""
    return bool(RUN_NAME.fullmatch(name)) and name.lower() not in _RESERVED


def check_stage(stage: str) -> str:
    """Returns the stage name itself; raises InvalidNameError if it is not made of ``a-z 0-9 _ -``."""
    if not _STAGE.fullmatch(stage):
        raise InvalidNameError(f"{stage!r} is no stage name: use 1 to 64 of a-z, 0-9, underscore and hyphen")
    return stage


def check_digest(digest: str) -> str:
    """Returns the digest itself; raises InvalidNameError if it is not 8 to 64 lower-case hexadecimal digits."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidNameError(f"{digest!r} is no digest: use 8 to 64 lower-case hexadecimal digits")
    return digest


def check_relative(path: str) -> str:
    """Returns the path itself, if it stays below the directory that it is relative to.

    Raises:
        InvalidNameError: it is absolute, empty, or has a segment that is empty, '.', '..' or holds a backslash or
            a control character.
    """
    if not _RELATIVE.fullmatch(path):
        raise InvalidNameError(
            f"{path!r} is no path inside the store: it must be relative, without '..' or empty parts"
        )
    return path


def check_data_path(path: str) -> str:
    """Returns the path itself, if data files may lie there: inside a run or in the shared part of the root."""
    if path.partition("/")[0] not in (RUNS, SHARED) or path.count("/") < 2:
        raise InvalidNameError(f"{path!r} lies outside the runs and the shared files of the root")
    return check_relative(path)


def run_of(path: str) -> str | None:
    """Returns the run in whose directory the path lies; None for what runs share."""
    first, _, rest = path.partition("/")
    return rest.partition("/")[0] if first == RUNS else None


def log_of(path: str) -> str | None:
    """Returns the run, or the annex of one, in whose directory the path lies; None for what runs share."""
    parts = path.split("/")
    if parts[0] != RUNS:
        return None
    return annex_of(parts[1], parts[3]) if _is_in_annex(parts) else parts[1]


def is_file_of_run(path: str) -> bool:
    """Says whether the store itself, or a process that serves a run, writes files under such a key."""
    parts = path.split("/")
    if _is_in_annex(parts) and is_run_name(parts[3]):
        parts = [*parts[:2], *parts[4:]]
    return (
        len(parts) > 2
        and parts[0] == RUNS
        and is_run_name(parts[1])
        and (parts[2] in ("log", "summaries", "rounds", "process-logs") or parts[2:] == ["report.html"])
    )


def is_shared_file(path: str) -> bool:
    """Says whether the key is one of a shared directory."""
    parts = path.split("/")
    return len(parts) > 3 and parts[0] == SHARED and bool(_STAGE.fullmatch(parts[1]) and _DIGEST.fullmatch(parts[2]))


def unique_directory_of(path: str) -> str | None:
    """Returns the directory of a committed directory's file; None for a single file, whose directory others share."""
    parts = path.split("/")
    depth = (7 if _is_in_annex(parts) else 5) if parts[0] == RUNS else 4
    return "/".join(parts[:depth]) if len(parts) > depth else None


def annex_of(run: str, name: str) -> str:
    """Returns the name of a run's annex, as all functions here take it in place of a run's."""
    return f"{run}/{name}"


def annexes_prefix(run: str) -> str:
    return f"{run_prefix(run)}/{_ANNEXES}"


def run_prefix(run: str) -> str:
    name, slash, annex = run.partition("/")
    prefix = f"{RUNS}/{check_run_name(name)}"
    return f"{prefix}/{_ANNEXES}/{check_run_name(annex)}" if slash else prefix


def log_prefix(run: str) -> str:
    return f"{run_prefix(run)}/log"


def entry_key(run: str, number: int) -> str:
    return f"{log_prefix(run)}/{number:010d}.json"


def entry_number(key: str) -> int | None:
    """Returns the number of the log entry under that key; None for a stray file."""
    match = _ENTRY.fullmatch(key.rpartition("/")[2])
    return int(match[1]) if match else None


def snapshots_prefix(run: str) -> str:
    return f"{run_prefix(run)}/summaries"


def snapshot_key(run: str, round_number: int, number: int) -> str:
    return f"{snapshots_prefix(run)}/{round_number:06d}-{number:010d}.json"


def snapshot_numbers(key: str) -> tuple[int, int] | None:
    """Returns the round, and the number of its "round" entry, of the snapshot under that key; None for a stray file."""
    match = _SNAPSHOT.fullmatch(key.rpartition("/")[2])
    return (int(match[1]), int(match[2])) if match else None


def process_log_prefix(run: str) -> str:
    """Says where the processes that serve a run keep their logs, for people; no reader of the store looks there."""
    return f"{run_prefix(run)}/process-logs"


def report_key(run: str) -> str:
    return f"{run_prefix(run)}/report.html"


def rounds_prefix(run: str) -> str:
    return f"{run_prefix(run)}/rounds"


def new_shard_key(run: str, round_number: int, stage: str, shard: int | None) -> str:
    """Makes a new, unique key for a Parquet file."""
    which = "all" if shard is None else f"{shard:05d}"
    return f"{_round_prefix(run, round_number)}/{check_stage(stage)}-{which}-{uuid.uuid4().hex}.parquet"


def new_directory_key(run: str, round_number: int, stage: str) -> str:
    """Makes a new, unique key for a directory of files."""
    return f"{_round_prefix(run, round_number)}/{check_stage(stage)}-{uuid.uuid4().hex}"


def shared_manifest_key(kind: str, digest: str) -> str:
    return f"{SHARED}/{check_stage(kind)}/{check_digest(digest)}/manifest.json"


def shared_manifest_of(path: str) -> str:
    """Returns the key of the manifest that makes a file of a shared directory visible."""
    return "/".join([*path.split("/")[:3], "manifest.json"])


def new_shared_directory_key(kind: str, digest: str) -> str:
    return f"{SHARED}/{check_stage(kind)}/{check_digest(digest)}/{uuid.uuid4().hex}"


def shared_value_key(kind: str, digest: str) -> str:
    return f"{SHARED}/{check_stage(kind)}/{check_digest(digest)[:2]}/{digest}.json"


def _round_prefix(run: str, round_number: int) -> str:
    return f"{rounds_prefix(run)}/{round_number:04d}"


def _is_in_annex(parts: list[str]) -> bool:
    return len(parts) > 4 and parts[0] == RUNS and parts[2] == _ANNEXES

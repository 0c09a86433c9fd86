"""A file system of a few megabytes at /mnt, which only one forkserver's commands see; they fill and freeze it.

python -m support.small_disk leave BYTES     fills it up to so many free bytes
python -m support.small_disk free            makes room again
python -m support.small_disk remount ro      or rw
python -m support.small_disk digests ROOT    prints path and SHA-256 of every file of the root's runs
python -m support.small_disk same ROOT ROOT  compares two small runs
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from support.small_run import Whole

MOUNTED = Path("/mnt")
PREFIX = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=24M none /mnt && exec "$0" "$@"')
_BALLAST = MOUNTED / "ballast"


def possible() -> bool:
    """Whether this machine lets a test mount a small file system."""
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return probe.returncode == 0


def main() -> None:
    action, *arguments = sys.argv[1:]
    if action == "leave":
        found = os.statvfs(MOUNTED)
        with _BALLAST.open("wb") as ballast:
            for _ in range(found.f_bavail - int(arguments[0]) // found.f_bsize):
                ballast.write(bytes(found.f_bsize))
    elif action == "free":
        _BALLAST.unlink()
    elif action == "remount":
        subprocess.run(["mount", "-o", f"remount,{arguments[0]}", str(MOUNTED)], check=True)
    elif action == "digests":
        runs = Path(arguments[0]) / "runs"
        for path in sorted(runs.rglob("*")):
            if path.is_file() and "process-logs" not in path.parts:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                sys.stdout.write(f"{path.relative_to(runs)} {digest}\n")
    else:
        Whole(Path(arguments[0]), ()).assert_same(arguments[1])

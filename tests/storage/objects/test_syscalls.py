"""What the kernel sees of a run on a local disk, where strace is there to tell."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import store_faults

from storage.log.store import Store

RUN = "import sys; import store_faults as tests; tests.small_run(tests.Store.open(sys.argv[1]))"
CALLS = "trace=write,pwrite64,fsync,fdatasync,link,linkat,ftruncate"
_CALL = re.compile(r"^\d+ +(\w+)\((?:AT_FDCWD[^,]*, )?(.*)$")
_OPEN_FILE = re.compile(r"\d+<([^>]+)>")


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "true"], capture_output=True, check=False).returncode:
        pytest.skip(
            "strace is not there, or may not trace; tests/storage/tables/test_files.py records the calls in Python"
        )
    return found


def test_nothing_is_published_before_it_is_on_disk(strace: str, tmp_path: Path) -> None:
    """Each file is fsynced after its last write, and so is its directory, before the entry that names it is linked."""
    root, trace = tmp_path / "root", tmp_path / "trace"
    here = Path(store_faults.__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    command = [strace, "-f", "-y", "-s", "4096", "-e", CALLS, "-o", str(trace), sys.executable, "-c", RUN, str(root)]
    subprocess.run(command, env=environment, check=True, timeout=300)

    store = Store.open(root)
    entries = {entry.number: entry for entry in store.run("small").entries()}
    safe: dict[str, bool] = {}  # whether all that was written to a path is on disk
    published = []
    for line in trace.read_text().splitlines():
        call = _CALL.match(line)
        if call is None:
            continue
        name, rest = call.groups()
        if name in ("link", "linkat"):
            staged, target = re.findall(r'"([^"]+)"', rest)
            number = int(Path(target).stem) if "/log/" in target else -1
            assert safe[staged], f"{target} was published before its bytes were on disk"
            for file in entries[number].files if number in entries else ():
                path = root / file.path
                assert safe[str(path)], f"{path} is named by entry {number}, and not on disk"
                for directory in (path.parent, path.parent.parent, root / "runs" / "small"):
                    assert safe[str(directory)], f"{directory} is on the way to {path}, and not on disk"
            published.append(number)
            safe[str(Path(target).parent)] = False
        elif (found := _OPEN_FILE.match(rest)) and found[1].startswith(str(root)):
            safe[found[1]] = name in ("fsync", "fdatasync")
    assert set(entries) < set(published)
    assert safe[str(root / "runs" / "small" / "log")], "the newest name is on disk too"

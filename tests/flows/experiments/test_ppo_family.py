"""The process in which trl trains: what it says where trl is not installed."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "deploy" / "experiments" / "ppo_family.py"


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    """A module of that name that cannot be imported stands for one that is not there."""
    (tmp_path / "trl.py").write_text("raise ModuleNotFoundError(\"No module named 'trl'\")")
    (tmp_path / "settings.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "settings.json")], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "this method needs a package that is not installed (No module named 'trl'): pip install 'trl>=1,<2'\n"
    )

"""What a benchmark's figures were measured on, and where they are kept."""

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(*packages: str) -> dict[str, Any]:
    """Processor, load and time of now, and the versions of Python and of these packages."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": ", ".join(sorted(names)) or platform.processor(),
        "processors": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def told(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The machine in a line, with its load before and after."""
    return (
        f"{before['processor']}, {before['processors']} processors, load {before['load_average'][0]:.1f} to "
        f"{after['load_average'][0]:.1f}, {before['date']}"
    )


def write_report(report: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

"""A judge with a process beside it that notices no end of others, as a part of an engine does while it compiles."""

import subprocess
from typing import Any

PART = subprocess.Popen(["sleep", "600"], start_new_session=True)  # whoever imports this ends it


def length(answer: str, **_: Any) -> float:
    """The answer's length."""
    return float(len(answer))

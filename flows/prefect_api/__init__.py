"""Everything that talks to Prefect's server: settings, limits, control.

Prefect reads its settings once, when it is imported. Those that rondo decides are set here as environment variables, so
that they are there before any module of this room imports Prefect. Each is a default: what the user has set stays.
"""

import os

HEARTBEAT_VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"

_DEFAULTS = {
    # Telemetry: no measurements leave the machine unasked, and their failure would print a traceback.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # A sign of life as often as Prefect allows, in seconds: flows/schedule/crash_automation.py waits for three.
    HEARTBEAT_VARIABLE: "30",
    # The progress display owns the terminal; flow logs still reach the server, and so its UI.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}

for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)


def heartbeat_seconds() -> int:
    """Says how many seconds lie between two signs of life of a flow run."""
    return int(os.environ[HEARTBEAT_VARIABLE])

"""Deployments and scheduled rounds.

Deployments that users have stored name their flow ``flows.schedule.add_rounds``. That name is kept; it is loaded when
it is asked for, so that the command line does not import Prefect.
"""

from typing import Any, Literal

PoolType = Literal["process", "docker", "kubernetes"]
"""Where the workers of a pool run."""


def __getattr__(name: str) -> Any:
    """Loads the flow of stored deployments; every other name is an error as usual."""
    if name == "add_rounds":
        from flows.schedule.scheduled_rounds import add_rounds

        return add_rounds
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")

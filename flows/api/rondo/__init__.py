"""Iterative DPO: read runs, start them, and mark functions as judges.

::

    import rondo

    run = rondo.open("demo")                 # or rondo.open("demo", root="s3://bucket/runs")
    run.rounds                               # the finished rounds with their metrics
    run[3].completions.to_pandas()           # or .to_polars(), .arrow(): committed rows only
    rondo.run(rondo.Recipe(...))             # or a mapping, a path, a shipped recipe's name

    @rondo.judge
    def polite(*, answer, **_):
        return float("please" in answer.lower())

This package only hands on what ``flows.api`` has. An installation also brings the top-level packages ``flows``,
``pipeline`` and ``storage``; if something else is imported under one of these names, the first use says so.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.api import JudgeFunction, Recipe, RondoError, Round, RoundSummary, Run, StoreError, Table
    from flows.api import judge as judge
    from flows.api import open as open
    from flows.api import run as run

__all__ = [
    "JudgeFunction", "Recipe", "RondoError", "Round", "RoundSummary", "Run", "StoreError", "Table", "judge", "open",
    "run",
]  # fmt: skip

_PARTS = {"flows": "cli/main.py", "pipeline": "records.py", "storage": "objects/layout.py"}
"""A file of each top-level package, by which it is told from another one of that name."""


def check_packages() -> None:
    """Checks, without importing any, that the packages under rondo's names are rondo's.

    Raises:
        ImportError: one is not, such as a directory ``storage`` beside the script that was started.
    """
    for name, file in _PARTS.items():
        package = importlib.util.find_spec(name)
        directories = list(package.submodule_search_locations or ()) if package else []
        if not any((Path(directory) / file).is_file() for directory in directories):
            where = ((package.origin or ", ".join(directories)) if package else "") or "nowhere"
            raise ImportError(
                f"rondo needs its own package '{name}', and what Python finds under that name is {where}: rename or "
                "remove that, start Python elsewhere, or install rondo into an environment of its own"
            )


def __getattr__(name: str) -> Any:
    """Loads the interface at its first use, so that the command line starts without it."""
    if name not in __all__:
        raise AttributeError(f"module 'rondo' has no attribute '{name}'")
    check_packages()
    import flows.api

    return getattr(flows.api, name)


def __dir__() -> list[str]:
    return __all__

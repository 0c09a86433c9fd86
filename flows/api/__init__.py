"""The interface for programs, which users import as ``rondo``: read runs, start them, mark a function as a judge."""

from flows.api.judge import JudgeFunction, judge
from flows.api.runs import Round, Run, Table, open, run
from flows.registry.round_summary import RoundSummary
from pipeline.errors import RondoError
from pipeline.recipe import Recipe
from storage.errors import StoreError

__all__ = [
    "JudgeFunction", "Recipe", "RondoError", "Round", "RoundSummary", "Run", "StoreError", "Table", "judge", "open",
    "run",
]  # fmt: skip

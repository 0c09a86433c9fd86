"""Judges: what scores the candidates of a prompt. Each file is a judge with its configuration.

``base`` says what a judge is, ``registry`` knows them all, and ``support`` has what some of them are made of.
"""

import importlib
import pkgutil

from pipeline.judges.base import (
    Judge,
    JudgeConfig,
    JudgedCandidate,
    JudgeItem,
    Judgment,
    Resources,
    ResponseCache,
    RuleJudge,
    Verdict,
)
from pipeline.judges.registry import AnyJudge, judge, make_judge

for _module in pkgutil.iter_modules(__path__):  # each registers its judge
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "AnyJudge",
    "Judge",
    "JudgeConfig",
    "JudgeItem",
    "JudgedCandidate",
    "Judgment",
    "Resources",
    "ResponseCache",
    "RuleJudge",
    "Verdict",
    "judge",
    "make_judge",
]

"""A judge that somebody else wrote: any Python function."""

import hashlib
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import PythonJudge
from pipeline.errors import JudgeError
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment, Verdict, judge_each, judge_version

_REASON_LENGTH = 300


class PythonFunction:
    """The number that the function returns. What it raises is the status of that answer, and judging goes on.

    Its version covers the file that the function is in, not what that file imports. Nothing ends a function that
    does not return.
    """

    name = "python"

    def __init__(self, config: PythonJudge) -> None:
        self._config = config
        self._function = _find(config.function)
        self.version = judge_version(config, _source(self._function))

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Calls the function once for each candidate."""
        return judge_each(self, items, self._verdict)

    def _verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        try:
            returned = self._function(
                prompt=item.prompt_text,
                messages=item.messages,
                reference_answer=item.reference_answer,
                answer=candidate.text,
                finish_reason=candidate.finish_reason,
                **self._config.options,
            )
            score, std = returned if self._config.gives_std else (returned, None)
            score, std = float(score), None if std is None else float(std)
        except Exception as error:
            return _failed(f"{type(error).__name__}: {error}")
        if self._config.gives_std and (std is None or std < 0):
            return _failed(f"the standard deviation {std} is no number from 0 up")
        return Verdict(score=score, score_std=std, status="ok" if math.isfinite(score) else "non_finite")


def _failed(reason: str) -> Verdict:
    return Verdict(score=None, status="failed", rationale=reason[:_REASON_LENGTH])


def _find(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module's own code runs here
        raise JudgeError(
            f"judge.function '{path}' cannot be imported: {type(error).__name__}: {error}; run rondo where Python "
            "finds the module, or install it"
        ) from error
    if not callable(function):
        raise JudgeError(f"judge.function '{path}' is a {type(function).__name__}, and cannot be called")
    return function  # type: ignore[no-any-return]


def _source(function: Callable[..., Any]) -> str | None:
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # a builtin, or an object with __call__
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None

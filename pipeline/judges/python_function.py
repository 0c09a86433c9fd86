"""A judge that somebody else wrote: any Python function."""

import hashlib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.errors import JudgeError
from pipeline.judges.base import ON_CPU, JudgeConfig, JudgedCandidate, JudgeItem, Resources, RuleJudge, Verdict
from pipeline.judges.registry import judge

_REASON_LENGTH = 300
KEYWORDS = ("prompt", "messages", "reference_answer", "answer", "finish_reason")
"""What a function is called with, each as a keyword; the options of a recipe come beside them."""


class PythonConfig(JudgeConfig):
    """A Python function, by import path.

    It is called once for each answer with the keywords ``prompt``, ``messages``, ``reference_answer``, ``answer`` and
    ``finish_reason``, and with ``options``; it returns a number, or where ``gives_std`` is set a number and its
    standard deviation.
    """

    kind: Literal["python"]
    function: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        examples=["mine.judges:politeness"],
        description="import path, as package.module:function",
    )
    options: Mapping[str, Any] = Field(default_factory=dict, description="further keywords of the call")
    gives_std: bool = Field(False, description="it returns a standard deviation with each number")

    GIVES_VERDICTS = True  # as far as it says nothing but 1 and 0

    @property
    def states_uncertainty(self) -> bool:
        return self.gives_std


@judge(PythonConfig)
class PythonJudge(RuleJudge[PythonConfig]):
    """The number that the function returns. What it raises is the status of that answer, and judging goes on.

    Its version covers the file that the function is in, not what that file imports. Nothing ends a function that
    does not return.
    """

    def __init__(self, config: PythonConfig, resources: Resources = ON_CPU) -> None:
        self._function = _find(config.function)
        _check_call(self._function, config)
        super().__init__(config, resources)

    def depends_on(self) -> Sequence[object]:
        return [_source(self._function)]

    def verdict(self, item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        """Calls the function; no components."""
        try:
            returned = self._function(
                prompt=item.prompt_text,
                messages=item.messages,
                reference_answer=item.reference_answer,
                answer=candidate.text,
                finish_reason=candidate.finish_reason,
                **self.config.options,
            )
            score, std = returned if self.config.gives_std else (returned, None)
            score, std = float(score), None if std is None else float(std)
        except Exception as error:
            return _failed(f"{type(error).__name__}: {error}")
        if self.config.gives_std and (std is None or std < 0):
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


def _check_call(function: Callable[..., Any], config: PythonConfig) -> None:
    """Raises a JudgeError if the function cannot be called with what it is given; one that tells nothing passes."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin
        return
    given = dict.fromkeys(KEYWORDS)
    try:
        if twice := given.keys() & config.options.keys():
            raise TypeError(f"the option '{min(twice)}' is already among them")
        signature.bind(**given, **config.options)
    except TypeError as error:
        raise JudgeError(
            f"judge.function '{config.function}' cannot be called with the keywords "
            f"{', '.join([*KEYWORDS, *config.options])}: {error}; let it take them by name, and those that it does not "
            "use by **_"
        ) from None


def _source(function: Callable[..., Any]) -> str | None:
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # a builtin, or an object with __call__
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None

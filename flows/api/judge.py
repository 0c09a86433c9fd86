"""The decorator that marks a function as a judge, and says at import what would otherwise fail in the first round."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from pipeline.errors import ConfigError
from pipeline.judges.python_function import KEYWORDS, PythonConfig


class JudgeFunction:
    """A function that scores a completion. It is called as before, with those keywords that it names.

    Args:
        function: returns a number, higher is better; or a number and its standard deviation, see :meth:`config`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        signature = inspect.signature(function)
        parameters = [*signature.parameters.values()]
        self._takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self._unused = {name for name in KEYWORDS if name not in signature.parameters}
        if not self._takes_all:  # what a call of this object may be given, which is more than the function takes
            unused = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in self._unused]
            self.__signature__ = signature.replace(parameters=[*parameters, *unused])

    def __call__(self, **keywords: Any) -> Any:
        """Calls the function without those keywords of a judge that it does not take."""
        if not self._takes_all:
            keywords = {name: value for name, value in keywords.items() if name not in self._unused}
        return self._function(**keywords)

    def config(self, *, name: str | None = None, gives_std: bool = False, **options: Any) -> PythonConfig:
        """Makes what a recipe needs to use this function: ``rondo.Recipe(judge=polite.config(), ...)``.

        Args:
            name: of the judge in the tables; ``python`` if it is not given.
            gives_std: the function returns a number and its standard deviation.
            options: further keywords of the call.

        Raises:
            ConfigError: the function is in the script that was started, which no worker process can import.
        """
        module, function = self._function.__module__, self._function.__qualname__
        if module == "__main__":
            raise ConfigError(
                f"the judge '{function}' is in the script that was started, and workers import it by name: move it to "
                "a module of its own, and import it from there"
            )
        return PythonConfig(
            kind="python", function=f"{module}:{function}", name=name, gives_std=gives_std, options=options
        )


def judge(function: Callable[..., Any]) -> JudgeFunction:
    """Marks a function as a judge, for ``judge: {kind: python, function: "module:function"}``.

    Raises:
        TypeError: it could not be called as a judge is; the message says why.
    """
    name, parameters = function.__qualname__, inspect.signature(function).parameters
    if not name.isidentifier():
        raise TypeError(f"'{name}' cannot be a judge: it must be a function of a module, which workers import by name")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(f"the judge '{name}' has to return its score: make it a plain function")
    kinds = {parameter.kind for parameter in parameters.values()}
    if kinds & {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL}:
        raise TypeError(f"the judge '{name}' is called by keyword: give it no positional-only parameter and no *args")
    if "answer" not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise TypeError(f"the judge '{name}' does not take 'answer', the text to score: its keywords are {KEYWORDS}")
    return JudgeFunction(function)

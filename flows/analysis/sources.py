"""RUN@ROUNDS: the rounds of a run that have preferences, one, several or all of them."""

import re
from dataclasses import dataclass

from flows.registry.catalog import NEWEST
from pipeline.errors import ConfigError
from storage.log.run import Run
from storage.log.store import Store

_ROUNDS = re.compile(r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*")


@dataclass(frozen=True)
class Source:
    """Rounds of a run."""

    run: Run
    rounds: list[int]


def find_rounds(store: Store, source: str) -> Source:
    """Finds the run and the rounds that RUN or RUN@ROUNDS names.

    Raises:
        ConfigError: it is neither, or a round is not finished, or has no preferences.
        RunNotFoundError: there is no such run.
    """
    name, at, text = source.partition("@")
    run = store.run(name)
    trained = [number for number in run.finished if number > 0]
    if not trained:
        raise ConfigError(f"run '{name}' has no finished round with preferences yet: 'rondo resume {name}' goes on")
    if not at:
        return Source(run, trained)
    if text == NEWEST:
        return Source(run, trained[-1:])
    if not _ROUNDS.fullmatch(text):
        raise ConfigError(f"'{source}' is not RUN@ROUNDS: give rounds such as {name}@3, {name}@1-4 or {name}@1,3-5")
    rounds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) > trained[-1]:
            raise ConfigError(
                f"round {int(last or first)} of run '{name}' is not finished: it has preferences of rounds 1 to "
                f"{trained[-1]}"
            )
        rounds += range(int(first), int(last or first) + 1)
    if missing := sorted(set(rounds) - set(trained)):
        raise ConfigError(f"round {missing[0]} of run '{name}' has no preferences: they begin with round {trained[0]}")
    if not rounds:
        raise ConfigError(f"'{source}' names no round: give the smaller number first")
    return Source(run, sorted(set(rounds)))

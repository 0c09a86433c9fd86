"""Asking Prefect for the end of a run elsewhere."""

from collections.abc import Iterator

import pytest

from flows.prefect_api import server
from flows.run import stop
from pipeline.errors import ConfigError
from storage.log.manifest import Entry

SESSION = Entry(
    1, "session", "s1", None, (), {"host": "elsewhere", "pid": 7, "rounds": 1}, None, "2026-11-26T00:00:00Z"
)


@pytest.mark.parametrize(("shown", "asked"), [([False, False, True], 3), ([True], 1)])
def test_a_run_that_has_just_begun_is_asked_once_prefect_shows_it(
    monkeypatch: pytest.MonkeyPatch, shown: list[bool], asked: int
) -> None:
    """Its flow run carries the session's tag some seconds after the session has begun."""
    answers = iter(shown)
    seen = _answer_with(monkeypatch, answers)
    stop._ask_prefect(SESSION, "process 7 on host elsewhere", pause=True)
    assert len(seen) == asked


def test_a_run_that_prefect_never_shows_is_said_to_be_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "_SHOWN_SECONDS", 0.0)
    _answer_with(monkeypatch, iter([False, False, False]))
    with pytest.raises(ConfigError, match="process 7 on host elsewhere, and Prefect shows no flow run of it"):
        stop._ask_prefect(SESSION, "process 7 on host elsewhere", pause=True)


def _answer_with(monkeypatch: pytest.MonkeyPatch, answers: Iterator[bool]) -> list[bool]:
    """What Prefect would answer, one after the other; the list holds what was asked: whether to pause."""
    seen: list[bool] = []

    async def set_state(_session: Entry, *, pause: bool) -> bool:
        seen.append(pause)
        return next(answers)

    monkeypatch.setattr(stop, "_set_state", set_state)
    monkeypatch.setattr(server, "has_background_server", lambda: True)
    return seen

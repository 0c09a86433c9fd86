"""What people are told of a run's end."""

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import flows.prefect_api  # noqa: F401  before Prefect
from flows.run.execute import telling_end
from pipeline.errors import JudgeError
from storage.log.store import Store
from support.finished_run import finished_run


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def tell(self, _event: str, _subject: str, text: str) -> None:
        self.texts.append(text)

    async def sent(self) -> None:
        pass


@pytest.mark.parametrize(
    ("fault", "texts"),
    [
        (None, ["Run 'small' has 1 round; its held-out reward is 0.1800."]),
        (JudgeError("no more room"), ["Run 'small' has failed: no more room"]),
        (asyncio.CancelledError(), []),
    ],
)
def test_how_a_run_has_ended(tmp_path: Path, fault: BaseException | None, texts: list[str]) -> None:
    """Nothing if it was stopped, by a person or to wait for labels: whoever did that knows."""
    told, run = Told(), finished_run(Store.open(tmp_path), rounds=1)
    context = cast(Any, SimpleNamespace(run=run, goal=1, monitors=SimpleNamespace(notifier=told)))

    async def end() -> None:
        async with telling_end(context):
            if fault is not None:
                raise fault

    with contextlib.suppress(JudgeError, asyncio.CancelledError):
        asyncio.run(end())
    assert told.texts == texts

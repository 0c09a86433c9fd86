"""What people are told of a run's end."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prefect.states import Completed, Failed

import flows.prefect_api  # noqa: F401  before Prefect
from flows.run.execute import _end_message, run_rounds
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
    ("waits", "texts"),
    [
        (False, ["Run 'small' has 1 round; its held-out reward is 0.1800.", "Run 'small' has failed: no more room"]),
        (True, []),
    ],
)
def test_how_a_run_has_ended(tmp_path: Path, waits: bool, texts: list[str]) -> None:
    """Nothing where it waits for people: they have been told so."""
    told, run = Told(), finished_run(Store.open(tmp_path), rounds=1)
    context = SimpleNamespace(
        run=run, monitors=SimpleNamespace(notifier=told), control=SimpleNamespace(waits_for_people=waits)
    )
    flow_run = cast(Any, SimpleNamespace(name="small"))
    for state in (Completed(), Failed(message="no more room")):
        asyncio.run(_end_message(cast(Any, context))(run_rounds, flow_run, state))
    assert told.texts == texts

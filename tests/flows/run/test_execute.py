"""What a session gives its workers follows from the run that it goes on with, and not from its machine alone."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from flows.host import allotment
from flows.host.allotment import Allotment
from flows.host.progress import Display
from flows.registry.recipes import parse_recipe
from flows.registry.resume import header
from flows.run import execute
from storage.log.manifest import Key
from storage.log.store import Store
from support.recipes import TINY


class ReadyToStart(Exception):
    """Raised in place of starting workers."""


@pytest.mark.parametrize(
    ("recorded", "fast", "precision"),
    [("bfloat16", False, "bfloat16"), ("float32", True, "float32"), (None, True, "bfloat16")],
)
def test_the_sampler_keeps_the_precision_that_round_0_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: str | None, fast: bool, precision: str
) -> None:
    given: list[Allotment] = []

    def create_workers(*arguments: Any) -> None:
        given.extend(part for part in arguments if isinstance(part, Allotment))
        raise ReadyToStart

    monkeypatch.setattr(allotment, "multiplies_bfloat16", lambda: fast)
    monkeypatch.setattr(execute, "create_workers", create_workers)
    recipe = parse_recipe(TINY, ["sampling.engine=vllm", "sampling.precision=auto"])
    store = Store.open(tmp_path)
    run = store.create_run("r", header(recipe))
    if recorded is not None:
        with run.writer() as writer:
            writer.commit(Key(0, "checkpoint"), [], {"sampler_precision": recorded})
    with pytest.raises(ReadyToStart):
        asyncio.run(execute.execute(store, run, recipe, 1, Display(), take_over=False))
    assert [found.precision for found in given] == [precision]
    assert run.session is not None
    assert run.session.meta["allotment"]["precision"] == precision

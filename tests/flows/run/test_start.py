"""A run that does not get past its checks leaves no name behind."""

from pathlib import Path

import pytest

from flows.host.progress import Display
from flows.run import start as starting
from pipeline.errors import ConfigError, JudgeError, WeightSyncError
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from support.finished_run import small_recipe


def begin(directory: Path) -> None:
    starting.start(small_recipe(), None, str(directory / "root"), resume=False, display=Display())


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, *, committed: bool) -> None:
    """Stands in for the rounds: the checks are inside, and need models."""

    def bring_to(_store: Store, run: Run, *_more: object) -> None:
        if committed:
            with run.writer() as writer:
                writer.commit(Key(0, "checkpoint"), [])
        raise error

    monkeypatch.setattr(starting, "_bring_to", bring_to)


@pytest.mark.parametrize(
    ("error", "committed", "left"),
    [
        (ConfigError("too few prompts"), False, []),
        (JudgeError("no such judge"), False, []),
        (ConfigError("found late"), True, ["small"]),
        (WeightSyncError("other weights"), False, ["small"]),
    ],
)
def test_the_name_is_free_again_if_nothing_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, committed: bool, left: list[str]
) -> None:
    failing(monkeypatch, error, committed=committed)
    with pytest.raises(type(error), match=str(error)):
        begin(tmp_path)
    assert list(Store.open(tmp_path / "root").run_names()) == left

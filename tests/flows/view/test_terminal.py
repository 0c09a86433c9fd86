"""Where a command that a page shows looks for the runs."""

from pathlib import Path

import pytest

from flows.view.terminal import root_option
from storage.log.store import Store


def test_a_root_is_named_unless_commands_look_there_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert root_option(Store.open("runs")) == ""
    assert root_option(Store.open("my runs")) == f" --root '{tmp_path.resolve()}/my runs'"

"""Commands of ``rondo`` that a page shows, to be pasted into a shell."""

import shlex
from pathlib import Path

from flows.registry import DEFAULT_ROOT
from storage.log.store import Store


def root_option(store: Store) -> str:
    """Returns `` --root ROOT``, quoted for a shell; empty if the store lies where commands look by themselves."""
    return "" if store.root == str(Path(DEFAULT_ROOT).resolve()) else f" --root {shlex.quote(store.root)}"

"""A small run through the command line, its processes forked from one that has everything imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.log.store import Store
from support.compare import assert_same
from support.forkserver import Command, Done, ForkServer
from support.recipes import TINY

# One round after round 0, from a policy that has learned next to nothing; its update of four steps is saved once.
SMALL: dict[str, Any] = {
    **TINY,
    "name": "small",
    "rounds": 1,
    "policy": {**TINY["policy"], "steps": 10},
    "update": {**TINY["update"], "batch_size": 1, "checkpoint_steps": 3},
}


@dataclass(frozen=True)
class Rondo:
    """The command line, in a process that is forked."""

    server: ForkServer
    recipe: Path
    outputs: Path

    def __call__(self, *arguments: str, environment: dict[str, str] | None = None, ok: bool = True) -> Done:
        done = self.server.run("flows.cli.main", *arguments, directory=self.outputs, environment=environment)
        assert done.returncode == 0 or not ok, done.stderr + done.stdout
        return done

    def bring_on(self, root: Path, **options: Any) -> Done:
        """Starts the small run under this root, or resumes it."""
        begun = (root / "runs" / "small" / "log" / "0000000000.json").exists()
        return self(*(["resume", "small"] if begun else self.start()), "--root", str(root), **options)

    def start(self) -> list[str]:
        """The arguments that start the small run, but for the root."""
        return ["run", str(self.recipe), "--name", "small"]

    def begin(self, *arguments: str, environment: dict[str, str] | None = None) -> Command:
        """A command that is not waited for."""
        return self.server.start("flows.cli.main", *arguments, directory=self.outputs, environment=environment)


@dataclass(frozen=True)
class Whole:
    """The small run that nothing interrupted.

    Attributes:
        root: its root.
        operations: its write operations, in the order in which they took place.
    """

    root: Path
    operations: Sequence[str]

    def assert_same(self, root: Path | str) -> None:
        """The run under this root has the same entries, tables, metrics and weights, and none of an update's states."""
        assert_same(self.root, "small", root, "small", range(2))
        mine, theirs = (self._pieces(place) for place in (self.root, root))
        assert mine == theirs, "no entry twice, none missing"
        store = Store.open(root)
        states = [file for entry in store.run("small").entries(stage="update_state") for file in entry.files]
        assert states
        assert not any(store.objects.size(file.path) for file in states), "what a finished round gives up is gone"

    @staticmethod
    def _pieces(root: Path | str) -> list[str]:
        return sorted(str(entry.key) for entry in Store.open(root).run("small").entries())

"""Runs as programs see them: a run, its rounds, and the tables of a round."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.registry import DEFAULT_ROOT
from flows.registry.catalog import REJUDGMENTS, committed_files, existing_store, list_rounds, location
from flows.registry.head import head_of
from flows.registry.recipes import load_recipe, parse_recipe
from flows.registry.resume import recipe_of
from flows.registry.round_summary import RoundSummary
from pipeline.recipe import Recipe
from storage.log import run as log
from storage.log.store import Store

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow


class Table:
    """A table of a round: the rows that were committed, and no others. Nothing is read before it is asked for.

    Attributes:
        name: its name in the store, such as ``candidates`` for completions.
    """

    def __init__(self, store: Store, run: log.Run, number: int, name: str) -> None:
        self._store, self._run, self._number, self.name = store, run, number, name

    @property
    def files(self) -> list[str]:
        """Lists the committed files, as paths or URIs, for DuckDB, polars or datasets.

        Raises:
            NotCommittedError: the round has no such table.
            DroppedFileError: the files were removed on purpose.
        """
        return [location(self._store, file) for file in committed_files(self._run, self._number, self.name)]

    def arrow(self) -> "pyarrow.Table":
        """Reads the rows as an Arrow table; every byte is compared with what was committed.

        Raises:
            NotCommittedError: the round has no such table.
            DroppedFileError: the files were removed on purpose.
            DamagedFileError: a file is missing, or is not the one that was committed.
        """
        from storage.tables.shards import read_table

        return read_table(self._store, committed_files(self._run, self._number, self.name))

    def to_pandas(self) -> "pandas.DataFrame":
        """Reads the rows as a data frame of pandas."""
        return self.arrow().to_pandas()

    def to_polars(self) -> "polars.DataFrame":
        """Reads the rows as a data frame of polars."""
        import polars

        return polars.DataFrame(self.arrow())

    def __repr__(self) -> str:
        return f"<table {self.name} of {self._run.name}@{self._number}>"


class Round:
    """A finished round of a run.

    Attributes:
        number: from 0, the initial policy, which has an evaluation and no update.
    """

    def __init__(self, store: Store, run: log.Run, number: int) -> None:
        self._store, self._run, self.number = store, run, number

    @property
    def summary(self) -> RoundSummary:
        """Returns the round's reward, win rates, divergences and other metrics."""
        return RoundSummary.model_validate(self._run.round_entry(self.number).meta)

    @property
    def completions(self) -> Table:
        """Gives the completions that were sampled for the round's prompts."""
        return self.table("candidates")

    @property
    def judgments(self) -> Table:
        """Gives what the judge said of each completion."""
        return self.table("judgments")

    def rejudged(self, name: str) -> Table:
        """Gives what another judge said of each completion, as `rondo rejudge` keeps it under a name.

        Raises:
            RunNotFoundError: the run has nothing of this name beside it.
        """
        return Table(self._store, self._run.annex(name), self.number, REJUDGMENTS)

    @property
    def preferences(self) -> Table:
        """Gives the pairs or rankings that the update learned from, and the prompts that gave none."""
        return self.table("preferences")

    @property
    def prompts(self) -> Table:
        """Gives all prompts of the run, those for training and the held-out ones."""
        return self.table("prompts")

    @property
    def metrics(self) -> Table:
        """Gives the metrics of the update, a row for each optimizer step."""
        return self.table("metrics")

    @property
    def eval_completions(self) -> Table:
        """Gives the completions of the held-out prompts, sampled after the update."""
        return self.table("eval_candidates")

    @property
    def eval_judgments(self) -> Table:
        """Gives what all judges said of the completions of held-out prompts."""
        return self.table("eval_judgments")

    def table(self, name: str) -> Table:
        """Gives any table of the round by its name in the store, such as ``replayed`` or ``eval_logps``."""
        return Table(self._store, self._run, self.number, name)

    def __repr__(self) -> str:
        return f"<round {self.number} of run {self._run.name}>"


class Run:
    """A run: ``run[3]`` is its round 3, ``run[-1]`` the newest one, and a loop goes over all finished ones.

    Attributes:
        name: its name.
        root: where it is kept.
        recipe: what it was started with.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._run = store, store.run(name, intact_part=True)
        self.name, self.root = name, store.root
        self.recipe: Recipe = recipe_of(self._run)

    @property
    def rounds(self) -> list[RoundSummary]:
        """Reads the finished rounds with their metrics; anew each time, since the run may be at work."""
        return list_rounds(self.name, self.root)

    @property
    def head(self) -> Round:
        """Returns the round whose policy is the run's: the newest that passed its gate, or the newest without a gate.

        Raises:
            IndexError: no round is finished.
        """
        self._run.refresh()
        return self[head_of(self._run) or 0]

    def __len__(self) -> int:
        self._run.refresh()
        return len(self._run.finished)

    def __getitem__(self, number: int) -> Round:
        """Returns a finished round; IndexError if there is none of this number."""
        done = len(self)
        if not -done <= number < done:
            have = f"it has rounds 0 to {done - 1}" if done else "it has none yet"
            raise IndexError(f"round {number} of run '{self.name}' is not finished: {have}")
        return Round(self._store, self._run, number % done)

    def __iter__(self) -> Iterator[Round]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        return f"<run {self.name} in {self.root}>"


def open(name: str, root: str | Path | None = None) -> Run:
    """Opens a run to read it, whether it is finished, at work or was killed.

    Args:
        root: where runs are kept, a directory or a bucket's URI; by default that of the command line.

    Raises:
        ConfigError: there is no such root.
        RunNotFoundError: there is no such run; the message names similar ones.
    """
    return Run(existing_store(_root(root)), name)


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    name: str | None = None,
    root: str | Path | None = None,
    *,
    resume: bool = False,
) -> Run:
    """Starts a run and runs its rounds, as ``rondo run`` does; returns when they are finished.

    Worker processes import the judges that a recipe names, so a script that calls this needs no ``__main__`` guard.

    Args:
        recipe: a recipe, its fields, the path of a YAML file, or the name of one that rondo brings along.
        name: of the run; by default the recipe's.
        root: where runs are kept; by default that of the command line.
        resume: if the run exists already, resume it.

    Raises:
        ConfigError: the recipe cannot be run; the message names each fault with its remedy.
        RunExistsError: the run exists, and ``resume`` was not asked for.
    """
    from flows.host.progress import Display
    from flows.run.start import start

    if isinstance(recipe, Mapping):
        recipe = parse_recipe(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(Path(recipe))
    with Display() as display:
        finished = start(recipe, name, _root(root), resume=resume, display=display)
    return open(finished.run, root)


def _root(root: str | Path | None) -> str:
    return os.environ.get("RONDO_ROOT", DEFAULT_ROOT) if root is None else str(root)

"""The annexes of a run, read again: what is damaged in them concerns no round of the run."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from storage.errors import StoreError
from storage.log.run import Run
from storage.log.store import Store
from storage.objects import layout
from storage.verify.damage import Checked, Damage, problems_in
from storage.verify.log import check_log


def annex_damages(store: Store, run: Run, checked: dict[str, Checked]) -> Iterator[Damage]:
    """Finds what is damaged in the logs of a run's annexes and in the files that they name.

    Args:
        checked: files that were read already; those that are read here are added.
    """
    for name in run.annexes:
        meaning = f"what is kept beside the run as '{name}' is not complete; the run and its rounds are not concerned"
        for damage in check_log(store.objects, layout.annex_of(run.name, name)):
            yield replace(damage, round=None, meaning=meaning, spoils=False)
        with suppress(StoreError):  # the log has told
            annex = Run(store.objects, layout.annex_of(run.name, name), intact_part=True)
            for entry in annex.unfinished():
                for problem in problems_in(store, entry.files, checked):
                    path = next(file.path for file in entry.files if checked[file.path].problem == problem)
                    yield Damage(path, entry.round, problem, meaning, spoils=False)

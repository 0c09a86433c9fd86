"""Writing the report of a run: one HTML file that needs nothing else, neither a network nor a script."""

import os
import uuid
from pathlib import Path

from flows.registry.catalog import existing_store
from flows.registry.round_summary import summaries
from pipeline.errors import ConfigError
from storage.log.run import Run
from storage.log.store import Store
from storage.objects import durable


def write_report(store: Store, run: Run) -> str:
    """Writes the report of a run, in place of an earlier one; returns its path, or its key if it is in a bucket.

    Raises:
        DataError: no round of the run is finished.
        DamagedFileError: a table of the run is missing, or is not the one that was committed.
    """
    from flows.report.page import gather, render  # with the charts, which take a second to import

    page = render(gather(store, run)).encode()
    key, path = store.report_key(run.name), store.report_path(run.name)
    if path is None:
        with store.objects.sink(key) as sink:
            sink.write(page)
        return key
    staged = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with durable.clear_errors(path):
        try:
            staged.write_bytes(page)
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)
    return str(path)


def report(name: str, root: str, picture: Path | None = None) -> str:
    """Writes a run's report, and its main curves as a picture if one is asked for; returns where the report is."""
    store = existing_store(root)
    run = store.run(name)
    written = write_report(store, run)
    if picture is not None:
        _write_picture(run, picture)
    return written


def _write_picture(run: Run, picture: Path) -> None:
    from flows.report.rendering import PAPER, to_svg
    from flows.report.sections import summary_chart

    drawn = to_svg(summary_chart(f"Run {run.name}", summaries(run.rounds())), PAPER)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_text(drawn, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--picture '{picture}' cannot be written: {error.strerror}: give another path") from error


def newest_report(store: Store, run: Run) -> str:
    """Returns where the report is; it is written if it is missing, or older than the last round, as after a SIGKILL."""
    where, last = store.report_path(run.name), run.last_round
    if where is None or last is None or not where.exists():
        return report(run.name, store.root)
    newest = store.objects.written(store.report_key(run.name)) >= run.written(last)
    return str(where) if newest else report(run.name, store.root)

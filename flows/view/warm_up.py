"""What the server does before anybody asks, so that the first page need not wait for it."""

import contextlib

from flows.report.charts import curves, histograms
from flows.report.rendering import to_svg
from flows.view.round_charts import Bin, histogram, scatter
from flows.view.site import Site
from pipeline.errors import RondoError
from storage.errors import StoreError


def warm_up(site: Site, run: str | None) -> None:
    """Starts the library that draws, which compiles itself on the first chart of a kind, and reads a run into memory.

    Args:
        run: the one that will be looked at; None if that is not known.
    """
    points = [{"curve": name, "x": place, "y": place, "error": 1.0} for name in ("a", "b") for place in range(3)]
    for chart in (
        curves("", points),
        histograms("", {1: [0.0, 1.0], 2: [0.0, 1.0]}, "score"),
        histogram("", [Bin(0.0, 1.0, 1, 0.0, 1.0, "")], 0.5, "score"),
        scatter("", [{"tokens": 1, "score": 1.0, "to": ""}]),
    ):
        to_svg(chart)
    if run is not None:
        with contextlib.suppress(RondoError, StoreError):  # the page of the run says so when it is asked for
            _ = site.run(run).tables

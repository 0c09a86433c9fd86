"""The files of an experiment's results: a picture, all figures as JSON, and the points as CSV."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from flows.experiments.experiment import Experiment
from flows.experiments.results import Mean, Results
from flows.report.frontier_chart import frontier
from flows.report.rendering import MANY, to_svg


def write_results(experiment: Experiment, found: Results, to: Path) -> list[Path]:
    """Writes NAME.svg, NAME.json and NAME.csv to a directory, which is made if there is none; returns the files."""
    to.mkdir(parents=True, exist_ok=True)
    texts = {
        "svg": to_svg(_chart(experiment, found), MANY),
        "json": json.dumps(found.document(experiment), indent=1, ensure_ascii=False) + "\n",
        "csv": _csv([row(mean) for mean in found.means]),
    }
    files = []
    for ending, text in texts.items():
        files.append(to / f"{experiment.name}.{ending}")
        files[-1].write_text(text, encoding="utf-8")
    return files


def row(mean: Mean) -> dict[str, Any]:
    """Returns a point as a flat row, with the ends of its intervals."""
    return {
        "arm": mean.label, "name": mean.name, "number": mean.number, "seeds": len(mean.seeds), "last": mean.last,
        "x": mean.x.mean, "y": mean.y.mean, "low": _end(mean.y.low), "high": _end(mean.y.high), "kl": mean.kl.mean,
        "kl_low": _end(mean.kl.low), "kl_high": _end(mean.kl.high), "kl_bound": mean.bound,
    }  # fmt: skip


def _chart(experiment: Experiment, found: Results) -> Any:
    by_kl = experiment.against == "kl"
    x = "KL to the initial policy, nats" if by_kl else f"held-out score of {experiment.against}"
    rows = list(map(row, found.means))
    return frontier(experiment.question, rows, x=x, y=f"held-out score of {experiment.score}", roots=by_kl)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _end(value: float) -> float | None:
    return None if math.isnan(value) else value

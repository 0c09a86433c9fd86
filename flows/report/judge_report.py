"""The page beside a reward model that was trained here: what it was fitted to, and how far it can be trusted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flows.report.plots import LIGHT, reliability
from pipeline.reward_model.calibration import Calibration

_TEMPLATES = Path(__file__).parent / "templates"


def judge_report(name: str, record: Mapping[str, Any], calibration: Calibration) -> str:
    """One HTML page that needs neither a network nor a script. Text is escaped; the figure alone is markup."""
    bins = calibration.bins
    plot = reliability(
        "Reliability on held-out prompts",
        [found.confidence for found in bins],
        [found.accuracy for found in bins],
        [found.pairs for found in bins],
    )
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["drawn"] = Markup
    return environment.get_template("judge.html.j2").render(
        name=name, record=record, facts=facts(record), bins=bin_rows(calibration), plot=plot, light=LIGHT
    )


def facts(record: Mapping[str, Any]) -> dict[str, str]:
    """The metrics of a reward model in words, for page and terminal."""
    found, base = record["calibration"], record["base"]
    return {
        "objective": record["objective"],
        "base": base if isinstance(base, str) else f"{base['run']}@{base['round']}",
        "fitted to": ", ".join(
            [f"{record['pairs']} pairs", *([f"{record['ratings']} ratings"] if record["ratings"] else [])]
        )
        + f", {record['prompts']} prompts",
        "held out": f"{found['pairs']} pairs, {record['held_out_prompts']} prompts",
        "loss": f"{record['first_loss']:.4f} at first, {record['last_loss']:.4f} in step {record['steps']}, the last",
        "held-out accuracy": f"{found['accuracy']:.1%} ± {found['accuracy_se']:.1%}",
        "mean confidence": f"{found['mean_confidence']:.1%}",
        "expected calibration error": f"{found['expected_calibration_error']:.3f}",
    }


def bin_rows(calibration: Calibration) -> Sequence[dict[str, str]]:
    """The reliability table, one row a bin."""
    return [
        {
            "confidence": f"{found.low:.0%} to {found.high:.0%}",
            "pairs": str(found.pairs),
            "mean confidence": f"{found.confidence:.1%}",
            "accuracy": f"{found.accuracy:.1%}",
        }
        for found in calibration.bins
    ]

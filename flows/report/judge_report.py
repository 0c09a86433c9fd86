"""The page beside a reward model that was trained here: what it was fitted to, and how far it can be trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.reward_model.calibration import Calibration


def judge_report(name: str, record: Mapping[str, Any], calibration: Calibration) -> str:
    """Renders one HTML page that needs neither a network nor a script. Text is escaped; the chart alone is markup."""
    from flows.report.charts import reliability  # takes a second to import; the command line needs the facts alone
    from flows.report.rendering import to_page

    chart = reliability("Reliability on held-out prompts", [vars(found) for found in calibration.bins])
    data = [
        {
            "run": part["run"],
            "round": part["round"],
            "preferences": " ".join(file["path"] for file in part["files"]["preferences"]),
        }
        for part in record["data"]
    ]
    return to_page("judge.html.j2", name, facts=facts(record), bins=bin_rows(calibration), data=data, chart=chart)


def facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Says the metrics of a reward model in words, for page and terminal."""
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
    """Makes the reliability table, one row a bin."""
    return [
        {
            "confidence": f"{found.low:.0%} to {found.high:.0%}",
            "pairs": str(found.pairs),
            "mean confidence": f"{found.confidence:.1%}",
            "accuracy": f"{found.accuracy:.1%}",
        }
        for found in calibration.bins
    ]

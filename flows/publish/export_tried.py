"""Preferences between answers that people tried on the page, as a dataset in the form of a round's pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.host.new_directory import check_new, new_directory
from flows.publish import Style
from flows.publish.cards import tried_card
from flows.publish.export import PARQUET, columns, write_parquet
from flows.registry.tried_labels import TriedPair, tried_pairs
from pipeline.errors import DataError
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.shared_values import Labels

_MORE = {
    "policy_chosen": "the checkpoint of the better answer, as RUN@ROUND",
    "policy_rejected": "the checkpoint of the worse answer",
    "people": "how many people have compared them",
}


def export_tried(store: Store, run: Run, to: Path, *, style: Style, truncated: bool, say: Callable[[str], None]) -> int:
    """Writes the preferences between tried answers of a run to a new directory; returns how many it wrote.

    Where several people compared the same two answers, the majority counts.

    Args:
        truncated: keep answers that were cut at the limit, too.
        say: takes a sentence for people: what was left out.

    Raises:
        ConfigError: there is something at ``to`` already.
        DataError: there is none, or all are ties or were cut at the limit.
    """
    check_new(to)
    pairs = tried_pairs(Labels(store).newest(), run.name)
    ordered = [(pair, pair.ordered) for pair in pairs]
    rows = [_row(pair, *sides, style) for pair, sides in ordered if sides is not None and (truncated or _ended(sides))]
    left_out = len(pairs) - len(rows)
    if not rows:
        raise DataError(
            f"run '{run.name}' has no preference between tried answers to export, and {left_out} that are ties or were "
            "cut at the limit: try a prompt on the page 'Try' of rondo view, and choose the better answer"
        )
    if left_out:
        say(f"{left_out} more are ties, or rest on answers cut at the limit (--truncated keeps the latter)")
    with new_directory(to) as staged:
        (staged / PARQUET).parent.mkdir(parents=True)
        write_parquet(rows, list(_columns(style)), style, staged / PARQUET)
        card = tried_card(run, _columns(style), rows, conversational=style is Style.messages)
        (staged / "README.md").write_text(card, encoding="utf-8")
    return len(rows)


def _columns(style: Style) -> dict[str, str]:
    """Returns what each column is: those of a round's pairs without scores, for no judge has seen them, and more."""
    pairs = {name: told for name, told in columns("pair", style).items() if not name.startswith("score_")}
    return {**pairs, **_MORE}


def _ended(sides: tuple[Any, Any]) -> bool:
    return all(side["finish_reason"] != "length" for side in sides)


def _row(pair: TriedPair, better: Any, worse: Any, style: Style) -> dict[str, Any]:
    def value(text: str) -> str | list[dict[str, str]]:
        return text if style is Style.text else [{"role": "assistant", "content": text}]

    messages = pair.prompt.get("messages") or [{"role": "user", "content": pair.prompt.get("text")}]
    sides = {"chosen": better, "rejected": worse}
    return {
        "prompt": better["prompt"] if style is Style.text else messages,
        **{name: value(side["text"]) for name, side in sides.items()},
        **{f"finish_reason_{name}": side["finish_reason"] for name, side in sides.items()},
        **{f"policy_{name}": f"{side['run']}@{side['round']}" for name, side in sides.items()},
        "people": len(pair.choices),
        "prompt_id": pair.prompt_id,
    }

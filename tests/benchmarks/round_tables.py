"""The tables of the benchmark of a round: a median, with the lowest and the highest, for each figure."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def show(console: Console, title: str, rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> None:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    console.print(table)


def spread(values: Sequence[float], form: str = "{:.2f}", *, strong: bool = False) -> str:
    middle, low, high = (form.format(value) for value in (median(values), min(values), max(values)))
    return f"{f'**{middle}**' if strong else middle} ({low}-{high})"


def grouped(rows: Sequence[Row], *names: str) -> list[Row]:
    """One row for each combination of these fields, in which the others are lists."""
    groups: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        group = groups.setdefault(key, dict(zip(names, key, strict=True)))
        for name, value in row.items():
            if name not in names:
                group.setdefault(name, []).append(value)
    return list(groups.values())


def column(name: str, form: str = "{:.2f}") -> Callable[[Row], str]:
    return lambda row: spread(row[name], form) if isinstance(row[name], list) else str(row[name])


def middle(name: str, form: str = "{:.2f}") -> Callable[[Row], str]:
    return lambda row: form.format(median(row[name]))


def show_sampling(console: Console, rows: Sequence[Row]) -> None:
    def rates(who: str, clock: str) -> list[float]:
        return [row[who]["tokens"] / row[who][clock] for row in rows]

    def tokens(who: str) -> str:
        return f"{sum(row[who]['tokens'] for row in rows):,}"

    shown = [{"clock": "seconds", "of": "on the clock"}, {"clock": "processor", "of": "of the processor"}]
    show(console, "1. Sampling stage against LLM.generate, tokens/s (aim: 0.95)", shown, {
        "seconds": lambda row: row["of"],
        "tokens": lambda _: tokens("ours"), "of the bare one": lambda _: tokens("bare"),
        "ours": lambda row: spread(rates("ours", row["clock"]), "{:,.0f}"),
        "bare": lambda row: spread(rates("bare", row["clock"]), "{:,.0f}"),
        "ratio": lambda row: spread(
            [a / b for a, b in zip(rates("ours", row["clock"]), rates("bare", row["clock"]), strict=True)], strong=True
        ),
    })  # fmt: skip


def show_handover(console: Console, rows: Sequence[Row]) -> None:
    (row,) = grouped([{"of": "hand-over / new engine", **row} for row in rows], "of")

    def share(name: str) -> list[float]:
        return [handed / other for handed, other in zip(row["handed over"], row[name], strict=True)]

    show(console, "2. Hand-over (aim: 1%)", [row], {
        "": column("of"), "hand-over, s": column("handed over", "{:.3f}"),
        "new process, s": column("process"), "share": lambda _: spread(share("process"), "{:.2%}", strong=True),
        "of which engine and check, s": column("engine"), "its share": lambda _: spread(share("engine"), "{:.2%}"),
    })  # fmt: skip


def show_round(console: Console, rows: Sequence[Row]) -> None:
    for row in rows:
        calls = row["generate"], row["run_update"]
        row["bare"], row["bare, processor"] = (sum(call[clock] for call in calls) for clock in ("seconds", "processor"))
        row["ratio"], row["ratio, processor"] = row["seconds"] / row["bare"], row["processor"] / row["bare, processor"]
        row["share"] = row["hand over"] / row["seconds"]
    title = "3. A round against bare generate + bare update (aims: 1.10, hand-over 1%)"
    show(console, title, grouped(rows, "variant"), {
        "": column("variant"), "round, s": column("seconds"), "bare, s": column("bare"),
        "ratio": lambda row: spread(row["ratio"], strong=True),
        "sample": middle("sample"), "judge": middle("judge"), "update": middle("update"),
        "evaluate": middle("evaluate"), "hand over": middle("share", "{:.2%}"),
        "tokens": middle("tokens", "{:,.0f}"),
    })  # fmt: skip
    title = "3. The same in seconds of the processor, of all processes of the run"
    show(console, title, grouped(rows, "variant"), {
        "": column("variant"), "round": column("processor"), "bare": column("bare, processor"),
        "ratio": lambda row: spread(row["ratio, processor"], strong=True),
        **{name: _part(name) for name in ("sampler", "trainer", "judge", "flow", "others")},
        "generate": _call("generate"), "run_update": _call("run_update"), "peak, MiB": _peaks,
    })  # fmt: skip


def _part(name: str) -> Callable[[Row], str]:
    return lambda row: f"{median(found.get(name, 0) for found in row['processors']):.2f}"


def _call(name: str) -> Callable[[Row], str]:
    return lambda row: f"{median(call['processor'] for call in row[name]):.2f}"


def _peaks(row: Row) -> str:
    """The largest memory that was seen of each process."""
    if "peak" in row:
        return f"{max(row['peak']) / 2**20:,.0f}"
    return ", ".join(
        f"{name} {max(found[name] for found in row['peaks']) / 2**20:,.0f}"
        for name in ("flow", "sampler", "trainer")
        if "peaks" in row
    )


def show_peers(console: Console, rows: Sequence[Row]) -> None:
    groups = grouped(rows, "who")
    ours = {row["who"]: row for row in groups if row["who"].startswith("ours")}

    def times(name: str, clock: str) -> Callable[[Row], str]:
        return lambda row: spread(
            [other / own for other, own in zip(row[clock], ours[name][clock], strict=True)], strong=True
        )

    title = "4. A round of other ways to it (aims: trl 5x, trl with vLLM 2.5x, scripts 2x; with a real model trl 3x)"
    show(console, title, groups, {
        "": column("who"), "round, s": column("seconds"), "of the processor": column("processor"),
        "tokens": middle("tokens", "{:,.0f}"), "pairs": middle("preferences", "{:.0f}"),
        **{f"/ {name}": times(name, "seconds") for name in ours},
        **{f"/ {name}, processor": times(name, "processor") for name in ours},
        "peak, MiB": _peaks,
    })  # fmt: skip


def show_streaming(console: Console, rows: Sequence[Row]) -> None:
    groups = grouped(rows, "shards", "mode")
    phased = {row["shards"]: row["through update"] for row in groups if row["mode"] == "phased"}
    show(console, "5. Streaming, with a judge as slow as the sampling (aim: 0.65)", groups, {
        "shards": column("shards"), "": column("mode"), "sample to checkpoint, s": column("through update"),
        "ratio": lambda row: spread(
            [own / other for own, other in zip(row["through update"], phased[row["shards"]], strict=True)], strong=True
        ),
        "sample": middle("sample"), "judge": middle("judge"), "update": middle("update"),
        "loss": middle("loss", "{:.6f}"),
    })  # fmt: skip


def show_growth(console: Console, rows: Sequence[Row]) -> None:
    for row in rows:
        row["ms"] = row["seconds"] / row["prompts"] * 1000
        row |= {f"{name}, MiB": peak / 2**20 for name, peak in row["peaks"].items()}
    parts = [f"{name}, MiB" for name in ("flow", "sampler", "judge", "trainer")]
    show(console, "6. Growth with the prompts of a round", grouped(rows, "prompts"), {
        "prompts": lambda row: f"{row['prompts']:,}", "round, s": column("seconds"),
        "ms a prompt": lambda row: spread(row["ms"], "{:.1f}", strong=True),
        **{name: column(name, "{:,.0f}") for name in parts},
    })  # fmt: skip

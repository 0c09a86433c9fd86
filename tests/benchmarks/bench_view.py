"""What the pages of ``rondo view`` cost, in a run of 100,000 completions in 50 rounds: ``make bench``.

Of each page: processor time at the first request and at later ones (median of 5), and its size. The run is read into
memory once, which is told apart, and so is the slowest of the charts that a browser asks for beside the page of the
run. With ``--million`` the same of a run of a million completions.
"""

import argparse
import operator
import re
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import store_subjects as subjects
from benchmarks.conditions import machine
from benchmarks.round_tables import show
from rich.console import Console
from starlette.testclient import TestClient

from flows.registry.resume import header
from flows.registry.round_summary import RoundSummary
from flows.view.app import make_app
from flows.view.security import Guard
from flows.view.site import Site
from flows.view.warm_up import warm_up
from pipeline.records import JUDGMENTS, PREFERENCES, PROMPTS, to_table
from storage.log.manifest import Key
from storage.log.store import Store
from storage.tables.shards import write_table
from support.finished_run import small_recipe, steps_table

ROUNDS, SHARDS, TOKENS = 50, 8, 60
RUN = subjects.RUN


def write_run(root: Path, completions: int) -> Store:
    """Writes a run of 50 rounds with this many judged completions, K of each prompt, and their preferences. Seed 0."""
    store, random = Store.open(root), np.random.default_rng(0)
    per_round = completions // ROUNDS // subjects.K
    ids = subjects.prompt_ids(4 * per_round)
    run = store.create_run(RUN, header(small_recipe(rounds=ROUNDS)))
    with run.writer() as writer:
        writer.commit(Key(0, "prompts"), [write_table(store, RUN, 0, "prompts", _prompts(ids))])
        writer.finish_round(0, _summary(0))
        for number in range(1, ROUNDS + 1):
            chosen = sorted(random.choice(len(ids), per_round, replace=False))
            for shard, part in enumerate(np.array_split(np.array(ids)[chosen], SHARDS)):
                tables = {
                    "candidates": subjects.candidates(random, list(part), TOKENS),
                    "judgments": _judgments(random, list(part)),
                    "preferences": _preferences(random, list(part)),
                }
                for stage, table in tables.items():
                    file = write_table(store, RUN, number, stage, table, shard)
                    writer.commit(Key(number, stage, shard), [file])
            steps = write_table(store, RUN, number, "metrics", steps_table(32))
            writer.commit(Key(number, "metrics"), [steps])
            writer.finish_round(number, _summary(number))
    return store


def _prompts(ids: list[str]) -> pa.Table:
    return to_table([
        {
            "prompt_id": name, "text": f"user: Tell me about {name}.", "token_ids": [1, 2], "source": "benchmark",
            "messages": [{"role": "user", "content": f"Tell me about {name}.", "fields": None}],
            "reference_answer": None, "split": "train",
        }
        for name in ids
    ], PROMPTS)  # fmt: skip


def _judgments(random: np.random.Generator, ids: list[str]) -> pa.Table:
    return to_table([
        {
            **row, "score_std": None, "components": [], "rationale": None, "judge_version": "1", "latency": 0.1,
            "raw": None,
        }
        for row in subjects.judgments(random, ids).to_pylist()
    ], JUDGMENTS)  # fmt: skip


def _preferences(random: np.random.Generator, ids: list[str]) -> pa.Table:
    return to_table([
        {
            "prompt_id": name, "kind": "pair", "candidates": [int(best), int(best + 1) % subjects.K], "ranks": None,
            "scores": [1.0, 0.0], "margin": 1.0, "soft_label": None, "reference_logps": [-60.0, -61.0],
            "token_counts": [60, 60], "rule": "best_vs_worst", "drop_reason": None, "policy": "0" * 64,
        }
        for name, best in zip(ids, random.integers(0, subjects.K, len(ids)), strict=True)
    ], PREFERENCES)  # fmt: skip


def _summary(number: int) -> dict[str, object]:
    return RoundSummary(
        round=number, policy="0" * 64, judge="vader", reward=number / 100, reward_se=0.01, judges={"grammar": 0.9},
        length=60.0, truncated=0.1, distinct=1.0, entropy_per_token=2.0, handover_drift=1e-6, sampled_tokens=10**5,
        seconds={"sample": 10.0}, kl_initial=number / 10 if number else None,
    ).model_dump(mode="json")  # fmt: skip


def measure(store: Store) -> list[dict[str, object]]:
    """Asks for each page: once, and five times more."""
    site = Site(store)
    warm_up(site, None)  # as the server does, before anybody asks for a page
    client = TestClient(make_app(site, Guard("127.0.0.1")), base_url="http://127.0.0.1")
    prompt = subjects.prompt_ids(1)[0]
    pages = {
        "runs": "/",
        "run": f"/run/{RUN}",
        "reading it into memory, and round 25": f"/run/{RUN}/round/25",
        "round 26": f"/run/{RUN}/round/26",
        "completions": f"/run/{RUN}/completions",
        "completions, two words searched": f"/run/{RUN}/completions?q=w77+w12",
        "completions, page 1000": f"/run/{RUN}/completions?page=1000&sort=score",
        "prompt": f"/run/{RUN}/prompt/{prompt}",
        "judges": f"/run/{RUN}/judges",
        "label": f"/run/{RUN}/label?round=50",
    }
    rows = [_row(client, name, path) for name, path in pages.items()]
    charts = re.findall(r'<img src="(/chart/[^"]+)"', client.get(pages["run"]).text)
    slowest = max((_row(client, "", path) for path in charts), key=operator.itemgetter("first, s"))
    return [*rows[:2], slowest | {"page": f"the slowest of its {len(charts)} charts"}, *rows[2:]]


def _row(client: TestClient, name: str, path: str) -> dict[str, object]:
    times, answer = [], None
    for _ in range(6):
        began = time.process_time()
        answer = client.get(path)
        times.append(time.process_time() - began)
    assert answer is not None
    # On a busy machine a question may be stopped by its limit of wall-clock time.
    size = f"{len(answer.content) / 1000:.0f} kB" if answer.status_code == 200 else f"status {answer.status_code}"
    return {"page": name, "first, s": f"{times[0]:.2f}", "later, s": f"{median(times[1:]):.2f}", "size": size}


def main() -> None:
    """Writes the run in a temporary directory and prints the table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--million", action="store_true", help="a million completions in place of 100,000")
    console, completions = Console(), 1_000_000 if arguments.parse_args().million else 100_000
    console.print(str(machine("duckdb", "pyarrow")), highlight=False)
    with tempfile.TemporaryDirectory() as directory:
        store = write_run(Path(directory), completions)
        title = f"rondo view, {completions:,} completions in {ROUNDS} rounds: processor time (aim: 0.3 s and 1 MB)"
        show(
            console,
            title,
            measure(store),
            {name: operator.itemgetter(name) for name in ("page", "first, s", "later, s", "size")},
        )
    console.print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()

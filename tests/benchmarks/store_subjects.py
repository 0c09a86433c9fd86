"""What the benchmark of the store writes and reads: candidates in the form of the pipeline's, at any scale."""

import hashlib
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.records import CANDIDATES
from storage.log.manifest import FileRef, Key
from storage.log.run import Run
from storage.log.store import Store
from storage.objects.layout import new_shard_key
from storage.tables.shards import write_table

K = 8
RUN = "benchmark"
VOCABULARY = 4000
_WORDS = np.array([f"w{index}" for index in range(VOCABULARY + 1)], dtype=object)


def prompt_ids(count: int) -> list[str]:
    return [hashlib.sha256(str(index).encode()).hexdigest()[:16] for index in range(count)]


def prompts(ids: list[str]) -> pa.Table:
    return pa.table({"prompt_id": ids, "text": [f"Tell me about {name}, please." for name in ids]})


def candidates(random: np.random.Generator, ids: list[str], tokens: int) -> pa.Table:
    """K answers of about this many tokens to each prompt: token ids by Zipf's law, log-probabilities by the
    exponential one, so that they compress neither better nor worse than those of a policy."""
    rows = len(ids) * K
    lengths = random.integers(tokens // 2, tokens * 3 // 2, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    token_ids = np.minimum(random.zipf(1.3, offsets[-1]), VOCABULARY).astype(np.int32)
    logprobs = -random.exponential(1.0, offsets[-1]).astype(np.float32)
    words = _WORDS[token_ids]
    columns = {
        "prompt_id": np.repeat(np.array(ids, dtype=object), K),
        "candidate": np.tile(np.arange(K, dtype=np.int32), len(ids)),
        "token_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(token_ids)),
        "text": [" ".join(words[start:end]) for start, end in pairwise(offsets)],
        "logprobs": pa.ListArray.from_arrays(pa.array(offsets), pa.array(logprobs)),
        "finish_reason": np.where(random.random(rows) < 0.2, "length", "stop").astype(object),
        "seed": random.integers(0, 2**48, rows),
        "policy": ["0123456789abcdef" * 4] * rows,
    }
    return pa.table([pa.array(columns[name]) for name in CANDIDATES.names], schema=CANDIDATES)


def judgments(random: np.random.Generator, ids: list[str]) -> pa.Table:
    rows = len(ids) * K
    return pa.table({
        "prompt_id": np.repeat(np.array(ids, dtype=object), K),
        "candidate": np.tile(np.arange(K, dtype=np.int32), len(ids)),
        "score": random.normal(size=rows), "judge": ["vader"] * rows, "status": ["ok"] * rows,
    })  # fmt: skip


def write_round(store: Store, rows: int, shards: int, tokens: int = 24) -> Run:
    """A run with one round of this many judged candidates. Seed 0."""
    random, ids = np.random.default_rng(0), prompt_ids(rows // K)
    run = store.create_run(RUN, {})
    with run.writer() as writer:
        writer.commit(Key(0, "prompts"), [write_table(store, RUN, 0, "prompts", prompts(ids))])
        writer.finish_round(0, {})
        for shard in range(shards):
            part = ids[shard * len(ids) // shards : (shard + 1) * len(ids) // shards]
            tables = {"candidates": candidates(random, part, tokens), "judgments": judgments(random, part)}
            for stage, table in tables.items():
                writer.commit(Key(1, stage, shard), [write_table(store, RUN, 1, stage, table, shard)])
        writer.finish_round(1, {})
    return run


def write_log(store: Store, rounds: int, shards: int) -> None:
    """A run with so many rounds of so many shards, as its log tells it; the shards themselves are not there."""
    run = store.create_run(RUN, {})
    metrics = {f"figure{index}": index / 7 for index in range(40)}
    with run.writer() as writer:
        for number in range(rounds):
            for shard in range(shards):
                file = FileRef(new_shard_key(RUN, number, "candidates", shard), 10**6, "0" * 64, rows=1000)
                meta = {"policy": "0" * 64, "candidates": 1000, "tokens": 10**5, "seconds": 1.5}
                writer.commit(Key(number, "candidates", shard, "0" * 64), [file], meta)
            writer.finish_round(number, metrics)


def peak() -> int:
    """The largest resident memory of this process so far, in bytes.

    Not getrusage's: after an exec, that still counts what the process had before it, which is what its parent had.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def few_candidates(rows: int) -> pa.Table:
    """The same short candidates again and again: made in little memory, so that the peak is that of writing."""
    few = candidates(np.random.default_rng(0), prompt_ids(128), 8)
    return pa.concat_tables([few] * (rows // few.num_rows))


def peak_of_writing(root: str, rows: int) -> None:
    """For a process of its own: writes candidates in shards of 16,384 and prints its peak memory in bytes."""
    store = Store.open(tempfile.mkdtemp(dir=root))
    run, shard_rows = store.create_run(RUN, {}), 16_384
    table = few_candidates(shard_rows)
    with run.writer() as writer:
        for shard in range(rows // shard_rows):
            # Another seed in each row, so that the shards differ.
            seeds = pa.array(np.arange(shard_rows, dtype=np.int64) + shard * shard_rows)
            fresh = table.set_column(table.schema.get_field_index("seed"), CANDIDATES.field("seed"), seeds)
            writer.commit(Key(1, "candidates", shard), [write_table(store, RUN, 1, "candidates", fresh, shard)])
        writer.finish_round(1, {})
    print(peak())  # noqa: T201


def peak_of_one_table(root: str, rows: int) -> None:
    """The same for one table of so many rows that comes in batches and becomes one file."""
    store = Store.open(tempfile.mkdtemp(dir=root))
    batch_rows = 16_384
    (batch,) = few_candidates(batch_rows).combine_chunks().to_batches()
    batches = (batch for _ in range(rows // batch_rows))
    write_table(store, RUN, 1, "candidates", pa.RecordBatchReader.from_batches(CANDIDATES, batches))
    print(peak())  # noqa: T201


def opening(root: str) -> None:
    """For a process of its own: opens a run and lists its rounds, and prints the seconds that it took."""
    import time

    started = time.perf_counter()
    rounds = Store.open(Path(root)).run(RUN).rounds()
    print(time.perf_counter() - started, len(rounds))  # noqa: T201


if __name__ == "__main__":
    function, *arguments = sys.argv[1:]
    {"peak_of_writing": peak_of_writing, "peak_of_one_table": peak_of_one_table, "opening": opening}[function](
        *(int(argument) if argument.isdecimal() else argument for argument in arguments)
    )

"""What the store costs, as ratios and growth, in one run: ``make bench``.

1. Committing, against a round of the sentiment demo: what two of its rounds committed is committed again to the same
   disk (tables encoded and hashed, weights written, every file and entry fsynced), and divided by the time that the
   round took according to the run's own log.
2. Opening a run, against rounds and shards: seconds in a fresh process, and objects read.
3. Questions over a million candidates in 64 shards.
4. Peak memory of writing, ten million candidates against one million, each in a process of its own.
5. Bytes read for one column, against the bytes of that column; objects in ranges, as from a bucket.
6. Compression, encodings and row groups on the demo's own candidates: bytes, and processor time to write and read.

The disk is that of ``--root``; the files just written are in the system's cache when they are read.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import store_subjects as subjects
from benchmarks.conditions import machine, told, write_report
from benchmarks.round_tables import show
from rich.console import Console

from flows.analysis import round_tables
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.sql import select
from storage.tables.checkpoints import stage_directory
from storage.tables.shards import ROW_GROUP, encodings, read_table, write_table
from support.counted_objects import counted as counted_store

RECIPE = Path(__file__).parents[2] / "deploy" / "recipes" / "sentiment.yaml"
Row = dict[str, Any]


def demo(console: Console, root: Path) -> Store:
    """The store with a run of the sentiment recipe: that of ``make demo`` where there is one, else two rounds of it."""
    for place in (Path("runs"), root / "demo"):
        if (place / "runs" / "demo").is_dir() and len(Store.open(place).run("demo").rounds()) > 2:
            return Store.open(place)
    console.print("running two rounds of the demo: about a minute and a half", highlight=False)
    command = [sys.executable, "-m", "flows.cli.main", "run", str(RECIPE), "--name", "demo", "--rounds", "2"]
    subprocess.run([*command, "--root", str(root / "demo")], check=True, stdout=subprocess.DEVNULL)
    return Store.open(root / "demo")


def measure_commits(source: Store, run: Run, root: Path, repetitions: int) -> list[Row]:
    """Each round of the run but round 0, committed again."""
    rounds = run.rounds()
    rows = []
    for before, after in pairwise(rounds):
        again = [_commit_again(source, run, after.round, root) for _ in range(repetitions)]
        seconds, processor = ([one[part] for one in again] for part in (0, 1))
        entries = run.entries(round=after.round)
        rows.append({
            "round": after.round, "entries": len(entries), "files": sum(len(entry.files) for entry in entries),
            "bytes": sum(file.bytes for entry in entries for file in entry.files),
            "commit seconds": seconds, "processor seconds": processor,
            "round seconds": _time(after.time) - _time(before.time),
        })  # fmt: skip
    return rows


def _commit_again(source: Store, run: Run, number: int, root: Path) -> tuple[float, float]:
    """Seconds on the clock, which a busy machine prolongs at every fsync, and seconds of the processor."""
    store = Store.open(tempfile.mkdtemp(dir=root))
    copy = store.create_run(subjects.RUN, {})
    entries = run.entries(round=number)
    contents = {file.path: _content(source, file) for entry in entries for file in entry.files}
    with copy.writer() as writer:
        started, processor = time.perf_counter(), time.process_time()
        for entry in entries:
            assert entry.key is not None
            tables = [contents[file.path] for file in entry.files if file.rows is not None]
            files = [write_table(store, subjects.RUN, number, entry.key.stage, table) for table in tables]
            if entry.files and not tables:
                with stage_directory(store, subjects.RUN, number, entry.key.stage) as staged:
                    for file in entry.files:
                        (staged.path / str(file.name)).write_bytes(contents[file.path])
                files = list(staged.files)
            writer.commit(entry.key, files, entry.meta)
        writer.finish_round(number, run.rounds()[number].meta)
        seconds = time.perf_counter() - started, time.process_time() - processor
    shutil.rmtree(store.root)
    return seconds


def _content(source: Store, file: FileRef) -> Any:
    return source.objects.read(file.path) if file.rows is None else read_table(source, [file])


def _time(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def measure_opening(root: Path, sizes: Sequence[tuple[int, int]], repetitions: int) -> list[Row]:
    rows = []
    for rounds, shards in sizes:
        # In memory, where there is a disk in memory: a hundred thousand entries need as many fsyncs.
        memory = Path("/dev/shm")  # noqa: S108
        with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else root) as directory:
            store = Store.open(directory)
            subjects.write_log(store, rounds, shards)
            counted, objects = counted_store(store)
            counted.run(subjects.RUN).rounds()
            seconds = [float(_alone("opening", directory).split()[0]) for _ in range(repetitions)]
        rows.append({"rounds": rounds, "shards": shards, "seconds": seconds, "reads": objects.reads})
    return rows


def measure_questions(root: Path, rows: int, shards: int, repetitions: int) -> list[Row]:
    store = Store.open(tempfile.mkdtemp(dir=root))
    run = subjects.write_round(store, rows, shards)
    people = ("prompt_id", "candidate", "score", "finish_reason", "prompt", "text")
    where = "score > 3 and finish_reason = 'length'"
    prompt = subjects.prompt_ids(rows // subjects.K)[-1]

    def query(**asked: Any) -> int:
        return int(round_tables.query(store, run, 1, table="candidates", **asked).num_rows)

    def sql(statement: str) -> int:
        return int(select(store, run, statement).num_rows)

    def bare() -> int:
        for stage, columns in (("candidates", ["prompt_id", "candidate", "finish_reason"]), ("judgments", ["score"])):
            for file in run.files(1, stage):
                pq.ParquetFile(store.objects.local_path(file.path)).read(columns)
        return 0

    asked: dict[str, Callable[[], int]] = {
        "bare: three columns of candidates and the scores are read, and dropped": bare,
        f"{where}: the columns that people see": lambda: query(where=where, columns=people),
        f"{where}: ten rows, all columns": lambda: query(where=where, limit=10),
        f"{where}: all rows, all columns": lambda: query(where=where),
        "the first ten rows": lambda: query(limit=10),
        "one prompt": lambda: query(prompt=prompt),
        "sql: average score": lambda: sql("select round, avg(score) from judgments group by 1"),
        "sql: join, group by": lambda: sql(
            "select finish_reason, avg(score) from candidates "
            "join judgments using (round, prompt_id, candidate) group by 1"
        ),
    }
    found = []
    for name, ask in asked.items():
        answers, seconds, processor = 0, [], []
        for _ in range(repetitions):
            wall, cpu = time.perf_counter(), time.process_time()
            answers = ask()
            seconds.append(time.perf_counter() - wall)
            processor.append(time.process_time() - cpu)
        found.append({"question": name, "answers": answers, "seconds": seconds, "processor seconds": processor})
    shutil.rmtree(store.root)
    return found


def measure_memory(root: Path, rows: Sequence[int]) -> list[Row]:
    found = []
    for name, function in (("shards of 16,384", "peak_of_writing"), ("one file, in batches", "peak_of_one_table")):
        peaks = [int(_alone(function, str(root), str(count))) for count in rows]
        found.append({"written as": name, "rows": list(rows), "peak bytes": peaks})
        for leftover in root.iterdir():
            if leftover.name.startswith("tmp"):
                shutil.rmtree(leftover)
    return found


def measure_columns(root: Path, rows: int) -> list[Row]:
    store = Store.open(tempfile.mkdtemp(dir=root))
    table = pa.concat_tables(
        [subjects.candidates(subjects.np.random.default_rng(0), subjects.prompt_ids(rows // subjects.K), 24)]
    )
    file = write_table(store, subjects.RUN, 1, "candidates", table)
    metadata = pq.read_metadata(store.objects.local_path(file.path))
    found = []
    for name in ("prompt_id", "seed", "text", "token_ids", "logprobs"):
        counted, objects = counted_store(store)
        read_table(counted, [file], [name], verify=False)
        found.append({
            "column": name, "bytes of the column": _column_bytes(metadata, name), "bytes read": objects.bytes,
            "bytes of the file": file.bytes,
        })  # fmt: skip
    shutil.rmtree(store.root)
    return found


def _column_bytes(metadata: pq.FileMetaData, name: str) -> int:
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    return sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == name)


def measure_encodings(table: pa.Table, repetitions: int) -> list[Row]:
    ours = encodings(table.schema)
    ids = "token_ids.list.element"
    plain_ids = {"use_dictionary": [name for name in ours["use_dictionary"] if name != ids]}
    delta = ours["column_encoding"] | {ids: "DELTA_BINARY_PACKED"}
    split = ours["column_encoding"] | {ids: "BYTE_STREAM_SPLIT"}
    zstd = {"compression": "zstd", "compression_level": 3}
    options: dict[str, Mapping[str, Any]] = {
        "none": {"compression": "none"}, "snappy": {"compression": "snappy"}, "lz4": {"compression": "lz4"},
        **{f"zstd {level}": zstd | {"compression_level": level} for level in (1, 3, 6, 9)},
        "zstd 1, log-probabilities split": {**zstd, "compression_level": 1, **ours},
        "zstd 3, log-probabilities split": {**zstd, **ours},
        "zstd 6, log-probabilities split": {**zstd, "compression_level": 6, **ours},
        "zstd 3, split, token ids delta": {**zstd, **plain_ids, "column_encoding": delta},
        "zstd 3, split, token ids split": {**zstd, **plain_ids, "column_encoding": split},
        "zstd 3, split, checksums (ours)": {**zstd, **ours, "write_page_checksum": True},
        **{f"ours, row groups of {rows:,}": {**zstd, **ours, "write_page_checksum": True, "row_group_size": rows}
           for rows in (1024, 4096, 65536)},
    }  # fmt: skip
    return [{"option": name, **_encode(table, dict(chosen), repetitions)} for name, chosen in options.items()]


def _encode(table: pa.Table, options: dict[str, Any], repetitions: int) -> Row:
    options = {"row_group_size": ROW_GROUP} | options
    write, read, narrow = [], [], []
    for _ in range(repetitions):
        buffer = io.BytesIO()
        write.append(_processor(lambda: pq.write_table(table, buffer, **options)))  # noqa: B023
        read.append(_processor(lambda: _reader(buffer).read(use_threads=False)))  # noqa: B023
        narrow.append(_processor(lambda: _reader(buffer).read(["prompt_id", "candidate", "seed"], use_threads=False)))  # noqa: B023
    rows = table.num_rows
    times = {"write": write, "read": read, "read three columns": narrow}
    return {"bytes a row": len(buffer.getvalue()) / rows} | {
        f"{name}, µs a row": min(seconds) / rows * 1e6 for name, seconds in times.items()
    }


def _reader(buffer: io.BytesIO) -> pq.ParquetFile:
    return pq.ParquetFile(buffer, page_checksum_verification=True)


def _processor(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _alone(function: str, *arguments: str) -> str:
    """The output of a function of ``store_subjects`` in a process of its own."""
    command = [sys.executable, subjects.__file__, function, *arguments]
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    ).stdout.strip()


def _field(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]:,}" if isinstance(row[name], int) else str(row[name])


def _seconds(name: str) -> Callable[[Row], str]:
    return lambda row: f"{median(row[name]):.3f} ({min(row[name]):.3f}-{max(row[name]):.3f})"


def _number(name: str) -> Callable[[Row], str]:
    return lambda row: f"{median(row[name]) if isinstance(row[name], list) else row[name]:.3f}"


def _mib(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name] / 2**20:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What the store costs: commits, opening, questions, memory, bytes.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--root", type=Path, default=Path("build/bench_store"), help="where to write, and the demo is")
    parser.add_argument("--out", type=Path, default=Path("build/bench_store.json"), help="the JSON file to write")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    arguments.root.mkdir(parents=True, exist_ok=True)
    repetitions, less = (1, 100) if arguments.quick else (3, 1)
    before = machine("pyarrow", "duckdb", "obstore")
    source = demo(console, arguments.root)
    run = source.run("demo")

    commits = measure_commits(source, run, arguments.root, repetitions)
    show(console, "1. Committing a round of the demo again", commits, {
        "round": _field("round"), "entries": _field("entries"), "files": _field("files"), "MiB": _mib("bytes"),
        "commit, s": _seconds("commit seconds"), "of which processor": _number("processor seconds"),
        "round, s": _number("round seconds"),
        "share": lambda row: f"**{median(row['commit seconds']) / row['round seconds']:.2%}**",
        "processor's share": lambda row: f"{median(row['processor seconds']) / row['round seconds']:.2%}",
    })  # fmt: skip
    opened = measure_opening(arguments.root, [(100 // less, 64), (1000 // less, 8), (1000 // less, 64)], repetitions)
    show(console, "2. Opening a run and listing its rounds", opened, {
        "rounds": _field("rounds"), "shards a round": _field("shards"), "s": _seconds("seconds"),
        "reads": _field("reads"),
    })  # fmt: skip
    questions = measure_questions(arguments.root, 10**6 // less, 64, repetitions)
    show(console, f"3. Questions over {10**6 // less:,} candidates in 64 shards", questions, {
        "question": _field("question"), "rows": _field("answers"), "s": _seconds("seconds"),
        "processor, s": _seconds("processor seconds"),
    })  # fmt: skip
    memory = measure_memory(arguments.root, (10**6 // less, 10**7 // less))
    show(console, "4. Peak memory of writing candidates", memory, {
        "written as": _field("written as"), "rows": lambda row: " and ".join(f"{count:,}" for count in row["rows"]),
        "peak, MiB": lambda row: " and ".join(f"{peak / 2**20:.0f}" for peak in row["peak bytes"]),
        "ratio": lambda row: f"**{row['peak bytes'][1] / row['peak bytes'][0]:.2f}x**",
    })  # fmt: skip
    columns = measure_columns(arguments.root, 131_072 // less)
    show(console, "5. Bytes read for one column of a shard", columns, {
        "column": _field("column"), "column, MiB": _mib("bytes of the column"), "read, MiB": _mib("bytes read"),
        "file, MiB": _mib("bytes of the file"),
        "read / column": lambda row: f"**{row['bytes read'] / row['bytes of the column']:.3f}x**",
    })  # fmt: skip
    sampled = [file for number in range(1, len(run.rounds())) for file in run.files(number, "candidates")]
    encoded = measure_encodings(read_table(source, sampled).combine_chunks(), repetitions)
    show(console, "6. Compression, encodings and row groups, on the demo's candidates", encoded, {
        "option": _field("option"), **{name: _number(name) for name in encoded[0] if name != "option"},
    })  # fmt: skip

    report = {
        "before": before, "after": machine(), "commits": commits, "opening": opened, "questions": questions,
        "memory": memory, "columns": columns, "encodings": encoded,
    }  # fmt: skip
    write_report(report, arguments.out)
    console.print(
        f"{told(before, report['after'])}; median of {repetitions} (lowest-highest), in 6 the lowest; written to "
        f"{arguments.out}",
        highlight=False,
    )


if __name__ == "__main__":
    main()

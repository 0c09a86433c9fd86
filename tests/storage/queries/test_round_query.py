"""Questions about one table of a round, alone and joined with others, and what they read for it."""

import hashlib
import random

import pyarrow as pa
import pytest

from storage.errors import DamagedFileError, NotCommittedError, QueryError
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import Joined, View, matching, query, table
from storage.queries.sql import select
from storage.tables.shards import open_table, read_table, write_table
from support.counted_objects import counted

NAMES = ["c1", "a1", "a2"]  # in this order, which is not the alphabetical one
VALUE = pa.schema([("id", pa.string()), ("value", pa.int64())])
VIEW = View(
    order=("id", "part", "nothing"),
    sql="""_t AS t LEFT JOIN _m AS m ON m.id = t.id AND m.value > (SELECT least FROM _least)
        LEFT JOIN _n AS n ON n.id = t.id""",
    keys=("id",),
    joined={"m": Joined("marks", ("id", "value"), VALUE), "n": Joined("names", ("id",), VALUE, round=0)},
    beside={"mark": ("m", "value"), "title": ("n", "title")},
    first="n",
    given={"_least": pa.table({"least": [10]})},
)


@pytest.fixture
def run(store: Store) -> Run:
    """Two rounds of items, whose shards arrive in the wrong order; only round 1 has marks."""
    run = store.create_run("a", {})
    with run.writer() as writer:

        def put(number: int, stage: str, rows: dict[str, list], shard: int | None = None) -> None:
            writer.commit(Key(number, stage, shard), [write_table(store, "a", number, stage, pa.table(rows), shard)])

        put(0, "names", {"id": NAMES, "title": [f"name of {name}" for name in NAMES]})
        writer.commit(Key(0, "note"), [])
        for number in (1, 2):
            for shard, ids in ((1, ["a2", "a2", "a1"]), (0, ["c1", "a1"])):
                put(number, "items", {"id": ids, "part": [1, 0, shard][: len(ids)]}, shard)
            if number == 1:
                put(number, "marks", {"id": ["c1", "a1"], "value": [10, 20]})
    return run


def test_a_table_with_what_stands_beside_it_in_the_order_of_the_view(store: Store, run: Run) -> None:
    expected = [("c1", 1, None), ("a1", 0, 20), ("a1", 1, 20), ("a2", 0, None), ("a2", 1, None)]
    rows = query(store, run, 1, "items", VIEW).to_pylist()
    assert [(row["id"], row["part"], row["mark"]) for row in rows] == expected
    assert [row["title"] for row in rows] == [f"name of {row['id']}" for row in rows]
    marks = query(store, run, 2, "items", VIEW)["mark"]
    assert marks.to_pylist() == [None] * 5, "a table that was not committed"


def test_rows_and_columns_that_are_asked_for(store: Store, run: Run) -> None:
    def ids(**asked: object) -> list[str]:
        return query(store, run, 1, "items", VIEW, **asked)["id"].to_pylist()  # type: ignore[arg-type]

    assert ids(where="mark = 20 and title = 'name of a1'") == ["a1", "a1"]
    assert ids(prefix=("id", "a"), limit=3) == ["a1", "a1", "a2"]
    assert ids(prefix=("title", "name of c")) == ["c1"]
    for none in ("zz", "%", "a' or true or '"):
        assert ids(prefix=("id", none)) == []
    assert query(store, run, 1, "items", VIEW, columns=["title", "id", "nope"]).column_names == ["id", "title"]
    with pytest.raises(QueryError, match="limit -1 is negative"):
        query(store, run, 1, "items", limit=-1)


def test_rows_with_a_value_come_in_their_order_from_all_shards(store: Store, run: Run) -> None:
    assert matching(store, run.files(1, "items"), "id", "a1").to_pylist() == [
        {"id": "a1", "part": 0},
        {"id": "a1", "part": 1},
    ]
    assert matching(store, run.files(1, "items"), "id", "a2", ["part", "nothing"]).to_pylist() == [
        {"part": 1},
        {"part": 0},
    ]
    assert matching(store, run.files(1, "items"), "id", "a").num_rows == 0, "the beginning of a value is not the value"


def test_a_table_alone_stays_in_its_order(store: Store, run: Run) -> None:
    rows = query(store, run, 1, "items")
    assert (rows.column_names, rows["id"].to_pylist()) == (["id", "part"], ["c1", "a1", "a2", "a2", "a1"])
    assert table(store, run, 0, "names")["id"].to_pylist() == NAMES


def test_what_is_not_there_is_named(store: Store, run: Run) -> None:
    with pytest.raises(NotCommittedError, match="round 2 of run 'a' has no marks: it has items"):
        query(store, run, 2, "marks")
    with pytest.raises(NotCommittedError, match=r"round 7 .* nothing was committed"):
        table(store, run, 7, "items")


def test_wrong_expressions(store: Store, run: Run) -> None:
    for where in (
        "nope > 1",
        "part >",
        "'abc'",
        "1=1; drop table items",
        "part > 1 limit 1",
        "(select count(*) from read_csv('/etc/passwd')) > 0",
    ):
        with pytest.raises(QueryError, match="the columns are id, part, mark, title") as caught:
            query(store, run, 1, "items", VIEW, where=where)
        assert "\n" not in str(caught.value)


def test_damaged_file_is_not_the_users_fault(store: Store, run: Run) -> None:
    (file,) = run.files(1, "marks")
    data = store.objects.read(file.path)
    store.objects.delete([file.path])
    with pytest.raises(DamagedFileError, match=file.path):
        query(store, run, 1, "marks")
    for damaged in (b"x" * len(data), data[:4] + b"\xff" * (len(data) // 2) + data[4 + len(data) // 2 :]):
        store.objects.create(file.path, damaged)
        with pytest.raises(DamagedFileError):
            query(store, run, 1, "marks")
        with pytest.raises(DamagedFileError):
            select(store, run, "select sum(value) from marks where value > 0")
        store.objects.delete([file.path])


def test_a_run_is_opened_with_one_read_a_round_whatever_its_shards(local: Store) -> None:
    reads = {}
    for rounds, shards in ((3, 2), (3, 20), (6, 2)):
        name = f"r{rounds}s{shards}"
        with local.create_run(name, {}).writer() as writer:
            for number in range(rounds):
                for shard in range(shards):
                    writer.commit(Key(number, "candidates", shard), [])
                writer.finish_round(number, {})
        store, counting = counted(local)
        assert len(store.run(name).rounds()) == rounds
        reads[rounds, shards] = counting.reads
    # The header, a snapshot for each round, and the entry that closes the session.
    assert reads == {(3, 2): 5, (3, 20): 5, (6, 2): 8}


def test_a_reader_of_one_column_reads_little_more(local: Store) -> None:
    rows = 50_000
    table = pa.table({
        "small": pa.array([index * 7919 % 2**31 for index in range(rows)], pa.int64()),
        "large": [hashlib.sha256(str(index).encode()).hexdigest() for index in range(rows)],
    })  # fmt: skip
    file = write_table(local, "a", 1, "candidates", table)
    metadata = open_table(local, file).metadata
    column = sum(metadata.row_group(group).column(0).total_compressed_size for group in range(metadata.num_row_groups))
    store, counting = counted(local)
    read_table(store, [file], ["small"], verify=False)
    # The footer is looked for in the last 64 KiB; the rest is the column's own.
    assert column <= counting.bytes <= column + 2**16
    assert counting.bytes < file.bytes / 2


def test_a_filter_with_a_limit_reads_the_row_groups_that_it_shows(local: Store) -> None:
    run, shards = local.create_run("a", {}), 8
    noise = random.Random(0)
    wide = [noise.randbytes(1000).hex() for _ in range(500)]
    with run.writer() as writer:
        ids = [f"p{index:04d}" for index in range(500 * shards)]
        writer.commit(
            Key(0, "prompts"), [write_table(local, "a", 0, "prompts", pa.table({"prompt_id": ids, "text": ids}))]
        )
        for shard in range(shards):
            part = pa.table({
                "prompt_id": ids[shard * 500 : (shard + 1) * 500],
                "candidate": pa.array([0] * 500, pa.int32()), "text": wide,
            })  # fmt: skip
            writer.commit(Key(1, "candidates", shard), [write_table(local, "a", 1, "candidates", part, shard)])
    store, counting = counted(local)
    by_id = View(("prompt_id",))
    rows = query(store, run, 1, "candidates", by_id, where="prompt_id > 'p1700'", limit=2)
    assert rows["prompt_id"].to_pylist() == ["p1701", "p1702"]
    assert rows["text"].to_pylist() == wide[201:203]
    text = open_table(local, run.files(1, "candidates")[0]).metadata.row_group(0).column(2).total_compressed_size
    other, few = counted(local)
    narrow = query(other, run, 1, "candidates", by_id, limit=0)
    assert narrow.num_rows == 0
    # Beyond what finds the rows, that is the text of one shard of eight, and a little of the other columns.
    assert text <= counting.bytes - few.bytes < 1.2 * text


def test_columns_of_another_version_are_null(store: Store) -> None:
    run = store.create_run("a", {})
    with run.writer() as writer:
        old = {"prompt_id": ["p1"], "candidate": pa.array([0], pa.int32()), "text": ["old"]}
        for shard, table in enumerate((pa.table(old), pa.table({**old, "prompt_id": ["p2"], "more": [7]}))):
            writer.commit(Key(1, "candidates", shard), [write_table(store, "a", 1, "candidates", table, shard)])
    rows = query(store, run, 1, "candidates", where="more is null or more = 7").to_pylist()
    assert [(row["prompt_id"], row["more"]) for row in rows] == [("p1", None), ("p2", 7)]

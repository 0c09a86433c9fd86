"""The tables of a round, joined for people."""

from pathlib import Path

import pyarrow as pa
import pytest

from flows.analysis import round_tables
from storage.errors import NotCommittedError, QueryError
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import table as table_of
from storage.tables.shards import write_table

PROMPTS = ["c1", "a1", "a2"]  # in this order, which is not the alphabetical one


def _rows(names: str, rows: list[tuple], **kinds: pa.DataType) -> pa.Table:
    columns = names.split()
    arrays = [pa.array([row[i] for row in rows], kinds.get(name)) for i, name in enumerate(columns)]
    return pa.table(arrays, names=columns)


def _candidates(number: int, prompts: list[str]) -> pa.Table:
    rows = [
        (prompt, k, [1, k], f"{prompt} answer {k}", [-0.5, -1.0], "length" if k else "stop", number)
        for prompt in prompts
        for k in (0, 1)
    ]
    return _rows("prompt_id candidate token_ids text logprobs finish_reason seed", rows, candidate=pa.int32())


def _judgments(number: int, prompts: list[str], judge: str = "sentiment") -> pa.Table:
    rows = [
        (
            prompt,
            k,
            None if prompt == "a2" else number + k / 4,
            "timed_out" if prompt == "a2" else "ok",
            judge,
            [("length", 1.0)],
        )
        for prompt in prompts
        for k in (0, 1)
    ]
    kinds = {"candidate": pa.int32(), "score": pa.float64(), "components": pa.map_(pa.string(), pa.float64())}
    return _rows("prompt_id candidate score status judge components", rows, **kinds)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path)


@pytest.fixture
def run(store: Store) -> Run:
    """Two rounds. The shards of round 1 arrive in the wrong order, and hold two judges."""
    run = store.create_run("a", {})
    with run.writer() as writer:

        def put(number: int, stage: str, table: pa.Table, shard: int | None = None) -> None:
            writer.commit(Key(number, stage, shard), [write_table(store, "a", number, stage, table, shard)])

        put(0, "prompts", _rows("prompt_id text split", [(p, f"prompt {p}", "train") for p in PROMPTS]))
        writer.commit(Key(0, "note"), [])
        for number in (1, 2):
            put(number, "candidates", _candidates(number, ["a1", "a2"]), 1)
            put(number, "candidates", _candidates(number, ["c1"]), 0)
            put(number, "judgments", _judgments(number, PROMPTS))
            put(number, "metrics", _rows("step loss", [(1, 0.5), (2, 0.25)]))
            if number == 1:
                put(number, "judgments", _judgments(number + 100, PROMPTS, "verbosity"), 1)
                put(number, "judgments", _judgments(number, PROMPTS), 0)
                pairs = [("a1", "pair", [1, 0], 0.25), ("c1", "ranking", [0, 1], 0.5), ("a2", "dropped", [], None)]
                kinds = {"candidates": pa.list_(pa.int32()), "margin": pa.float64()}
                put(number, "preferences", _rows("prompt_id kind candidates margin", pairs, **kinds))
                put(number, "eval_candidates", _candidates(9, ["a1"]))
                put(number, "eval_judgments", _judgments(9, ["a1"]))
                writer.finish_round(number, {})
    return run


def _pairs(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["prompt_id"].to_pylist(), table["candidate"].to_pylist(), strict=True))


def test_candidates_in_prompt_order_with_prompt_and_score(store: Store, run: Run) -> None:
    table = round_tables.query(store, run, 1, table="candidates")
    assert _pairs(table) == [("c1", 0), ("c1", 1), ("a1", 0), ("a1", 1), ("a2", 0), ("a2", 1)]
    assert table.column_names == [
        "prompt_id", "candidate", "token_ids", "text", "logprobs", "finish_reason", "seed", "score", "status", "prompt"
    ]  # fmt: skip
    assert table.to_pylist()[1] == {
        "prompt_id": "c1", "candidate": 1, "token_ids": [1, 1], "text": "c1 answer 1", "logprobs": [-0.5, -1.0],
        "finish_reason": "length", "seed": 1, "score": 1.25, "status": "ok", "prompt": "prompt c1",
    }  # fmt: skip


def test_judgments_come_with_the_text(store: Store, run: Run) -> None:
    table = round_tables.query(store, run, 2, table="judgments", where="score > 0.5 and finish_reason = 'length'")
    assert _pairs(table) == [("c1", 1), ("a1", 1)]
    assert table["text"].to_pylist() == ["c1 answer 1", "a1 answer 1"]
    assert table["components"].to_pylist() == [[("length", 1.0)]] * 2
    assert round_tables.query(store, run, 1, table="judgments").num_rows == 12  # both judges


def test_preferences_come_with_the_texts(store: Store, run: Run) -> None:
    rows = round_tables.query(store, run, 1, table="preferences").to_pylist()
    assert [(row["prompt_id"], row["chosen"], row["rejected"], row["prompt"]) for row in rows] == [
        ("c1", "c1 answer 0", "c1 answer 1", "prompt c1"),
        ("a1", "a1 answer 1", "a1 answer 0", "prompt a1"),
        ("a2", None, None, "prompt a2"),
    ]


def test_prompt_by_the_start_of_its_id(store: Store, run: Run) -> None:
    assert _pairs(round_tables.query(store, run, 1, table="candidates", prompt="a", limit=3)) == [
        ("a1", 0),
        ("a1", 1),
        ("a2", 0),
    ]
    assert _pairs(round_tables.query(store, run, 1, table="candidates", prompt="a2", where="candidate = 1")) == [
        ("a2", 1)
    ]
    for none in ("zz", "%", "a' or true or '"):
        assert round_tables.query(store, run, 1, table="candidates", prompt=none).num_rows == 0
    with pytest.raises(QueryError, match="prompt_id"):
        round_tables.query(store, run, 1, table="metrics", prompt="a")


def test_other_tables(store: Store, run: Run) -> None:
    assert round_tables.query(store, run, 1, table="metrics", where="step > 1").to_pylist() == [
        {"step": 2, "loss": 0.25}
    ]
    assert round_tables.query(store, run, 0, table="prompts")["prompt_id"].to_pylist() == PROMPTS
    evaluated = round_tables.query(store, run, 1, table="eval_candidates")
    assert (_pairs(evaluated), evaluated["score"].to_pylist()) == ([("a1", 0), ("a1", 1)], [9.0, 9.25])
    assert table_of(store, run, 0, "prompts")["prompt_id"].to_pylist() == PROMPTS


def test_what_is_not_there_is_named(store: Store, run: Run) -> None:
    with pytest.raises(
        NotCommittedError, match="round 2 of run 'a' has no preferences: it has candidates, judgments, metrics"
    ):
        round_tables.query(store, run, 2, table="preferences")
    with pytest.raises(NotCommittedError, match=r"round 7 .* nothing was committed"):
        table_of(store, run, 7, "candidates")


def test_wrong_expressions(store: Store, run: Run) -> None:
    for where in (
        "nope > 1",
        "score >",
        "",
        "'abc'",
        "true) union (select 1",
        "1=1; drop table candidates",
        "score > 1 limit 1",
        "true order by score",
        "(select count(*) from read_csv('/etc/passwd')) > 0",
        "(select content from read_text('/etc/hostname')) = ''",
    ):
        with pytest.raises(QueryError, match="the columns are prompt_id, candidate, token_ids, text") as caught:
            round_tables.query(store, run, 1, table="candidates", where=where)
        assert "\n" not in str(caught.value)

"""Questions over several rounds: every number here is worked out by hand from the few rows below."""

from pathlib import Path

import pyarrow as pa
import pytest

from flows.analysis import round_tables, run_queries
from storage.errors import DamagedFileError, NotCommittedError, QueryError
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import table as table_of
from storage.queries.sql import rounds_table, select
from storage.tables.shards import open_table, read_table, write_table

# Candidates of each round: prompt, text, score of judge "b".
TRAINED = {
    1: [("p1", "red", 0.0), ("p1", "blue", 1.0), ("p2", "red", 2.0), ("p2", "green", 3.0)],
    2: [("p1", "red", 4.0), ("p1", "blue", 0.0), ("p3", "blue", None), ("p3", "black", 1.0)],
}
# Preferences: prompt, kind, candidates, margin.
PREFERRED = {
    1: [("p1", "pair", [1, 0], 1.0), ("p2", "pair", [1, 0], 1.5)],
    2: [("p1", "pair", [0, 1], 4.0), ("p3", "dropped", [], None)],
}
HELD_OUT = {0: [("e1", "a", 0.0)], 1: [("e1", "a", 0.5)], 2: [("e1", "b", 1.0)]}
JUDGES = dict.fromkeys(range(3), "b")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store.open(tmp_path)


def _table(rows: list[tuple[str, str, float | None]]) -> dict[str, pa.Table]:
    seen: dict[str, int] = {}
    numbers = [seen.update({prompt: seen.get(prompt, -1) + 1}) or seen[prompt] for prompt, *_ in rows]
    keys = {"prompt_id": [row[0] for row in rows], "candidate": pa.array(numbers, pa.int32())}
    ids = pa.array([[ord(letter) for letter in row[1]] for row in rows], pa.list_(pa.int32()))
    candidates = {**keys, "token_ids": ids, "text": [row[1] for row in rows], "finish_reason": ["stop"] * len(rows)}
    judged = []
    for judge, score in (("a", lambda value: -1.0), ("b", lambda value: value)):
        scores = pa.array([score(row[2]) for row in rows], pa.float64())
        judged.append(pa.table({**keys, "score": scores, "status": ["ok"] * len(rows), "judge": [judge] * len(rows)}))
    return {"candidates": pa.table(candidates), "judgments": pa.concat_tables(judged)}


def coloured(store: Store, name: str = "colours", rounds: int = 2) -> Run:
    run = store.create_run(name, {})
    with run.writer() as writer:

        def put(number: int, stage: str, table: pa.Table) -> None:
            writer.commit(Key(number, stage), [write_table(store, name, number, stage, table)])

        ids = ["p1", "p2", "p3", "e1"]
        put(0, "prompts", pa.table({"prompt_id": ids, "text": [f"say {i}" for i in ids], "split": ["train"] * 4}))
        for number in range(rounds + 1):
            for stage, table in _table(HELD_OUT[number]).items():
                put(number, f"eval_{stage}", table)
            if number:
                tables = _table(TRAINED[number])
                put(number, "candidates", tables["candidates"])
                put(number, "judgments", tables["judgments"].slice(4))  # of judge "b" alone
                kinds = {
                    "prompt_id": pa.string(),
                    "kind": pa.string(),
                    "candidates": pa.list_(pa.int32()),
                    "margin": pa.float64(),
                }
                rows = [dict(zip(kinds, row, strict=True)) for row in PREFERRED[number]]
                put(number, "preferences", pa.Table.from_pylist(rows, schema=pa.schema(kinds)))
            metrics = {"reward": number / 2, "judge": "b", "seconds": {"sample": 1.5}, "dropped": {}, "kl": None}
            writer.finish_round(number, metrics | ({"note": "new"} if number == 2 else {}))
    return store.run(name)


def test_history_tells_a_prompt_round_after_round(local: Store) -> None:
    rows = run_queries.history(local, coloured(local), "p1", JUDGES).to_pylist()
    assert [(row["round"], row["candidate"], row["text"], row["score"]) for row in rows] == [
        (1, 0, "red", 0.0), (1, 1, "blue", 1.0), (2, 0, "red", 4.0), (2, 1, "blue", 0.0),
    ]  # fmt: skip
    assert [(row["preferred"], row["rejected"]) for row in rows] == [(0, 1), (1, 0), (1, 0), (0, 1)]
    held_out = run_queries.history(local, local.run("colours"), "e", JUDGES)
    assert held_out["score"].to_pylist() == [0.0, 0.5, 1.0]
    assert set(held_out["held_out"].to_pylist()) == {True}
    # Where no judge is named, that is the first by name.
    assert run_queries.history(local, local.run("colours"), "e1", {})["score"].to_pylist() == [-1.0, -1.0, -1.0]


def test_a_prompt_is_named_by_the_beginning_of_its_id(local: Store) -> None:
    run = coloured(local)
    assert run_queries.find_prompt(local, run, "p2")["text"] == "say p2"
    with pytest.raises(QueryError, match="'p' is the beginning of several prompts, such as p1, p2, p3"):
        run_queries.history(local, run, "p", JUDGES)
    with pytest.raises(QueryError, match="'x' is the beginning of no prompt"):
        run_queries.history(local, run, "x", JUDGES)


def test_scores_by_round(local: Store) -> None:
    run = coloured(local)
    first, second = run_queries.scores(local, run, JUDGES, held_out=False).to_pylist()
    assert (first["round"], first["judged"], first["without_score"], first["mean"]) == (1, 4, 0, 1.5)
    # Of 0, 1, 2, 3: the quantile q lies at 3q.
    assert [first[name] for name in ("min", "p05", "p25", "median", "p75", "p95", "max")] == pytest.approx(
        [0, 0.15, 0.75, 1.5, 2.25, 2.85, 3]
    )
    assert first["std"] == pytest.approx((5 / 3) ** 0.5)
    assert (second["judged"], second["without_score"], second["median"]) == (4, 1, 1.0)
    # Bins of a width of 4 / 16 from 0 to 4, the last one with its end.
    assert (first["low"], first["high"]) == (0.0, 4.0)
    assert {bin: n for bin, n in enumerate(first["histogram"]) if n} == {0: 1, 4: 1, 8: 1, 12: 1}
    assert {bin: n for bin, n in enumerate(second["histogram"]) if n} == {0: 1, 4: 1, 15: 1}
    assert run_queries.scores(local, run, JUDGES, held_out=True)["mean"].to_pylist() == [0.0, 0.5, 1.0]


def test_equal_scores_have_a_histogram(local: Store) -> None:
    (row,) = run_queries.scores(local, coloured(local, rounds=0), JUDGES, held_out=True).to_pylist()
    assert row["histogram"] == [1] + [0] * (run_queries.BINS - 1)


def test_margins_from_both_ends(local: Store) -> None:
    rows = run_queries.margins(local, coloured(local), 2).to_pylist()
    told = [
        (row["which"], row["round"], row["prompt_id"], row["margin"], row["chosen"], row["rejected"]) for row in rows
    ]
    assert told == [
        ("largest", 2, "p1", 4.0, "red", "blue"), ("largest", 1, "p2", 1.5, "green", "red"),
        ("smallest", 1, "p1", 1.0, "blue", "red"), ("smallest", 1, "p2", 1.5, "green", "red"),
    ]  # fmt: skip
    assert rows[0]["prompt"] == "say p1"


@pytest.mark.parametrize("same", ["text", "token_ids"])
def test_what_several_rounds_repeat(local: Store, same: str) -> None:
    run = coloured(local)
    found = [tuple(row.values()) for row in run_queries.repeats(local, run, 9, held_out=False, same=same).to_pylist()]
    # "green" and "black" are said once, "red" twice in round 1 and once in round 2.
    assert found == [([1, 2], 3, 2, "blue"), ([1, 2], 3, 2, "red")]
    assert [row["text"] for row in run_queries.repeats(local, run, 9, held_out=True, same=same).to_pylist()] == ["a"]
    assert run_queries.repeats(local, run, 1, held_out=False, same=same).num_rows == 1


def test_diff_of_two_rounds(local: Store) -> None:
    run = coloured(local)
    rows = run_queries.diff(local, (run, 1), (run, 2), (JUDGES, JUDGES), held_out=False).to_pylist()
    told = [
        tuple(row[name] for name in ("prompt_id", "there", "score_a", "score_b", "change", "preference"))
        for row in rows
    ]
    assert told == [
        ("p1", "both", 0.5, 2.0, 1.5, "reversed"), ("p2", "gone", 2.5, None, None, None),
        ("p3", "new", None, 1.0, None, None),
    ]  # fmt: skip
    assert (rows[0]["answer_a"], rows[0]["answer_b"], rows[0]["prompt"]) == ("blue", "red", "say p1")
    assert rows[2]["answer_b"] == "black", "an answer without a score is never the best"


def test_diff_of_two_runs_and_with_oneself(local: Store) -> None:
    run, other = coloured(local), coloured(local, "others")
    (row,) = run_queries.diff(local, (run, 0), (other, 2), (JUDGES, JUDGES), held_out=True).to_pylist()
    assert (row["change"], row["answer_a"], row["answer_b"], row["preference"]) == (1.0, "a", "b", None)
    same = run_queries.diff(local, (run, 1), (run, 1), (JUDGES, JUDGES), held_out=False)
    assert same["preference"].to_pylist() == ["same", "same"]
    assert same["change"].to_pylist() == [0.0, 0.0]


def test_what_is_not_there_is_said(local: Store) -> None:
    run = coloured(local, rounds=0)
    with pytest.raises(NotCommittedError, match="run 'colours' has no preferences"):
        run_queries.margins(local, run, 3)
    with pytest.raises(NotCommittedError, match="round 0 of run 'colours' has no candidates"):
        run_queries.diff(local, (run, 0), (run, 0), (JUDGES, JUDGES), held_out=False)


def test_sql_sees_every_table_and_the_rounds(local: Store) -> None:
    run = coloured(local)
    assert select(local, run, "select round, reward, seconds.sample s, note from rounds order by 1").to_pylist() == [
        {"round": number, "reward": number / 2, "s": 1.5, "note": "new" if number == 2 else None} for number in range(3)
    ]
    joined = "select r.round, count(*) n from rounds r join eval_judgments j using (round) group by 1 order by 1"
    assert select(local, run, joined)["n"].to_pylist() == [2, 2, 2]
    assert select(local, run, 'SELECT count(*) n FROM "CANDIDATES" where Round = 2')["n"].to_pylist() == [4]
    assert rounds_table(local.create_run("empty", {})).num_rows == 0
    with pytest.raises(QueryError) as caught:
        select(local, run, "select nope from candidates")
    for line in ("  candidates: round, prompt_id, candidate, token_ids", "  rounds: round, finished, dropped, judge"):
        assert line in str(caught.value)
    assert select(local, local.run("empty"), "select 1 as one").to_pylist() == [{"one": 1}]


def test_a_flipped_bit_is_found_by_who_reads_its_page_and_only_then(local: Store) -> None:
    """A column that is read is checked; one that is not read is not looked at; a verified read looks at all."""
    run = coloured(local)
    (file,) = run.files(1, "candidates")
    path = local.objects.local_path(file.path)
    assert isinstance(path, Path)
    chunk = open_table(local, file).metadata.row_group(0).column(3)
    assert chunk.path_in_schema == "text"
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start + chunk.total_compressed_size - 1] ^= 1  # the last byte of the text's last page
    path.write_bytes(data)
    assert round_tables.query(local, run, 1, table="candidates", columns=["prompt_id"]).num_rows == 4
    assert read_table(local, [file], ["prompt_id"], verify=False).num_rows == 4
    for read in (
        lambda: round_tables.query(local, run, 1, table="candidates"),
        lambda: round_tables.query(local, run, 1, table="candidates", where="text = 'red'"),
        lambda: select(local, run, "select max(text) from candidates"),
        lambda: run_queries.repeats(local, run, 3, held_out=False),
        lambda: read_table(local, [file], ["text"], verify=False),
        lambda: read_table(local, [file], ["prompt_id"]),
        lambda: table_of(local, run, 1, "candidates"),
    ):
        with pytest.raises(DamagedFileError):
            read()

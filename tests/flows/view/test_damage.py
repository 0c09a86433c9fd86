"""A run with one damaged shard: what pages leave out and say, and which of them cannot be shown."""

import html
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from flows.report.report import write_report
from flows.view.app import make_app
from flows.view.security import Guard
from flows.view.site import Site
from flows.view.stored_rows import table_of
from flows.view.tables import TEXT
from pipeline.records import PREFERENCE_LOGPS, to_table
from storage.errors import DamagedFileError
from storage.log.manifest import Key
from storage.log.store import Store
from storage.tables.shards import write_table
from support.finished_run import commit, finished_run


def flip(store: Store, path: str, column: str) -> None:
    """Flips a byte in the middle of a column's only page."""
    file = Path(store.root) / path
    group = pq.ParquetFile(file).metadata.row_group(0)
    (found,) = (group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == column)
    data = bytearray(file.read_bytes())
    data[found.data_page_offset + found.total_compressed_size // 2] ^= 4
    file.write_bytes(data)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path)
    finished_run(store)
    return store


@pytest.fixture
def visitor(store: Store) -> TestClient:
    return TestClient(make_app(Site(store), Guard("127.0.0.1")), base_url="http://127.0.0.1")


def said(visitor: TestClient, path: str) -> tuple[int, str]:
    answer = visitor.get(path)
    return answer.status_code, " ".join(html.unescape(re.sub(r"<[^>]*>", "", answer.text)).split())


def test_a_flipped_byte_in_a_shard_of_completions_leaves_its_rows_out_and_says_so(
    store: Store, visitor: TestClient
) -> None:
    """Of 3 rounds with 12 completions for training each, those of round 2 cannot be read."""
    path = store.run("small").files(2, "candidates")[0].path
    flip(store, path, "text")
    for page in ("/run/small/completions?kind=training", "/run/small/round/3", "/run/small", "/run/small/judges"):
        status, text = said(visitor, page)
        assert status == 200, page
        assert "Not all of small is shown" in text
        assert path in text
        assert "rondo verify small" in text
    status, text = said(visitor, "/run/small/completions?kind=training")
    assert "24 fit" in text
    assert " answer 1 to t0 in round 3" in text
    assert " answer 1 to t0 in round 2" not in text
    status, text = said(visitor, "/run/small/prompt/t0?round=2&kind=training")
    assert (status, path in text, "rondo verify small" in text) == (404, True, True), "nothing is left to show"
    status, text = said(visitor, "/run/small/tokens/2/training/t0/0")
    assert (status, path in text, "rondo verify small" in text) == (500, True, True), "they are in that file alone"
    assert said(visitor, "/run/small/prompt/t0?round=3&kind=training")[0] == 200
    assert said(visitor, "/run/small/tokens/3/training/t0/0")[0] == 200
    assert said(visitor, "/")[0] == 200
    other = finished_run(store, "whole")
    assert "Not all" not in said(visitor, f"/run/{other.name}/completions")[1]


def test_a_flipped_byte_in_what_charts_show_leaves_that_round_out_of_them(store: Store, visitor: TestClient) -> None:
    path = store.run("small").files(2, "metrics")[0].path
    flip(store, path, "loss")
    status, text = said(visitor, "/run/small")
    assert status == 200
    assert path in text
    assert "Gradient norm" in text, "of the other rounds"
    with pytest.raises(DamagedFileError, match="metrics"):
        write_report(store, store.run("small"))


def test_what_was_measured_of_an_update_closes_no_page_if_its_file_is_damaged(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    nothing = dict.fromkeys(PREFERENCE_LOGPS.names)
    row = {**nothing, "prompt_id": "t0", "candidates": [3, 0], "reference": [-3.0, -3.0], "after": [-2.0, -4.0]}
    table = to_table([{**row, "loss_after": 0.5}], PREFERENCE_LOGPS)
    run = finished_run(
        store, also=lambda writer, round: round and commit(store, writer, "small", round, "preference_logps", table)
    )
    visitor = TestClient(make_app(Site(store), Guard("127.0.0.1")), base_url="http://127.0.0.1")
    path = run.files(2, "preference_logps")[0].path
    file = tmp_path / path
    file.write_bytes(file.read_bytes()[:-9])
    for page in ("/run/small/prompt/t0?round=2&kind=training", "/run/small/tokens/2/training/t0/0"):
        answer = visitor.get(page)
        assert answer.status_code == 200
        assert answer.text.count(path) == 1
        assert "rondo verify small" in answer.text
        assert "not measured" in answer.text
    assert "reference of each token is not measured: the file with what was measured is damaged." in answer.text
    _, text = said(visitor, "/run/small/prompt/t0?round=2&kind=training")
    assert "What this round measured of its preferences after its update is in a damaged file, and left out" in text
    assert "Which preferences were measured is in a damaged file." in text
    assert "at most a few" not in text
    assert "The loss of a single preference is not measured" not in text
    whole = visitor.get("/run/small/prompt/t0?round=3&kind=training").text
    assert "loss after" in whole


def test_of_several_files_of_a_table_the_damaged_one_is_named(store: Store) -> None:
    """Two shards of one stage, of which the second is cut short: the rows of the first alone would not be all."""
    run, paths = store.run("small"), []
    with run.writer() as writer:
        for shard in (0, 1):
            file = write_table(store, "small", 4, "preference_logps", to_table([], PREFERENCE_LOGPS), shard)
            writer.commit(Key(4, "preference_logps", shard), [file])
            paths.append(file.path)
    damaged = Path(store.root) / paths[1]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    opened = Site(store).run("small")
    assert table_of(opened, 4, "preference_logps") is None
    (sentence,) = opened.damages
    assert paths[1] in sentence
    assert paths[0] not in sentence
    assert table_of(opened, 4, "nothing") == []


def test_steps_in_a_damaged_file_are_not_said_to_be_unmeasured(store: Store, visitor: TestClient) -> None:
    flip(store, store.run("small").files(2, "metrics")[0].path, "loss")
    status, text = said(visitor, "/run/small/prompt/t0?round=2&kind=training")
    assert status == 200
    assert "The steps of the round are in a damaged file." in text
    assert "The steps of the round are not measured" not in text


def test_texts_have_no_limit_of_two_gigabytes(store: Store) -> None:
    """Arrow's plain strings count bytes with 32 bits; these are counted with 64 wherever they are joined."""
    opened = Site(store).run("small")
    tables = opened.tables._tables
    assert pa.types.is_large_string(TEXT)
    for table, columns in {"completions": ("text", "answer"), "answers": ("text",), "prompts": ("question",)}.items():
        assert {tables[table].schema.field(column).type for column in columns} == {TEXT}


def test_what_was_mended_is_no_longer_said(store: Store, visitor: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.run("small").files(2, "metrics")[0].path
    intact = (Path(store.root) / path).read_bytes()
    flip(store, path, "loss")
    assert path in said(visitor, "/run/small")[1]
    (Path(store.root) / path).write_bytes(intact)
    monkeypatch.setattr("flows.view.site.AGAIN_SECONDS", 0.0)
    assert path not in said(visitor, "/run/small/round/3")[1]

"""Texts that UTF-8 cannot hold, at the border where they enter the store."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.remote.dispatcher import describe
from pipeline.errors import JudgeError
from pipeline.judges.base import Judgment
from pipeline.judges.support.tables import judgments_table
from pipeline.records import storable


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("cut \ud83d here", "cut \ufffd here"),
        ("\ude00", "\ufffd"),
        ("\ud83d\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),  # two halves that belong together
        ("plain é \0 \u2028 \U0001f600", "plain é \0 \u2028 \U0001f600"),
    ],
)
def test_lone_surrogates_are_replaced(text: str, stored: str) -> None:
    assert storable(text) == stored
    assert storable({text: [text, 1, None, (text,)]}) == {stored: [stored, 1, None, [stored]]}


def test_replies_rationales_and_components_reach_the_table() -> None:
    judgment = Judgment(
        prompt_id="p", candidate=0, score=1.0, components={"a\ud83d": 0.5}, rationale="because \ud83d",
        judge="own", judge_version="1", latency=0.0, raw='{"score": 1} \udc00',
    )  # fmt: skip
    table = judgments_table([judgment])
    (row,) = table.to_pylist()
    assert (row["rationale"], row["raw"]) == ("because \ufffd", '{"score": 1} \ufffd')
    assert row["components"] == [{"name": "a\ufffd", "value": 0.5}]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    assert pq.read_table(pa.BufferReader(sink.getvalue())).to_pylist() == [row]


def test_an_error_that_travels_from_a_worker_can_be_encoded() -> None:
    assert describe(JudgeError("it said \ud83d")) == {"kind": "JudgeError", "message": "it said \ufffd"}
    assert describe(ValueError("\udc00"))["message"].encode() == "\ufffd".encode()

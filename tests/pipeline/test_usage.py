"""What a language model's replies took: counted once, measured or not, and no part of what a judge says.

The scripted endpoint states 90 tokens read and 10 written for each reply.
"""

import json
from dataclasses import replace
from typing import Any

import pytest

from pipeline.judges import JudgedCandidate, JudgeItem, Judgment, make_judge
from pipeline.judges.ensemble import EnsembleConfig
from pipeline.judges.llm import LlmConfig
from pipeline.judges.support.tables import judgments_table
from pipeline.records import ASKED_JUDGMENTS, JUDGMENTS
from pipeline.usage import Usage, by_judge, total, usage_in
from support.chat_server import Response, Script, chat_server, says

RUBRIC = {"kind": "rubric", "score": "parsed"}
PRICE = {"input": 2.0, "output": 5.0}
ONE = (90 * 2.0 + 10 * 5.0) / 1e6
"""What a reply costs at this price."""


class Kept(dict[str, dict[str, Any]]):
    """A cache in memory."""

    def put(self, key: str, value: dict[str, Any]) -> None:
        self.setdefault(key, json.loads(json.dumps(value)))


def item(*answers: str) -> JudgeItem:
    candidates = [JudgedCandidate(index=k, text=text, finish_reason="stop") for k, text in enumerate(answers)]
    return JudgeItem(prompt_id="p", prompt_text="p", candidates=candidates)


def config(url: str, mode: Any = RUBRIC, **more: Any) -> LlmConfig:
    given = {"kind": "llm", "model": "m", "base_url": url, "mode": mode, "retries": 0, "price_per_million": PRICE}
    return LlmConfig.model_validate({**given, **more})


def judged(script: Script, asked: JudgeItem, mode: Any = RUBRIC, cache: Any = None, **more: Any) -> list[Judgment]:
    with chat_server(script) as served:
        return make_judge(config(served.url, mode, **more), cache=cache).judge([asked])


def paid(replies: float, share: float = 1.0) -> Usage:
    """So many replies, all asked for anew, of each of which a completion has this share."""
    n = replies * share
    tokens = {"tokens_in": 90 * n, "tokens_out": 10 * n, "paid_tokens_in": 90 * n, "paid_tokens_out": 10 * n}
    return Usage(replies=n, cost=pytest.approx(ONE * n), **tokens)


def score(*_: Any) -> Response:
    return says('{"score": 4}')


def unstated(fields: Any) -> Script:
    """An endpoint whose replies have this for a usage."""

    def script(*_: Any) -> Response:
        return Response(json.dumps({**json.loads(score().body), "usage": fields}).encode())

    return script


def test_a_reply_is_paid_for_once() -> None:
    """Of four completions two are the same: three requests, and the fourth has what the first was given."""
    kept = Kept()
    with chat_server(score) as served:
        judge = make_judge(config(served.url), cache=kept)
        first, again = judge.judge([item("a", "b", "a", "c")]), judge.judge([item("a", "b", "a", "c")])
        assert len(served.bodies) == 3
    same = Usage(replies=1, replies_cached=1, tokens_in=90, tokens_out=10)
    assert [judgment.usage for judgment in first] == [paid(1), paid(1), same, paid(1)]
    assert [judgment.usage for judgment in again] == [same] * 4
    assert total(judgment.usage for judgment in first if judgment.usage) == Usage(
        replies=4, replies_cached=1, tokens_in=360, tokens_out=40, paid_tokens_in=270, paid_tokens_out=30,
        cost=pytest.approx(3 * ONE),
    )  # fmt: skip
    # All else is the same to the bit, the time included: what is asked for anew decides nothing.
    assert [replace(judgment, usage=None) for judgment in first] == [
        replace(judgment, usage=None) for judgment in again
    ]


def test_what_several_share_adds_up_to_what_was_asked() -> None:
    """Three completions: three pairs in two orders are six replies, of which each has two pairs' half, which is two.

    Two shuffles of four completions are two replies, of which each has a quarter.
    """
    pairs = judged(lambda *_: says('{"winner": "A"}'), item("a", "b", "c"), "pairwise")
    assert [judgment.usage for judgment in pairs] == [paid(4, 1 / 2)] * 3
    order = json.dumps({"ranking": [1, 2, 3, 4]})
    lists = judged(lambda *_: says(order), item("a", "b", "c", "d"), {"kind": "listwise", "shuffles": 2})
    assert [judgment.usage for judgment in lists] == [paid(2, 1 / 4)] * 4


def test_replies_that_cannot_be_read_are_paid_for_too_and_no_question_costs_nothing() -> None:
    (unread,) = judged(lambda *_: says("well"), item("a"))
    assert (unread.status, unread.usage) == ("unparsable", paid(2))
    (alone,) = judged(score, item("a"), "pairwise")
    assert (alone.status, alone.usage) == ("alone", Usage())
    equal = judged(score, item("a", "a"), "pairwise")  # two equal texts are a tie without a question
    assert [judgment.usage for judgment in equal] == [Usage(), Usage()]


@pytest.mark.parametrize("fields", [None, {}, {"total_tokens": 100}, {"prompt_tokens": "90", "completion_tokens": -1}])
def test_tokens_that_the_endpoint_does_not_state_are_not_zero(fields: Any) -> None:
    (judgment,) = judged(unstated(fields), item("a"))
    assert judgment.score == 4.0
    assert judgment.usage == Usage(
        replies=1, tokens_in=None, tokens_out=None, paid_tokens_in=None, paid_tokens_out=None, cost=None
    )
    assert total([paid(1), judgment.usage]).paid_tokens_in is None
    assert total([paid(1), judgment.usage]).replies == 2


def test_a_reply_that_an_earlier_version_kept_has_no_numbers_of_tokens() -> None:
    kept = Kept()
    with chat_server(score) as served:
        judge = make_judge(config(served.url), cache=kept)
        judge.judge([item("a")])
        for value in kept.values():
            del value["tokens_in"], value["tokens_out"]
        (judgment,) = judge.judge([item("a")])
    assert judgment.usage == Usage(replies=1, replies_cached=1, tokens_in=None, tokens_out=None)


def test_without_a_price_only_what_is_kept_costs_nothing() -> None:
    kept = Kept()
    with chat_server(score) as served:
        judge = make_judge(config(served.url, price_per_million=None), cache=kept)
        found = [judge.judge([item("a")])[0].usage for _ in range(2)]
    assert [usage and usage.cost for usage in found] == [None, 0.0]


def test_a_price_is_no_part_of_a_judge_or_of_what_it_asks() -> None:
    kept = Kept()
    with chat_server(score) as served:
        with_price, without = config(served.url), config(served.url, price_per_million=None)
        assert "price_per_million" not in without.hashed()
        assert with_price.scoring() == without.scoring()
        first, second = make_judge(with_price, cache=kept), make_judge(without, cache=kept)
        assert first.version == second.version
        first.judge([item("a")])
        second.judge([item("a")])
        assert len(served.bodies) == 1


def test_an_ensemble_takes_what_its_members_take() -> None:
    with chat_server(score) as served:
        members = [
            {"judge": config(served.url).model_dump(mode="json")},
            {"judge": {**config(served.url).model_dump(mode="json"), "name": "other", "model": "n"}},
            {"judge": {"kind": "length", "name": "short", "limit": 9, "unit": "characters"}},
        ]
        found = make_judge(EnsembleConfig.model_validate({"kind": "ensemble", "members": members})).judge([item("a")])
        rules = [{"judge": {"kind": "length", "name": name, "limit": 9, "unit": "characters"}} for name in ("a", "b")]
        without = make_judge(EnsembleConfig.model_validate({"kind": "ensemble", "members": rules})).judge([item("a")])
    assert [judgment.usage for judgment in found] == [paid(2)]
    assert [judgment.usage for judgment in without] == [None]


def test_a_table_has_the_columns_if_a_language_model_was_asked() -> None:
    rest = {"prompt_id": "p", "candidate": 0, "score": 1.0, "judge_version": "1", "latency": 0.5}
    ruled, asked = Judgment(judge="rule", **rest), Judgment(judge="model", **rest, usage=Usage(replies=2.0))
    assert judgments_table([ruled]).schema.equals(JUDGMENTS, check_metadata=True)
    table = judgments_table([ruled, asked])
    assert table.schema.equals(ASKED_JUDGMENTS, check_metadata=True)
    assert [usage_in(row) for row in table.to_pylist()] == [None, Usage(replies=2.0)]
    assert usage_in(judgments_table([ruled]).to_pylist()[0]) is None  # as in a shard of an earlier version
    assert by_judge([("rule", None), ("model", Usage(replies=2.0)), ("model", Usage(replies=1.0))]) == {
        "model": Usage(replies=3.0)
    }

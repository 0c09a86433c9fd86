"""What judging is said to cost is what an endpoint then sees."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from pipeline.judges import JudgedCandidate, JudgeItem, make_judge
from pipeline.judges.base import JudgeConfig
from pipeline.judges.registry import AnyJudge
from pipeline.judges.support.llm_requests import RequestCounter, Requests
from support.chat_server import Response, answers_shown, chat_server, says


class Kept(dict[str, dict[str, Any]]):
    """A cache in memory."""

    def put(self, key: str, value: dict[str, Any]) -> None:
        self.setdefault(key, json.loads(json.dumps(value)))


def items(prompts: int, *answers: str) -> list[JudgeItem]:
    candidates = [JudgedCandidate(index=k, text=text, finish_reason="stop") for k, text in enumerate(answers)]
    return [JudgeItem(prompt_id=f"p{n}", prompt_text=f"prompt {n}", candidates=candidates) for n in range(prompts)]


def honest(body: dict[str, Any], _: int) -> Response:
    """Prefers the longer answer, in whichever form it is asked."""
    shown = [len(text) for text in answers_shown(body)]
    form = body["messages"][1]["content"].rpartition("Reply with one JSON object")[2]
    if '"winner"' in form:
        return says(json.dumps({"winner": "AB"[shown[1] > shown[0]]}))
    if '"ranking"' in form:
        return says(json.dumps({"ranking": sorted(range(1, len(shown) + 1), key=lambda n: -shown[n - 1])}))
    return says('{"score": 3}', {"3": 1.0})


def judge_of(content: dict[str, Any]) -> JudgeConfig:
    found: JudgeConfig = TypeAdapter(AnyJudge).validate_python(content)
    return found


def llm(url: str, mode: Any = "rubric", **more: Any) -> dict[str, Any]:
    return {"kind": "llm", "model": "m", "base_url": url, "mode": mode, "retries": 0, **more}


MODES = {
    "rubric": ("rubric", 3 * 3),
    "pairwise": ("pairwise", 3 * 3 * 2),
    "opponents": ({"kind": "pairwise", "opponents": 2}, 3 * 3 * 2),
    "listwise": ({"kind": "listwise", "shuffles": 2}, 3 * 2),
}
"""Of 3 prompts with 3 answers each: one a score; 3 pairs in both orders; an order and its reverse."""


@pytest.mark.parametrize("mode", MODES)
def test_what_is_counted_is_what_is_sent(mode: str) -> None:
    settings, expected = MODES[mode]
    kept, asked = Kept(), items(3, "one", "the second", "number three is long")
    with chat_server(honest) as served:
        config = judge_of(llm(served.url, settings))
        assert RequestCounter(kept).count(config, asked) == Requests(expected, 0)
        assert served.bodies == [], "counting asks nobody"
        make_judge(config, cache=kept).judge(asked[:1])
        part = len(served.bodies)
        assert part == expected // 3
        assert RequestCounter(kept).count(config, asked) == Requests(expected - part, part)
        make_judge(config, cache=kept).judge(asked)
        assert len(served.bodies) == expected
        assert RequestCounter(kept).count(config, asked) == Requests(0, expected)


def test_equal_answers_are_asked_about_once_or_not_at_all() -> None:
    kept, asked = Kept(), items(1, "same", "same", "other")
    with chat_server(honest) as served:
        rubric, pairwise = judge_of(llm(served.url)), judge_of(llm(served.url, "pairwise"))
        counter = RequestCounter(kept)
        assert counter.count(rubric, asked) == Requests(2, 0)
        assert counter.count(rubric, asked) == Requests(0, 0), "what it has met counts no more"
        make_judge(rubric, cache=kept).judge(asked)
        assert len(served.bodies) == 2
        found = RequestCounter(kept).count(pairwise, asked)
        make_judge(pairwise, cache=kept).judge(asked)
        assert found == Requests(len(served.bodies) - 2, 0)


def test_a_reply_that_could_not_be_read_is_followed_by_its_second_request() -> None:
    """The first replies are kept and unreadable; of the second requests one was answered already."""
    kept, asked = Kept(), items(2, "one")
    with chat_server(
        lambda _body, number: says("no idea") if number != 1 else says('{"score": 3}', {"3": 1.0})
    ) as served:
        config = judge_of(llm(served.url))
        make_judge(config, cache=kept).judge(asked[:1])
        assert len(served.bodies) == 2
        first = RequestCounter(kept).count(config, asked)
        assert first == Requests(1, 2), "the second prompt is new; the first one's two requests are kept"


def test_members_are_asked_as_the_judge_that_is_made_of_them_asks() -> None:
    kept, asked = Kept(), items(2, "a", "bb")
    with chat_server(honest) as served:
        members = [{"judge": llm(served.url, name=name, criteria=f"Be {name}.")} for name in ("kind", "strict")]
        members.append({"judge": {"kind": "length", "limit": 3, "unit": "characters"}})
        config = judge_of({"kind": "noisy", "judge": {"kind": "ensemble", "members": members}})
        assert RequestCounter(kept).count(config, asked) == Requests(2 * 2 * 2, 0)
        make_judge(config, cache=kept).judge(asked)
        assert len(served.bodies) == 8


def test_a_judge_that_asks_nobody_costs_nothing() -> None:
    assert RequestCounter(Kept()).count(judge_of({"kind": "vader"}), items(1, "x")) is None


def test_the_thought_is_shown_to_those_who_see_it() -> None:
    """What an outer judge sees, its members see too: their requests are others."""
    thinking = JudgedCandidate(index=0, text="answer", finish_reason="stop", completion="thought, answer")
    asked = [JudgeItem(prompt_id="p", prompt_text="p", candidates=[thinking])]
    kept = Kept()
    with chat_server(honest) as served:
        for outer, inner in ((True, False), (False, True), (False, False)):
            length = {"kind": "length", "limit": 3, "unit": "characters"}
            members = [{"judge": llm(served.url, sees_thought=inner)}, {"judge": length}]
            config = judge_of({"kind": "ensemble", "members": members, "sees_thought": outer})
            found, before = RequestCounter(kept).count(config, asked), len(served.bodies)
            seen = [JudgeItem(prompt_id="p", prompt_text="p", candidates=[thinking.with_thought])] if outer else asked
            make_judge(config, cache=kept).judge(seen)
            assert found is not None
            assert found.new == len(served.bodies) - before
    assert [answers_shown(body) for body in served.bodies] == [["thought, answer"], ["answer"]]

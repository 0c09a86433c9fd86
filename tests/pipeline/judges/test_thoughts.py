"""What judges see of a policy that thinks: the answer, or the whole completion if they ask for it."""

from typing import Any

import pytest

from pipeline.judges import JudgedCandidate, JudgeItem, make_judge
from pipeline.judges.base import JudgeConfig, judge_version, seen_by
from pipeline.judges.ensemble import EnsembleConfig
from pipeline.judges.implicit import _group
from pipeline.judges.length import LengthConfig
from pipeline.judges.noisy import NoisyConfig
from pipeline.judges.support.human_labels import questions_of_candidates
from pipeline.judges.support.tables import judge_items
from pipeline.records import CANDIDATES, PROMPTS, THINKING_CANDIDATES, to_table

LENGTH: dict[str, Any] = {"kind": "length", "target": 1}
WHOLE: dict[str, Any] = {**LENGTH, "sees_thought": True}

# An answer after a thought, one without, a thought that was cut, and one that ended at the very end.
COMPLETIONS = [
    ([8, 10, 11, 9, 12, 2], "<think> w0 w1 </think> w2", "stop", 4, "w2"),
    ([12, 13, 2], "w2 w3", "stop", None, None),
    ([8, 10, 11], "<think> w0 w1", "length", 3, None),
    ([8, 10, 9], "<think> w0 </think>", "length", 3, ""),
]


def items(*, thinks: bool = True) -> list[JudgeItem]:
    prompt = {
        "prompt_id": "p", "text": "ask", "messages": None, "token_ids": [1], "source": "test",
        "reference_answer": None, "split": "train",
    }  # fmt: skip
    rows = [
        {"prompt_id": "p", "candidate": k, "token_ids": ids, "text": text, "logprobs": [-1.0] * len(ids),
         "finish_reason": reason, "seed": k, "policy": "x",
         **({"thought_tokens": thought, "answer": answer} if thinks else {})}
        for k, (ids, text, reason, thought, answer) in enumerate(COMPLETIONS)
    ]  # fmt: skip
    return judge_items(to_table([prompt], PROMPTS), to_table(rows, THINKING_CANDIDATES if thinks else CANDIDATES))


def seen(found: list[JudgeItem]) -> list[tuple[str, int | None, str]]:
    return [(answer.text, answer.tokens, answer.finish_reason) for answer in found[0].candidates]


def test_the_answer_alone_is_judged_and_a_thought_without_end_as_empty() -> None:
    assert seen(items()) == [("w2", 2, "stop"), ("w2 w3", 3, "stop"), ("", 0, "length"), ("", 0, "length")]
    whole = [(text, len(ids), reason) for ids, text, reason, _, _ in COMPLETIONS]
    assert seen(items(thinks=False)) == whole
    config = LengthConfig.model_validate(WHOLE)
    assert seen(list(seen_by(config, items()))) == whole
    assert seen_by(LengthConfig.model_validate(LENGTH), items()) == items()


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        ({"kind": "ensemble", "members": [{"judge": {**LENGTH, "name": "a"}}, {"judge": {**WHOLE, "name": "b"}}]},
         {"a.length": [2, 3, 0, 0], "b.length": [6, 3, 3, 3]}),
        ({"kind": "noisy", "judge": LENGTH}, {"length": [2, 3, 0, 0]}),
        ({"kind": "noisy", "judge": WHOLE}, {"length": [6, 3, 3, 3]}),
    ],
)  # fmt: skip
def test_judges_within_judges_see_what_they_ask_for(config: dict[str, Any], lengths: dict[str, list[int]]) -> None:
    kind: type[JudgeConfig] = EnsembleConfig if config["kind"] == "ensemble" else NoisyConfig
    judgments = make_judge(kind.model_validate(config)).judge(items())
    for name, expected in lengths.items():
        assert [judgment.components[name] for judgment in judgments] == expected


def test_the_implicit_judge_reads_the_whole_completion() -> None:
    (item,) = items()
    assert list(_group(item).candidate_token_ids) == [ids for ids, *_ in COMPLETIONS]


def test_people_are_asked_about_answers_that_differ() -> None:
    """An empty answer is no question, nor are two thoughts before one answer."""
    twice = JudgedCandidate(index=9, text="w2", finish_reason="stop", completion="<think> w7 </think> w2")
    (item,) = items()
    asked = JudgeItem(prompt_id="p", prompt_text="ask", candidates=[*item.candidates, twice])
    questions = questions_of_candidates([asked], pairs=9, seed=0)
    assert [{answer.text for answer in question.answers} for question in questions] == [{"w2", "w2 w3"}]


def test_hashes_and_versions_of_judges_that_see_answers_stay() -> None:
    plain, whole = LengthConfig.model_validate(LENGTH), LengthConfig.model_validate(WHOLE)
    assert "sees_thought" not in plain.hashed()
    assert judge_version(plain) != judge_version(whole)

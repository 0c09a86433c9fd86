"""The verdict in what a model writes: found wherever it surely is, and never guessed."""

import pytest

from pipeline.judges.support.llm_objects import last_object, whole_number

THOUGHT = 'A first look: {"score": 1}. But {no}, it is better.'


@pytest.mark.parametrize(
    "reply",
    [
        '{"score": 4}',
        ' \n{"score": 4}\n',
        '```json {"score": 4}```',
        '```json\n{"score": 4}\n```',
        '```\n{"score": 4}\n``` That is all [1].',
        'The answer is good. {"score": 2}\nNo: {"score": 4} is my verdict, by the rule \\boxed{4}.',
        f'<think>{THOUGHT}</think>{{"score": 4}}',
        f'{THOUGHT}</think>\n\n{{"score": 4}}',  # templates that write the first mark themselves
        f'<thinking>{THOUGHT}</thinking>{{"score": 4}}',
        f'[THINK]{THOUGHT}[/THINK]{{"score": 4}}',
        f'<|START_THINKING|>{THOUGHT}<|END_THINKING|>{{"score": 4}}',
        f'<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{{"score": 4}}',
        '{"rationale": "it says </think> and [THINK] and {", "score": 4}',
        '[1] He says {"score": 4}',
    ],
)
def test_the_last_object_after_the_reasoning(reply: str) -> None:
    found = last_object(reply)
    assert found is not None
    assert found.value["score"] == 4
    assert found.after("score").startswith("4}")


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "4",
        "score: 4",
        f"<think>{THOUGHT}",  # cut off: drafts are no verdicts
        f"[THINK]{THOUGHT}",
        '{"score": 4} Or rather {"score": ',  # another one had begun
        '{"rationale": "a "quoted" word", "score": 4, "parts": {"score": 2}}',  # of a whole that is broken
        '{"rationale": "a "quoted" word", "parts": {"score": 2}, "sco',
        '[{"score": 2}, {"score": 4}]',
        "{'score': 4}",
        '{"score": 4, "score": 5}',
        '{"a":' * 100_000,
        "[" * 100_000,
        "{" * 100_000 + '{"score": 4}',
    ],
)
def test_what_is_not_surely_a_verdict(reply: str) -> None:
    assert last_object(reply) is None


@pytest.mark.parametrize("value", [4, 4.0, "4", " 4.0 ", "4.", "+4"])
def test_whole_numbers_in_any_form(value: object) -> None:
    assert whole_number(value) == 4


@pytest.mark.parametrize("value", [True, None, 4.5, "4.5", "four", "4/5", "", float("nan"), float("inf"), [4], "4e0"])
def test_what_is_no_whole_number(value: object) -> None:
    assert whole_number(value) is None

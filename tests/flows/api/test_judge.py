"""The decorator that marks a function as a judge."""

import sys
from pathlib import Path
from typing import Any

import pytest

from flows import api
from pipeline.errors import ConfigError
from pipeline.judges import JudgedCandidate, JudgeItem, make_judge
from pipeline.judges.python_function import PythonConfig
from support.finished_run import small_recipe

CALL = {"prompt": "p", "messages": None, "reference_answer": None, "answer": "please", "finish_reason": "stop"}
MODULE = """
from flows import api as rondo

@rondo.judge
def polite(prompt, answer, weight=1.0):
    return weight * answer.count("please")
"""


def test_it_takes_the_keywords_that_the_function_names() -> None:
    def short(answer: str) -> float:
        return float(len(answer))

    def all_of_them(**keywords: Any) -> float:
        return float(len(keywords))

    def some(*, answer: str, prompt: str, weight: float = 2.0) -> float:
        return weight * len(answer + prompt)

    made = [api.JudgeFunction(function) for function in (short, all_of_them, some)]
    assert [function(**CALL) for function in made] == [6, 5, 14]
    assert made[2](**CALL, weight=1.0) == 7
    with pytest.raises(TypeError, match="unexpected keyword argument 'bias'"):
        made[0](**CALL, bias=1)  # an option of the recipe that the function does not have


class _Holder:
    def method(self, answer: str) -> float:
        return 0.0


async def _later(answer: str) -> float:
    return 0.0


def _steps(answer: str) -> Any:
    yield 0.0


def _positional(answer: str, /) -> float:
    return 0.0


def _many(*answer: str) -> float:
    return 0.0


def _blind(prompt: str) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (_Holder.method, "must be a function of a module"), (lambda answer: 0.0, "must be a function of a module"),
        (_later, "has to return its score"), (_steps, "has to return its score"),
        (_positional, "called by keyword"), (_many, "called by keyword"), (_blind, "does not take 'answer'"),
    ],
)  # fmt: skip
def test_what_could_not_be_called_is_refused_at_import(function: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        api.judge(function)


def test_a_recipe_takes_it_and_the_judge_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_judges.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import my_judges  # type: ignore[import-not-found]

    monkeypatch.setitem(sys.modules, "my_judges", my_judges)
    config = my_judges.polite.config(name="polite", weight=3.0)
    assert config == PythonConfig(kind="python", function="my_judges:polite", name="polite", options={"weight": 3.0})
    assert small_recipe(judge=config).judge == config
    candidate = JudgedCandidate(index=0, text="please, please", finish_reason="stop", tokens=2, token_ids=[1, 2])
    item = JudgeItem(
        prompt_id="t0", prompt_text="p", messages=None, prompt_token_ids=[1], reference_answer=None,
        candidates=[candidate],
    )  # fmt: skip
    judged = make_judge(config)
    assert judged.judge([item])[0].score == 6.0
    version = judged.version
    (tmp_path / "my_judges.py").write_text(MODULE + "# edited\n")
    assert make_judge(config).version != version, "an edited judge is another judge"


def test_a_function_of_the_script_itself_is_no_judge_of_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blind, "__module__", "__main__")
    with pytest.raises(ConfigError, match="move it to a module of its own"):
        api.JudgeFunction(_blind).config()

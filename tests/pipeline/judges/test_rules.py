"""Judges by rules and verifiers: what they say of right, wrong, hostile and empty answers."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.errors import JudgeError
from pipeline.judges import JudgedCandidate, JudgeItem, Judgment, make_judge
from pipeline.judges.base import last_block
from pipeline.judges.characters import CharactersConfig
from pipeline.judges.instructions import InstructionsConfig
from pipeline.judges.json_schema import JsonSchemaConfig
from pipeline.judges.length import LengthConfig
from pipeline.judges.mathematics import MathConfig
from pipeline.judges.mentions import MentionsConfig
from pipeline.judges.pattern import RegexConfig
from pipeline.judges.python_function import PythonConfig


def item(*answers: str, reference: str | None = None, tokens: int | None = None) -> JudgeItem:
    candidates = [
        JudgedCandidate(index=k, text=text, finish_reason="stop", tokens=tokens) for k, text in enumerate(answers)
    ]
    return JudgeItem(prompt_id="p", prompt_text="p", reference_answer=reference, candidates=candidates)


def scores(judgments: list[Judgment]) -> list[float | None]:
    return [judgment.score for judgment in judgments]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"pattern": r"yes\b"}, [1, 1, 0, 0, 0]),
        ({"pattern": r"yes\b", "ignore_case": True}, [1, 1, 1, 0, 0]),
        ({"pattern": "yes", "whole": True}, [1, 0, 0, 0, 0]),
        ({"pattern": "yes.and no", "dot_all": True}, [0, 1, 0, 0, 0]),
        ({"pattern": "^$"}, [0, 0, 0, 0, 1]),
    ],
)
def test_a_pattern_is_found_or_not(settings: dict[str, Any], found: list[float]) -> None:
    judge = make_judge(RegexConfig(kind="regex", **settings))
    assert scores(judge.judge([item(" yes\n", "yes\nand no", "YES!", "yesterday", "")])) == found


def test_a_pattern_that_would_search_for_ever_is_ended() -> None:
    # The ways to write 60 letters as ones and twos are the 61st Fibonacci number, 2.5e12: all of them are tried.
    judge = make_judge(RegexConfig(kind="regex", pattern="^(a|aa)+$", timeout_seconds=0.1))
    start = time.perf_counter()
    hard, easy = judge.judge([item("a" * 60 + "b", "aa")])
    assert time.perf_counter() - start < 5  # 0.1 s on an idle machine
    assert (hard.status, hard.score, easy.score) == ("timed_out", None, 1.0)
    assert hard.rationale == "the pattern was still searching after 0.1 s"


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0}, "id": {"type": "string", "pattern": "^(a|aa)+$"}},
    "patternProperties": {"^x_": {"type": "null"}},
    "required": ["n"],
}


def test_json_is_what_its_schema_says() -> None:
    judge = make_judge(JsonSchemaConfig(kind="json_schema", definition=SCHEMA, timeout_seconds=0.1))
    endless = json.dumps({"n": 1, "id": "a" * 60 + "b"})
    answers = ('{"n": 1}', ' {"n": 1, "x_a": null} ', '{"n": -1}', '{"n": 1, "x_a": 2}', '{"n": 1} ok', '{"n": NaN}',
               "", endless, "[" * 100_000)  # fmt: skip
    judgments = judge.judge([item(*answers)])
    assert scores(judgments) == [1, 1, 0, 0, 0, 0, 0, None, 0]
    assert judgments[2].rationale == "$.n: -1 is less than the minimum of 0"
    assert judgments[2].components == {"parses": 1.0}
    assert judgments[5].components == {"parses": 0.0}
    assert judgments[7].status == "timed_out"


FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"$ref": "#/$defs/text"},
        "score": {"type": "integer"},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/text"}, "minItems": 2},
        "note": {"$ref": "#/$defs/text"},
    },
    "required": ["name", "score", "tags"],
    "additionalProperties": False,
    "$defs": {"text": {"type": "string"}},
}


@pytest.mark.parametrize(
    ("answer", "credit", "keys"),
    [
        # Right: 1, whatever the credit.
        ('{"name": "a", "score": 1, "tags": ["x", "y"]}', None, 1),
        ('\n{"tags": ["x", "y"], "score": 1, "name": "a", "note": "b"} ', None, 1),
        # An object as a whole, so f = 1: the credit times the share of three keys.
        ('{"name": "a", "score": 1, "tags": ["x", "y"], "more": 1}', 1, 1),
        ('{"name": "a", "score": 1, "tags": ["x", "y"], "note": 1}', 1, 1),  # wrong, and not required
        ('{"name": "a", "score": "1", "tags": ["x", "y"]}', 2 / 3, 2 / 3),
        ('{"name": "a", "score": 1.5, "tags": ["x", 2]}', 1 / 3, 1 / 3),
        ('{"name": "a"}', 1 / 3, 1 / 3),
        ('{"title": "a"}', 0, 0),
        ("{}", 0, 0),
        ('["name", "score", "tags"]', 0, 0),
        ("7", 0, 0),
        # An object amid other text, so f = 1/2.
        ('Sure: {"name": "a", "score": 1, "tags": ["x", "y"]}', 1 / 2, 1),
        ('```json\n{"name": "a", "score": 1}\n```', 1 / 2 * 2 / 3, 2 / 3),
        ('{} {"name": "a", "score": 1, "tags": ["x", "y"]}', 0, 0),  # the first object counts
        ('{name: text} {"name": "a"}', 1 / 2 * 1 / 3, 1 / 3),
        # No object at all.
        ('{"name": "a", "score": 1, "tags": ["x", "y"', 0, 0),
        ('{"name": NaN}', 0, 0),
        ("A name, a score and tags.", 0, 0),
        ("", 0, 0),
        ("{" * 100_000, 0, 0),
        ('{"a":' * 100_000, 0, 0),
    ],
)
def test_an_answer_that_is_nearly_right_has_a_part_of_the_credit(
    answer: str, credit: float | None, keys: float
) -> None:
    for partial in (0.5, 0.25):
        judge = make_judge(JsonSchemaConfig(kind="json_schema", definition=FORM, partial_credit=partial))
        (judgment,) = judge.judge([item(answer)])
        assert judgment.score == (1 if credit is None else pytest.approx(partial * credit, abs=1e-12))
        assert judgment.components["keys"] == pytest.approx(keys)
        assert (judgment.rationale is None) == (judgment.score == 1)
        assert judgment.score == 1 or judgment.score <= partial
    (plain,) = make_judge(JsonSchemaConfig(kind="json_schema", definition=FORM)).judge([item(answer)])
    assert plain.score == float(credit is None)
    assert plain.components.keys() == {"parses"}


def test_partial_credit_needs_required_keys_and_keeps_the_time_limit_of_patterns() -> None:
    for definition in ({"type": "object"}, {"required": []}, {"required": "id"}):
        with pytest.raises(ValidationError, match=r"partial_credit 0\.5 counts the required keys that fit"):
            JsonSchemaConfig(kind="json_schema", definition=definition, partial_credit=0.5)
    required = {**SCHEMA, "required": ["id"]}
    slow = JsonSchemaConfig(kind="json_schema", definition=required, partial_credit=0.5, timeout_seconds=0.1)
    endless = "x " + json.dumps({"n": 1, "id": "a" * 60 + "b"})
    assert make_judge(slow).judge([item(endless)])[0].status == "timed_out"


def test_partial_credit_looks_beside_a_fence_that_is_missing() -> None:
    config = JsonSchemaConfig(kind="json_schema", definition=FORM, partial_credit=0.5, fenced=True)
    whole = '{"name": "a", "score": 1, "tags": ["x", "y"]}'
    assert scores(make_judge(config).judge([item(f"```\n{whole}\n```", whole, "```\n{}\n```", "none")])) == [
        1,
        0.25,
        0,
        0,
    ]
    strict = config.model_copy(update={"partial_credit": 0.0})
    assert scores(make_judge(strict).judge([item(whole)])) == [0]
    assert make_judge(config).version != make_judge(strict).version


def test_instructions_are_followed_all_or_in_part() -> None:
    stated = json.dumps({"constraints": {"max_words": 3, "no_commas": True}})
    strict, half = (make_judge(InstructionsConfig(kind="instructions", partial_credit=credit)) for credit in (0.0, 0.5))
    asked = item("one two", "one, two", "one, two, three, four", "", reference=stated)
    assert scores(strict.judge([asked])) == [1, 0, 0, 0]
    judgments = half.judge([asked])
    # A half times the mean of: one of two commas too many is 1/2, three are 1/4, and four words for three are 3/4.
    assert scores(judgments) == [1, (1 + 1 / 2) / 4, (3 / 4 + 1 / 4) / 4, 0]
    assert judgments[1].components == {"max_words": 1.0, "no_commas": 0.5}
    assert [judgment.rationale for judgment in judgments[:3]] == [
        None, "does not hold: no_commas", "does not hold: max_words 3, no_commas",
    ]  # fmt: skip
    with pytest.raises(JudgeError, match="prompt p, for the judge instructions: the reference answer '85' states no"):
        half.judge([item("one", reference="85")])
    with pytest.raises(JudgeError, match="has no reference answer"):
        half.judge([item("one")])


def test_an_answer_mentions_what_it_should() -> None:
    judge = make_judge(MentionsConfig(kind="mentions_reference"))
    answers = ('{"name": "OLD lighthouse"}', "A lighthouse, by the sea.", "Lighthouses are older.", "")
    judgments = judge.judge([item(*answers, reference="old lighthouse, old")])
    assert scores(judgments) == [1, 0.5, 0, 0]
    assert judgments[1].rationale == "missing: old"
    about = make_judge(MentionsConfig(kind="mentions_reference", json_field="about"))
    assert scores(about.judge([item("Rivers flow.", reference='{"about": ["rivers", "lakes"]}')])) == [0.5]
    assert scores(about.judge([item("Rivers flow.", reference='{"about": "rivers"}')])) == [1]
    for reference, sentence in (("85", "is no JSON object with a text"), ('{"about": []}', "has no words")):
        with pytest.raises(JudgeError, match=sentence):
            about.judge([item("one", reference=reference)])


def test_json_in_a_block() -> None:
    judge = make_judge(JsonSchemaConfig(kind="json_schema", definition={"type": "integer"}, fenced=True))
    answers = ("```json\n1\n```", "```\n1\n```\n```json\ntrue\n```", "1", "```python\n1\n```")
    assert scores(judge.judge([item(*answers)])) == [1, 0, 0, 0]


def test_schemas_that_cannot_serve() -> None:
    with pytest.raises(JudgeError, match="is no JSON Schema"):
        make_judge(JsonSchemaConfig(kind="json_schema", definition={"type": "whole"}))
    for reference in ("https://example.org/schema.json", "file:///etc/passwd", "#/$defs/none"):
        judge = make_judge(JsonSchemaConfig(kind="json_schema", definition={"$ref": reference}))
        with pytest.raises(JudgeError, match="which is not in it"):
            judge.judge([item("1")])
    with pytest.raises(JudgeError, match=r"is no JSON Schema: '\(' is not a 'regex'"):
        make_judge(JsonSchemaConfig(kind="json_schema", definition={"pattern": "("}))


def test_blocks_between_marks() -> None:
    text = "a\n```python\nx = '''```'''\n```\nb\n  ```py title\ny\n  ```\n```\nopen"
    assert last_block(text, ("python", "py")) == "y\n"
    assert last_block(text, ("python",)) == "x = '''```'''\n"
    assert last_block(text, ("",)) is None
    assert last_block("```\r\nx\r\n```", ("",)) in (None, "x\r\n")


def test_what_is_beyond_the_length_costs_its_share() -> None:
    limit = make_judge(LengthConfig(kind="length", limit=4, unit="characters"))
    assert scores(limit.judge([item("", "1234", "12345", "12345678")])) == [0, 0, -0.25, -1]
    target = make_judge(LengthConfig(kind="length", target=4))
    assert [target.judge([item("x", tokens=n)])[0].score for n in (1, 4, 5)] == [-0.75, 0, -0.25]
    with pytest.raises(JudgeError, match="without its number of tokens"):
        target.judge([item("x")])
    for settings in ({}, {"limit": 1, "target": 1}):
        with pytest.raises(ValidationError, match="either limit or target"):
            LengthConfig(kind="length", **settings)


def test_letters_belong_to_scripts() -> None:
    judge = make_judge(CharactersConfig(kind="characters", scripts=("Latin",)))
    judgments = judge.judge([item("Naïve 123 🙂!", "да no", "你好", "42 + 1", "")])
    assert scores(judgments) == [1, 0.5, 0, 1, 1]
    assert judgments[1].components == {"letters": 4.0, "other": 2.0}
    # The long-vowel mark is common to Hiragana and Katakana, and to no other script.
    kana = make_judge(CharactersConfig(kind="characters", scripts=("Katakana", "Han")))
    assert scores(kana.judge([item("コーヒー", "漢字", "こ")])) == [1, 1, 0]
    with pytest.raises(ValidationError, match="'Elvish' is no Unicode script"):
        CharactersConfig(kind="characters", scripts=("Elvish",))


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("85", ("85", "$85$", r"so \boxed{85}", "85.0", "7+8=15, so the answer is 85"), ("75", "", "eighty-five")),
        ("1/2", (r"$\frac{1}{2}$", "0.5", r"\boxed{\frac{2}{4}}"), ("2", "$0.51$")),
        (r"\frac{\sqrt{2}}{2}", (r"$\frac{1}{\sqrt{2}}$", r"\boxed{\frac{\sqrt 2}{2}}"), (r"$\sqrt{2}$",)),
        ("$x^2+2x+1$", ("$(x+1)^2$",), ("$x^2+1$",)),
        (r"\{1,2\}", (r"$\{2,1\}$",), (r"$\{1,3\}$",)),
    ],
)
def test_mathematics_that_is_equal(reference: str, right: tuple[str, ...], wrong: tuple[str, ...]) -> None:
    judge = make_judge(MathConfig(kind="math"))
    judgments = judge.judge([item(*right, *wrong, reference=reference)])
    assert scores(judgments) == [1.0] * len(right) + [0.0] * len(wrong)


def test_mathematics_that_is_hostile_or_missing() -> None:
    judge = make_judge(MathConfig(kind="math", timeout_seconds=1))
    start = time.perf_counter()
    hard, none = judge.judge([item("$9^{9^{9^{9^{9}}}}$", "I do not know", reference="2")])
    assert time.perf_counter() - start < 10
    assert hard.score in (0.0, None)
    assert (none.score, none.components) == (0.0, {"parsed": 0.0})
    with pytest.raises(JudgeError, match="has no reference answer"):
        judge.judge([item("1")])
    with pytest.raises(
        JudgeError, match=r"has the reference answer '', in which the judge math finds no\s+mathematics"
    ):
        judge.judge([item("1", reference="")])


FUNCTIONS = """
import math

def length(*, answer, scale=1.0, **_):
    return len(answer) / scale

def picky(*, prompt, messages, reference_answer, answer, finish_reason):
    assert (prompt, messages, finish_reason) == ("p", None, "stop")
    if answer == "nan":
        return math.nan, 1.0
    if answer == "text":
        return "high"
    if answer == "negative":
        return 1.0, -1.0
    return {"right": 1.0}[answer], 0.25

constant = 3
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "judge_functions.py"
    path.write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "judge_functions", raising=False)
    return path


def test_a_function_of_ones_own(functions: Path) -> None:
    judge = make_judge(PythonConfig(kind="python", function="judge_functions:length", options={"scale": 2}))
    assert scores(judge.judge([item("abc", "")])) == [1.5, 0]


def test_what_a_function_raises_is_a_status(functions: Path) -> None:
    judge = make_judge(PythonConfig(kind="python", function="judge_functions:picky", gives_std=True))
    judgments = judge.judge([item("right", "wrong", "nan", "text", "negative")])
    assert [judgment.status for judgment in judgments] == ["ok", "failed", "non_finite", "failed", "failed"]
    assert (judgments[0].score, judgments[0].score_std) == (1.0, 0.25)
    assert judgments[1].rationale == "KeyError: 'wrong'"
    assert {judgment.score for judgment in judgments[1:]} == {None}


def test_the_version_of_a_function_is_that_of_its_file(functions: Path) -> None:
    settings = PythonConfig(kind="python", function="judge_functions:length")
    first = make_judge(settings).version
    assert first == make_judge(settings).version
    functions.write_text(FUNCTIONS + "\n# another\n")
    assert make_judge(settings).version != first


@pytest.mark.parametrize("path", ["nowhere_to_be_found:f", "judge_functions:f", "judge_functions:constant"])
def test_functions_that_are_not_there(functions: Path, path: str) -> None:
    with pytest.raises(JudgeError, match=r"cannot be (imported|called)"):
        make_judge(PythonConfig(kind="python", function=path))


def test_a_number_that_is_none_is_no_score(functions: Path) -> None:
    functions.write_text("def f(**_):\n    return float('inf')\n")
    (judgment,) = make_judge(PythonConfig(kind="python", function="judge_functions:f")).judge([item("x")])
    assert (judgment.status, judgment.score) == ("non_finite", None)


def test_other_settings_are_another_version() -> None:
    versions = {
        make_judge(RegexConfig(kind="regex", pattern="a")).version,
        make_judge(RegexConfig(kind="regex", pattern="b")).version,
        make_judge(RegexConfig(kind="regex", pattern="a", whole=True)).version,
    }
    assert len(versions) == 3
    assert make_judge(RegexConfig(kind="regex", pattern="a", name="n")).version in versions

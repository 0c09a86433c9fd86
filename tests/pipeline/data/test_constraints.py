"""Each constraint on an answer's form, with answers made by hand: right ones, wrong ones, and those in between."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.data.corpora.constraints import KINDS, Value, held, nearness, read_instruction
from pipeline.data.words import sentences, words
from pipeline.errors import DataError, JudgeError
from pipeline.judges import JudgedCandidate, JudgeItem, make_judge
from pipeline.judges.instructions import InstructionsConfig

DECOMPOSED = "cafe\N{COMBINING ACUTE ACCENT}"

CASES: list[tuple[str, Value, list[str], list[str]]] = [
    (
        "max_sentences", 2,
        ["One. Two.", "one", "It costs 3.50 euros! Yes?", "a\nb", "a\r\n\r\nb\r\n", "One.  Two.\n\n", "One?! Two…",
         "**One.** Two.", "一。二。", "1. 2. 3. 4."],
        ["One. Two. Three.", "a\nb\nc", "a\r\nb\r\nc", "**One.** **Two.** Three", "一。二！三", "One? Two? Three?",
         "Mr. Smith is in. He waits."],
    ),
    (
        "max_words", 3,
        ["one two three", "- a well-known word", "don't you dare", "don’t   you\tdare", "It costs 3.50!", "one\r\ntwo",
         f"{DECOMPOSED} au lait", "a non\N{NON-BREAKING HYPHEN}stop train", "हिन्दी भाषा है"],
        ["one two three four", "one,two,three,four", "one\r\ntwo\r\nthree\r\nfour", "one -- two -- three -- four"],
    ),
    (
        "min_words", 3,
        ["one two three", "a b c d", "one\ntwo\nthree", "1 2 3"],
        ["one two", "... one - two !", "one-two-three", "1,000.50 euros", f"{DECOMPOSED} {DECOMPOSED}", "हिन्दी भाषा"],
    ),
    (
        "bullets", 2,
        ["- a\n- b", "Here:\n * a\n\n • b\nBye", "- a\r\n- b\r\n", "-  a\n\t- b", "- a\n\n\n- b", "- a\n* * *\n- b",
         "- a\n-\n- b", "- \n- a\n- b", "- a - b\n- c", "- \N{SNOWMAN}\n- b"],
        ["- a", "- a\n- b\n- c", "-a\n-b", "- \n- b", "-\na\n-\nb", "- a - b", "1. a\n2. b", "a\n---\n- b",
         "**a**\n**b**", "- \r\n- b", "- - -\n- b"],
    ),
    (
        "starts_with", "Today",
        ["Today it rains", '"today", she said', "TODAY", "**Today** it rains", "\n\n  Today: rain", "- Today"],
        ["It rains today", "Todays", "Today's rain", "Today-ish", "To day"],
    ),
    (
        "starts_with", "Once upon a time,",
        ["Once upon a time", "once  upon\na time there was", "“Once upon a time …”"],
        ["Once upon", "Once", "Once upon the time", "There was once upon a time"],
    ),
    (
        "ends_with", "The end.",
        ["So it is. The end.", "the END.\n", "The  end.\r\n", "The\nend.", "(The end."],
        ["The end", "The end. Bye", "The end.)", "We bathe end.", "The end..", "**The end.**"],
    ),
    ("ends_with", "?", ["Is it so?", "Is it so ?"], ["It is so.", "Is it so?)"]),
    ("ends_with", "That's all!", ["So: that’s all!", "THAT'S ALL! "], ["That is all!", "Thats all!"]),
    (
        "quoted", True,
        ['"a"', ' "Hello," he said. "Bye" ', '"a"\r\n', '"one\ntwo"'],
        ['"a', 'a"', "a", "'a'", '"a".', "“a”"],
    ),
    ("lower_case", True, ["all small.", "42 ways, é", "42", "straße"], ["Not small", "sMall", "É so", "Dž"]),
    ("upper_case", True, ["ALL LARGE", "42 X", "42", "É!"], ["Large", "ALL LARGE x", "STRAßE", "Dž", "é"]),
    ("no_commas", True, ["one two", "one; two"], ["one, two", "a,", "1,000", "一，二", "واحد، اثنان"]),
    (
        "keyword", "stone",
        ["a Stone.", "STONE", "(stone)", "a\r\nstone\r\n", "_stone_"],
        ["stones", "keystone", "st one", "stone-cold", "stone's"],
    ),
    (
        "keyword", "ice cream",
        ["I like ice cream.", "ICE  CREAM", "ice\ncream", "Ice cream", "ice, ice cream", "dry ice; cream"],
        ["cream ice", "ice", "cream", "ice and cream", "iced cream", "ice creams", "ice-cream"],
    ),
    ("keyword", "don't", ["I don't", "Don’t!"], ["do not", "dont", "don"]),
    ("keyword", "café", ["Café", DECOMPOSED, DECOMPOSED.upper()], ["cafe", "cafés"]),
    ("without_word", "and", ["hands", "sand or land", "and-gate"], ["this and that", "And so", "…and…", "a\nAND\nb"]),
    ("without_word", "of course", ["of the course", "course of", "off course"], ["Of course!", "yes, of  course"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "right", "wrong"), CASES)
def test_what_each_constraint_takes(kind: str, value: Value, right: list[str], wrong: list[str]) -> None:
    answers = dict.fromkeys(right, True) | dict.fromkeys([*wrong, "", "...", '"', " \r\n\t", "- \n- "], False)
    assert {answer: held(answer, {kind: value})[kind] for answer in answers} == answers


NEAR: list[tuple[str, Value, dict[str, float]]] = [
    ("max_sentences", 2, {"One. Two. Three.": 2 / 3, "One. Two. Three. Four.": 1 / 2, "...": 0}),
    ("max_words", 3, {"one two three four": 3 / 4, "one two three four five six": 1 / 2}),
    ("min_words", 4, {"one two three": 3 / 4, "one": 1 / 4}),
    ("bullets", 2, {"none": 0, "- one": 1 / 2, "- one\n- two\n- three": 2 / 3}),
    ("starts_with", "Today", {"It rains today": 1 / 2, "It rains": 0, "Todays": 0}),
    ("ends_with", "The end.", {"The end. Bye": 1 / 2, "The end": 0}),
    ("quoted", True, {'"a': 1 / 2, 'a"': 1 / 2, "a": 0, '"a" b': 1 / 2}),
    ("lower_case", True, {"Not small": 1 / 2, "All Of It Is": 0, "It is 42 so": 3 / 4}),
    ("upper_case", True, {"NOT large": 1 / 2, "none of it": 0, "ALL BUT This ONE": 3 / 4}),
    ("no_commas", True, {"a, b": 1 / 2, "a, b, c，d": 1 / 4}),
    ("keyword", "stone", {"stones": 0}),
    ("without_word", "and", {"this and that": 1 / 2, "and and and": 1 / 4}),
]


@pytest.mark.parametrize(("kind", "value", "answers"), NEAR)
def test_how_near_wrong_answers_are(kind: str, value: Value, answers: dict[str, float]) -> None:
    assert {answer: nearness(answer, {kind: value})[kind] for answer in answers} == answers


def test_every_kind_has_its_cases() -> None:
    assert {kind for kind, *_ in CASES} == {kind for kind, *_ in NEAR} == KINDS.keys()


def test_words_and_sentences_are_counted_as_people_count_them() -> None:
    assert words("“Don’t,” I said: 3.50 or 1,000 euros, not 3. 50!") == [
        "don't", "i", "said", "3.50", "or", "1,000", "euros", "not", "3", "50",
    ]  # fmt: skip
    assert [sentences(text) for text in ("", "...", "a", "A. B", "A.b", 'A." B', "A.\n\nB.", "A।B", "۱؟")] == [
        0, 0, 1, 2, 1, 2, 2, 2, 0,
    ]  # fmt: skip


HOSTILE: dict[str, Callable[[int], str]] = {
    "marks": lambda n: "." * n + "a",
    "marks and quotes": lambda n: '."' * n + "a",
    "quotes": lambda n: "." + '"' * n + "a",
    "blanks of a bullet": lambda n: "- " + " " * n + "\na",
    "bullets": lambda n: "- " * n + "a",
    "accents": lambda n: "a" + "\N{COMBINING ACUTE ACCENT}\N{COMBINING DOT BELOW}" * n,
    "hyphens": lambda n: "a-" * n,
    "points": lambda n: "1." * n,
}  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_no_answer_takes_the_square_of_its_length(hostile: Callable[[int], str]) -> None:
    """Eight times the length takes about eight times as long, 64 times if squared; 24 is between the two."""

    def seconds(answer: str) -> float:
        taken = []
        for _ in range(5):
            began = time.process_time()
            held(answer, {"max_sentences": 1, "bullets": 2, "ends_with": "The end.", "keyword": "a"})
            taken.append(time.process_time() - began)
        return min(taken)

    assert seconds(hostile(8_000)) < 24 * seconds(hostile(1_000))


def test_many_accents_on_a_letter_are_one_word() -> None:
    """As those of "zalgo" texts; up to 30 of them are brought into one order."""
    acute, below = "\N{COMBINING ACUTE ACCENT}", "\N{COMBINING DOT BELOW}"
    assert len(words("a" + acute * 100 + "b c")) == 2
    assert words("e" + acute * 9 + below) == words("e" + below + acute * 9)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("85", "states no constraints: give a JSON object such as"),
        ('{"constraints": {}}', "states no constraints"),
        ('{"constraints": ["max_words"]}', "states no constraints"),
        ("[" * 100_000, "states no constraints"),
        ('{"constraints": {"rhymes": true}}', "no constraint 'rhymes': choose among max_sentences, max_words"),
        ('{"constraints": {"max_words": "3"}}', "'max_words' has the value '3': give it a whole number from 1 up"),
        ('{"constraints": {"max_words": 3.0}}', "'max_words' has the value 3.0: give it a whole number from 1 up"),
        ('{"constraints": {"max_words": true}}', "'max_words' has the value True: give it a whole number from 1 up"),
        ('{"constraints": {"max_words": null}}', "'max_words' has the value None: give it a whole number from 1 up"),
        ('{"constraints": {"max_words": [3]}}', "'max_words' has the value [3]: give it a whole number from 1 up"),
        ('{"constraints": {"bullets": -2}}', "'bullets' has the value -2: give it a whole number from 1 up"),
        ('{"constraints": {"keyword": ""}}', "'keyword' has the value '': give it a text with a word in it"),
        ('{"constraints": {"keyword": "!?"}}', "'keyword' has the value '!?': give it a text with a word in it"),
        ('{"constraints": {"keyword": {"a": 1}}}', "'keyword' has the value {'a': 1}: give it a text with a word"),
        ('{"constraints": {"ends_with": " "}}', "'ends_with' has the value ' ': give it a text that is not empty"),
        ('{"constraints": {"quoted": false}}', "'quoted' has the value False: give it true"),
        ('{"constraints": {"keyword": "a", "keyword": "b"}}', "states 'keyword' twice, and one would be lost"),
        ('{"about": 5, "constraints": {"quoted": true}}', "'about' is 5: give it a text or a list of texts"),
        ('{"about": null, "constraints": {"quoted": true}}', "'about' is None: give it a text or a list of texts"),
        ('{"about": ["a", 5], "constraints": {"quoted": true}}', "'about' is ['a', 5]: give it a text or a list"),
        ('{"about": {"a": 1}, "constraints": {"quoted": true}}', "'about' is {'a': 1}: give it a text or a list"),
    ],
)
def test_a_reference_answer_of_another_form_is_refused_in_a_sentence(reference: str, sentence: str) -> None:
    with pytest.raises(DataError) as refused:
        read_instruction(reference)
    assert sentence in str(refused.value)
    item = JudgeItem(
        prompt_id="p",
        prompt_text="p",
        reference_answer=reference,
        candidates=[JudgedCandidate(index=0, text="a", finish_reason="stop")],
    )
    with pytest.raises(JudgeError) as failed:
        make_judge(InstructionsConfig(kind="instructions")).judge([item])
    assert str(failed.value) == f"prompt p, for the judge instructions: {refused.value}"


@pytest.mark.parametrize(
    ("about", "topics"), [({}, ()), ({"about": "rivers"}, ("rivers",)), ({"about": ["a", "b"]}, ("a", "b"))]
)
def test_the_topic_is_a_text_or_several_or_absent(about: dict[str, Any], topics: tuple[str, ...]) -> None:
    assert read_instruction(json.dumps({**about, "constraints": {"quoted": True}})).about == topics

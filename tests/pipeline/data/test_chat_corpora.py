"""The generated corpora of conversations: enough of them, no thing in two splits, and answers that fit the request."""

import json
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import GeneratedPrompts
from pipeline.config.prompts import Corpus
from pipeline.data.corpora import CorpusPrompt, get_corpus
from pipeline.data.corpora.chat import EARLIER
from pipeline.data.corpora.constraints import KINDS, Value, held, read_instruction
from pipeline.data.corpora.instructions import SELDOM
from pipeline.data.corpora.json_objects import NOUNS, WORKED
from pipeline.data.prompts import load_prompts
from pipeline.data.words import words
from pipeline.errors import ConfigError
from pipeline.judges import JudgedCandidate, JudgeItem, make_judge
from pipeline.judges.json_schema import JsonSchemaConfig
from pipeline.records import content_id
from support.tiny import tiny_tokenizer

CHAT: tuple[Corpus, ...] = ("json_objects", "instructions")
SPLITS = ("warm_start", "train", "evaluation")
# How many prompts each split has: of 8,000 and of 7,200.
SIZES = {"json_objects": (3_680, 3_200, 1_120), "instructions": (3_384, 2_952, 864)}
RECIPE = Path(__file__).parents[3] / "deploy" / "recipes" / "smollm2-json.yaml"


def all_of(name: str) -> dict[str, list[CorpusPrompt]]:
    corpus = get_corpus(name)
    return {split: corpus.prompts(split, size, 0) for split, size in zip(SPLITS, SIZES[name], strict=True)}


def subject(prompt: CorpusPrompt) -> str:
    """What a prompt is about: the noun of its thing, or its topic."""
    reference = str(prompt.reference_answer)
    return read_instruction(reference).about[0] if reference.startswith("{") else reference.rpartition(" ")[2]


@pytest.mark.parametrize("name", CHAT)
def test_all_prompts_differ_and_nothing_is_asked_about_in_two_splits(name: str) -> None:
    found = all_of(name)
    ids = [content_id(prompt.content) for prompts in found.values() for prompt in prompts]
    assert len(set(ids)) == len(ids) == sum(SIZES[name])
    subjects = [{subject(prompt) for prompt in prompts} for prompts in found.values()]
    assert len(set.union(*subjects)) == sum(map(len, subjects)) == 100
    assert len(found["train"]) > 2000
    assert len(subjects[2]) > 10  # as many different things are held out


@pytest.mark.parametrize(("name", "seed"), [*product(CHAT, (0, 1, 17))])
def test_a_third_has_a_system_prompt_and_a_third_an_earlier_turn(name: str, seed: int) -> None:
    prompts = get_corpus(name).prompts("train", 1500, seed)
    shapes = Counter(tuple(message["role"] for message in prompt.content) for prompt in prompts)  # type: ignore[index]
    assert set(shapes) == {("user",), ("system", "user"), ("user", "assistant", "user")}
    # The standard error of a third of 1,500 is 18; twice that is drawn without replacement from 3,000.
    assert all(440 < count < 560 for count in shapes.values())


@pytest.mark.parametrize("name", CHAT)
def test_every_prompt_asks_about_its_subject_and_nothing_before_it_does(name: str) -> None:
    for prompt in get_corpus(name).prompts("train", 500, 0):
        *before, last = prompt.content
        assert subject(prompt) in words(last["content"])  # type: ignore[index]
        assert all(subject(prompt) not in words(message["content"]) for message in before)  # type: ignore[index]


def test_earlier_turns_are_about_nothing_that_is_asked_for() -> None:
    said = {word for turn in (*EARLIER, *WORKED) for text in turn for word in words(text)}
    assert said.isdisjoint(NOUNS)


def test_objects_shown_in_earlier_turns_fit_the_schema_of_the_recipe_and_the_form_itself_does_not() -> None:
    judge = make_judge(JsonSchemaConfig.model_validate(yaml.safe_load(RECIPE.read_text())["judge"]))
    answers = [answer for _, answer in WORKED] + [WORKED[0][0][WORKED[0][0].index("{") :]]
    candidates = [JudgedCandidate(index=k, text=text, finish_reason="stop") for k, text in enumerate(answers)]
    scores = [found.score for found in judge.judge([JudgeItem(prompt_id="p", prompt_text="p", candidates=candidates)])]
    assert scores == [*[1.0] * len(WORKED), 0.0]
    assert all(json.loads(answer)["name"] in question for question, answer in WORKED)


@pytest.mark.parametrize("name", CHAT)
def test_they_go_through_a_chat_template_and_to_no_policy_without(name: Corpus) -> None:
    config = GeneratedPrompts(source="generated", corpus=name, train=300)
    table = load_prompts(config, 64, 3, tiny_tokenizer(chat_template=True))
    rows = table.to_pylist()
    assert len({row["prompt_id"] for row in rows}) == 364
    assert all(row["messages"] and row["reference_answer"] and row["token_ids"] for row in rows)
    assert all(row["text"].endswith("<s> assistant : ") for row in rows)
    with pytest.raises(ConfigError, match="the prompts are conversations, but the policy's tokenizer has no chat"):
        load_prompts(config, 64, 3, tiny_tokenizer())


def fulfilling(constraints: dict[str, Value]) -> str:
    """An answer made to fulfil the constraints, each in its own way, by code that knows none of the checks."""
    without = constraints.get("without_word")
    body = ["it", "is", "so", "very", "nice", "here"]
    filler = [word for word in body if word != without]
    count: Any = constraints.get("min_words", 4)
    text = " ".join((filler * 10)[:count])
    if "keyword" in constraints:
        text = f"{text} {constraints['keyword']}"
    if "bullets" in constraints:
        lines: Any = constraints["bullets"]
        text = "\n".join([f"- {text}"] * lines)
    if "starts_with" in constraints:
        text = f"{constraints['starts_with']} {text}"
    if "ends_with" in constraints:
        text = f"{text}. {constraints['ends_with']}"
    if "quoted" in constraints:
        text = f'"{text}"'
    return text.upper() if "upper_case" in constraints else text.lower() if "lower_case" in constraints else text


@pytest.mark.parametrize("seed", [0, 5])
def test_every_prompt_has_an_answer_that_fulfils_it_and_one_that_does_not(seed: int) -> None:
    kinds: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    for prompt in get_corpus("instructions").prompts("train", 2900, seed):
        constraints = dict(read_instruction(str(prompt.reference_answer)).constraints)
        assert held(fulfilling(constraints), constraints) == dict.fromkeys(constraints, True), constraints
        assert not any(held(" \n", constraints).values())
        request = prompt.content[-1]["content"]  # type: ignore[index]
        assert all(str(value) in request for value in constraints.values() if value is not True)
        kinds.update(constraints.keys())
        sizes[len(constraints)] += 1
    assert kinds.keys() == KINDS.keys()
    often = min(count for kind, count in kinds.items() if kind not in SELDOM)
    assert all(75 < count < often for kind, count in kinds.items() if kind in SELDOM)
    assert sizes.keys() == {1, 2}
    assert min(sizes.values()) > 1000


def test_kinds_that_share_no_aspect_can_be_fulfilled_together_with_all_their_values() -> None:
    pairs = [pair for pair in combinations(KINDS, 2) if not KINDS[pair[0]].aspects & KINDS[pair[1]].aspects]
    assert len(pairs) > 40
    for first, second in pairs:
        for values in product(KINDS[first].values, KINDS[second].values):
            constraints = dict(zip((first, second), values, strict=True))
            assert all(held(fulfilling(constraints), constraints).values()), constraints

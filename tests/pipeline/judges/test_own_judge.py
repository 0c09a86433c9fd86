"""A new judge, as CONTRIBUTING describes it: one file with its configuration and itself, from a recipe to scores."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from flows.registry.recipes import parse_recipe
from pipeline.errors import ConfigError
from pipeline.judges import JudgeConfig, JudgedCandidate, JudgeItem, RuleJudge, Verdict, judge, make_judge
from pipeline.recipe import Recipe
from support.recipes import TINY


class WordsConfig(JudgeConfig):
    """0 up to so many words; each further one costs."""

    kind: Literal["words"]
    most: int = Field(50, ge=1, description="words that cost nothing")


@judge(WordsConfig)
class WordsJudge(RuleJudge[WordsConfig]):
    """``-max(0, n - most)`` for n words."""

    def verdict(self, _item: JudgeItem, candidate: JudgedCandidate) -> Verdict:
        words = len(candidate.text.split())
        return Verdict(score=float(-max(0, words - self.config.most)), components={"words": float(words)})


def item(*answers: str) -> JudgeItem:
    candidates = [JudgedCandidate(index=k, text=text, finish_reason="stop") for k, text in enumerate(answers)]
    return JudgeItem(prompt_id="p", prompt_text="p", candidates=candidates)


WORDS = {"kind": "words", "most": 2}
NOISY = {"kind": "noisy", "judge": WORDS, "error_rates": [0]}
ENSEMBLE = {"kind": "ensemble", "members": [{"judge": WORDS}, {"judge": {**WORDS, "name": "again"}}]}


@pytest.mark.parametrize("config", [WORDS, NOISY, ENSEMBLE], ids=["alone", "noisy", "ensemble"])
def test_a_recipe_takes_it_and_it_judges(config: dict[str, Any]) -> None:
    recipe = parse_recipe({**TINY, "judge": config})
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    said = make_judge(recipe.judge).judge([item("one two", "one two three four")])
    assert [judgment.score for judgment in said] == [0.0, -2.0]


def test_its_version_follows_from_its_settings_and_not_from_its_name() -> None:
    two, named, three = (
        make_judge(WordsConfig(kind="words", **fields)).version
        for fields in ({"most": 2}, {"most": 2, "name": "short"}, {"most": 3})
    )
    assert two == named != three


def test_its_faults_are_sentences_and_forms_show_it() -> None:
    with pytest.raises(ConfigError, match=r"judge\.mots: there is no such field .*did you mean 'most'"):
        parse_recipe(TINY, ["judge={kind: words, mots: 3}"])
    with pytest.raises(ConfigError, match=r"judge\.most: 0 is not allowed: .*\(words that cost nothing\)"):
        parse_recipe(TINY, ["judge={kind: words, most: 0}"])
    schema = Recipe.model_json_schema()
    assert schema["$defs"]["WordsConfig"]["properties"]["most"]["description"] == "words that cost nothing (at least 1)"
    assert schema["properties"]["judge"]["discriminator"]["mapping"]["words"] == "#/$defs/WordsConfig"
    assert "words" in schema["$defs"]["Member"]["properties"]["judge"]["discriminator"]["mapping"]


def test_a_kind_is_taken_once() -> None:
    class Other(JudgeConfig):
        kind: Literal["words"]

    with pytest.raises(ValueError, match="Other is of kind 'words', as WordsConfig is: choose another"):
        judge(Other)(WordsJudge)


def test_members_of_an_ensemble_are_judges_of_answers_alone() -> None:
    with pytest.raises(ValidationError, match="'implicit' found using 'kind' does not match any"):
        Recipe.model_validate({
            **TINY,
            "judge": {"kind": "ensemble", "members": [{"judge": {"kind": "words"}}, {"judge": {"kind": "implicit"}}]},
        })  # fmt: skip


def test_a_recipe_needs_none_of_what_judges_load() -> None:
    heavy = ["torch", "transformers", "pyarrow", "numpy", "openai", "math_verify", "vaderSentiment", "jsonschema"]
    code = (
        "import sys; from pipeline.recipe import Recipe; from support.recipes import TINY; Recipe.model_validate(TINY);"
        f"sys.exit(', '.join(name for name in {heavy} if name in sys.modules) or 0)"
    )
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment)

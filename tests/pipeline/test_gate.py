"""What a recipe says of its gate: the level of a test, a softer update after failures, and what cannot be combined."""

from typing import Any

import pytest

from flows.registry.recipes import parse_recipe
from pipeline.config import UpdateConfig
from pipeline.errors import ConfigError
from pipeline.gate import GateConfig, least_pairs
from pipeline.recipe import Recipe
from support.recipes import TINY

SET: dict[str, Any] = {
    "prompts": {"source": "generated", "corpus": "film_reviews"}, "count": 24, "judges": [{"kind": "grammar"}],
}  # fmt: skip


def test_all_tests_of_all_rounds_share_the_error_rate() -> None:
    gate = GateConfig.model_validate({**SET, "text": "t.txt", "patience": 2, "error_rate": 0.06})
    assert gate.measures == ["grammar", "text", "reward"]
    assert gate.guards == ["grammar", "text"]
    assert gate.level(10) == pytest.approx(0.06 / 30)  # 10 rounds of 3 tests
    assert GateConfig.model_validate(SET).level(5) == pytest.approx(0.01)


def test_the_least_number_of_prompts() -> None:
    """Were all n worse, p would be 2^-n: at 0.01 that takes 7, at 1/64 exactly 6."""
    assert (least_pairs(0.01), least_pairs(1 / 64)) == (7, 6)


def test_an_update_after_failures_is_softer() -> None:
    factors = {"learning_rate_factor": 0.5, "beta_factor": 2.0, "on_failure": "retry"}
    gate, update = GateConfig.model_validate({**SET, **factors}), UpdateConfig(learning_rate=0.8, beta=0.1)
    assert gate.retried(update, 0) == update
    softer = gate.retried(update, 2)
    assert (softer.learning_rate, softer.beta) == (pytest.approx(0.2), pytest.approx(0.4))
    assert softer.model_copy(update={"learning_rate": 0.8, "beta": 0.1}) == update, "nothing else"
    stops = GateConfig.model_validate({**SET, **factors, "on_failure": "stop"})
    assert stops.retried(update, 2) == update, "a run that was stopped and resumed goes on as its recipe says"


@pytest.mark.parametrize(
    ("gate", "others", "says"),
    [
        ({}, {}, "gate measures nothing"),
        ({"prompts": SET["prompts"]}, {}, "gate.prompts and gate.judges go together"),
        (
            {**SET, "judges": [{"kind": "grammar"}, {"kind": "grammar"}]},
            {},
            "two measures of the gate are named 'grammar'",
        ),
        ({**SET, "judges": [{"kind": "grammar", "name": "text"}], "text": "t"}, {}, "named 'text'"),
        # Also if the gate has no such measure: scores are found by these names.
        ({**SET, "judges": [{"kind": "grammar", "name": "text"}]}, {}, "named 'text'"),
        ({**SET, "judges": [{"kind": "grammar", "name": "reward"}]}, {}, "named 'reward'"),
        ({**SET, "judges": [{"kind": "implicit"}]}, {}, "needs other answers, people or a policy of the run"),
        ({**SET, "count": 5}, {}, "gate.count 5: gate.error_rate 0.05, shared by 1 tests in each of 2 rounds"),
        ({"text": "t", "window": 600}, {}, "gate.window 600 is more than update.token_budget 512"),
        (SET, {"staleness": 1}, "set staleness to 0, or leave gate out"),
    ],
)
def test_what_does_not_go_together(gate: dict[str, Any], others: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_recipe({**TINY, **others, "gate": gate}, files=False)


def test_a_recipe_without_a_gate_hashes_as_before() -> None:
    assert "gate" not in Recipe.model_validate(TINY).hashed()
    assert "gate" in Recipe.model_validate({**TINY, "gate": SET}).hashed()

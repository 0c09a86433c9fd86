"""What another judge changes, by hand: pairs, agreement, correlations."""

import pyarrow as pa
import pytest

from flows.analysis.what_if import ChangedPair, _Sum, changed_pairs, ordered_pairs
from pipeline.config import PreferencesConfig
from pipeline.preferences import build_preferences
from support.judged import candidates, judgments

LENGTHS = {"p": [2, 3, 4], "q": [5, 3], "r": [1, 1]}
BEFORE = {"p": [3.0, 2.0, 1.0], "q": [1.0, 0.0], "r": [0.5, 0.5]}
AFTER = {"p": [1.0, 2.0, 3.0], "q": [None, 0.0], "r": [0.25, 0.75]}
"""The judge of p turns everything round, that of q leaves one out, and that of r breaks a tie."""


def side(scores: dict[str, list[float | None]], rule: str = "best_vs_worst") -> tuple[pa.Table, pa.Table]:
    said = judgments(scores)
    config = PreferencesConfig.model_validate({"rule": rule})
    return said, build_preferences(candidates(LENGTHS), said, config, seed=0)


def test_pairs_flip_appear_and_vanish() -> None:
    found = list(changed_pairs(4, side(BEFORE), side(AFTER)))
    assert found == [
        ChangedPair(4, "p", "flipped", 2, 0, before=-2.0, after=2.0),
        ChangedPair(4, "r", "appeared", 1, 0, before=0.0, after=0.5),
        ChangedPair(4, "q", "vanished", 0, 1, before=1.0, after=None),
    ]


def test_a_ranking_is_the_pairs_that_it_orders() -> None:
    """Of p all three pairs turn round; the other judge's r orders two, and its q has one completion with a score."""
    _, preferences = side(AFTER, "full_ranking")
    assert sorted(ordered_pairs(preferences)) == [("p", 1, 0), ("p", 2, 0), ("p", 2, 1), ("r", 1, 0)]
    found = list(changed_pairs(1, side(BEFORE), side(AFTER, "full_ranking")))
    assert [(pair.prompt_id, pair.change, pair.chosen, pair.rejected) for pair in found] == [
        ("p", "appeared", 1, 0), ("p", "flipped", 2, 0), ("p", "appeared", 2, 1), ("r", "appeared", 1, 0),
        ("q", "vanished", 0, 1),
    ]  # fmt: skip


def test_places_that_are_shared_give_no_pair() -> None:
    config = PreferencesConfig.model_validate({"rule": "top_m", "top": 1})
    table = build_preferences(candidates({"p": [2, 2, 2]}), judgments({"p": [1.0, 5.0, 2.0]}), config, seed=0)
    assert sorted(ordered_pairs(table)) == [("p", 1, 0), ("p", 1, 2)]


def test_the_figures_of_a_round_by_hand() -> None:
    total = _Sum()
    total.add(1, candidates(LENGTHS), [side(BEFORE), side(AFTER)])
    found = total.whole(1)
    assert (found.round, found.completions, found.scored) == (1, 7, 6)
    assert (found.pairs, found.prompts) == ((2, 2), (2, 2))
    assert (found.same, found.flipped, found.appeared, found.vanished) == (0, 1, 1, 1)
    assert found.reward == (pytest.approx(8 / 7), pytest.approx(7 / 6))
    # Both score p's three pairs, first against second each, and r's one, a tie against second: none agrees. By chance
    # they do on (3 * 0 + 1 * 0 + 0 * 4) / 16 = 0 of them, so kappa is 0.
    assert (found.compared, found.agreement, found.kappa) == (4, 0.0, 0.0)
    # p's ranks are turned round; r ties before, and says nothing of ranks. Of 4 pairs 3 are opposite, one ties by one.
    assert found.spearman == pytest.approx(-1.0)
    assert found.kendall == pytest.approx(-3 / ((4 - 1) * 4) ** 0.5)
    # Before: p falls with length (ranks -.5, 0, .5 against the opposite), q rises: (-.5 + .5) / 1. After: p alone.
    assert found.length == (pytest.approx(0.0), pytest.approx(1.0))


def test_rounds_add_up() -> None:
    """The same again, in another round: counts double, shares and correlations stay."""
    one, two = _Sum(), _Sum()
    one.add(1, candidates(LENGTHS), [side(BEFORE), side(AFTER)])
    for number in (1, 2):
        two.add(number, candidates(LENGTHS), [side(BEFORE), side(AFTER)])
    single, double = one.whole(None), two.whole(None)
    assert (double.pairs, double.flipped, double.compared) == ((4, 4), 2, 8)
    assert (double.agreement, double.kappa, double.spearman, double.kendall) == (
        single.agreement, single.kappa, pytest.approx(single.spearman), pytest.approx(single.kendall),
    )  # fmt: skip

"""The rules: which candidates of a prompt are set against each other.

A rule gets the candidates that are left of a prompt, two or more, and gives preferences: their candidates, best first,
each with its place, lower is better; equal places are ties. Equal values are taken in the order of the indices.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from pipeline.errors import DataError
from pipeline.preferences.candidates import Candidate
from pipeline.preferences.order import Comparison


@dataclass(frozen=True)
class Order:
    """Candidates of a preference, best first, and the place of each."""

    candidates: tuple[Candidate, ...]
    places: tuple[int, ...]


Rule = Callable[[Sequence[Candidate], Comparison, random.Random], list[Order]]


def orders_of(kept: Sequence[Candidate], compare: Comparison, rng: random.Random) -> list[Order]:
    """Gives a prompt's preferences by the recipe's rule, at most as many as it allows; those drawn stay in order."""
    orders = RULES[compare.config.rule](kept, compare, rng)
    cap = compare.config.max_pairs
    if cap is None or len(orders) <= cap:
        return orders
    return [orders[place] for place in sorted(rng.sample(range(len(orders)), cap))]


def _best_vs_worst(kept: Sequence[Candidate], compare: Comparison, _rng: random.Random) -> list[Order]:
    return _clear_pairs([(_best(kept), min(kept, key=_value))], compare)


def _best_vs_random(kept: Sequence[Candidate], compare: Comparison, rng: random.Random) -> list[Order]:
    beaten = _clear_pairs([(_best(kept), other) for other in kept], compare)
    return [rng.choice(beaten)] if beaten else []


def _best_vs_each(kept: Sequence[Candidate], compare: Comparison, _rng: random.Random) -> list[Order]:
    best, *others = _by_value(kept)
    return _clear_pairs([(best, other) for other in others], compare)


def _all_pairs(kept: Sequence[Candidate], compare: Comparison, _rng: random.Random) -> list[Order]:
    return _clear_pairs(list(combinations(_by_value(kept), 2)), compare)


def _correct_vs_incorrect(kept: Sequence[Candidate], compare: Comparison, _rng: random.Random) -> list[Order]:
    odd = next((candidate for candidate in kept if candidate.score not in (0.0, 1.0)), None)
    if odd is not None:
        raise DataError(
            f"candidate {odd.index} of prompt {compare.prompt_id} has the score {odd.score:g}, and the rule "
            "correct_vs_incorrect takes 0 and 1 alone: choose a verifier as the judge, or another preferences.rule"
        )
    correct = [candidate for candidate in kept if candidate.score]
    return _clear_pairs([(right, wrong) for right in correct for wrong in kept if not wrong.score], compare)


def _full_ranking(kept: Sequence[Candidate], compare: Comparison, _rng: random.Random) -> list[Order]:
    return _ranking(_by_value(kept), compare, len(kept))


def _top_m(kept: Sequence[Candidate], compare: Comparison, _rng: random.Random) -> list[Order]:
    assert compare.config.top is not None
    return _ranking(_by_value(kept), compare, compare.config.top)


def _ranking(ordered: Sequence[Candidate], compare: Comparison, known: int) -> list[Order]:
    """Makes a ranking of which the first ``known`` places are known; what comes after them shares the next one.

    A candidate that ties with the last one that was taken is left out, or shares its place if ties are kept. Kept
    ties are chains, so that any two in different places differ by more than the margin.
    """
    keep = compare.config.ties == "keep"
    taken, places = [ordered[0]], [0]
    for candidate in ordered[1:]:
        if places[-1] == known or compare.clear(taken[-1], candidate):
            taken.append(candidate)
            places.append(min(places[-1] + 1, known))
        elif keep:
            taken.append(candidate)
            places.append(places[-1])
    return [Order(tuple(taken), tuple(places))] if places[-1] else []


def _clear_pairs(pairs: Sequence[tuple[Candidate, Candidate]], compare: Comparison) -> list[Order]:
    return [Order(pair, (0, 1)) for pair in pairs if compare.clear(*pair)]


def _best(kept: Sequence[Candidate]) -> Candidate:
    return max(kept, key=_value)


def _by_value(kept: Sequence[Candidate]) -> list[Candidate]:
    return sorted(kept, key=lambda candidate: (-candidate.value, candidate.index))


def _value(candidate: Candidate) -> float:
    return candidate.value


RULES: Mapping[str, Rule] = {
    "best_vs_worst": _best_vs_worst,
    "best_vs_random": _best_vs_random,
    "best_vs_each": _best_vs_each,
    "all_pairs": _all_pairs,
    "correct_vs_incorrect": _correct_vs_incorrect,
    "full_ranking": _full_ranking,
    "top_m": _top_m,
}

"""From a round's judgments to its preferences: one row for each, or one for each prompt that gave none."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pyarrow as pa

from pipeline.config import PreferencesConfig
from pipeline.preferences.candidates import REASONS, Candidate, judged_prompts, leave_out
from pipeline.preferences.order import Comparison, probability
from pipeline.preferences.rules import Order, orders_of
from pipeline.records import PREFERENCES, to_table


def build_preferences(candidates: pa.Table, judgments: pa.Table, config: PreferencesConfig, *, seed: int) -> pa.Table:
    """Builds the ``PREFERENCES`` of a round, in the order in which the prompts first come among the candidates.

    Of a prompt's candidates these are left out first: *unjudged* (no score, or none that is a finite number),
    *truncated* (if the recipe says so), *empty* (no text), and *duplicate* (the same token ids as an earlier
    candidate). The policy cannot be moved from a sequence to itself. If fewer than two are left, the commonest of
    these reasons is the prompt's (*single* if there was one candidate from the start).

    Candidates are ordered by their *value*, ``score - length_penalty * tokens``: with a penalty, the margin of a pair
    is ``(score_a - score_b) - length_penalty * (tokens_a - tokens_b)``. One beats another if that is above
    ``min_margin``, and the probability of the order at least ``min_probability``. The rules, over those that are left:

    - ``best_vs_worst``: the highest value against the lowest.
    - ``best_vs_random``: the highest against one of those that it beats, drawn by the seed and the prompt.
    - ``best_vs_each``: the highest against every one that it beats.
    - ``all_pairs``: every two of which one beats the other.
    - ``correct_vs_incorrect``: every correct answer (score 1) against every incorrect one (score 0).
    - ``full_ranking``: from the best down; what ties with the last one taken is left out, or shares its place if ties
      are kept.
    - ``top_m``: likewise the first ``top`` places, and all others tied for the one behind them.

    If no candidate beats another the reason is *agree* (all scores are equal), *tie* (none is above the margin) or
    *unsure* (none is probable enough).

    Raises:
        DataError: tables that do not fit together, log-probabilities that do not fit the tokens, soft labels or
            probabilities from a judge that states no uncertainty, or scores other than 0 and 1 for
            ``correct_vs_incorrect``.
    """
    rows: list[dict[str, object]] = []
    for judged in judged_prompts(candidates, judgments, config):
        kept, left_out = leave_out(judged.candidates, config)
        rng = random.Random(f"{seed}/{judged.prompt_id}")  # noqa: S311  nothing here is secret
        compare = Comparison(config, judged.prompt_id)
        orders = orders_of(kept, compare, rng) if len(kept) > 1 else []
        common = {"prompt_id": judged.prompt_id, "rule": config.rule, "policy": judged.policy}
        if orders:
            rows += [common | _row(order, compare) for order in orders]
        else:
            rows.append(common | _dropped(_reason(kept, left_out, compare)))
    return to_table(rows, PREFERENCES)


def preference_count(preferences: pa.Table) -> int:
    """Counts the preferences of a ``PREFERENCES`` table, without the prompts that gave none."""
    return sum(kind != "dropped" for kind in preferences["kind"].to_pylist())


def drop_counts(preferences: pa.Table) -> dict[str, int]:
    """Counts the prompts without a preference, by reason."""
    reasons = preferences["drop_reason"].drop_null().to_pylist()
    return dict(sorted(Counter(reasons).items()))


def _reason(kept: Sequence[Candidate], left_out: Counter[str], compare: Comparison) -> str:
    if len(kept) < 2:
        return max(REASONS, key=lambda reason: left_out[reason]) if left_out else "single"
    if len({candidate.score for candidate in kept}) == 1:
        return "agree"
    best, worst = (choose(kept, key=lambda candidate: candidate.value) for choose in (max, min))
    return "unsure" if compare.above_margin(best, worst) else "tie"


def _row(order: Order, compare: Comparison) -> dict[str, object]:
    chosen, places, config = order.candidates, order.places, compare.config
    label = probability(chosen[0], chosen[1], compare.prompt_id) if config.soft_labels else None
    in_order = all(after == before + 1 for before, after in pairwise(places))
    return {
        "kind": "ranking" if config.ranks else "pair",
        "candidates": [candidate.index for candidate in chosen],
        "ranks": None if in_order else list(places),
        "scores": [candidate.score for candidate in chosen],
        "margin": chosen[0].value - chosen[-1].value,
        "soft_label": label,
        "reference_logps": [candidate.logp for candidate in chosen],
        "token_counts": [len(candidate.token_ids) for candidate in chosen],
        "drop_reason": None,
    }


def _dropped(reason: str) -> dict[str, object]:
    return {
        "kind": "dropped",
        "candidates": [],
        "ranks": None,
        "scores": [],
        "margin": None,
        "soft_label": None,
        "reference_logps": [],
        "token_counts": [],
        "drop_reason": reason,
    }

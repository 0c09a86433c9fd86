"""Replay: preferences of earlier rounds that an update is given again, beside those of its own round.

They are a table of their own. A row of ``PREFERENCES`` names candidates of its round; under the same prompt and index
another round has other answers. So a replayed row says which round it is of, and holds its token ids.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import PreferencesConfig
from pipeline.errors import DataError
from pipeline.preferences.build import preference_count
from pipeline.records import REPLAYED, to_table

Row = dict[str, Any]


def choose_replayed(
    own: pa.Table, earlier: Mapping[int, pa.Table], config: PreferencesConfig, *, seed: int
) -> dict[int, list[Row]]:
    """Draws rows of earlier rounds to train on again, by the seed, without replacement, all equally likely; by round.

    At most ``share`` of all that is trained on is replayed. Beside ``n`` preferences of the round itself there are
    ``floor(n * share / (1 - share))`` replayed ones, or all that there are. Rows of another kind than the recipe now
    makes (pairs or rankings, with soft labels or without) are passed over: a fork may have changed that.

    Args:
        own: the ``PREFERENCES`` of the round; earlier: those of the rounds that are not too old, by round.
    """
    kind = "ranking" if config.ranks else "pair"
    share = config.replay.share
    wanted = int(preference_count(own) * share / (1 - share) + 1e-9)
    soft = pc.field("soft_label").is_valid()
    fits = (pc.field("kind") == kind) & (soft if config.soft_labels else ~soft)
    pool = {number: earlier[number].filter(fits) for number in sorted(earlier)}
    rng = random.Random(f"{seed}/replay")  # noqa: S311  nothing here is secret
    total = sum(map(len, pool.values()))
    places = sorted(rng.sample(range(total), min(wanted, total)))
    chosen: dict[int, list[Row]] = {}
    before = 0
    for number, table in pool.items():
        own_places = [place - before for place in places if before <= place < before + len(table)]
        if own_places:
            chosen[number] = table.take(own_places).to_pylist()
        before += len(table)
    return chosen


def replayed_table(chosen: Mapping[int, Sequence[Row]], candidates: Mapping[int, pa.Table]) -> pa.Table:
    """Builds the ``REPLAYED`` of a round: the chosen rows with the token ids of their candidates.

    Args:
        candidates: the ``CANDIDATES`` of the rounds that were chosen from.

    Raises:
        DataError: a row names a candidate that its round does not have.
    """
    rows: list[Row] = []
    for number, found in chosen.items():
        columns = (candidates[number][name].to_pylist() for name in ("prompt_id", "candidate", "token_ids"))
        ids = {(prompt_id, index): tokens for prompt_id, index, tokens in zip(*columns, strict=True)}
        for row in found:
            keys = [(row["prompt_id"], index) for index in row["candidates"]]
            if missing := next((key for key in keys if key not in ids), None):
                raise DataError(
                    f"round {number} has a preference for candidate {missing[1]} of prompt {missing[0]}, but no such "
                    "candidate: its tables do not belong together"
                )
            tokens = [ids[key] for key in keys]
            # Tables of version 1 have no ranks.
            rows.append({"ranks": None, **row, "origin_round": number, "token_ids": tokens})
    return to_table(rows, REPLAYED)


def describe_replayed(replayed: pa.Table, own: pa.Table, round: int) -> dict[str, Any]:
    """Says how many preferences of a round's update are replayed, what share that is, and their mean age in rounds."""
    ages = [round - origin for origin in replayed["origin_round"].to_pylist()]
    return {
        "replayed": len(ages),
        "replayed_share": len(ages) / max(1, len(ages) + preference_count(own)),
        "replayed_age": sum(ages) / len(ages) if ages else None,
    }

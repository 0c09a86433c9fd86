"""What an update leaves of single preferences: log-probabilities before and after it, and their losses."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.workers.references import PolicyRef, PreferenceShard, Saved, UpdateInputs
from flows.workers.trainer import TrainerWorker
from pipeline.config import UpdateConfig
from pipeline.dpo.state import hashed_settings
from pipeline.dpo.types import RoundFacts
from pipeline.errors import LostUpdateError
from pipeline.model.logprobs import sequence_logps
from pipeline.model.policy import load_policy
from pipeline.packing.packing import TokenGroup
from pipeline.recipe import Recipe
from pipeline.records import CANDIDATES, PREFERENCES, PROMPTS, REPLAYED, to_table
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.checkpoints import local_directory
from storage.tables.shards import read_table, write_table
from support.committed_policy import PROMPT, committed_policy
from support.recipes import TINY

ANSWERS = [[5, 6, 2], [7, 8, 9, 2], [4, 2]]
BETA = 0.5
CLOSE = 1e-4
"""In float32, between two processes of one model, in nats."""


def computed(store: Store, held: PolicyRef | Saved, scratch: Path) -> list[float]:
    """What another model, loaded for this alone, gives the answers."""
    model, _ = load_policy(local_directory(store, held.files, scratch), device="cpu")
    return [sequence_logps(model, [TokenGroup("p", PROMPT, [answer])], 64)[0][0] for answer in ANSWERS]


def tables(store: Store, sampled: PolicyRef, logps: list[float]) -> tuple[FileRef, PreferenceShard, FileRef]:
    """A prompt whose completion 2 beats completion 0; and of an earlier round, that 1 beats 0."""
    prompt = {**dict.fromkeys(PROMPTS.names), "prompt_id": "p", "text": "w1", "token_ids": PROMPT, "split": "train",
              "source": "test"}  # fmt: skip
    candidates = [
        {"prompt_id": "p", "candidate": k, "token_ids": answer, "text": f"{k}", "finish_reason": "stop", "seed": k,
         "logprobs": [logp / len(answer)] * len(answer), "policy": sampled.digest}
        for k, (answer, logp) in enumerate(zip(ANSWERS, logps, strict=True))
    ]  # fmt: skip

    def preference(best: int, worst: int) -> dict[str, Any]:
        places = (best, worst)
        return {
            "prompt_id": "p", "kind": "pair", "candidates": list(places), "ranks": None, "scores": [1.0, 0.0],
            "margin": 1.0, "soft_label": None, "reference_logps": [logps[k] for k in places],
            "token_counts": [len(ANSWERS[k]) for k in places], "rule": "best_vs_worst", "drop_reason": None,
            "policy": sampled.digest,
        }  # fmt: skip

    old = {**preference(1, 0), "origin_round": 1, "token_ids": [ANSWERS[1], ANSWERS[0]]}
    written = [
        write_table(store, "r", 2, stage, to_table(rows, schema))
        for stage, rows, schema in (
            ("prompts", [prompt], PROMPTS), ("candidates", candidates, CANDIDATES),
            ("preferences", [preference(2, 0)], PREFERENCES), ("replayed", [old], REPLAYED),
        )
    ]  # fmt: skip
    return written[0], PreferenceShard((written[1],), (written[2],), 1.0), written[3]


Begun = Callable[..., tuple[TrainerWorker, list[float]]]
Updated = Callable[..., tuple[Saved, list[dict[str, Any]], list[float]]]


@pytest.fixture
def begun(store: Store, make_worker: Callable[..., Any], tmp_path: Path) -> Begun:
    """Begins an update of two preferences, one of which is trained on again; also returns what the start gives them."""

    def begin(
        reference: PolicyRef | None = None, changes: dict[str, Any] | None = None
    ) -> tuple[TrainerWorker, list[float]]:
        start = committed_policy(store, 1)
        before = computed(store, start, tmp_path / "before")
        prompts, shard, replayed = tables(store, start, before)
        settings = {**TINY["update"], "beta": BETA, "learning_rate": 0.01, **(changes or {})}
        recipe = Recipe.model_validate({**TINY, "update": settings})
        inputs = UpdateInputs(
            policy=start, reference=reference, reference_sampled=reference is None, prompts=(prompts,), shards=(shard,),
            replayed=(replayed,), optimizer=(), average=None, state=(), referenced=None, drift=0.0,
        )  # fmt: skip
        worker = make_worker(TrainerWorker, recipe)
        worker.begin_update(inputs, 2, 7)
        return worker, before

    return begin


@pytest.fixture
def updated(store: Store, begun: Begun) -> Updated:
    """Does such an update."""

    def update(
        reference: PolicyRef | None = None, changes: dict[str, Any] | None = None
    ) -> tuple[Saved, list[dict[str, Any]], list[float]]:
        worker, before = begun(reference, changes)
        worker.finish_update("unsaved")
        saved = worker.save_update()
        return saved, read_table(store, saved.others["preference_logps"]).to_pylist(), before

    return update


def test_the_loss_of_each_preference_is_that_of_its_log_probabilities(
    store: Store, updated: Updated, tmp_path: Path
) -> None:
    """With the start as the reference the loss before is ln 2, and after it ln(1 + exp(-beta (rise - rise)))."""
    saved, rows, before = updated()
    after = computed(store, saved, tmp_path / "after")
    assert [(row["candidates"], row["origin_round"]) for row in rows] == [([2, 0], None), ([1, 0], 1)]
    for row in rows:
        best, worst = row["candidates"]
        assert row["reference"] == row["before"] == pytest.approx([before[best], before[worst]], abs=CLOSE)
        assert row["after"] == pytest.approx([after[best], after[worst]], abs=CLOSE)
        assert row["loss_before"] == pytest.approx(math.log(2), abs=1e-12)
        margin = BETA * (after[best] - before[best] - after[worst] + before[worst])
        assert margin > 0.01  # a step of 0.01 moves it, so that before and after differ by more than the tolerance
        assert row["loss_after"] == pytest.approx(math.log(1 + math.exp(-margin)), abs=CLOSE)
        _assert_tokens(row["after_tokens"], row)
        assert row["reference_tokens"] is None  # it sampled: its tokens stand beside the completions


def test_against_another_reference_nothing_is_said_of_before(store: Store, updated: Updated, tmp_path: Path) -> None:
    other = committed_policy(store, 2)
    saved, rows, _ = updated(other, {"reference": "initial"})
    reference = computed(store, other, tmp_path / "reference")
    after = computed(store, saved, tmp_path / "after")
    for row in rows:
        best, worst = row["candidates"]
        assert row["reference"] == pytest.approx([reference[best], reference[worst]], abs=CLOSE)
        assert (row["before"], row["loss_before"]) == (None, None)
        margin = BETA * (after[best] - reference[best] - after[worst] + reference[worst])
        assert row["loss_after"] == pytest.approx(math.log(1 + math.exp(-margin)), abs=CLOSE)
        _assert_tokens(row["after_tokens"], row)
    own, replayed = rows
    _assert_tokens(own["reference_tokens"], own, "reference")
    assert replayed["reference_tokens"] is None


def test_a_recipe_can_leave_out_the_tokens_and_trains_the_same(store: Store, updated: Updated) -> None:
    """To the bit on one machine: the hash of the weights is the same."""
    other = committed_policy(store, 2)
    found = [updated(other, {"reference": "initial", "token_logprobs": kept}) for kept in (True, False)]
    (with_tokens, rows, _), (without, bare, _) = found
    assert with_tokens.digest == without.digest
    assert [(row["after_tokens"], row["reference_tokens"]) for row in bare] == [(None, None)] * 2
    nothing = {"after_tokens": None, "reference_tokens": None}
    assert [row | nothing for row in rows] == bare
    kept, left_out = (UpdateConfig(token_logprobs=value) for value in (True, False))
    assert "token_logprobs" not in kept.hashed()
    assert hashed_settings(kept, RoundFacts()) == hashed_settings(left_out, RoundFacts())


def test_another_policy_is_not_saved_under_its_name(store: Store, begun: Begun) -> None:
    """Nor is one that no update of this worker has made."""
    worker, _ = begun()
    with pytest.raises(LostUpdateError, match="holds another policy"):
        worker.save_update()
    worker.finish_update("unsaved")
    worker._model.use(committed_policy(store, 3))
    with pytest.raises(LostUpdateError, match="holds another policy"):
        worker.save_update()
    worker._update = None
    with pytest.raises(LostUpdateError, match="has not begun"):
        worker.save_update()


def _assert_tokens(tokens: list[list[float]], row: dict[str, Any], name: str = "after") -> None:
    """Each completion has a number for each of its tokens, and they add up to its own."""
    assert [len(found) for found in tokens] == [len(ANSWERS[candidate]) for candidate in row["candidates"]]
    assert [math.fsum(found) for found in tokens] == pytest.approx(row[name], abs=1e-5)  # float32

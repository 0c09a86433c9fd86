"""Held-out answers under three policies: the sampler's own log-probabilities where they serve, and no pass twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.workers.references import PolicyRef
from flows.workers.trainer import TrainerWorker
from pipeline.config import UpdateConfig
from pipeline.model.logprobs import sequence_logps
from pipeline.model.policy import load_policy
from pipeline.packing.packing import TokenGroup
from pipeline.recipe import Recipe
from pipeline.records import CANDIDATES, EVALUATION_LOGPS, PROMPTS, to_table
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.checkpoints import local_directory
from storage.tables.shards import read_table, write_table
from support.committed_policy import ANSWER, PROMPT, committed_policy
from support.recipes import TINY

SAMPLED = [-1.0, -2.0, -4.0, -0.5]  # nothing like what the model gives, so that it is seen whose these are


@pytest.fixture
def trainer(make_worker: Callable[..., Any]) -> TrainerWorker:
    return make_worker(TrainerWorker, Recipe.model_validate(TINY))


def prompts_file(store: Store) -> FileRef:
    row = {
        **dict.fromkeys(PROMPTS.names),
        "prompt_id": "p",
        "text": "w1",
        "token_ids": PROMPT,
        "split": "evaluation",
        "source": "test",
    }
    return write_table(store, "r", 0, "prompts", to_table([row], PROMPTS))


def answered_by(store: Store, digest: str) -> FileRef:
    row = {
        "prompt_id": "p", "candidate": 0, "token_ids": ANSWER, "text": "w4", "logprobs": SAMPLED,
        "finish_reason": "stop", "seed": 0, "policy": digest,
    }  # fmt: skip
    return write_table(store, "r", 1, "eval_candidates", to_table([row], CANDIDATES))


def computed(store: Store, held: PolicyRef, tmp_path: Path) -> float:
    """What another model, loaded for this alone, gives the answer."""
    model, _ = load_policy(local_directory(store, held.files, tmp_path / "cache"), device="cpu")
    return sequence_logps(model, [TokenGroup("p", PROMPT, [ANSWER])], 64)[0][0]


@pytest.mark.parametrize(("sampled", "by_sampler", "passes"), [(True, True, 1), (False, False, 2), (True, False, 2)])
def test_the_samplers_serve_for_the_policy_that_sampled(
    store: Store, trainer: TrainerWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    sampled: bool, by_sampler: bool, passes: int,
) -> None:  # fmt: skip
    """In the first round the previous policy is the initial one; answers of yet another policy are computed."""
    prompts = prompts_file(store)
    new, first = committed_policy(store, 1), committed_policy(store, 2)
    candidates = answered_by(store, new.digest if sampled == by_sampler else "another")
    used, use = [], trainer._model.use
    monkeypatch.setattr(trainer._model, "use", lambda held: (used.append(held.digest), use(held))[1])
    file = trainer.score(new, first, first, (prompts,), (candidates,), 1, sampled)
    (row,) = read_table(store, (file,)).to_pylist()
    assert row["policy"] == pytest.approx(sum(SAMPLED) if by_sampler else computed(store, new, tmp_path), abs=1e-4)
    assert row["previous"] == row["initial"] == pytest.approx(computed(store, first, tmp_path), abs=1e-4)
    assert (row["tokens"], len(used)) == (len(ANSWER), passes)
    # The sampler's tokens are in the table of completions already.
    assert (row["policy_tokens"] is None) == by_sampler
    for name in ("previous", "initial", *([] if by_sampler else ["policy"])):
        assert len(row[f"{name}_tokens"]) == len(ANSWER)
        assert sum(row[f"{name}_tokens"]) == pytest.approx(row[name], abs=1e-5)  # float32


def test_a_recipe_can_leave_out_the_tokens(store: Store, make_worker: Callable[..., Any]) -> None:
    recipe = Recipe.model_validate({**TINY, "update": {**TINY["update"], "token_logprobs": False}})
    prompts, new = prompts_file(store), committed_policy(store, 1)
    file = make_worker(TrainerWorker, recipe).score(new, new, new, (prompts,), (answered_by(store, "x"),), 1, False)
    assert read_table(store, (file,)).schema.equals(EVALUATION_LOGPS, check_metadata=True)


def test_the_recipe_says_whose_log_probabilities_are_taken() -> None:
    """0.01 nats a sequence is the default tolerance. What measures a round keeps to it, whoever gives the reference."""
    configs = [UpdateConfig.model_validate({"reference_logprobs": kind}) for kind in ("sampler", "trainer", "auto")]
    assert [config.takes_samplers(0.009) for config in configs] == [True, False, True]
    assert [config.takes_samplers(0.011) for config in configs] == [True, False, False]
    assert [config.measures_by_samplers(0.009) for config in configs] == [True, False, True]
    assert [config.measures_by_samplers(0.011) for config in configs] == [False, False, False]

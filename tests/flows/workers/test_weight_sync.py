"""Weights from the trainer's memory to the sampler, both in this process; and what is compared afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from flows.workers.drift import estimated_noise
from flows.workers.preference_groups import is_noise
from flows.workers.sampler import SamplerWorker
from flows.workers.trainer import TrainerWorker
from pipeline.config import SamplingConfig
from pipeline.errors import EngineError, LostUpdateError, WeightSyncError
from pipeline.model.shared_memory import read_piece
from pipeline.recipe import Recipe
from pipeline.sampling import Sampling, SamplingRequest
from storage.log.store import Store
from support.committed_policy import committed_policy
from support.recipes import TINY


@pytest.fixture
def workers(make_worker: Callable[..., Any], tmp_path: Any) -> tuple[TrainerWorker, SamplerWorker]:
    recipe = Recipe.model_validate({**TINY, "sampling": {**TINY["sampling"], "context": 64}})
    sampler = make_worker(SamplerWorker, recipe)
    common = {"root": sampler.store.root, "run": "r", "scratch": str(sampler.scratch)}
    return TrainerWorker(recipe=recipe.model_dump(mode="json"), **common), sampler


def test_the_trainers_weights_replace_the_samplers(store: Store, workers: tuple[TrainerWorker, SamplerWorker]) -> None:
    trainer, sampler = workers
    first, second = committed_policy(store, 1), committed_policy(store, 2)
    assert sampler.wanted_weights(second) is None, "it has no engine yet"
    sampler.use(first)
    trainer._model.use(second)
    wanted = sampler.wanted_weights(second)
    assert wanted is not None
    assert trainer.begin_sending(first, wanted) == 0, "it holds another policy"
    assert trainer.begin_sending(second, replace(wanted, shapes={"other": (1,)})) == 0, "no such tensors"
    for number in range(trainer.begin_sending(second, wanted)):
        sampler.take_weights(trainer.send_weights(number))
    drift = sampler.finish_weights(second)
    assert drift.source == "memory"
    # Two float32 computations of the same sums, as after a load from the checkpoint.
    assert max(drift.per_token, drift.decoding, drift.noise) < 1e-4
    assert sampler.wanted_weights(second) is None, "it has them"
    assert sampler.use(second) == drift, "nothing is loaded"
    trainer.end_sending()
    with pytest.raises(LostUpdateError, match="has not begun to send"):
        trainer.send_weights(0)


def test_weights_that_change_are_not_sent_any_more(store: Store, workers: tuple[TrainerWorker, SamplerWorker]) -> None:
    """A sampler that has died takes no more pieces: nobody says so to the trainer, whose next update begins."""
    trainer, sampler = workers
    first, second = committed_policy(store, 1), committed_policy(store, 2)
    sampler.use(first)
    wanted = sampler.wanted_weights(second)
    assert wanted is not None
    for change in (lambda: trainer._model.set_current_policy(None), lambda: trainer._model.use(first)):
        trainer._model.use(second)
        assert trainer.begin_sending(second, wanted) == 1
        piece = trainer.send_weights(0)
        change()
        with pytest.raises(LostUpdateError, match="has not begun to send"):
            trainer.send_weights(0)
        with pytest.raises(OSError, match="No such file"):
            dict(read_piece(piece))


def test_other_weights_from_memory_stop_the_run(store: Store, workers: tuple[TrainerWorker, SamplerWorker]) -> None:
    """The trainer holds seed 2 under the name of a policy whose probe is seed 3's."""
    trainer, sampler = workers
    sampler.use(committed_policy(store, 1))
    wrong = committed_policy(store, 2, probed_seed=3)
    trainer._model.use(wrong)
    wanted = sampler.wanted_weights(wrong)
    assert wanted is not None
    assert trainer.begin_sending(wrong, wanted) == 1
    sampler.take_weights(trainer.send_weights(0))
    with pytest.raises(WeightSyncError, match="the engine holds other weights"):
        sampler.finish_weights(wrong)


def test_a_part_of_the_weights_is_no_policy(store: Store, workers: tuple[TrainerWorker, SamplerWorker]) -> None:
    trainer, sampler = workers
    first, second = committed_policy(store, 1), committed_policy(store, 2)
    trainer._model.use(second)
    started_anew = SamplerWorker(
        root=store.root, run="r", recipe=sampler.recipe.model_dump(mode="json"), scratch=str(sampler.scratch)
    )
    sampler.use(first)
    wanted = sampler.wanted_weights(second)
    assert wanted is not None
    trainer.begin_sending(second, wanted)
    piece = trainer.send_weights(0)
    with pytest.raises(EngineError, match="started anew"):
        started_anew.take_weights(piece)
    for some in (piece.tensors[:-1], piece.tensors[-1:]):  # between them the checkpoint, as after the trainer's death
        sampler.take_weights(replace(piece, tensors=some))
        sampler.use(first)
    sampler.take_weights(replace(piece, tensors=piece.tensors[-1:]))
    with pytest.raises(EngineError, match="weights have not come: start a new sampler"):
        sampler.finish_weights(second)


def test_decoding_with_other_weights_is_found(store: Store, workers: tuple[TrainerWorker, SamplerWorker]) -> None:
    """An engine that scores right and samples by something else, as by a cache that it should have emptied."""
    _, sampler = workers
    policy = committed_policy(store, 1)
    sampler.use(policy)
    engine = sampler._sampler
    assert engine is not None
    sample = engine.sample

    def stale(requests: Sequence[SamplingRequest], config: SamplingConfig) -> Sampling:
        candidates = yield from sample(requests, config)
        return [replace(each, logprobs=[logp - 0.01 for logp in each.logprobs]) for each in candidates]

    engine.sample = stale  # type: ignore[method-assign]
    sampler._policy = None
    with pytest.raises(WeightSyncError, match=r"gives tokens that it samples other log-probabilities.*by 0\.01 nats"):
        sampler.use(policy)


def test_noise_by_hand() -> None:
    """Sums of 4 and 100 tokens, off by 0.2 and 0.5: 0.1 and 0.05 nats a token, whose mean square is 0.00625."""
    assert estimated_noise([0.2, 0.5], [4, 100]) == pytest.approx(0.00625**0.5)
    assert is_noise([0.79, 1.99], [16, 100], 0.05)  # 4 deviations are 0.8 and 2.0
    assert not is_noise([0.79, 2.01], [16, 100], 0.05)
    assert not is_noise([0.1], [100], 0.11), "more than bfloat16 has"
    assert not is_noise([0.0], [100], 0.0), "none is expected"

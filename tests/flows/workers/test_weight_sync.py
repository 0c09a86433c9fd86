"""Weights from the trainer's memory to the sampler, both in this process; and what is compared afterwards."""

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from flows.workers.drift import estimated_noise
from flows.workers.preference_groups import is_noise
from flows.workers.references import PolicyRef
from flows.workers.sampler import Sampled, SamplerWorker
from flows.workers.trainer import TrainerWorker
from pipeline.config import SamplingConfig
from pipeline.errors import EngineError, LostUpdateError, WeightSyncError
from pipeline.model.shared_memory import read_piece
from pipeline.recipe import Recipe
from pipeline.records import PROMPTS, to_table
from pipeline.sampling import Sampling, SamplingRequest, finish
from storage.log.store import Store
from storage.tables.shards import read_table, write_table
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
    for change in (trainer._model.forget_policy, lambda: trainer._model.use(first)):
        trainer._model.use(second)
        assert trainer.begin_sending(second, wanted) == 1
        piece = trainer.send_weights(0)
        change()
        with pytest.raises(LostUpdateError, match="has not begun to send"):
            trainer.send_weights(0)
        with pytest.raises(OSError, match="No such file"):
            dict(read_piece(piece))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_without_shared_memory_nothing_is_sent(
    store: Store, workers: tuple[TrainerWorker, SamplerWorker], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The trainer says what to do, and holds the policy as before: the sampler is to read the checkpoint."""
    trainer, sampler = workers
    first, second = committed_policy(store, 1), committed_policy(store, 2)
    sampler.use(first)
    trainer._model.use(second)
    wanted = sampler.wanted_weights(second)
    assert wanted is not None
    assert trainer.begin_sending(second, wanted) == 1
    said: list[str] = []
    trainer.progress = lambda **told: said.append(told["says"])

    def refuse(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", refuse)
        assert trainer.send_weights(0) is None
    (sentence,) = said
    assert f"({os.strerror(number)}): free some memory, or allow more open files (ulimit -n)" in sentence
    assert trainer.begin_sending(second, wanted) == 1
    assert trainer.send_weights(0) is not None


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


def test_weights_that_were_loaded_as_no_policy_are_no_policys(
    store: Store, workers: tuple[TrainerWorker, SamplerWorker]
) -> None:
    """As for the first probe: the model does not go on to say that it holds what it held before."""
    trainer, sampler = workers
    first, second = committed_policy(store, 1), committed_policy(store, 2)
    sampler.use(first)
    wanted = sampler.wanted_weights(second)
    assert wanted is not None
    trainer._model.use(second)
    trainer._model.load(trainer._model.directory(first.files))
    assert trainer._model.current_policy is None
    assert trainer.begin_sending(second, wanted) == 0


def test_a_shard_waits_for_the_name_of_its_policy(store: Store, workers: tuple[TrainerWorker, SamplerWorker]) -> None:
    """The sampler has weights that are not saved yet. What it samples is what it samples once they are, to the bit."""
    trainer, sampler = workers
    first, second = committed_policy(store, 1), committed_policy(store, 2)
    unsaved = PolicyRef("unsaved 1", (), second.probe)
    prompt = {**dict.fromkeys(PROMPTS.names), "prompt_id": "p", "text": "w1", "token_ids": [5, 6], "split": "train",
              "source": "test"}  # fmt: skip
    prompts = (write_table(store, "r", 0, "prompts", to_table([prompt], PROMPTS)),)

    def sampled(policy: PolicyRef) -> Sampled:
        given = {"prompts": prompts, "rows": [0], "round": 1, "stage": "eval_candidates", "shard": 0, "held_out": True}
        return finish(sampler.sample(policy=policy, **given))  # type: ignore[arg-type]

    sampler.use(first)
    with pytest.raises(EngineError, match="its policy is not saved yet"):
        sampler.use(unsaved)
    trainer._model.use(second)
    trainer._model.set_current_policy(unsaved.digest)
    wanted = sampler.wanted_weights(unsaved)
    assert wanted is not None
    assert trainer.begin_sending(unsaved, wanted) == 1
    sampler.take_weights(trainer.send_weights(0))
    sampler.finish_weights(unsaved)
    waiting = sampled(unsaved)
    assert (waiting.file, waiting.completions) == (None, 1)
    assert waiting.unnamed is not None
    # Asked twice, as when a sampler has written it and dies before its answer is heard.
    lost, named = (sampler.name_shard(second, waiting.unnamed, 1, "eval_candidates", 0) for _ in range(2))
    assert (lost.sha256, lost.path != named.path) == (named.sha256, True)
    assert sampler.wanted_weights(replace(second, trained_as=unsaved.digest)) is None, "it has them"
    written = sampled(second)
    assert (written.unnamed, written.tokens) == (None, waiting.tokens)
    assert written.file is not None
    found, expected = (read_table(store, [one]) for one in (named, written.file))
    assert found.equals(expected, check_metadata=True)
    assert set(found["policy"].to_pylist()) == {second.digest}


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
    engine = sampler._engine.sampler
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

"""After a hand-over the sampler computes with the new weights; the reference is the engine that the recipe trusts."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.workers import sampler_engine
from flows.workers.drift import nearer_to_previous
from flows.workers.precision import Agreement
from flows.workers.preference_groups import with_reference
from flows.workers.sampler import SamplerWorker
from pipeline.config import UpdateConfig
from pipeline.dpo.types import PreferenceGroup
from pipeline.errors import WeightSyncError
from pipeline.model.logprobs import sequence_logps
from pipeline.model.policy import load_policy
from pipeline.packing.packing import TokenGroup
from pipeline.recipe import Recipe
from pipeline.records import PROBE, to_table
from pipeline.sampling.transformers_engine import TransformersSampler
from storage.log.store import Store
from storage.tables.shards import write_table
from support.committed_policy import ANSWER, PROMPT, committed_policy
from support.recipes import TINY
from support.tiny import tiny_llama


@pytest.fixture
def sampler(make_worker: Callable[..., Any]) -> SamplerWorker:
    recipe = Recipe.model_validate({**TINY, "sampling": {**TINY["sampling"], "context": 64}})
    return make_worker(SamplerWorker, recipe)


def test_an_engine_that_starts_apart_does_not_blame_other_weights(store: Store, sampler: SamplerWorker) -> None:
    """It has just been given these weights: what differs is how it computes this type."""
    with pytest.raises(WeightSyncError, match=r"has just started with these weights.*sampling\.engine to transformers"):
        sampler.use(committed_policy(store, 1, probed_seed=2))


def test_new_weights_agree_with_their_probe(store: Store, sampler: SamplerWorker) -> None:
    for seed in (1, 2):
        drift = sampler.use(committed_policy(store, seed))
        # Two float32 computations of the same sum: about 1e-6 nats.
        assert drift.per_token < 1e-4


def test_other_weights_than_the_trainers_stop_the_run(store: Store, sampler: SamplerWorker) -> None:
    """The engine holds seed 2, and the probe says what seed 3 gives: as after a reload that did nothing."""
    sampler.use(committed_policy(store, 1))
    with pytest.raises(WeightSyncError, match=r"more than sampling\.handover_tolerance 0\.001"):
        sampler.use(committed_policy(store, 2, probed_seed=3))


def test_old_weights_are_found_where_no_tolerance_tells(store: Store, sampler: SamplerWorker) -> None:
    """A tolerance as wide as bfloat16 needs: the engine, with seed 2, is where the probe says that the policy was."""
    recipe = sampler.recipe.model_copy(
        update={"sampling": sampler.recipe.sampling.model_copy(update={"handover_tolerance": 10.0})}
    )
    sampler.recipe = recipe
    held = committed_policy(store, 2)
    (row,) = sampler.table((held.probe,)).to_pylist()
    stale = committed_policy(store, 2, probed_seed=3, previous=row["logp"])
    (new,) = sampler.table((stale.probe,)).to_pylist()
    assert abs(new["logp"] - row["logp"]) > 0.2  # the two seeds are told apart
    with pytest.raises(WeightSyncError, match="the engine has kept the old weights"):
        sampler.use(stale)
    assert sampler.use(committed_policy(store, 2, previous=row["logp"] - 0.5)).per_token < 1e-4


class Forgetful(TransformersSampler):
    """An engine that has zeros for weights once it has dropped them, and does not refuse to compute with them."""

    def sleep(self, *, keeps_weights: bool) -> None:
        for weight in self._model.parameters() if not keeps_weights else ():
            weight.data.zero_()


def test_a_policy_that_was_dropped_is_loaded_again(
    store: Store, sampler: SamplerWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a round without an update, whose policy is that of the round before."""
    monkeypatch.setattr(Recipe, "sampler_sleeps", True)  # of this recipe it is not: it names no GPU
    monkeypatch.setattr(sampler_engine, "make_sampler", lambda config, source, **_how: Forgetful(source, config))
    policy, trained_again = (replace(committed_policy(store, 1), trained_as=name) for name in (None, "unsaved"))
    drift = sampler.use(policy)
    sampler.sleep(keeps_weights=True)
    assert sampler.use(policy) is drift, "nothing is loaded"
    for same in (policy, trained_again):
        sampler.sleep(keeps_weights=False)
        assert sampler.wanted_weights(same) is not None, "it takes them from the trainer, too"
        # The probe's answers are scored anew: with zeros all tokens would be equally likely.
        again = sampler.use(same)
        assert again is not drift
        assert again.per_token < 1e-4


@pytest.mark.parametrize(
    ("holds", "change", "found"),
    [
        ("new", 1.0, 0),  # as large as the noise of eight long answers in bfloat16: now and then it looks like the old
        ("old", 1.0, 0),
        ("new", 5.0, 0),
        ("old", 5.0, 1000),
    ],
)
def test_noise_is_not_taken_for_old_weights(holds: str, change: float, found: int) -> None:
    """A thousand hand-overs of 8 answers (seed 0), whose sums have a deviation of 1 nat between the engines."""
    draw = random.Random(0)
    taken = 0
    for _ in range(1000):
        changes = [change * draw.choice((-1, 1)) for _ in range(8)]
        probe = [{"logp": -100.0 + each, "previous_logp": -100.0} for each in changes]
        held = [row["logp" if holds == "new" else "previous_logp"] for row in probe]
        taken += nearer_to_previous([logp + draw.gauss(0, 1) for logp in held], probe)
    assert taken == pytest.approx(found, abs=10)


@pytest.mark.parametrize(
    ("asked", "error", "taken"),
    [("sampler", 0.5, "sampler"), ("trainer", 0.0, "trainer"), ("auto", 0.0, "sampler"), ("auto", 0.5, "trainer")],
)
def test_whose_log_probabilities_are_the_references(tmp_path: Path, asked: str, error: float, taken: str) -> None:
    """Three preferences whose sampler was off by ``error`` nats, against a tolerance of 0.01."""
    model, _ = load_policy(tiny_llama(tmp_path, seed=4), device="cpu")
    answers = [[8, 9, 2], [10, 11, 2]]
    (exact,) = sequence_logps(model, [TokenGroup("p", PROMPT, answers)], 64)
    groups = [
        PreferenceGroup(
            prompt_id=f"p{index}",
            prompt_token_ids=PROMPT,
            candidate_token_ids=answers,
            reference_logps=[logp + error for logp in exact],
        )
        for index in range(3)
    ]
    config = UpdateConfig.model_validate({"reference_logprobs": asked, "batch_size": 2, "token_budget": 64})
    found, metrics = with_reference(model, groups, config, drift=0.0, tolerance=0.2)
    assert metrics["reference_logprobs"] == taken
    expected = exact if taken == "trainer" else list(groups[0].reference_logps)
    for group in found:
        # Packs of other sizes may sum in another order: float32, about 1e-6.
        assert list(group.reference_logps) == pytest.approx(expected, abs=1e-5)
    if asked != "sampler":
        assert metrics["reference_drift"] == pytest.approx(error, abs=1e-5)


def test_an_update_that_would_start_from_another_policy_is_refused(tmp_path: Path) -> None:
    """The answers were scored by seed 4, and the trainer holds seed 5: that is no noise."""
    model, _ = load_policy(tiny_llama(tmp_path / "sampled", seed=4, scale=0.3), device="cpu")
    other, _ = load_policy(tiny_llama(tmp_path / "held", seed=5, scale=0.3), device="cpu")
    answers = [[8, 9, 2], [10, 11, 2]]
    (logps,) = sequence_logps(model, [TokenGroup("p", PROMPT, answers)], 64)
    group = PreferenceGroup(prompt_id="p", prompt_token_ids=PROMPT, candidate_token_ids=answers, reference_logps=logps)
    config = UpdateConfig.model_validate({"token_budget": 64})
    with_reference(model, [group], config, drift=0.0, tolerance=1e-3)
    with pytest.raises(WeightSyncError, match="it is not the policy that sampled"):
        with_reference(other, [group], config, drift=0.0, tolerance=1e-3)


@pytest.mark.parametrize(
    ("given", "tolerance", "sampler", "trainer"),
    [
        ({}, 1e-3, "float32", "float32"),
        ({"update": {"precision": "bfloat16"}}, 0.2, "float32", "bfloat16"),
        ({"update": {"precision": "bfloat16"}, "devices": {"sampler": "cuda"}}, 0.2, "bfloat16", "bfloat16"),
        ({"update": {"precision": "bfloat16"}, "sampling": {"handover_tolerance": 0.01}}, 0.01, "float32", "bfloat16"),
        ({"sampling": {"precision": "bfloat16"}}, 0.2, "bfloat16", "float32"),
        ({"sampling": {"precision": "float32"}, "devices": {"sampler": "cuda"}}, 1e-3, "float32", "float32"),
        ({"sampling": {"precision": "auto"}, "devices": {"sampler": "cuda"}}, 1e-3, "float32", "float32"),
    ],
)
def test_the_tolerance_follows_from_the_precision(
    given: dict[str, Any], tolerance: float, sampler: str, trainer: str
) -> None:
    """On a CPU vLLM computes in float32, whatever the trainer does, unless the recipe says otherwise."""
    content = {**TINY, "sampling": {"prompts_per_round": 12, "max_tokens": 20}}
    recipe = Recipe.model_validate({**content, **{name: {**content[name], **part} for name, part in given.items()}})
    agreed = Agreement.of(recipe)
    assert (recipe.handover_tolerance, agreed.tolerance) == (tolerance, tolerance)
    said = agreed.explain(0.3)
    assert f"in {sampler}, the trainer" in said
    assert f"in {trainer}" in said
    assert ("sampling.handover_tolerance above 0.3" in said) == ("bfloat16" in (sampler, trainer))


def test_a_trainer_in_bfloat16_takes_the_default_tolerance(store: Store, sampler: SamplerWorker) -> None:
    """Sampler in float32, and a probe of the same weights in bfloat16: refused in float32's tolerance, with both
    sides named; and the default of bfloat16 takes it.
    """
    held = committed_policy(store, 2)
    model, _ = load_policy(Path(store.root) / "probed-2-None", device="cpu")
    ((logp,),) = sequence_logps(model, [TokenGroup("p", PROMPT, [ANSWER])], 64, precision="bfloat16")
    rows = [{"prompt_token_ids": PROMPT, "token_ids": ANSWER, "logp": logp, "previous_logp": None}]
    halved = replace(held, probe=write_table(store, "r", 0, "probe", to_table(rows, PROBE)))
    own = sampler.recipe
    update = own.update.model_copy(update={"precision": "bfloat16"})
    tight = own.sampling.model_copy(update={"handover_tolerance": 1e-3})
    sampler.recipe = own.model_copy(update={"update": update, "sampling": tight})
    with pytest.raises(WeightSyncError, match=r"cpu in float32, the trainer on cpu in bfloat16.*update\.precision to"):
        sampler.use(halved)
    sampler.recipe = own.model_copy(update={"update": update})
    assert 1e-3 < sampler.use(halved).per_token < 0.2

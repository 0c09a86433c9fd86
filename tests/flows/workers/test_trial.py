"""What the worker of tried prompts keeps in memory, and on disk, from one policy to the next."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flows.workers import trial
from flows.workers.references import PolicyRef
from flows.workers.trial import TrialSettings, TrialWorker, TriedPrompt
from pipeline.config import LoraConfig
from pipeline.model.lora import Adapter
from pipeline.model.policy import load_policy
from pipeline.recipe import Recipe
from storage.log.store import Store
from storage.tables.checkpoints import stage_directory
from support.committed_policy import committed_policy
from support.recipes import TINY

SETTINGS = TrialSettings(temperature=0, top_p=1.0, max_tokens=2, seed=0)


def adapters(store: Store, count: int) -> Iterator[PolicyRef]:
    """Adapters on one base, each with a digest of its own."""
    base = committed_policy(store, 1)
    model, tokenizer = load_policy(store.objects.local_path(base.files[0].path).parent, device="cpu")
    adapter = Adapter(model, LoraConfig(rank=2), seed=0)
    for number in range(count):
        with stage_directory(store, "r", number, "adapter") as staged:
            adapter.save(tokenizer, staged.path)
        yield PolicyRef(f"{number:016}".ljust(64, "0"), staged.files, base.probe, base.files)


def answer(worker: TrialWorker, policy: PolicyRef) -> None:
    for _ in worker.answer(policy, TriedPrompt("w1 w2", None, {}, False), SETTINGS):
        pass


def test_a_third_policy_is_loaded_once_the_first_is_gone(
    store: Store, make_worker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has room that the one used longest ago takes until then; the merged copy of that one goes too."""
    worker = make_worker(TrialWorker, Recipe.model_validate(TINY))
    load, alive, before = trial.make_sampler, weakref.WeakValueDictionary[str, Any](), []
    check = trial._check_memory

    def loading(config: Any, directory: Any, **options: Any) -> Any:
        alive[directory.name] = sampler = load(config, directory, **options)
        return sampler

    def checking(needed: int) -> None:
        before.append(sorted(alive))
        check(needed)

    monkeypatch.setattr(trial, "make_sampler", loading)
    monkeypatch.setattr(trial, "_check_memory", checking)
    first, second, third = adapters(store, 3)
    names = [policy.digest[:16] for policy in (first, second, third)]
    for policy in (first, second, first, third, first):
        answer(worker, policy)
    assert before == [[], names[:1], names[:1]], "what is in memory when a policy's turn comes to be loaded"
    assert {path.name for path in worker.merged.iterdir()} == {names[0], names[2]}

"""Workers on one GPU: each returns what it does not use, and the sampler sleeps when an update needs its memory."""

import weakref
from pathlib import Path

import pytest
import torch

from flows.registry.recipes import parse_recipe
from flows.workers.judge import JudgeWorker
from flows.workers.trainer import TrainerWorker
from pipeline.records import CANDIDATES, PROMPTS, to_table
from storage.log.store import Store
from storage.tables.shards import write_table
from support.recipes import TINY


class Finished:
    """An update in progress that is done when it is asked."""

    def save(self) -> str:
        return "saved"


def test_a_trainer_returns_the_memory_of_an_update_once_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still referred to then stays on the card, and the sampler that wakes finds it full."""
    worker, update = object.__new__(TrainerWorker), Finished()
    worker.device, worker._update, left = "cuda", update, weakref.ref(update)  # type: ignore[assignment]
    del update
    free: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(left() is None))
    assert worker.save_update() == "saved"  # type: ignore[comparison-overlap]
    assert free == [True]


@pytest.mark.parametrize(("device", "times"), [("cuda", 1), ("cpu", 0)])
def test_a_judge_returns_what_a_shard_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, times: int
) -> None:
    store = Store.open(tmp_path / "root")
    prompt = {
        "prompt_id": "p", "text": "a", "messages": None, "token_ids": [1], "source": "test", "reference_answer": None,
        "split": "train",
    }  # fmt: skip
    candidate = {
        "prompt_id": "p", "candidate": 0, "token_ids": [1], "text": "b", "logprobs": [-1.0], "finish_reason": "stop",
        "seed": 1, "policy": "x",
    }  # fmt: skip
    prompts = write_table(store, "run", 0, "prompts", to_table([prompt], PROMPTS))
    candidates = write_table(store, "run", 1, "candidates", to_table([candidate], CANDIDATES))
    recipe = parse_recipe(TINY, [f"devices.judge={device}"]).model_dump(mode="json")
    worker = JudgeWorker(root=store.root, run="run", recipe=recipe, scratch=str(tmp_path))
    emptied: list[None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(None))
    worker.judge((prompts,), candidates, 1, "judgments", 0, [0])
    assert len(emptied) == times


SHARED = [
    (["devices.sampler=cuda", "devices.trainer=cuda"], True),
    (["devices.sampler=cuda:0", "devices.trainer=cuda"], True),
    (["devices.sampler=cuda:1", "devices.trainer=cuda:1"], True),
    (["devices.sampler=cuda", "devices.trainer=cuda:1"], False),
    (["devices.sampler=cuda", "devices.trainer=cpu"], False),
    # An update takes as many GPUs as it has ranks, from the first on.
    (["devices.sampler=cuda:3", "devices.trainer=cuda", "devices.trainer_ranks=4"], True),
    (["devices.sampler=cuda:4", "devices.trainer=cuda", "devices.trainer_ranks=4"], False),
    (["cluster.sampler.replicas=1", "devices.trainer=cuda"], False),
    # Nobody knows which ones Ray gives a replica.
    (
        ["devices.sampler=cuda", "devices.trainer=cuda:1", "cluster.sampler.replicas=1", "cluster.sampler.gpus=1"],
        True,
    ),
]


@pytest.mark.parametrize(("changes", "sleeps"), SHARED)
def test_the_sampler_sleeps_where_the_update_is_on_its_card(changes: list[str], sleeps: bool) -> None:
    phased = ["sampling.engine=vllm", *changes]
    assert parse_recipe(TINY, phased).sampler_sleeps == sleeps
    assert not parse_recipe(TINY, [*phased, "mode=streaming"]).sampler_sleeps

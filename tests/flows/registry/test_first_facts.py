"""What a run keeps to since its first round, wherever it goes on: its samples' precision, and marks of thoughts."""

from pathlib import Path
from typing import Any

import pytest

from flows.registry.first_facts import sampled_in, thoughts_between
from flows.registry.recipes import parse_recipe
from flows.registry.resume import header
from pipeline.config import ThoughtMarks
from storage.log.manifest import Key
from storage.log.run import Run
from storage.log.store import Store
from support.old_stores import unpack
from support.recipes import TINY

VLLM = "sampling.engine=vllm"
AUTO = [VLLM, "sampling.precision=auto"]
ON_A_GPU = [VLLM, "devices.sampler=cuda", "update.precision=bfloat16"]
MARKS = {"begin": "<think>", "end": "</think>"}


def begun(store: Store, name: str, changes: list[str], meta: dict[str, Any] | None, parent: str | None = None) -> Run:
    """A run of the tiny recipe with these changes, whose first checkpoint says this; it has not begun without it."""
    of = {"parent": {"run": parent, "round": 0}} if parent else {}
    run = store.create_run(name, {**header(parse_recipe(TINY, changes)), **of})
    if meta is not None:
        with run.writer() as writer:
            writer.commit(Key(0, "checkpoint"), [], meta)
    return run


@pytest.mark.parametrize(
    ("changes", "meta", "precision"),
    [
        (AUTO, None, None),
        (AUTO, {"sampler_precision": "bfloat16"}, "bfloat16"),
        (AUTO, {"sampler_precision": "float32"}, "float32"),
        # Its first session was given other devices than the recipe in its header: what it did is what counts.
        (ON_A_GPU, {"sampler_precision": "float32"}, "float32"),
        # Version 0.1.0: float32 on a processor, and on a GPU what the trainer computes in.
        ([VLLM], {}, "float32"),
        (ON_A_GPU, {}, "bfloat16"),
        ([*ON_A_GPU, "sampling.engine=transformers"], {}, "float32"),
    ],
)
def test_a_run_samples_in_the_precision_of_its_first_round(
    changes: list[str], meta: dict[str, Any] | None, precision: str | None
) -> None:
    store = Store.open("memory://")
    assert sampled_in(store, begun(store, "r", changes, meta)) == precision


@pytest.mark.parametrize(
    ("changes", "recorded", "precision"),
    [
        (AUTO, "bfloat16", "bfloat16"),
        (AUTO, "float32", "float32"),
        (AUTO, None, "float32"),  # of a run of version 0.1.0
        ([VLLM, "sampling.precision=float32"], "bfloat16", "float32"),
        ([VLLM, "sampling.precision=bfloat16"], "float32", "bfloat16"),
        (ON_A_GPU, "float32", "bfloat16"),
    ],
)
@pytest.mark.parametrize("imported", [False, True])
def test_a_fork_samples_as_its_parent_unless_it_says_otherwise(
    changes: list[str], recorded: str | None, precision: str, imported: bool
) -> None:
    """Before its first session, which takes the parent's rounds over, and after it."""
    store, meta = Store.open("memory://"), {"sampler_precision": recorded} if recorded else {}
    begun(store, "parent", AUTO, meta)
    assert sampled_in(store, begun(store, "fork", changes, meta if imported else None, "parent")) == precision


@pytest.mark.parametrize("imported", [False, True])
def test_a_fork_of_a_fork_samples_as_the_one_that_it_is_of(imported: bool) -> None:
    """The first of them sampled in bfloat16, and its round 0 is that of the others too."""
    store, meta = Store.open("memory://"), {"sampler_precision": "bfloat16"}
    begun(store, "first", AUTO, meta)
    begun(store, "second", [VLLM, "sampling.precision=float32"], meta, "first")
    third = begun(store, "third", AUTO, meta if imported else None, "second")
    assert sampled_in(store, third) == "float32"
    fourth = begun(store, "fourth", [VLLM, "sampling.precision=bfloat16"], meta if imported else None, "third")
    assert sampled_in(store, fourth) == "bfloat16"


def test_marks_of_thoughts_are_those_that_round_0_found() -> None:
    store = Store.open("memory://")
    thinks, old = begun(store, "thinks", [], {"thought": MARKS}), begun(store, "old", [], {})
    assert thoughts_between(thinks, None) == ThoughtMarks.model_validate(MARKS)
    assert thoughts_between(old, None) is None, "a run of version 0.1.0 judges whole completions to its end"
    given = ThoughtMarks(begin="<reasoning>", end="</reasoning>")
    assert thoughts_between(thinks, given) == thoughts_between(old, given) == given


def test_runs_of_version_0_1_0_go_on_as_they_began(tmp_path: Path) -> None:
    store = Store.open(str(unpack("0.1.0", tmp_path / "root")))
    for name in ("finished", "half", "fork"):
        run = store.run(name)
        assert (sampled_in(store, run), thoughts_between(run, None)) == ("float32", None)

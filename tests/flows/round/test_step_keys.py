"""What steps ask for and find their entries by, of what the store alone knows: drift, and what round 0 recorded."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic_core import to_jsonable_python

from flows.host.progress import Stage
from flows.remote.calls import Client
from flows.round import round_steps
from flows.round.context import RoundContext
from flows.round.provenance import recipe_hash, round_origin
from flows.round.shard_steps import sample_shard
from flows.workers.references import PromptBatch
from flows.workers.sampler import Sampled, SamplerWorker
from flows.workers.trainer import TrainerWorker
from pipeline.records import content_id
from storage.log.manifest import FileRef
from support.contexts import round_context

DIGEST = "d" * 64
MARKS = {"begin": "<think>", "end": "</think>"}
AUTO = ["sampling.engine=vllm", "sampling.precision=auto"]


def file(name: str) -> FileRef:
    return FileRef(f"runs/r/{name}", 1, "0" * 64, 1)


class Asked:
    """A carrier that keeps what a worker is asked for, and gives one answer."""

    capacity = 1

    def __init__(self, answer: Any) -> None:
        self._answer = to_jsonable_python(answer)
        self.given: list[dict[str, Any]] = []

    async def call(self, _method: str, **arguments: Any) -> Any:
        self.given.append(arguments)
        return self._answer


def begin(context: RoundContext, drift: float = 0.0, **facts: Any) -> None:
    """Commits a first checkpoint with these facts, its probe, and a weight sync with this drift."""
    context.commit(0, "checkpoint", [file("model.safetensors")], {"policy": DIGEST, **facts})
    context.commit(0, "probe", [file("probe")])
    context.commit(0, "handover", [], {"per_sequence": drift, "per_token": drift}, DIGEST)


@pytest.mark.parametrize(
    ("asked", "drift", "sampled"),
    [
        ("auto", 0.009, True), ("auto", 0.011, False), ("sampler", 0.009, True), ("sampler", 0.011, False),
        ("trainer", 0.0, False),
    ],
)  # fmt: skip
def test_held_out_completions_are_scored_by_whoever_the_drift_allows(asked: str, drift: float, sampled: bool) -> None:
    """At a tolerance of 0.01 nats. The trainer's scores have the key of version 0.1.0, the sampler's not."""
    carrier = Asked(file("eval_logps"))
    workers = SimpleNamespace(trainer=Client[TrainerWorker](cast(Any, carrier)))

    async def scored(context: RoundContext) -> list[str]:
        begin(context, drift)
        candidates = context.commit(0, "eval_candidates", [file("eval_candidates")], {"policy": DIGEST})
        found = [await round_steps.score.fn(context, 0, [candidates]) for _ in range(2)]  # type: ignore[attr-defined]
        assert found[0].meta["policy_logprobs"] == ("sampler" if sampled else "trainer")
        return [entry.key.inputs for entry in found]

    with round_context([f"update.reference_logprobs={asked}"], prompts=1, workers=workers) as context:
        first, again = asyncio.run(scored(context))
    assert [call["sampled"] for call in carrier.given] == [sampled], "the second time it is found"
    assert first == again
    assert (first == content_id([DIGEST] * 3 + [["0" * 64]])) == (not sampled)


@pytest.mark.parametrize(("trainer", "asked"), [("cuda", ["sleep", "score"]), ("cuda:1", ["score"])])
def test_the_sampler_sleeps_while_the_trainer_scores_on_its_card(trainer: str, asked: list[str]) -> None:
    found: list[str] = []

    class Noted(Asked):
        async def call(self, method: str, **arguments: Any) -> Any:
            found.append(method)
            assert arguments.get("keeps_weights", True), "they are sampled with again"
            return await super().call(method, **arguments)

    workers = SimpleNamespace(
        trainer=Client[TrainerWorker](cast(Any, Noted(file("eval_logps")))),
        sampler=Client[SamplerWorker](cast(Any, Noted(None))),
    )

    async def scored(context: RoundContext) -> None:
        begin(context)
        candidates = context.commit(0, "eval_candidates", [file("eval_candidates")], {"policy": DIGEST})
        await round_steps.score.fn(context, 0, [candidates])  # type: ignore[attr-defined]

    cards = ["sampling.engine=vllm", "devices.sampler=cuda", f"devices.trainer={trainer}"]
    with round_context(cards, prompts=1, workers=workers) as context:
        asyncio.run(scored(context))
    assert found == asked


@pytest.mark.parametrize(
    ("changes", "facts", "marks"),
    [
        ([], {"thought": MARKS}, MARKS),
        ([], {}, None),  # as version 0.1.0 began it, whatever its tokenizer has
        (["sampling.thought.begin=w1", "sampling.thought.end=w2"], {"thought": MARKS}, {"begin": "w1", "end": "w2"}),
    ],
)
def test_shards_are_sampled_with_the_marks_that_round_0_recorded(
    changes: list[str], facts: dict[str, Any], marks: dict[str, str] | None
) -> None:
    carrier = Asked(Sampled(file("candidates"), 1, 5))
    workers = SimpleNamespace(sampler=Client[SamplerWorker](cast(Any, carrier)))
    display = cast(Stage, SimpleNamespace(begin=lambda: None, worked_on=lambda _: None, report=lambda *_: None))
    with round_context(changes, prompts=1, workers=workers) as context:
        begin(context, **facts)
        asyncio.run(sample_shard(context, 1, 0, [0], PromptBatch.training(1, 0), display))
    assert [call["thought"] for call in carrier.given] == [marks]


def test_a_round_says_in_what_it_was_sampled() -> None:
    """Equal hashes mean equal inputs: ``auto`` counts as what it came to, and float32 as in version 0.1.0."""
    found = {}
    for precision in ("float32", "bfloat16"):
        with round_context(AUTO, prompts=1, judge_versions=["1", "1"]) as context:
            begin(context, sampler_precision=precision)
            found[precision] = round_origin(context, 0).recipe
            auto = recipe_hash(context.recipe)
    assert found["float32"] == auto
    with round_context([*AUTO[:1], "sampling.precision=bfloat16"]) as context:
        assert found["bfloat16"] == recipe_hash(context.recipe) != auto

"""What is done with one shard of prompts. Each step finds its entry in the run's log, or works and commits it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from flows.errors import WorkerDiedError
from flows.host.progress import Stage
from flows.registry.given_rounds import is_given
from flows.registry.judge_usage import usage_meta
from flows.remote.calls import Answer
from flows.round.context import RoundContext
from flows.round.step import TRIES, is_worth_another_try
from flows.workers.judge import JudgeWorker
from flows.workers.references import PolicyRef, PromptBatch, hashes
from flows.workers.sampler import Sampled, SamplerWorker
from pipeline.errors import EngineError, WeightSyncError
from pipeline.judges.human import HumanConfig
from pipeline.records import content_id
from storage.log.manifest import Entry, FileRef
from storage.tables.shards import read_table

Result = TypeVar("Result")

PAUSE_SECONDS = 1.0


async def sample_shard(
    context: RoundContext, number: int, shard: int, rows: list[int], batch: PromptBatch, display: Stage
) -> Entry:
    """Samples the completions of one shard of prompts.

    Those that a fork was given are there already, whichever policy has sampled them. Those of a policy that is not
    saved yet are committed once it is.

    If the engine dies three times on a shard of training prompts, they are skipped: the entry has the reason and no
    files. The second and the third time nothing else is in the engine, so that no other shard is blamed.

    Raises:
        EngineError: it died on held-out prompts, or more would be skipped than the recipe allows.
    """
    if not batch.held_out and is_given(context.run, number):
        return context.given(number, "candidates", shard)
    recipe, known = context.recipe, context.policies.after(batch.policy)
    prompts = batch.gate or context.files(0, "prompts")
    settings = recipe.sampling.hashed(exclude=("shards_in_flight", "max_skipped_fraction", "alarm_truncated"))
    if batch.held_out:
        settings = {name: settings[name] for name in ("max_tokens", "thought") if name in settings}
    if batch.served and recipe.evaluation.serving is not None:
        settings |= recipe.evaluation.serving.hashed()
    if batch.gate:
        settings |= {"max_tokens": recipe.gate_tokens, "temperature": 0.0}

    def inputs(policy: PolicyRef) -> str:
        return content_id([policy.digest, hashes(prompts), rows, recipe.seed, settings])

    done, stage = context.find_in(batch.places, "candidates", inputs(known), shard)
    if done is not None:
        return done

    async def sample(again: bool) -> Answer[Sampled]:
        display.begin()
        sampler = context.workers.sampler.asking(on_progress=lambda told: display.report(told, shard), alone=again)
        return await sampler.call(
            SamplerWorker.sample,
            policy=await context.policies.saved(batch.policy) if again else known,
            prompts=prompts, rows=rows, round=number, stage=stage, shard=shard, held_out=batch.held_out,
            served=batch.served, thought=context.policies.thought, gate=bool(batch.gate),
        )  # fmt: skip

    try:
        answer = await retry_on_worker_death(sample)
    except (WorkerDiedError, EngineError) as error:
        if isinstance(error, WeightSyncError):
            raise
        meta = _skip(context, number, shard, rows, batch, error)
        saved = await context.policies.saved(batch.policy)
        return context.commit(number, stage, [], meta, inputs(saved), shard)
    display.worked_on(answer.work)
    sampled = answer.result
    # In the last turn of an engine that several shards share, a worker tells nothing of those that end with it.
    display.report({"done": sampled.completions, "tokens": sampled.tokens}, shard)
    if sampled.file is None:
        display.report({"doing": "waiting for the policy to be saved"}, shard)
    saved = await context.policies.saved(batch.policy)
    file = sampled.file or await _named(context, number, stage, shard, saved, sampled)
    meta = {"policy": saved.digest, "candidates": sampled.completions, "tokens": sampled.tokens, **answer.work}
    return context.commit(number, stage, [file], meta, inputs(saved), shard)


async def _named(
    context: RoundContext, number: int, stage: str, shard: int, policy: PolicyRef, sampled: Sampled
) -> FileRef:
    """Has a shard written that was sampled before its policy was saved."""
    assert sampled.unnamed is not None
    path = sampled.unnamed
    answer = await retry_on_worker_death(
        lambda _again: context.workers.sampler.call(
            SamplerWorker.name_shard, policy=policy, unnamed=path, round=number, stage=stage, shard=shard
        )
    )
    Path(path).unlink(missing_ok=True)  # not before: a sampler that dies over it is asked again
    return answer.result


def _skip(
    context: RoundContext, number: int, shard: int, rows: list[int], batch: PromptBatch, error: Exception
) -> dict[str, Any]:
    """Returns what the entry of a skipped shard says: the engine has died on it too often.

    Raises:
        EngineError: its prompts are held-out ones, or more would be skipped than the recipe allows.
    """
    if batch.held_out:
        raise EngineError(
            f"the engine died {TRIES} times on held-out shard {shard} of round {number}, and rounds are compared by "
            f"the same prompts: {error}"
        ) from error
    earlier = context.run.work(number, "candidates")
    skipped = sum(entry.meta.get("set_aside", 0) for entry in earlier) + len(rows)
    most = context.recipe.sampling.max_skipped_fraction * context.recipe.sampling.prompts_per_round
    if skipped > most:
        raise EngineError(
            f"the engine died {TRIES} times on shard {shard} of round {number}; with its {len(rows)} prompts {skipped} "
            f"would be skipped, more than the {most:g} that sampling.max_skipped_fraction allows: {error}"
        ) from error
    context.display.say(f"round {number}: {len(rows)} prompts of shard {shard} are skipped: {error}")
    return {"set_aside": len(rows), "reason": str(error)}


async def judge_shard(
    context: RoundContext, number: int, shard: int, candidates: Entry, batch: PromptBatch, display: Stage
) -> Entry:
    """Judges one shard of completions: those of a round by the training judge, held-out ones by all judges.

    Answers to the gate's prompts are judged by the gate's own judges. What a fork was given is judged already, also by
    another version of the judge.
    """
    if not batch.held_out and is_given(context.run, number):
        return context.given(number, "judgments", shard)
    recipe, judges = context.recipe, context.recipe.held_out_judges if batch.held_out else [0]
    configs = (*recipe.judges, *recipe.gate_judges)
    if batch.gate:
        judges = [*range(len(recipe.judges), len(configs))]
    versions = [context.judge_versions[place] for place in judges]
    settings = [configs[place].hashed() for place in judges]
    policies = [None if batch.gate else context.policies.of_judge(place, number) for place in judges]
    compared = [pair and pair.hashes for pair in policies]
    more: list[Any] = [compared] if any(compared) else []
    choices = None
    if isinstance(recipe.judge, HumanConfig) and not batch.held_out:
        asked = set(read_table(context.store, candidates.files, ["prompt_id"])["prompt_id"].to_pylist())
        choices = [choice for choice in context.choices(number) if choice["prompt_id"] in asked]
        more.append(choices)
    inputs = content_id([hashes(candidates.files), settings, versions, *more])
    done, stage = context.find_in(batch.places, "judgments", inputs, shard)
    if done is not None:
        return done
    display.begin()
    answer = await retry_on_worker_death(
        lambda _again: context.workers.judge.call(
            JudgeWorker.judge,
            prompts=batch.gate or context.files(0, "prompts"), candidates=candidates.files[0],
            round=number, stage=stage, shard=shard, judges=judges, policies=policies, choices=choices,
            gate=bool(batch.gate),
        )
    )  # fmt: skip
    meta = {**({"policies": compared} if any(compared) else {}), **usage_meta(answer.result.usage), **answer.work}
    done = context.commit(number, stage, [answer.result.file], meta, inputs, shard)
    display.worked_on(answer.work)
    display.report({"done": candidates.meta["candidates"]}, shard)
    return done


async def build_preferences(
    context: RoundContext, number: int, shard: int, candidates: Entry, judgments: Entry
) -> Entry:
    """Turns the judgments of one shard into preferences."""
    files = [hashes(entry.files) for entry in (candidates, judgments)]
    inputs = content_id([*files, context.recipe.preferences.hashed()])
    if done := context.find(number, "preferences", inputs, shard):
        return done
    answer = await retry_on_worker_death(
        lambda _again: context.workers.judge.call(
            JudgeWorker.build_preferences,
            candidates=candidates.files, judgments=judgments.files,
            round=number, shard=shard, seed=context.seed(number),
        )
    )  # fmt: skip
    built = answer.result
    meta = {"preferences": built.count, "prompts": built.prompts, "preferring": built.preferring, **answer.work}
    return context.commit(number, "preferences", [built.file], meta, inputs, shard)


async def retry_on_worker_death(work: Callable[[bool], Awaitable[Result]]) -> Result:
    """Returns what the work returns; if a worker or an engine dies in it, it is done again, up to three times in all.

    Args:
        work: is told whether it is done again.

    Raises:
        WorkerDiedError, EngineError: of the last try; a WeightSyncError of the first.
    """
    for attempt in range(TRIES):
        try:
            return await work(attempt > 0)
        except (WorkerDiedError, EngineError) as error:
            if attempt + 1 == TRIES or not is_worth_another_try(error):
                raise
            await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("there is a first try")

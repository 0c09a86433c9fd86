"""What is done with one shard of prompts. Each step finds its entry in the run's log, or works and commits it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from flows.errors import WorkerDiedError
from flows.host.progress import Stage
from flows.remote.calls import timed
from flows.round.context import Session, current
from flows.workers.references import PromptBatch, as_json, hashes
from pipeline.config import PeopleJudge
from pipeline.errors import EngineError, WeightSyncError
from pipeline.records import content_id
from storage.log.manifest import Entry
from storage.tables.shards import read_table

Result = TypeVar("Result")

TRIES = 3
PAUSE_SECONDS = 1.0


async def sample_shard(number: int, shard: int, rows: list[int], batch: PromptBatch, display: Stage) -> Entry:
    """Samples the candidates of one shard of prompts.

    Where the engine dies on a shard of training prompts three times, they are set aside: the entry has the reason and
    no files. The second and the third time nothing else is in the engine, so that no other shard is blamed.

    Raises:
        EngineError: it died on held-out prompts, or more would be set aside than the recipe allows.
    """
    session = current()
    policy, prompts, sampling = session.policy(batch.policy), session.files(0, "prompts"), session.recipe.sampling
    settings = {"max_tokens": sampling.max_tokens}
    if not batch.held_out:
        settings = sampling.model_dump(mode="json", exclude={"shards_in_flight", "most_set_aside"})
    inputs = content_id([policy.digest, hashes(prompts), rows, session.recipe.seed, settings])
    done, stage = session.find_in(batch.places, "candidates", inputs, shard)
    if done is not None:
        return done

    async def sample(again: bool) -> tuple[Any, dict[str, Any]]:
        display.begin()
        return await timed(
            session.sampler, "sample", alone=again,
            policy=policy.to_json(), prompts=as_json(prompts), rows=rows, round=number, stage=stage,
            shard=shard, held_out=batch.held_out, on_progress=lambda metrics: display.report(metrics, shard),
        )  # fmt: skip

    try:
        sampled, work = await retry_on_worker_death(sample)
    except (WorkerDiedError, EngineError) as error:
        if isinstance(error, WeightSyncError):
            raise
        meta = _set_aside(session, number, shard, rows, batch, error)
        return session.commit(number, stage, [], meta, inputs, shard)
    (file,) = session.references([sampled["file"]])
    meta = {"policy": policy.digest, "candidates": file.rows, "tokens": sampled["tokens"], **work}
    return session.commit(number, stage, [file], meta, inputs, shard)


def _set_aside(
    session: Session, number: int, shard: int, rows: list[int], batch: PromptBatch, error: Exception
) -> dict[str, Any]:
    """What the entry of a shard says on which the engine has died too often; it raises where that cannot be."""
    if batch.held_out:
        raise EngineError(
            f"the engine died {TRIES} times on held-out shard {shard} of round {number}, and rounds are compared by "
            f"the same prompts: {error}"
        ) from error
    earlier = session.run.work(number, "candidates")
    aside = sum(entry.meta.get("set_aside", 0) for entry in earlier) + len(rows)
    most = session.recipe.sampling.most_set_aside * session.recipe.sampling.prompts_per_round
    if aside > most:
        raise EngineError(
            f"the engine died {TRIES} times on shard {shard} of round {number}; with its {len(rows)} prompts {aside} "
            f"would be set aside, more than the {most:g} that sampling.most_set_aside allows: {error}"
        ) from error
    session.display.say(f"round {number}: {len(rows)} prompts of shard {shard} are set aside: {error}")
    return {"set_aside": len(rows), "reason": str(error)}


async def judge_shard(number: int, shard: int, candidates: Entry, batch: PromptBatch, display: Stage) -> Entry:
    """Judges one shard of candidates: those of a round by the judge that training hears, held-out ones by all."""
    session = current()
    judges = session.recipe.held_out_judges if batch.held_out else [0]
    versions = [session.judge_versions[place] for place in judges]
    settings = [session.recipe.judges[place].model_dump(mode="json") for place in judges]
    policies = [session.judge_policies(place, number) for place in judges]
    compared = [found and found.hashes for found in policies]
    more: list[Any] = [compared] if any(compared) else []
    choices = None
    if isinstance(session.recipe.judge, PeopleJudge) and not batch.held_out:
        asked = set(read_table(session.store, candidates.files, ["prompt_id"])["prompt_id"].to_pylist())
        choices = [choice for choice in session.choices(number) if choice["prompt_id"] in asked]
        more.append(choices)
    inputs = content_id([hashes(candidates.files), settings, versions, *more])
    done, stage = session.find_in(batch.places, "judgments", inputs, shard)
    if done is not None:
        return done
    display.begin()
    file, work = await retry_on_worker_death(
        lambda _again: timed(
            session.judge, "judge",
            prompts=as_json(session.files(0, "prompts")), candidates=candidates.files[0].to_json(),
            round=number, stage=stage, shard=shard, judges=judges, choices=choices,
            policies=[found and found.to_json() for found in policies],
        )
    )  # fmt: skip
    meta = {**({"policies": compared} if any(compared) else {}), **work}
    done = session.commit(number, stage, session.references([file]), meta, inputs, shard)
    display.report({"done": candidates.meta["candidates"]}, shard)
    return done


async def build_preferences(number: int, shard: int, candidates: Entry, judgments: Entry) -> Entry:
    """Turns the judgments of one shard into preferences."""
    session = current()
    files = [hashes(entry.files) for entry in (candidates, judgments)]
    inputs = content_id([*files, session.recipe.preferences.model_dump(mode="json")])
    if done := session.find(number, "preferences", inputs, shard):
        return done
    (file, count), work = await retry_on_worker_death(
        lambda _again: timed(
            session.judge, "prefer",
            candidates=as_json(candidates.files),
            judgments=as_json(judgments.files),
            round=number, shard=shard, seed=session.seed(number),
        )
    )  # fmt: skip
    meta = {"preferences": count, **work}
    return session.commit(number, "preferences", session.references([file]), meta, inputs, shard)


async def retry_on_worker_death(work: Callable[[bool], Awaitable[Result]]) -> Result:
    """What the work returns; where a worker or an engine dies in it, it is done again, up to three times in all.

    Args:
        work: is told whether it is done again.

    Raises:
        WorkerDiedError, EngineError: of the last try.
    """
    for attempt in range(TRIES):
        try:
            return await work(attempt > 0)
        except (WorkerDiedError, EngineError):
            if attempt + 1 == TRIES:
                raise
            await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("there is a first try")

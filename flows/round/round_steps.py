"""The steps of a round that concern it as a whole. Each finds its entry in the run's log, or works and commits it.

What a step depends on is hashed into the key of its entry: with other inputs it is another piece of work. Those of a
single shard are in `flows.round.shard_steps`, the update in `flows.round.update_step`.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from flows.remote.calls import timed
from flows.round.context import current
from flows.round.shard_steps import retry_on_worker_death
from flows.round.shards import Shard, Shards, files_of
from flows.round.step import step
from flows.workers.references import as_json, hashes
from pipeline.records import content_id
from storage.log.manifest import Entry, FileRef
from storage.tables.checkpoints import weights_digest


@step("{run} prepare policy")
async def prepare_policy(run: str) -> Entry:
    """Round 0's checkpoint: the warm start or the pretrained policy."""
    session = current()
    if done := session.find(0, "checkpoint"):
        return done
    with session.display.stage(0, "policy") as stage:
        stage.begin()
        (files, report), work = await timed(session.trainer, "prepare_policy", on_progress=stage.report)
    files = session.references(files)
    return session.commit(0, "checkpoint", files, {**report, **work, "policy": weights_digest(files)})


@step("{run} prepare prompts")
async def prepare_prompts(run: str) -> Entry:
    """The prompts of the whole run, and a probe of the initial policy on some of them."""
    session = current()
    checkpoint = as_json(session.files(0, "checkpoint"))
    prompts = session.find(0, "prompts")
    if prompts is None:
        with session.display.stage(0, "prompts") as stage:
            stage.begin()
            file, work = await timed(
                session.trainer, "prepare_prompts", checkpoint=checkpoint,
                on_progress=lambda metrics: session.display.say(f"prompts: {metrics['notice']}"),
            )  # fmt: skip
        prompts = session.commit(0, "prompts", session.references([file]), work)
    if session.find(0, "probe") is None:
        file, work = await timed(session.trainer, "probe", checkpoint=checkpoint, prompts=as_json(prompts.files))
        session.commit(0, "probe", session.references([file]), work)
    return prompts


@step("{run} r{number} replay")
async def replay(run: str, number: int, own: Sequence[FileRef]) -> Entry | None:
    """Chooses preferences of earlier rounds that the update is given again; None where the recipe wants none.

    Args:
        own: the preferences of the round itself.
    """
    session = current()
    config = session.recipe.preferences
    if not config.replay.share:
        return None
    rounds = range(max(1, number - config.replay.max_age), number)
    earlier = {origin: session.files(origin, "preferences") for origin in rounds}
    candidates = {origin: session.files(origin, "candidates") for origin in rounds}
    pool = [[origin, hashes(earlier[origin]), hashes(candidates[origin])] for origin in rounds]
    inputs = content_id([hashes(own), pool, _settings(config)])
    if done := session.find(number, "replayed", inputs):
        return done
    (file, metrics), work = await timed(
        session.judge, "replay",
        preferences=as_json(own), round=number, seed=session.seed(number),
        earlier={origin: as_json(files) for origin, files in earlier.items()},
        candidates={origin: as_json(files) for origin, files in candidates.items()},
    )  # fmt: skip
    return session.commit(number, "replayed", session.references([file]), {**metrics, **work}, inputs)


async def sleep_sampler(shards: Shards) -> None:
    """Has the sampler lend its GPU's memory to the update, where they take turns; it wakes when it is asked again.

    Args:
        shards: those of the round, which have to be through before.
    """
    session = current()
    if session.recipe.sampler_sleeps:
        await shards.all()
        await retry_on_worker_death(lambda _again: session.sampler.call("sleep"))


@step("{run} r{number} hand over")
async def sync_weights(run: str, number: int) -> Entry:
    """Gives the sampler the round's weights, in place, and keeps how far it then is from the trainer."""
    session = current()
    policy = session.policy(number)
    done = session.find(number, "handover", policy.digest)
    if done is None:
        with session.display.stage(number, "hand over") as stage:
            stage.begin()
            drift, work = await timed(session.sampler, "use", policy=policy.to_json())
        done = session.commit(number, "handover", [], {**drift, **work}, policy.digest)
    return done


@step("{run} r{number} score")
async def score(run: str, number: int, candidates: Sequence[Entry]) -> Entry:
    """Log-probabilities of the held-out answers under this policy, the previous one and the initial one."""
    session = current()
    policy, previous, initial = (session.policy(round) for round in (number, max(number - 1, 0), 0))
    files = files_of(candidates)
    inputs = content_id([policy.digest, previous.digest, initial.digest, hashes(files)])
    if done := session.find(number, "eval_logps", inputs):
        return done
    with session.display.stage(number, "score") as stage:
        stage.begin()
        file, work = await timed(
            session.trainer, "score",
            policy=policy.to_json(), previous=previous.to_json(), initial=initial.to_json(),
            prompts=as_json(session.files(0, "prompts")), candidates=as_json(files), round=number,
        )  # fmt: skip
    return session.commit(number, "eval_logps", session.references([file]), work, inputs)


@step("{run} r{number} probe judges")
async def probe_judges(run: str, number: int) -> list[Entry]:
    """Has judges that may drift judge some answers of round 0 again; nothing where the recipe asks for none."""
    session = current()
    count, places = session.recipe.evaluation.judge_probe, session.recipe.drifting_judges
    if count is None:
        return []
    files = session.files(0, "eval_candidates")
    inputs = content_id([hashes(files), count, [_settings(session.recipe.judges[place]) for place in places]])
    if done := session.find(number, "judge_probe", inputs):
        return [done]
    with session.display.stage(number, "probe judges") as stage:
        stage.begin()
        file, work = await timed(
            session.judge, "judge_again",
            prompts=as_json(session.files(0, "prompts")), candidates=as_json(files), round=number, count=count,
            judges=places,
        )  # fmt: skip
    return [session.commit(number, "judge_probe", session.references([file]), work, inputs)]


@step("{run} r{number} compare")
async def compare(
    run: str,
    number: int,
    own: Sequence[Shard],
    previous: Sequence[Shard] = (),
    initial: Sequence[Shard] = (),
    logps: Sequence[Entry] = (),
    probe: Sequence[Entry] = (),
) -> dict[str, Any]:
    """The metrics of an evaluation: alone, or against the judgments of the previous round and of round 0."""
    tables: dict[str, Sequence[Entry | None]] = {
        "candidates": [shard.candidates for shard in own],
        "judgments": [shard.judgments for shard in own],
        "previous": [shard.judgments for shard in previous],
        "initial": [shard.judgments for shard in initial],
        "logps": logps,
        "probe": probe,
    }
    files: dict[str, Any] = {name: as_json(files_of(entries)) for name, entries in tables.items()}
    metrics: dict[str, Any] = await current().judge.call("compare", **files)
    return metrics


@step("{run} r{number} describe")
async def describe(run: str, number: int) -> dict[str, Any]:
    """What the round's table says of its candidates, judgments and preferences."""
    session = current()
    files: dict[str, Any] = {
        stage: as_json(session.files(number, stage)) for stage in ("candidates", "judgments", "preferences")
    }
    metrics: dict[str, Any] = await session.judge.call("describe", **files)
    return metrics


def _settings(config: BaseModel) -> dict[str, Any]:
    return config.model_dump(mode="json")

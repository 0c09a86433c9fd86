"""The steps of a round as Prefect tasks. Each finds its entry in the run's log, or does the work and commits it.

What a step depends on is hashed into the key of its entry: with other inputs it is another piece of work. Prefect
shows and retries; whether a step is done, the log alone says.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task
from pydantic import BaseModel

from flows.display import Stage
from flows.errors import WorkerDiedError
from flows.references import Batch, UpdateInputs
from flows.session import current
from pipeline.config import PeopleJudge
from pipeline.errors import DataError, EngineError
from pipeline.records import content_id
from storage.checkpoints import weights_digest
from storage.manifest import Entry
from storage.shards import read_table

P = ParamSpec("P")
Result = TypeVar("Result")
Step = Callable[P, Coroutine[Any, Any, Result]]


def _worker_died(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """A worker or an engine that died, for lack of memory perhaps, is worth another try; a wrong input is not."""
    return isinstance(state.data, WorkerDiedError | EngineError)


def step(name: str) -> Callable[[Step[P, Result]], Step[P, Result]]:
    """Makes a Prefect task of this run name: never cached, for the log decides; tried again where a worker died."""
    made: Callable[[Step[P, Result]], Step[P, Result]] = task(
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=2,
        retry_delay_seconds=1,
        retry_condition_fn=_worker_died,
    )
    return made


@step("{run} prepare policy")
async def prepare_policy(run: str) -> Entry:
    """Round 0's checkpoint: the warm start or the pretrained policy."""
    session = current()
    if done := session.find(0, "checkpoint"):
        return done
    with session.display.stage(0, "policy") as stage:
        stage.begin()
        files, report = await session.trainer.call("prepare_policy", on_progress=stage.report)
    files = session.references(files)
    return session.commit(0, "checkpoint", files, {**report, "policy": weights_digest(files)})


@step("{run} prepare prompts")
async def prepare_prompts(run: str) -> Entry:
    """The prompts of the whole run, and a probe of the initial policy on some of them."""
    session = current()
    checkpoint = _json(session.files(0, "checkpoint"))
    prompts = session.find(0, "prompts")
    if prompts is None:
        with session.display.stage(0, "prompts") as stage:
            stage.begin()
            file = await session.trainer.call("prepare_prompts", checkpoint=checkpoint)
        prompts = session.commit(0, "prompts", session.references([file]))
    if session.find(0, "probe") is None:
        file = await session.trainer.call("probe", checkpoint=checkpoint, prompts=_json(prompts.files))
        session.commit(0, "probe", session.references([file]))
    return prompts


@step("{run} r{number} sample {batch.name} {shard}")
async def sample_shard(run: str, number: int, shard: int, rows: list[int], batch: Batch, display: Stage) -> Entry:
    """Samples the candidates of one shard of prompts."""
    session = current()
    policy, prompts, sampling = session.policy(batch.policy), session.files(0, "prompts"), session.recipe.sampling
    settings = {"max_tokens": sampling.max_tokens} if batch.held_out else _settings(sampling)
    inputs = content_id([policy.policy, _hashes(prompts), rows, session.recipe.seed, settings])
    done, stage = session.find_in(batch.places, "candidates", inputs, shard)
    if done is not None:
        return done
    display.begin()
    sampled = await session.sampler.call(
        "sample",
        policy=policy.to_json(), prompts=_json(prompts), rows=rows, round=number, stage=stage, shard=shard,
        held_out=batch.held_out, on_progress=lambda figures: display.report(figures, shard),
    )  # fmt: skip
    (file,) = session.references([sampled["file"]])
    meta = {
        "policy": policy.policy,
        "candidates": file.rows,
        "tokens": sampled["tokens"],
        "seconds": sampled["seconds"],
    }
    return session.commit(number, stage, [file], meta, inputs, shard)


@step("{run} r{number} judge {batch.name} {shard}")
async def judge_shard(run: str, number: int, shard: int, candidates: Entry, batch: Batch, display: Stage) -> Entry:
    """Judges one shard of candidates: those of a round by the judge that training hears, held-out ones by all."""
    session = current()
    judges = session.recipe.held_out_judges if batch.held_out else [0]
    versions = [session.judge_versions[place] for place in judges]
    settings = [_settings(session.recipe.judges[place]) for place in judges]
    policies = [session.judge_policies(place, number) for place in judges]
    compared = [found and found.hashes for found in policies]
    more: list[Any] = [compared] if any(compared) else []
    choices = None
    if isinstance(session.recipe.judge, PeopleJudge) and not batch.held_out:
        asked = set(read_table(session.store, candidates.files, ["prompt_id"])["prompt_id"].to_pylist())
        choices = [choice for choice in session.choices(number) if choice["prompt_id"] in asked]
        more.append(choices)
    inputs = content_id([_hashes(candidates.files), settings, versions, *more])
    done, stage = session.find_in(batch.places, "judgments", inputs, shard)
    if done is not None:
        return done
    display.begin()
    file = await session.judge.call(
        "judge",
        prompts=_json(session.files(0, "prompts")), candidates=_json(candidates.files)[0],
        round=number, stage=stage, shard=shard, judges=judges, choices=choices,
        policies=[found and asdict(found) for found in policies],
    )  # fmt: skip
    meta = {"policies": compared} if any(compared) else None
    done = session.commit(number, stage, session.references([file]), meta, inputs, shard)
    display.report({"done": candidates.meta["candidates"]}, shard)
    return done


@step("{run} r{number} prefer")
async def prefer(run: str, number: int, candidates: Sequence[Entry], judgments: Sequence[Entry]) -> Entry:
    """Turns the round's judgments into preferences.

    Raises:
        DataError: no prompt gave a preference, so that there is nothing to learn from.
    """
    session = current()
    sampled, judged = _files(candidates), _files(judgments)
    inputs = content_id([_hashes(sampled), _hashes(judged), _settings(session.recipe.preferences)])
    if done := session.find(number, "preferences", inputs):
        return done
    with session.display.stage(number, "prefer") as stage:
        stage.begin()
        file, figures = await session.judge.call(
            "prefer", candidates=_json(sampled), judgments=_json(judged), round=number, seed=session.seed(number)
        )
    if not figures["preferences"]:
        raise DataError(
            f"round {number} of run '{run}' gave no preference: all its prompts were dropped ({figures['dropped']}); "
            "sample more candidates, raise the temperature or lower preferences.min_margin or min_probability"
        )
    return session.commit(number, "preferences", session.references([file]), figures, inputs)


@step("{run} r{number} replay")
async def replay(run: str, number: int, preferences: Entry) -> Entry | None:
    """Chooses preferences of earlier rounds that the update is given again; None where the recipe wants none."""
    session = current()
    config = session.recipe.preferences
    if not config.replay.share:
        return None
    rounds = range(max(1, number - config.replay.max_age), number)
    earlier = {origin: session.files(origin, "preferences") for origin in rounds}
    candidates = {origin: session.files(origin, "candidates") for origin in rounds}
    pool = [[origin, _hashes(earlier[origin]), _hashes(candidates[origin])] for origin in rounds]
    inputs = content_id([_hashes(preferences.files), pool, _settings(config)])
    if done := session.find(number, "replayed", inputs):
        return done
    file, figures = await session.judge.call(
        "replay",
        preferences=_json(preferences.files), round=number, seed=session.seed(number),
        earlier={origin: _json(files) for origin, files in earlier.items()},
        candidates={origin: _json(files) for origin, files in candidates.items()},
    )  # fmt: skip
    return session.commit(number, "replayed", session.references([file]), figures, inputs)


@step("{run} r{number} update")
async def update(
    run: str, number: int, candidates: Sequence[Entry], preferences: Entry, replayed: Entry | None = None
) -> Entry:
    """The DPO update: from the policy that sampled to the round's checkpoint."""
    session = current()
    config, policy, reference = session.recipe.update, session.policy(number - 1), session.reference(number)
    carried = session.files(number - 1, "optimizer") if config.optimizer_state == "carried" else ()
    average = session.average(number - 1) if config.reference == "ema" else None
    inputs = content_id([
        policy.policy, reference and reference.policy, average and average.policy, _hashes(carried),
        _hashes(preferences.files), _settings(config), session.recipe.rounds if config.schedule_over == "run" else None,
        replayed and [_hashes(replayed.files), session.recipe.preferences.replay.reference],
    ])  # fmt: skip
    if done := session.find(number, "checkpoint", inputs):
        return done
    given = UpdateInputs(
        policy=policy, reference=reference, prompts=session.files(0, "prompts"), candidates=_files(candidates),
        preferences=preferences.files, replayed=replayed.files if replayed else (), optimizer=carried,
        average=average,
        state=session.interrupted_update(number, inputs), drift=session.handed_over(number - 1).meta["per_sequence"],
    )  # fmt: skip
    steps_before = session.steps_before(number)
    if config.optimizer_state == "carried" and number > 1 and not carried:
        session.display.say(f"round {number}: round {number - 1} kept no moments of the optimizer: it begins with none")
    with session.display.stage(number, "update") as stage:
        stage.begin()

        def report(figures: Mapping[str, Any]) -> None:
            if "notice" in figures:
                session.display.say(f"round {number}: {figures['notice']}")
            elif "metrics" in figures:
                session.tracker.step(number, steps_before, figures["metrics"])
            elif "state" in figures:
                session.commit_state(number, inputs, figures["step"], session.references(figures["state"]))
            else:
                stage.report(figures)

        trained = await session.trainer.call(
            "update", inputs=given.to_json(), round=number, seed=session.seed(number), on_progress=report
        )
    after = trained["policy"]
    # The checkpoint comes last: where it is, all else is. That is keyed by the weights, so that an update that is done
    # again after a crash never meets what the first try left.
    for name, files in trained["others"].items():
        meta = {"policy": weights_digest(session.references(files))} if name == "ema" else None
        session.commit(number, name, session.references(files), meta, after["policy"])
    meta = {"policy": after["policy"], "reference": (reference or policy).policy, **trained["figures"]}
    return session.commit(number, "checkpoint", session.references(after["files"]), meta, inputs)


@step("{run} r{number} hand over")
async def hand_over(run: str, number: int) -> Entry:
    """Gives the sampler the round's weights, in place, and keeps how far it then is from the trainer."""
    session = current()
    policy = session.policy(number)
    done = session.find(number, "handover", policy.policy)
    if done is None:
        with session.display.stage(number, "hand over") as stage:
            stage.begin()
            drift = await session.sampler.call("use", policy=policy.to_json())
        done = session.commit(number, "handover", [], drift, policy.policy)
    return done


@step("{run} r{number} score")
async def score(run: str, number: int, candidates: Sequence[Entry]) -> Entry:
    """Log-probabilities of the held-out answers under this policy, the previous one and the initial one."""
    session = current()
    policy, previous, initial = (session.policy(round) for round in (number, max(number - 1, 0), 0))
    files = _files(candidates)
    inputs = content_id([policy.policy, previous.policy, initial.policy, _hashes(files)])
    if done := session.find(number, "eval_logps", inputs):
        return done
    with session.display.stage(number, "score") as stage:
        stage.begin()
        file = await session.trainer.call(
            "score",
            policy=policy.to_json(), previous=previous.to_json(), initial=initial.to_json(),
            prompts=_json(session.files(0, "prompts")), candidates=_json(files), round=number,
        )  # fmt: skip
    return session.commit(number, "eval_logps", session.references([file]), None, inputs)


@step("{run} r{number} probe judges")
async def probe_judges(run: str, number: int) -> list[Entry]:
    """Has judges that may drift judge some answers of round 0 again; nothing where the recipe asks for none."""
    session = current()
    count, places = session.recipe.evaluation.judge_probe, session.recipe.drifting_judges
    if count is None:
        return []
    files = session.files(0, "eval_candidates")
    inputs = content_id([_hashes(files), count, [_settings(session.recipe.judges[place]) for place in places]])
    if done := session.find(number, "judge_probe", inputs):
        return [done]
    with session.display.stage(number, "probe judges") as stage:
        stage.begin()
        file = await session.judge.call(
            "judge_again",
            prompts=_json(session.files(0, "prompts")), candidates=_json(files), round=number, count=count,
            judges=places,
        )  # fmt: skip
    return [session.commit(number, "judge_probe", session.references([file]), None, inputs)]


@step("{run} r{number} compare")
async def compare(
    run: str,
    number: int,
    candidates: Sequence[Entry],
    judgments: Sequence[Entry],
    previous: Sequence[Entry] = (),
    initial: Sequence[Entry] = (),
    logps: Sequence[Entry] = (),
    probe: Sequence[Entry] = (),
) -> dict[str, Any]:
    """The figures of an evaluation: alone, or against the judgments of the previous round and of round 0."""
    tables = {
        "candidates": candidates, "judgments": judgments, "previous": previous, "initial": initial, "logps": logps,
        "probe": probe,
    }  # fmt: skip
    files: dict[str, Any] = {name: _json(_files(entries)) for name, entries in tables.items()}
    figures: dict[str, Any] = await current().judge.call("compare", **files)
    return figures


def _files(entries: Sequence[Entry]) -> tuple[Any, ...]:
    return tuple(file for entry in entries for file in entry.files)


def _hashes(files: Sequence[Any]) -> list[str]:
    return [file.sha256 for file in files]


def _json(files: Sequence[Any]) -> list[dict[str, Any]]:
    return [file.to_json() for file in files]


def _settings(config: BaseModel) -> dict[str, Any]:
    return config.model_dump(mode="json")

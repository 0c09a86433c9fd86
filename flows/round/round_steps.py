"""The steps of a round that concern it as a whole. Each finds its entry in the run's log, or works and commits it.

What a step depends on is hashed into the key of its entry: with other inputs it is another piece of work. Those of a
single shard are in `flows.round.shard_steps`, the update in `flows.round.update_step`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.registry.judge_usage import usage_meta
from flows.registry.packing_check import untried_lengths
from flows.round.context import RoundContext
from flows.round.shard_steps import retry_on_worker_death
from flows.round.shards import Shard, Shards, files_of
from flows.round.step import step
from flows.workers.judge import JudgeWorker
from flows.workers.references import TrialPrompt, hashes
from flows.workers.sampler import SamplerWorker
from flows.workers.trainer import TrainerWorker
from pipeline.records import content_id
from storage.log.manifest import Entry, FileRef
from storage.tables.checkpoints import weights_digest

_OF_POLICY = (
    "eval_candidates", "eval_judgments", "served_candidates", "served_judgments", "gate_candidates", "gate_judgments",
    "gate_text", "gate_tasks",
)  # fmt: skip
"""What is sampled, judged and scored of a policy as it is, so that it holds in each round that ends with it."""
_ADOPTED = ("policy", "candidates", "policies")
"""Of an entry of the round before: all but when it was worked on, and how much."""


@step("{context.name} check prompts")
async def check_prompts(context: RoundContext) -> TrialPrompt | None:
    """Checks the prompts before anything is made, as far as they can be without a policy.

    Returns:
        One of them to try the judges on; None if they are in the store already.
    """
    if context.find(0, "prompts") is not None:
        return None
    saying = context.workers.trainer.asking(on_progress=lambda told: _say_of_prompts(context, told))
    async with context.display.waiting("checking the prompts"):
        return (await saying.call(TrainerWorker.check_prompts)).result


async def try_judges(context: RoundContext, trial: TrialPrompt | None) -> None:
    """Tries the judges on two completions of a prompt, but for those that have judged the run's newest round.

    Raises:
        JudgeError: a judge fails on whatever it is given.
    """
    rounds = context.run.rounds()
    origin = (rounds[-1].meta.get("origin") if rounds else None) or {"judges": []}
    known = {judge["version"] for judge in origin["judges"]}
    versions = context.judge_versions[: len(context.recipe.judges)]  # without the gate's, which round 0 asks first
    places = [place for place, version in enumerate(versions) if version not in known]
    if places:
        prompts = () if trial else context.files(0, "prompts")
        async with context.display.waiting("trying the judges on two completions"):
            tried = await context.workers.judge.call(
                JudgeWorker.try_judges, trial=trial, prompts=prompts, judges=places
            )
        for notice in tried.result:
            context.display.say(notice)


def _say_of_prompts(context: RoundContext, told: Mapping[str, Any]) -> None:
    if "notice" in told:
        context.display.say(f"prompts: {told['notice']}")


@step("{context.name} prepare policy")
async def prepare_policy(context: RoundContext) -> Entry:
    """Makes round 0's checkpoint: the warm start or the pretrained policy."""
    done = context.find(0, "checkpoint") or await _made_policy(context)
    if (untried := untried_lengths(context.run)) is not None:
        context.display.say(f"policy: {untried}")
    return done


async def check_adapters(context: RoundContext) -> None:
    """Asks the sampler whether it can serve the adapters, if the recipe wants nothing else, before there is a policy.

    Raises:
        UnsupportedModelError: it cannot.
    """
    if context.recipe.adapter_serving == "adapter" and context.find(0, "checkpoint") is None:
        async with context.display.waiting("looking whether vLLM can serve the adapters"):
            await context.workers.sampler.call(SamplerWorker.check_adapters)


async def _made_policy(context: RoundContext) -> Entry:
    with context.display.stage(0, "policy", unit="steps") as stage:
        stage.begin()
        answer = await context.workers.trainer.asking(on_progress=stage.report).call(TrainerWorker.prepare_policy)
    files, report = answer.result
    return context.commit(0, "checkpoint", files, {**report, **answer.work, "policy": weights_digest(files)})


@step("{context.name} prepare prompts")
async def prepare_prompts(context: RoundContext) -> Entry:
    """Makes the prompts of the whole run, and a probe of the initial policy on some of them."""
    trainer, checkpoint = context.workers.trainer, context.files(0, "checkpoint")
    prompts = context.find(0, "prompts")
    if prompts is None:
        with context.display.stage(0, "prompts") as stage:
            stage.begin()
            saying = trainer.asking(on_progress=lambda told: _say_of_prompts(context, told))
            made = await saying.call(TrainerWorker.prepare_prompts, checkpoint=checkpoint)
        prompts = context.commit(0, "prompts", [made.result], made.work)
    if context.find(0, "probe") is None:
        async with context.display.waiting("scoring a few sequences, to compare the sampler with"):
            probed = await trainer.call(TrainerWorker.probe, checkpoint=checkpoint, prompts=prompts.files)
        context.commit(0, "probe", [probed.result], probed.work)
    return prompts


@step("{context.name} r{number} replay")
async def replay(context: RoundContext, number: int, own: Sequence[FileRef]) -> Entry | None:
    """Chooses preferences of earlier rounds that the update is given again; None if the recipe wants none.

    Args:
        own: the preferences of the round itself.
    """
    config = context.recipe.preferences
    if not config.replay.share:
        return None
    rounds = range(max(1, number - config.replay.max_age), number)
    earlier = {origin: context.files(origin, "preferences") for origin in rounds}
    candidates = {origin: context.files(origin, "candidates") for origin in rounds}
    pool = [[origin, hashes(earlier[origin]), hashes(candidates[origin])] for origin in rounds]
    inputs = content_id([hashes(own), pool, config.hashed()])
    if done := context.find(number, "replayed", inputs):
        return done
    async with context.display.waiting(f"round {number}  choosing preferences to replay"):
        answer = await context.workers.judge.call(
            JudgeWorker.replay,
            preferences=tuple(own), earlier=earlier, candidates=candidates, round=number, seed=context.seed(number),
        )  # fmt: skip
    file, metrics = answer.result
    return context.commit(number, "replayed", [file], {**metrics, **answer.work}, inputs)


async def sleep_sampler(context: RoundContext, shards: Shards) -> None:
    """Has the sampler lend its GPU's memory to the update, if they take turns; it wakes when it is asked again.

    It drops its weights: the update makes the ones that it is given next.

    Args:
        shards: those of the round, which must be done first.
    """
    if context.recipe.sampler_sleeps:
        await shards.all()
        await lend_memory(context, keeps_weights=False)


async def lend_memory(context: RoundContext, *, keeps_weights: bool) -> None:
    """Has the sampler lend its GPU's memory to the trainer, if they take turns, for its update or its scoring.

    Args:
        keeps_weights: whether the sampler goes on with them, or is given others after this.
    """
    if context.recipe.sampler_sleeps:
        async with context.display.waiting("the sampler lends its memory to the trainer"):
            await retry_on_worker_death(
                lambda _again: context.workers.sampler.call(SamplerWorker.sleep, keeps_weights=keeps_weights)
            )


def adopt_evaluation(context: RoundContext, number: int) -> None:
    """Names the held-out completions and judgments of the round before as this one's, which has the same policy.

    The steps that would make them find them, unless a judge has changed since. What they cost counts for that round.
    """
    start = context.policies.start(number)
    for stage in _OF_POLICY:
        for entry in context.run.entries(start, stage):
            key, meta = entry.key, {name: entry.meta[name] for name in _ADOPTED if name in entry.meta}
            if key is not None:
                context.commit(number, stage, entry.files, {**meta, "of_round": start}, key.inputs, key.shard)


@step("{context.name} r{number} score")
async def score(context: RoundContext, number: int, candidates: Sequence[Entry]) -> Entry:
    """Computes the held-out completions' log-probabilities under this policy, the previous one and the initial one."""
    compared = (number, context.policies.start(number), 0)
    policy, previous, initial = (context.policies.after(round) for round in compared)
    files = files_of(candidates)
    drift = context.policies.weight_sync(number).meta["per_sequence"]
    sampled = context.recipe.update.measures_by_samplers(drift)
    # Version 0.1.0 had the trainer compute all of them.
    more = ["sampler"] if sampled else []
    inputs = content_id([policy.digest, previous.digest, initial.digest, hashes(files), *more])
    if done := context.find(number, "eval_logps", inputs):
        return done
    await lend_memory(context, keeps_weights=True)
    with context.display.stage(number, "score") as stage:
        stage.begin()
        answer = await context.workers.trainer.call(
            TrainerWorker.score,
            policy=policy, previous=previous, initial=initial,
            prompts=context.files(0, "prompts"), candidates=files, round=number, sampled=sampled,
        )  # fmt: skip
    meta = {**answer.work, "policy_logprobs": "sampler" if sampled else "trainer"}
    return context.commit(number, "eval_logps", [answer.result], meta, inputs)


@step("{context.name} r{number} probe judges")
async def probe_judges(context: RoundContext, number: int) -> list[Entry]:
    """Has judges that may drift judge some completions of round 0 again; nothing if the recipe asks for none."""
    recipe, count = context.recipe, context.recipe.evaluation.judge_probe
    if count is None:
        return []
    files, places = context.files(0, "eval_candidates"), recipe.drifting_judges
    settings = [recipe.judges[place].hashed() for place in places]
    inputs = content_id([hashes(files), count, settings])
    if done := context.find(number, "judge_probe", inputs):
        return [done]
    with context.display.stage(number, "probe judges") as stage:
        stage.begin()
        answer = await context.workers.judge.call(
            JudgeWorker.judge_again,
            prompts=context.files(0, "prompts"), candidates=files, round=number, count=count, judges=places,
        )  # fmt: skip
    meta = {**usage_meta(answer.result.usage), **answer.work}
    return [context.commit(number, "judge_probe", [answer.result.file], meta, inputs)]


@step("{context.name} r{number} compare")
async def compare(
    context: RoundContext,
    number: int,
    own: Sequence[Shard],
    served: Sequence[Shard] = (),
    previous: Sequence[Shard] = (),
    initial: Sequence[Shard] = (),
    logps: Sequence[Entry] = (),
    probe: Sequence[Entry] = (),
) -> dict[str, Any]:
    """Returns the metrics of an evaluation: alone, or against the judgments of the previous round and of round 0."""
    async with context.display.waiting(f"round {number}  comparing it with earlier rounds"):
        answer = await context.workers.judge.call(
            JudgeWorker.compare,
            candidates=files_of(shard.candidates for shard in own),
            judgments=files_of(shard.judgments for shard in own),
            served_candidates=files_of(shard.candidates for shard in served),
            served_judgments=files_of(shard.judgments for shard in served),
            previous=files_of(shard.judgments for shard in previous),
            initial=files_of(shard.judgments for shard in initial),
            logps=files_of(logps),
            probe=files_of(probe),
        )
    return answer.result


@step("{context.name} r{number} describe")
async def describe(context: RoundContext, number: int) -> dict[str, Any]:
    """Returns what the round's table says of its completions, judgments and preferences."""
    async with context.display.waiting(f"round {number}  gathering its metrics"):
        answer = await context.workers.judge.call(
            JudgeWorker.describe,
            candidates=context.files(number, "candidates"),
            judgments=context.files(number, "judgments"),
            preferences=context.files(number, "preferences"),
        )
    return answer.result

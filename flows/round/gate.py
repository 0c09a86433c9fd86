"""The gate after a round's evaluation: does the next round go on from its policy?

The policy answers the gate's prompts and is scored on its text, each found or committed like any other step. Then each
measure is compared with the best round so far: the last one that passed, and was better in it than the best before by
the same test. A round that is ahead by chance alone is not taken for the best, so that later ones are not held against
luck; and small losses add up, as the best stays where it is. The verdict is part of the round's summary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flows.registry.gate_result import GateMeasure, GateResult, gate_of
from flows.round.context import RoundContext
from flows.round.round_steps import lend_memory
from flows.round.shard_steps import retry_on_worker_death
from flows.round.shards import files_of, judged
from flows.round.step import step
from flows.workers.judge import JudgeWorker
from flows.workers.references import PromptBatch, ToMeasure, hashes
from flows.workers.sampler import SamplerWorker
from flows.workers.trainer import TrainerWorker
from pipeline.evaluation.gate_measures import Measured
from pipeline.gate import REWARD, TEXT, GateConfig
from pipeline.recipe import Recipe
from pipeline.records import content_id
from storage.log.manifest import FileRef

Files = Mapping[str, tuple[FileRef, ...]]
"""Judgments by the measure that is made of them."""


_MEASURED = ("prompts", "count", "text", "text_tokens", "window")
"""The fields that say what policies are measured on."""


@dataclass(frozen=True)
class Best:
    """The rounds that a round is compared with, by measure, and since when the gate measures as it does now."""

    rounds: Mapping[str, int]
    since: int


async def pass_gate(context: RoundContext, number: int) -> GateResult | None:
    """Says whether a round's policy passes the gate; None if the recipe has none. Round 0 is what others begin from."""
    config = context.recipe.gate
    if config is None:
        return None
    prompts = await _prepare_gate(context, number, config)
    conditions = _conditions(context, config, prompts)
    best = _best(context, number, config, conditions)
    own = await _judgments(context, number, PromptBatch.regression(number, number, number, prompts), config.guards)
    earlier = await _earlier(context, number, best, prompts)
    if config.patience is not None:
        own = {**own, REWARD: context.files(number, "eval_judgments")}
    names = config.measures
    judges = {**{name: name for name in names}, REWARD: context.recipe.judge_names[context.recipe.held_out_judges[0]]}
    measured = await _measure(
        context, number, [ToMeasure(judges[name], own[name], earlier.get(name, ())) for name in names]
    )
    found = dict(zip(names, measured, strict=True))
    return verdict(context.recipe, number, context.policies.start(number), found, best, conditions)


async def _prepare_gate(context: RoundContext, number: int, config: GateConfig) -> tuple[FileRef, ...]:
    """Returns the table of what is measured, made in the first round of the run, or of a fork, that asks for it."""
    if config.prompts is None and config.text is None:
        return ()
    fields = {name: value for name, value in config.hashed().items() if name in _MEASURED}
    inputs = content_id([fields, context.recipe.seed])
    for round in (0, *range(number, 0, -1)):
        if done := context.find(round, "gate_prompts", inputs):
            return done.files
    async with context.display.waiting(f"round {number}  preparing the gate"):
        made = await context.workers.trainer.call(
            TrainerWorker.prepare_gate, checkpoint=context.files(0, "checkpoint"), round=number
        )
    return context.commit(number, "gate_prompts", [made.result], made.work, inputs).files


def _conditions(context: RoundContext, config: GateConfig, prompts: tuple[FileRef, ...]) -> str:
    """Hashes all that scores depend on beside the policy: only under the same conditions are rounds compared."""
    recipe = context.recipe
    judges = [judge.hashed() for judge in (*recipe.judges, *recipe.gate_judges)]
    thought = recipe.sampling.thought  # judges see what comes after it; marks that round 0 found stay in all forks
    return content_id([
        hashes(prompts), config.measures, recipe.gate_tokens, recipe.sampling.max_tokens, recipe.seed, judges,
        context.judge_versions, *([thought.hashed()] if thought else []),
    ])  # fmt: skip


def _best(context: RoundContext, number: int, config: GateConfig, conditions: str) -> Best:
    """Returns the best rounds so far; under new conditions that is the round that this one starts from."""
    if number == 0:
        return Best({}, 0)
    before = gate_of(context.run.round_entry(number - 1).meta)
    if before is not None and before.conditions == conditions:
        return Best({measure.name: measure.next_best for measure in before.measures}, before.since)
    return Best(dict.fromkeys(config.measures, context.policies.start(number)), number)


async def _earlier(context: RoundContext, number: int, best: Best, prompts: tuple[FileRef, ...]) -> Files:
    """Returns the judgments of the best rounds by each measure; they are there, unless the conditions are new."""
    found: dict[str, tuple[FileRef, ...]] = {}
    for round in sorted(set(best.rounds.values())):
        names = [name for name, its in best.rounds.items() if its == round and name != REWARD]
        batch = PromptBatch.regression(number, round, best.since, prompts)
        found |= await _judgments(context, number, batch, names)
    if REWARD in best.rounds:
        shards = await judged(context, number, PromptBatch.best(number, best.rounds[REWARD], best.since))
        found[REWARD] = files_of(shard.judgments for shard in shards)
    return found


async def _judgments(context: RoundContext, number: int, batch: PromptBatch, names: Sequence[str]) -> Files:
    """Returns a policy's judgments by these measures: all judges of the gate score the same answers."""
    found: dict[str, tuple[FileRef, ...]] = {}
    if TEXT in names:
        found[TEXT] = await _score_text(context, number, batch)
    tasks = context.recipe.gate.task_names if context.recipe.gate is not None else []
    if chosen := [name for name in names if name in tasks]:
        found |= dict.fromkeys(chosen, await _score_tasks(context, number, batch))
    if judges := [name for name in names if name != TEXT and name not in tasks]:
        shards = await judged(context, number, batch)
        found |= dict.fromkeys(judges, files_of(shard.judgments for shard in shards))
    return found


@step("{context.name} r{number} gate text")
async def _score_text(context: RoundContext, number: int, batch: PromptBatch) -> tuple[FileRef, ...]:
    policy = context.policies.after(batch.policy)
    inputs = content_id([policy.digest, hashes(batch.gate)])
    done, stage = context.find_in(batch.places, "text", inputs)
    if done is not None:
        return done.files
    await lend_memory(context, keeps_weights=True)
    with context.display.stage(number, "gate text") as display:
        display.begin()
        answer = await context.workers.trainer.call(
            TrainerWorker.score_text, policy=policy, prompts=batch.gate, round=number, stage=stage
        )
    return context.commit(number, stage, [answer.result], answer.work, inputs).files


@step("{context.name} r{number} gate tasks")
async def _score_tasks(context: RoundContext, number: int, batch: PromptBatch) -> tuple[FileRef, ...]:
    recipe, policy = context.recipe, context.policies.after(batch.policy)
    versions = context.judge_versions[len(recipe.judges) + len(recipe.gate_judges) :]
    inputs = content_id([policy.digest, versions, recipe.gate_tokens])
    done, stage = context.find_in(batch.places, "tasks", inputs)
    if done is not None:
        return done.files
    with context.display.stage(number, "gate tasks") as display:
        display.begin()
        answer = await retry_on_worker_death(
            lambda _again: context.workers.sampler.call(
                SamplerWorker.score_tasks, policy=policy, round=number, stage=stage
            )
        )
    return context.commit(number, stage, [answer.result], answer.work, inputs).files


@step("{context.name} r{number} gate")
async def _measure(context: RoundContext, number: int, measures: list[ToMeasure]) -> list[Measured]:
    async with context.display.waiting(f"round {number}  comparing it with the best round so far"):
        return (await context.workers.judge.call(JudgeWorker.measure, measures=measures)).result


def verdict(
    recipe: Recipe, number: int, start: int, measured: Mapping[str, Measured], best: Best, conditions: str
) -> GateResult:
    """Says whether a round passed, with whom the next one is compared, and whether the run ends.

    Args:
        start: the round that this one started from; all between the two have failed.
    """
    config = recipe.gate
    assert config is not None, "the recipe has a gate"
    level, before = config.level(recipe.rounds), max(number - 1 - start, 0)
    failed = {name for name in config.guards if name in best.rounds and _lost(measured[name], config, name, level)}
    measures = [
        GateMeasure(
            name=name, mean=one.mean, prompts=one.prompts, unscored=one.unscored, best=best.rounds.get(name),
            best_mean=one.best_mean, loss=one.loss, gain=one.gain, failed=name in failed,
            next_best=number if not failed and _gained(one, level) else best.rounds.get(name, number),
        )
        for name, one in measured.items()
    ]  # fmt: skip
    update = config.retried(recipe.update, before)
    changed = update != recipe.update
    result = GateResult(
        passed=not failed, level=level, measures=measures, failures=before + 1 if failed else 0,
        why=_why(measures, level, start) if failed else None,
        learning_rate=update.learning_rate if changed else None, beta=update.beta if changed else None,
        conditions=conditions, since=best.since,
    )  # fmt: skip
    return result.model_copy(update={"ends": _ends(result, config, number)})


def _lost(one: Measured, config: GateConfig, name: str, level: float) -> bool:
    """Says whether the mean has fallen by more than is tolerated, and by more than chance does."""
    assert one.loss is not None
    assert one.best_mean is not None
    return one.loss <= level and one.best_mean - one.mean > config.tolerance_of(name)


def _gained(one: Measured, level: float) -> bool:
    """Says whether it is better than the best round so far, beyond chance; what nothing is compared with is not."""
    return one.gain is not None and one.gain <= level


def _ends(result: GateResult, config: GateConfig, number: int) -> Literal["failures", "patience"] | None:
    # Whoever resumes the run has as many rounds again, as often as it ends.
    if not result.passed and (config.on_failure == "stop" or result.failures % config.failures == 0):
        return "failures"
    if config.patience is not None:
        without_gain = number - result.measure(REWARD).next_best
        if without_gain and without_gain % config.patience == 0:
            return "patience"
    return None


def _why(measures: Sequence[GateMeasure], level: float, start: int) -> str:
    lost = ", and ".join(_fall(measure, level) for measure in measures if measure.failed)
    return f"gate failed: {lost}; the last good policy is that of round {start}"


def _fall(measure: GateMeasure, level: float) -> str:
    on = f"{measure.prompts} {'windows' if measure.name == TEXT else 'prompts'}"
    unscored = f", {measure.unscored} of them now without a score" if measure.unscored else ""
    return (
        f"{measure.name} fell from {measure.best_mean:.4g} in round {measure.best} to {measure.mean:.4g} on the same "
        f"{on}{unscored} (p {measure.loss:.2g}, level {level:.2g})"
    )

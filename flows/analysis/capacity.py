"""What `rondo plan` answers: a recipe's round on so many devices, on paper or scaled by what a run measured."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flows.analysis.calibration import compared, measured_factors, measured_round, measured_work
from flows.registry.catalog import existing_store, run_at_round
from flows.registry.recipes import load_recipe
from pipeline.config import PretrainedPolicy, Recipe, RewardModelJudge
from pipeline.errors import ConfigError
from pipeline.planning import (
    ASSUMED,
    DEVICES,
    KNOWN_SHAPES,
    Assumptions,
    Device,
    Factors,
    Mode,
    ModelShape,
    Plan,
    Split,
    plan_round,
    shape_of_config,
    shape_of_warm_start,
    streaming_needs,
    workload_of,
)
from pipeline.planning.constants import GB
from pipeline.planning.shapes import known_shape, shape_by_numbers
from storage.log.run import Run
from storage.log.store import Store


@dataclass(frozen=True)
class Size:
    """A model's size as somebody gives it: a published model by name, or numbers."""

    model: str | None = None
    parameters: float | None = None
    layers: int | None = None
    hidden: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class Question:
    """What is asked of a plan, beside the recipe; None leaves it to the recipe or to an assumption."""

    device: str | None
    gpus: int
    mode: Mode | None
    split: str | None
    group: int | None
    policy: Size
    judge: Size
    prompt_tokens: float | None
    answer_tokens: float | None
    kept: float
    usd_per_hour: float | None
    request_seconds: float | None
    store_gb_per_second: float | None
    calibrate: str | None
    compare: str | None


@dataclass(frozen=True)
class Answer:
    """A plan, the policy's size, what was assumed in words, and beside it what a round measured."""

    recipe: Recipe
    shape: ModelShape
    plan: Plan
    assumed: list[str]
    comparison: list[dict[str, str | float]]


def plan(path: Path, changes: Sequence[str], question: Question, root: str) -> Answer:
    """Plans a round of a recipe.

    Raises:
        ConfigError: the recipe is wrong, a size is not known, or the devices do not go with the question.
    """
    recipe = load_recipe(path, changes)
    device = _device(question.device, recipe)
    shape, judge = policy_shape(recipe, question.policy), _judge_shape(recipe, question.judge)
    assumed = _assumptions(question)
    work = workload_of(
        recipe, prompt_tokens=question.prompt_tokens, answer_tokens=question.answer_tokens, kept=question.kept
    )
    factors, words = Factors(), _assumed_words(question)
    if question.calibrate is not None:
        store, run, number = _finished(question.calibrate, root)
        recorded = Recipe.model_validate(run.header["recipe"])
        theirs = measured_work(store, run, number, recorded)
        own = measured_work(store, run, number, recipe)
        work = replace(own, preferences=_scaled(theirs.preferences, recorded, recipe))
        size = policy_shape(recorded, question.policy if _same_policy(recorded, recipe) else Size())
        factors = measured_factors(run, number, recorded, size, _device(question.device, recorded), theirs, judge)
        words = [f"lengths, preferences and speed as measured in rounds 1 to {number} of run '{run.name}'"]
    mode, least = question.mode or recipe.mode, streaming_needs(work)
    if question.mode is None and mode == "streaming" and question.gpus < least:
        words.append(f"parts that take turns: to overlap on paper they need {least} devices, one each (--gpus)")
        mode = "phased"
    found = plan_round(
        recipe, shape, device, question.gpus, work, mode=mode, judge=judge,
        split=_split(question.split), group=question.group, usd_per_hour=question.usd_per_hour, assumed=assumed,
        factors=factors,
    )  # fmt: skip
    comparison = []
    if question.compare is not None:
        _, run, number = _finished(question.compare, root)
        comparison = compared(found, measured_round(run, number))
    return Answer(recipe, shape, found, words, comparison)


def policy_shape(recipe: Recipe, size: Size = Size()) -> ModelShape:
    """The policy's size: as it was given, or of the warm start, of a local ``config.json``, or of a known hub id.

    Raises:
        ConfigError: none of these says.
    """
    if (given := _given(size, "")) is not None:
        return given
    policy = recipe.policy
    if not isinstance(policy, PretrainedPolicy):
        return shape_of_warm_start(policy)
    return _shape_at(policy.path, "policy.path", "--model, or --parameters, --layers and --hidden")


def _judge_shape(recipe: Recipe, size: Size) -> ModelShape | None:
    if (given := _given(size, "judge-")) is not None:
        return given
    parts = [part for judge in recipe.judges for part in judge.parts() if isinstance(part, RewardModelJudge)]
    if not parts:
        return None
    found = [_shape_at(part.path, "judge.path", "--judge-model, or --judge-parameters and so on") for part in parts]
    return max(found, key=lambda shape: shape.parameters)


def _given(size: Size, prefix: str) -> ModelShape | None:
    numbers = (size.parameters, size.layers, size.hidden)
    if size.model is not None:
        if size.model not in KNOWN_SHAPES:
            raise ConfigError(f"--{prefix}model '{size.model}' is not known: choose among {', '.join(KNOWN_SHAPES)}")
        return KNOWN_SHAPES[size.model]
    if size.parameters is None and size.layers is None and size.hidden is None:
        return None
    if size.parameters is None or size.layers is None or size.hidden is None:
        names = ("parameters", "layers", "hidden")
        missing = [f"--{prefix}{name}" for name, value in zip(names, numbers, strict=True) if value is None]
        raise ConfigError(f"a size in numbers needs {' and '.join(missing)} too")
    return shape_by_numbers(size.parameters, size.layers, size.hidden, vocabulary=size.vocabulary or 128_256)


def _shape_at(path: str, field: str, remedy: str) -> ModelShape:
    config = Path(path) / "config.json"
    if config.is_file():
        return shape_of_config(json.loads(config.read_text(encoding="utf-8")), path)
    if (known := known_shape(path)) is not None:
        return known
    raise ConfigError(f"{field}: the size of '{path}' is not known here, and no hub is asked: give {remedy}")


def _device(name: str | None, recipe: Recipe) -> Device:
    name = name or ("cpu" if recipe.devices.trainer == "cpu" else "h100")
    if name not in DEVICES:
        raise ConfigError(f"--device '{name}' is not known: choose among {', '.join(DEVICES)}")
    return DEVICES[name]


def _split(text: str | None) -> Split | None:
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--split '{text}' is not SAMPLER:JUDGE:UPDATE: give three numbers of devices, such as 5:1:2")
    return Split(*map(int, parts))


def _assumptions(question: Question) -> Assumptions:
    assumed = ASSUMED
    if question.request_seconds is not None:
        assumed = replace(assumed, request_seconds=question.request_seconds)
    if question.store_gb_per_second is not None:
        assumed = replace(assumed, store_bandwidth=question.store_gb_per_second * GB)
    return assumed


def _assumed_words(question: Question) -> list[str]:
    words = []
    if question.answer_tokens is None:
        words.append("every answer as long as sampling.max_tokens, an upper bound (--answer-tokens)")
    if question.prompt_tokens is None:
        words.append("the length of prompts (--prompt-tokens)")
    if question.kept == 1:
        words.append("no prompt dropped as a tie (--kept)")
    return words


def _finished(source: str, root: str) -> tuple[Store, Run, int]:
    """RUN@ROUND, or a run's last round."""
    store = existing_store(root)
    if "@" in source:
        run, number = run_at_round(store, source)
    else:
        run = store.run(source)
        number = len(run.rounds()) - 1
    if number < 1:
        raise ConfigError(f"'{source}' has no round with an update yet: run one round or more first")
    return store, run, number


def _same_policy(recorded: Recipe, recipe: Recipe) -> bool:
    return recorded.policy == recipe.policy


def _scaled(preferences: int, recorded: Recipe, recipe: Recipe) -> int:
    """Preferences of a round of another size, if the same share of its prompts gives one."""
    share = preferences / recorded.sampling.prompts_per_round
    return max(1, round(share * recipe.sampling.prompts_per_round))

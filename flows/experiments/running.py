"""Runs what an experiment has not run yet: sources, reward models, then arms, one seed after the other.

Each run is resumed where a kill has left it, and a finished one is only looked at. A reward model appears whole or not
at all. So the same command goes on from wherever it was interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.analysis.capacity import plan_recipe
from flows.analysis.forecast import Forecast
from flows.analysis.train_judge import train_judge, training_settings
from flows.experiments.experiment import Plan, Variant
from flows.host.progress import Display
from flows.host.text import quantity
from flows.registry.recipes import check_files
from flows.run.start import start
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from storage.log.store import Store


@dataclass(frozen=True)
class Planned:
    """A run of an experiment, and how much of it there is.

    Attributes:
        samples: completions that its rounds sample for training.
        done: its finished rounds, of which round 0 is not counted.
    """

    variant: Variant
    seed: int
    recipe: Recipe
    done: int

    @property
    def name(self) -> str:
        """Returns the run's name."""
        return self.variant.run(self.seed)

    @property
    def samples(self) -> int:
        """Counts the completions that its rounds sample for training."""
        return samples(self.recipe)

    @property
    def seconds(self) -> float:
        """Returns the seconds of work of the rounds that are missing, as the planner reckons them."""
        missing = self.recipe.rounds - max(self.done, 0)
        return Forecast(plan_recipe(self.recipe), missing, self.done < 0).seconds

    @property
    def finished(self) -> bool:
        """Says whether it has all rounds of its recipe."""
        return self.done >= self.recipe.rounds


def samples(recipe: Recipe) -> int:
    """Counts the completions that the rounds of a recipe sample for training."""
    return recipe.rounds * recipe.sampling.prompts_per_round * recipe.sampling.candidates


def planned(plan: Plan, variants: Sequence[Variant], seeds: Sequence[int], root: str) -> list[Planned]:
    """Lists the runs of an experiment, by seed, in the order in which they are run.

    Raises:
        ConfigError: a recipe is wrong, or two arms do not take the same number of samples or the same held-out prompts.
    """
    store = Store.open(root)
    there = set(store.run_names())
    found = []
    for seed in seeds:
        for variant in [*(plan.sources() if _needs_models(plan, variants) else ()), *variants]:
            recipe = variant.recipe(seed, root)
            name = variant.run(seed)
            done = len(store.run(name).finished) - 1 if name in there else -1
            found.append(Planned(variant, seed, recipe, done))
    _check_same_budget([one for one in found if one.variant in variants])
    return found


def bring_on(plan: Plan, runs: Sequence[Planned], root: str, display: Display) -> None:
    """Runs what is missing of these runs, and fits the reward models that they have as judges."""
    for run in runs:
        if run.finished:
            continue
        for name in plan.experiment.reward_models:
            if str(plan.reward_model(name, run.seed, root).absolute()) in run.recipe.model_dump_json():
                _fit(plan, name, run.seed, root, display)
        if run.variant.spec.method == "rondo":
            check_files(run.recipe)
            start(run.recipe, run.name, root, resume=True, display=display)


def cost(runs: Sequence[Planned]) -> str:
    """Says what is left to run, on paper; starts and warm starts come on top."""
    left = [run for run in runs if not run.finished]
    if not left:
        return f"all {len(runs)} runs are there"
    said = f"{len(left)} of {len(runs)} runs to do, {sum(run.samples for run in left):,} completions to sample"
    try:
        seconds = sum(run.seconds for run in left)
    except ConfigError:  # of a policy on the hub that was never fetched
        return said
    return f"{said}; on paper about {quantity(seconds, 's', 2)} of work beside starts and warm starts"


def _fit(plan: Plan, name: str, seed: int, root: str, display: Display) -> None:
    model, to = plan.experiment.reward_models[name], plan.reward_model(name, seed, root)
    if to.exists():
        return
    source = next((one for one in plan.sources() if one.name == model.source), None)
    if source is None:
        raise ConfigError(f"reward model '{name}' learns from '{model.source}', which is none of the sources")
    to.parent.mkdir(parents=True, exist_ok=True)
    config = training_settings(**{**model.settings, "seed": seed})
    with display.doing(f"fitting the reward model '{name}' of seed {seed}"):
        train_judge([f"{source.run(seed)}@{model.rounds}"], to, None, config, root)


def _needs_models(plan: Plan, variants: Sequence[Variant]) -> bool:
    return bool(plan.experiment.sources) and bool(variants)


def _check_same_budget(runs: Sequence[Planned]) -> None:
    """Refuses arms that sample more than others, or are asked other held-out prompts."""
    trained = [run for run in runs if run.variant.spec.method != "best_of"]
    for run in trained[1:]:
        first = trained[0]
        if run.samples != first.samples:
            raise ConfigError(
                f"arm '{run.variant.name}' samples {run.samples} completions and arm '{first.variant.name}' "
                f"{first.samples}: give all the same rounds x prompts_per_round x candidates"
            )
    for run in runs[1:]:
        if run.recipe.evaluation.prompts != runs[0].recipe.evaluation.prompts:
            raise ConfigError(
                f"arm '{run.variant.name}' has {run.recipe.evaluation.prompts} held-out prompts and arm "
                f"'{runs[0].variant.name}' {runs[0].recipe.evaluation.prompts}: give all the same"
            )

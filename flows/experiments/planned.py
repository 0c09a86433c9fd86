"""The runs of an experiment: which there are, how much of each there is, and what the rest takes on paper."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flows.analysis.capacity import plan_recipe
from flows.analysis.forecast import Forecast
from flows.experiments.beside import check_annex, is_measured
from flows.experiments.experiment import Plan, Variant
from flows.experiments.options import annex_header
from flows.host.text import quantity
from flows.registry.resume import recipe_to_resume
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from storage.log.run import Run
from storage.log.store import Store

PARTS = 4
"""Policies of a peer's training that are measured, after equal parts of its steps."""


@dataclass(frozen=True)
class Planned:
    """A run of an experiment, and how much of it there is.

    Attributes:
        done: its finished rounds, of which round 0 is not counted; -1 if it has none. Of an arm that is no run of
            rondo, all or nothing.
        anchor: the run beside which an arm is measured that is none; its own name for a run.
        compared: whether it is one of the arms that were asked for, and not only needed by one.
    """

    variant: Variant
    seed: int
    recipe: Recipe
    done: int
    anchor: str
    compared: bool

    @property
    def name(self) -> str:
        """Returns the run's name."""
        return self.variant.run(self.seed)

    @property
    def is_run(self) -> bool:
        """Says whether it is a run of rondo."""
        return self.variant.spec.method == "rondo"

    @property
    def samples(self) -> int:
        """Counts the completions that its rounds sample for training."""
        recipe = self.recipe
        return recipe.rounds * recipe.sampling.prompts_per_round * recipe.sampling.candidates

    @property
    def seconds(self) -> float:
        """Returns the seconds of work of the rounds that are missing, as the planner reckons them."""
        missing = self.recipe.rounds - max(self.done, 0)
        return Forecast(plan_recipe(self.recipe), missing, self.done < 0).seconds

    @property
    def finished(self) -> bool:
        """Says whether it has all rounds of its recipe."""
        return self.done >= self.recipe.rounds

    @property
    def measured_numbers(self) -> range:
        """Returns the numbers of the policies that are measured beside the anchor."""
        return range(1) if self.variant.spec.method == "best_of" else range(1, PARTS + 1)

    def log(self, store: Store) -> Run | None:
        """Opens the run, or the annex, that has what was measured; None if there is none yet."""
        if self.anchor not in store.run_names():
            return None
        run = store.run(self.anchor)
        if self.is_run:
            return run
        return run.annex(self.name) if self.name in run.annexes else None


def planned(plan: Plan, variants: Sequence[Variant], seeds: Sequence[int], root: str) -> list[Planned]:
    """Lists the runs of an experiment, by seed, in the order in which they are run.

    What an arm needs comes before it, whether it was asked for or not: the sources of reward models, and a run beside
    which arms are measured that are none.

    Raises:
        ConfigError: a recipe is wrong, or two arms do not take the same number of samples or the same held-out prompts.
    """
    store = Store.open(root)
    anchor = next((one for one in plan.variants() if one.spec.method == "rondo"), None)
    others = any(one.spec.method != "rondo" for one in variants)
    if others and anchor is None:
        raise ConfigError(f"experiment '{plan.experiment.name}' has no arm of method rondo, whose prompts others take")
    needed = plan.sources() if plan.experiment.reward_models else []
    if others and anchor is not None and anchor not in variants:
        needed.append(anchor)
    found = []
    for seed in seeds:
        for variant in [*needed, *variants]:
            own = variant.spec.method == "rondo"
            beside = variant.run(seed) if own or anchor is None else anchor.run(seed)
            one = Planned(variant, seed, variant.recipe(seed, root), -1, beside, variant in variants)
            found.append(looked_at(store, one))
    _check_same_budget([one for one in found if one.compared])
    return found


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


def looked_at(store: Store, run: Planned) -> Planned:
    """Returns the run with how much of it there is by now.

    Raises:
        ConfigError: what is there was made with another recipe, or with other options.
    """
    log = run.log(store)
    if log is None:
        return run
    if run.is_run:
        recipe_to_resume(log, run.recipe)
        return replace(run, done=len(log.finished) - 1)
    check_annex(log, annex_header(run.variant, run.recipe))
    whole = all(is_measured(log, number, run.recipe) for number in run.measured_numbers)
    return replace(run, done=run.recipe.rounds if whole else -1)


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

"""Runs what an experiment has not run yet: sources, reward models, then arms, one seed after the other.

Each run is resumed where a kill has left it, and a finished one is not looked at again. A reward model appears whole or
not at all. So the same command goes on from wherever it was interrupted.
"""

import json
from collections.abc import Sequence

from flows.analysis.train_judge import train_judge, training_settings, was_fitted_so
from flows.experiments.experiment import Plan
from flows.experiments.methods import bring_on_method
from flows.experiments.planned import Planned
from flows.host.progress import Display
from flows.registry.recipes import check_files
from flows.run.start import start
from pipeline.errors import ConfigError


def bring_on(plan: Plan, runs: Sequence[Planned], root: str, display: Display) -> None:
    """Runs what is missing of these runs, and fits the reward models that they have as judges."""
    for run in runs:
        named = run.recipe.model_dump_json()
        for name in plan.experiment.reward_models:
            to = plan.reward_model(name, run.seed, root)
            if json.dumps(str(to.absolute())) in named and (to.exists() or not run.finished):
                _fit(plan, name, run.seed, root, display)
        if run.finished:
            continue
        if run.is_run:
            check_files(run.recipe)
            start(run.recipe, run.name, root, resume=True, display=display)
        else:
            bring_on_method(run, root, display)


def _fit(plan: Plan, name: str, seed: int, root: str, display: Display) -> None:
    """Fits a reward model, unless it is there.

    Raises:
        ConfigError: what is there was fitted to other rounds, or with other settings.
    """
    model, to = plan.experiment.reward_models[name], plan.reward_model(name, seed, root)
    source = next((one for one in plan.sources() if one.name == model.source), None)
    if source is None:
        raise ConfigError(f"reward model '{name}' learns from '{model.source}', which is none of the sources")
    config = training_settings(**{**model.settings, "seed": seed})
    labels = f"{source.run(seed)}@{model.rounds}"
    if to.exists():
        if not was_fitted_so(to, labels, config, root):
            raise ConfigError(
                f"reward model '{to}' was fitted to other rounds, or with other settings: give it another name, or "
                "remove it"
            )
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    with display.doing(f"fitting the reward model '{name}' of seed {seed}"):
        train_judge([labels], to, None, config, root)

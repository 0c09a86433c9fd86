"""Judges that compare policies of the run: whether there are such policies yet."""

from pipeline.errors import ConfigError
from pipeline.judges.implicit import ImplicitConfig
from pipeline.recipe import Recipe


def check_judge_policies(recipe: Recipe, run: str, first: int) -> None:
    """Checks the policies that judges name, before any work is done.

    Args:
        first: the first round that is still to be run.

    Raises:
        ConfigError: a judge names a round that is not finished, or the training judge would give only rewards of 0.
    """
    for place, judge in enumerate(recipe.judges):
        if not isinstance(judge, ImplicitConfig):
            continue
        newest = max(first - 1, 0)
        if (named := max(judge.rounds(first))) > newest:
            raise ConfigError(
                f"the judge '{judge.label}' names the policy of round {named}, and run '{run}' goes on after round "
                f"{newest}: fork from round {named} or later of a run that another judge has trained, with this judge "
                "set there"
            )
        policy, reference = judge.rounds(max(first, 1))
        if place == 0 and policy == reference:
            raise ConfigError(
                f"the judge '{judge.label}' would compare the policy of round {policy} with itself, and every reward "
                "would be 0: begin with another judge, and set this one in a fork from one of its rounds"
            )

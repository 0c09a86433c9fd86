"""The objectives that an update can be given, and what a recipe has to know of each.

The formulas are in ``pipeline/dpo/losses.py``, under the same names. This table stands apart from them, because a
recipe is checked without torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What an objective takes.

    Attributes:
        constants: the fields of the update that this objective has, and not all others.
        rankings: takes more than two candidates, in place of pairs.
        soft: uses soft labels.
        margin: depends on differences of rewards alone, without which only the reverse KL is defined.
        needs_smoothing: is infinite without label smoothing.
    """

    constants: tuple[str, ...] = ()
    rankings: bool = False
    soft: bool = False
    margin: bool = False
    needs_smoothing: bool = False


OBJECTIVES: Mapping[str, Objective] = {
    "sigmoid": Objective(constants=("label_smoothing",), soft=True, margin=True),
    "sigmoid_norm": Objective(constants=("label_smoothing",), soft=True, margin=True),
    "robust": Objective(constants=("label_smoothing",), margin=True),
    "hinge": Objective(margin=True),
    "ipo": Objective(margin=True),
    "simpo": Objective(constants=("target_margin",)),
    "sppo": Objective(soft=True),
    "dpop": Objective(constants=("dpop_penalty",)),
    "apo_zero": Objective(),
    "apo_down": Objective(),
    "exo_pair": Objective(constants=("label_smoothing",), margin=True, needs_smoothing=True),
    "nca_pair": Objective(),
    "bco_pair": Objective(),
    "plackett_luce": Objective(rankings=True, margin=True),
    "all_pairs": Objective(rankings=True, margin=True),
    "supervised": Objective(),
}
"""Every objective that a recipe can name."""

RANKING_OBJECTIVES = tuple(name for name, objective in OBJECTIVES.items() if objective.rankings)
SOFT_LABEL_OBJECTIVES = tuple(name for name, objective in OBJECTIVES.items() if objective.soft)


def objectives_with(constant: str) -> tuple[str, ...]:
    """Names the objectives that have this constant of their own, such as ``target_margin``; none if all share it."""
    return tuple(name for name, objective in OBJECTIVES.items() if constant in objective.constants)

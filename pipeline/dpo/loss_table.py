"""The losses that a recipe may name: which formula, with which of the recipe's constants, and what it begins with.

Axes: ``P`` preferences, ``K`` candidates of a preference, the best first.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline.config import UpdateConfig
from pipeline.dpo.losses import (
    all_pairs,
    apo_down,
    apo_zero,
    bco_pair,
    divergence_scores,
    dpop,
    exo_pair,
    hinge,
    ipo,
    nca_pair,
    nll,
    plackett_luce,
    robust,
    sigmoid,
    sigmoid_norm,
    simpo,
    sppo,
)
from pipeline.dpo.noise import noise


@dataclass(frozen=True)
class PreferenceBatch:
    """Log-probabilities of P preferences over at most K candidates, best first.

    ``ranks_P_K`` is -1 if a preference has fewer than K candidates; the other entries of those places are
    ignored, and must be finite. ``soft_labels_P`` is the probability that a pair's order is right.
    """

    logps_P_K: Tensor
    reference_logps_P_K: Tensor
    lengths_P_K: Tensor
    ranks_P_K: Tensor
    soft_labels_P: Tensor | None = None

    @property
    def logratios_P_K(self) -> Tensor:
        return self.logps_P_K - self.reference_logps_P_K


Function = Callable[[PreferenceBatch, UpdateConfig], Tensor]


@dataclass(frozen=True)
class Loss:
    """The formula of an objective, with the constants that the recipe's update has for it.

    ``first_loss`` is its value if policy and reference are one, for an update and the ranks of one preference; None
    if it depends on the data.
    """

    function: Function
    first_loss: Callable[[UpdateConfig, list[int]], float] | None


def _scores(batch: PreferenceBatch, config: UpdateConfig) -> Tensor:
    return divergence_scores(batch.logratios_P_K, config.divergence, config.divergence_alpha)


def _pairs(function: Callable[..., Tensor], *constants: str, lengths: bool = False, soft: bool = False) -> Function:
    """Adapts a function of chosen and rejected log-ratios, whose keywords are named by ``constants``."""

    def loss(batch: PreferenceBatch, config: UpdateConfig) -> Tensor:
        columns = list(_scores(batch, config).unbind(1))
        if lengths:
            columns += batch.lengths_P_K.unbind(1)
        keywords = {"beta": config.beta} | {name: getattr(config, name) for name in constants}
        if soft:
            keywords["soft_labels_P"] = batch.soft_labels_P
        return function(*columns, **keywords)

    return loss


def _simpo(batch: PreferenceBatch, config: UpdateConfig) -> Tensor:
    columns = [*batch.logps_P_K.unbind(1), *batch.lengths_P_K.unbind(1)]
    return simpo(*columns, beta=config.beta, target_margin=config.target_margin)


def _dpop(batch: PreferenceBatch, config: UpdateConfig) -> Tensor:
    margin_P = noise(config, batch.lengths_P_K[:, 0])
    return dpop(*batch.logratios_P_K.unbind(1), beta=config.beta, penalty=config.dpop_penalty, margin_P=margin_P)


def _supervised(batch: PreferenceBatch, config: UpdateConfig) -> Tensor:
    """Takes the chosen answer's likelihood alone: the rejected one and the reference say nothing, nor does beta."""
    return nll(batch.logps_P_K[:, 0], batch.lengths_P_K[:, 0])


def _ranking(function: Callable[..., Tensor]) -> Function:
    return lambda batch, config: function(_scores(batch, config), batch.ranks_P_K, beta=config.beta)


def _constant(value: float) -> Callable[[UpdateConfig, list[int]], float]:
    return lambda config, ranks: value


def _first_plackett_luce(config: UpdateConfig, ranks: list[int]) -> float:
    """Returns ln K! for a complete ranking: at equal rewards each place adds the log of how many compete for it."""
    return sum(math.log(1 + sum(other > rank for other in ranks)) for rank in ranks)


def _first_all_pairs(config: UpdateConfig, ranks: list[int]) -> float:
    return math.log(2) * sum(other > rank for rank in ranks for other in ranks)


def _first_ipo(config: UpdateConfig, ranks: list[int]) -> float:
    return 1 / (4 * config.beta**2)


def _first_exo(config: UpdateConfig, ranks: list[int]) -> float:
    return -math.log(2) - math.log(config.label_smoothing * (1 - config.label_smoothing)) / 2


LN2 = math.log(2)

LOSSES: Mapping[str, Loss] = {
    "sigmoid": Loss(_pairs(sigmoid, "label_smoothing", soft=True), _constant(LN2)),
    "sigmoid_norm": Loss(_pairs(sigmoid_norm, "label_smoothing", lengths=True, soft=True), _constant(LN2)),
    "robust": Loss(_pairs(robust, "label_smoothing"), _constant(LN2)),
    "hinge": Loss(_pairs(hinge), _constant(1.0)),
    "ipo": Loss(_pairs(ipo, lengths=True), _first_ipo),
    "simpo": Loss(_simpo, None),
    "sppo": Loss(_pairs(sppo, soft=True), None),
    "dpop": Loss(_dpop, _constant(LN2)),
    "apo_zero": Loss(_pairs(apo_zero), _constant(1.0)),
    "apo_down": Loss(_pairs(apo_down), _constant(1.0)),
    "exo_pair": Loss(_pairs(exo_pair, "label_smoothing"), _first_exo),
    "nca_pair": Loss(_pairs(nca_pair), _constant(2 * LN2)),
    "bco_pair": Loss(_pairs(bco_pair), _constant(2 * LN2)),
    "plackett_luce": Loss(_ranking(plackett_luce), _first_plackett_luce),
    "all_pairs": Loss(_ranking(all_pairs), _first_all_pairs),
    "supervised": Loss(_supervised, None),
}
"""The formula of each of the objectives that ``pipeline/config/objectives.py`` describes."""

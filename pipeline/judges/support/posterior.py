"""The posterior of Bradley-Terry strengths: its mode, and the probability that one of two candidates is stronger.

Comparisons determine differences of strengths alone. So the common level is left out, and what remains of K candidates
has K - 1 dimensions, of which one is the difference that is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import sqrt

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_NODES = 16  # on either side of 0, within which the density of a difference is smooth: more change 1e-6
_REACH = 8.0  # in standard deviations of the normal approximation
_MOST_POINTS = 128  # of the inner integral; with one point it is Laplace's approximation
_STEPS, _CLOSE = 100, 1e-12


@dataclass(frozen=True)
class Posterior:
    """Strengths of ``count`` candidates under independent normal priors, after some comparisons.

    Args:
        wins: ``wins[a, b]`` is how often a beat b; a tie is half a win for each.
        prior_std: of each strength, in nats of log-odds.
    """

    count: int
    wins: Mapping[tuple[int, int], float]
    prior_std: float

    def mode(self) -> tuple[Floats, Floats]:
        """Returns the likeliest strengths, and the inverse of the negative log-posterior's second derivatives there."""
        strengths_K, hessian_K_K = self._maximum(np.zeros((1, self.count)), np.eye(self.count))
        return strengths_K[0], np.linalg.inv(hessian_K_K[0])

    def order_probability(self, a: int, b: int, mean: float, spread: float) -> float:
        """Computes the probability that a is stronger than b.

        It is an integral over their difference, by Gauss and Legendre on both sides of 0. Its integrand is an integral
        over the other dimensions, by Gauss and Hermite around the likeliest strengths that have this difference (Naylor
        and Smith 1982). The result is exact for two candidates, and to 0.001 for up to six. For more, the inner
        integral is Laplace's approximation (Tierney and Kadane 1986).

        Args:
            mean, spread: of the difference in the normal approximation, which says where to look.
        """
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        ends = max(mean, 0.0) + _REACH * spread, min(mean, 0.0) - _REACH * spread
        differences_T = np.concatenate([end * (nodes + 1) / 2 for end in ends])
        density_T = self._log_density(a, b, differences_T)
        masses = np.exp(density_T - density_T.max()) * np.concatenate([weights * abs(end) for end in ends])
        return float(masses[:_NODES].sum() / masses.sum())

    def _log_density(self, a: int, b: int, differences_T: Floats) -> Floats:
        """Computes the log-density of a difference of two strengths, up to a constant."""
        basis = _basis(self.count, a, b)
        base_T_K: Floats = differences_T[:, None] * basis[:, 0] / sqrt(2)
        others = basis[:, 1:]
        if not others.shape[1]:
            return self._log_posterior(base_T_K)
        mode_T_K, hessian_T_D_D = self._maximum(base_T_K, others)
        points_G_D, weights_G = _hermite(others.shape[1])
        # Columns of the inverse's transposed factor: steps of one standard deviation in each direction.
        steps_T_D_D = np.linalg.inv(np.linalg.cholesky(hessian_T_D_D))
        inner_T_G_D = points_G_D @ steps_T_D_D
        log_T_G = self._log_posterior(mode_T_K[:, None, :] + inner_T_G_D @ others.T) + (points_G_D**2).sum(1) / 2
        top_T = log_T_G.max(1)
        volume_T = np.linalg.slogdet(steps_T_D_D)[1]
        found: Floats = top_T + volume_T + np.log((weights_G * np.exp(log_T_G - top_T[:, None])).sum(1))
        return found

    def _maximum(self, base_T_K: Floats, basis_K_D: Floats) -> tuple[Floats, Floats]:
        """Finds the likeliest strengths ``base + basis x`` for each base, and the second derivatives in x there.

        The log-posterior is concave, and with so wide a prior a few Newton steps reach its mode; small ones are safe.
        """
        won_K_K = np.zeros((self.count, self.count))
        for (a, b), number in self.wins.items():
            won_K_K[a, b] += number
        played_K_K, precision = won_K_K + won_K_K.T, 1 / self.prior_std**2
        strengths_T_K = np.array(base_T_K)
        for _ in range(_STEPS):
            expected = 1 / (1 + np.exp(strengths_T_K[:, None, :] - strengths_T_K[:, :, None]))
            gradient_T_K = won_K_K.sum(1) - (played_K_K * expected).sum(2) - strengths_T_K * precision
            weight = played_K_K * expected * (1 - expected)
            hessian = np.eye(self.count) * (weight.sum(2) + precision)[:, :, None] - weight
            hessian_T_D_D = basis_K_D.T @ hessian @ basis_K_D
            step_T_D = np.linalg.solve(hessian_T_D_D, (gradient_T_K @ basis_K_D)[..., None])[..., 0]
            longest_T = np.abs(step_T_D).max(1)
            strengths_T_K += (step_T_D / np.maximum(1.0, longest_T)[:, None]) @ basis_K_D.T
            if longest_T.max() < _CLOSE:
                break
        return strengths_T_K, hessian_T_D_D

    def _log_posterior(self, strengths_K: Floats) -> Floats:
        """Computes the log-posterior up to a constant; the last axis holds the strengths."""
        found: Floats = -(strengths_K**2).sum(-1) / (2 * self.prior_std**2)
        for (a, b), number in self.wins.items():
            if number:
                found = found - number * np.logaddexp(0.0, strengths_K[..., b] - strengths_K[..., a])
        return found


def _basis(count: int, a: int, b: int) -> Floats:
    """Builds orthonormal columns of all strengths that sum to 0, the first of them the difference of a and b."""
    others = [k for k in range(count) if k not in (a, b)]
    columns = np.zeros((count, count - 1))
    columns[a], columns[b] = -0.5, -0.5
    columns[a, 0], columns[b, 0] = 1.0, -1.0
    columns[others, range(1, count - 1)] = 1.0
    basis: Floats = np.linalg.qr(columns)[0]
    basis *= np.sign(basis[a, 0])
    return basis


def _hermite(dimensions: int) -> tuple[Floats, Floats]:
    """Gives points and weights of integrals with the density of so many standard normal variables, up to a constant."""
    each = max(1, min(7, int(_MOST_POINTS ** (1 / dimensions) + 1e-9)))
    each -= 1 - each % 2  # an odd number has its middle at the mode
    points, weights = np.polynomial.hermite_e.hermegauss(each)
    grid = np.array(list(product(points, repeat=dimensions)))
    return grid, np.array([np.prod(chosen) for chosen in product(weights, repeat=dimensions)])

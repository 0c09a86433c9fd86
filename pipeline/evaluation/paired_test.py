"""A paired test of two policies on the same prompts: has the mean changed by more than the signs allow?

The sign-flip test (Fisher 1935, "The Design of Experiments", section 21): if neither policy is better, each difference
is as likely to be negative as positive. The p-value is the share of all 2^n ways to sign the differences whose sum is
at least as extreme as the observed one. With scores of 0 and 1 it is the sign test, which is McNemar's exact one.

The sum's distribution is computed and not drawn: the magnitudes are rounded to multiples of a part of the largest, and
convolved. Rounding keeps the test exact, as it treats both signs alike. It only changes by little what is summed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CELLS = 400_000
"""Values of the sum that are told apart, about: with n differences each is rounded to a part of _CELLS / n."""
_FINEST = 1000
"""Parts of the largest difference, at most."""


@dataclass(frozen=True)
class PairedTest:
    """One-sided p-values of a mean difference.

    Attributes:
        loss: probability of a sum as low as this one, or lower, if nothing has changed.
        gain: probability of one as high, or higher.
    """

    loss: float
    gain: float


def sign_flip_test(differences: Sequence[float]) -> PairedTest:
    """Tests paired differences, new less old. Differences of 0 say nothing and are left out; of none both are 1."""
    magnitudes_P = _rounded(np.abs(np.asarray(differences, dtype=np.float64)))
    raised = np.asarray([difference > 0 for difference in differences], dtype=bool)
    observed = int(magnitudes_P[raised].sum())
    probabilities = _distribution(magnitudes_P[magnitudes_P > 0])
    return PairedTest(
        loss=min(1.0, float(probabilities[: observed + 1].sum())),
        gain=min(1.0, float(probabilities[observed:].sum())),
    )


def _rounded(magnitudes_P: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    largest = magnitudes_P.max(initial=0.0)
    if largest == 0.0:
        return np.zeros(len(magnitudes_P), dtype=np.int64)
    parts = max(1, min(_FINEST, _CELLS // len(magnitudes_P)))
    rounded = np.rint(magnitudes_P / largest * parts).astype(np.int64)
    divisor = int(np.gcd.reduce(rounded))
    return np.asarray(rounded // divisor, dtype=np.int64)


def _distribution(magnitudes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns the probability of each sum of those that are positive, if each is so with probability 1/2."""
    probabilities = np.zeros(int(magnitudes.sum()) + 1)
    probabilities[0], reach = 1.0, 0
    for magnitude in magnitudes.tolist():
        before = probabilities[: reach + 1] / 2
        reach += magnitude
        probabilities[: reach + 1] = 0.0
        probabilities[: len(before)] += before
        probabilities[magnitude : reach + 1] += before
    return probabilities

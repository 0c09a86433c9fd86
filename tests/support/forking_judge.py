"""A judge that reckons in a forked process, as a user's own may."""

import multiprocessing
from typing import Any


def length(answer: str, **_: Any) -> float:
    """The answer's length."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return float(pool.apply(len, [answer]))

"""Judges of the benchmark of a round. The judge's process imports this file, so that it imports little itself."""

import hashlib
import time
from functools import lru_cache
from typing import Any

_owed = 0.0  # by which the sleeps so far were too short; what one oversleeps, the next ones leave out


def sleeping(answer: str, seconds: float = 0.0, **_: Any) -> float:
    """A stand-in for a judge that takes its time elsewhere, on another machine perhaps: no two answers tie.

    Args:
        seconds: for each answer, on average.
    """
    global _owed
    started = time.perf_counter()
    time.sleep(max(0.0, _owed + seconds))
    _owed += seconds - (time.perf_counter() - started)
    return _fraction(answer)


def sentiment(answer: str, **_: Any) -> float:
    """VADER's compound score, by which no two different answers tie: each prompt then gives a pair, as with trl."""
    return float(_analyzer().polarity_scores(answer)["compound"]) + 1e-6 * _fraction(answer)


@lru_cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _fraction(answer: str) -> float:
    return int.from_bytes(hashlib.sha256(answer.encode()).digest()[:6], "big") / 2**48

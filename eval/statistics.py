"""Means with bootstrap intervals, alone and paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

RESAMPLES = 2000


class Estimate(TypedDict):
    value: float
    low: float
    high: float
    n: int


def estimate(scores: Sequence[float], seed: int = 0) -> Estimate:
    """Mean and bootstrap 95 % interval over items. Raises ValueError for no scores."""
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise ValueError("no scores to average")
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def paired_difference(scores: Sequence[float], against: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of the differences item by item, with its bootstrap interval: both saw the same items in the same order."""
    if len(scores) != len(against):
        raise ValueError(f"{len(scores)} scores against {len(against)}; a paired difference needs the same items")
    return estimate(np.asarray(scores, dtype=np.float64) - np.asarray(against, dtype=np.float64), seed)  # type: ignore[arg-type]

"""Means with bootstrap intervals, alone and paired, over items and over seeds."""

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


class SeedEstimate(Estimate):
    seeds: int
    lowest: float
    highest: float
    """The means of the lowest and of the highest seed."""


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


def nested_estimate(scores: Sequence[Sequence[float]], seed: int = 0) -> SeedEstimate:
    """Mean over seeds of the mean over items, scores[seed][item], with a bootstrap 95 % interval over both.

    Every resample draws seeds, and for each drawn seed its items anew. Where seeds are few the interval is narrow: of S
    seeds the resamples show (S - 1) / S of the variance between them. Raises ValueError for a seed without scores.
    """
    values = [np.asarray(items, dtype=np.float64) for items in scores]
    if not values or not all(len(items) for items in values):
        raise ValueError("no scores to average")
    rng = np.random.default_rng(seed)
    resampled = np.stack([v[rng.integers(0, len(v), (RESAMPLES, len(v)))].mean(1) for v in values])  # [S, RESAMPLES]
    # A seed drawn twice brings different items each time: which of its resamples it brings is drawn too.
    shape = (len(values), RESAMPLES)
    drawn = resampled[rng.integers(0, len(values), shape), rng.integers(0, RESAMPLES, shape)]
    low, high = np.quantile(drawn.mean(0), (0.025, 0.975))
    means = [float(items.mean()) for items in values]
    return {
        "value": sum(means) / len(means),
        "low": float(low),
        "high": float(high),
        "n": sum(map(len, values)),
        "seeds": len(means),
        "lowest": min(means),
        "highest": max(means),
    }


def nested_difference(
    scores: Sequence[Sequence[float]], against: Sequence[Sequence[float]], seed: int = 0
) -> SeedEstimate:
    """`nested_estimate` of the differences item by item: in each seed both saw the same items in the same order."""
    sizes = [len(items) for items in scores], [len(items) for items in against]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{sizes[0]} scores against {sizes[1]}; a paired difference needs the same items of each seed")
    return nested_estimate([np.subtract(a, b) for a, b in zip(scores, against, strict=True)], seed)  # type: ignore[arg-type]

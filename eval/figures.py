"""Figures that are sums of shares, with bootstrap intervals over what was drawn: alone, and paired before and after.

Accuracy, precision and F1, a score per picture, a mean over tasks: each is a sum of weight * (sum of numerators / sum
of denominators), where one unit (a question, a picture with its questions, a prompt with its samples) adds to both.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .benchmark import Outcome
from .statistics import RESAMPLES, Estimate

CHUNK = 100
"""Resamples held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Share:
    units: Mapping[str, tuple[float, float]]
    """What each unit adds to the numerator and to the denominator."""
    weight: float = 1.0


Figure = Sequence[Share]


@runtime_checkable
class Measured(Protocol):
    """A benchmark whose figures are more than means over items: they are kept by unit, for comparisons."""

    def figures(self, outcomes: Sequence[Outcome]) -> dict[str, Figure]: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    before: float
    after: float
    difference: Estimate
    """after - before over the units of both."""
    unpaired: int
    """Units that only one of the two has; they do not count."""


def mean_of(values: Mapping[str, float], weight: float = 1.0) -> Figure:
    """The weighted mean of one value a unit."""
    return [Share({unit: (value, 1.0) for unit, value in values.items()}, weight)]


def figure_estimate(figure: Figure) -> Estimate | None:
    """Value and 95 % interval; None where a share has nothing to divide by."""
    total = _total([_arrays(share, sorted(share.units)) for share in figure], figure)
    if total is None:
        return None
    resampled = sum(share.weight * _resampled(share, sorted(share.units)) for share in figure)
    return _interval(total, np.asarray(resampled), _size(figure))


def compare(before: Figure, after: Figure) -> Comparison | None:
    """Both over the units that both have; None where a share then has nothing to divide by.

    Raises ValueError where the two are not the same figure.
    """
    if [share.weight for share in before] != [share.weight for share in after]:
        raise ValueError("the two are made of other shares")
    common = [sorted(a.units.keys() & b.units.keys()) for a, b in zip(before, after, strict=True)]
    unpaired = {unit for a, b in zip(before, after, strict=True) for unit in a.units.keys() ^ b.units.keys()}
    totals = [_total([_arrays(s, units) for s, units in zip(f, common, strict=True)], f) for f in (before, after)]
    if totals[0] is None or totals[1] is None:
        return None
    differences = np.zeros(RESAMPLES)
    for old, new, units in zip(before, after, common, strict=True):
        differences += new.weight * (_resampled(new, units) - _resampled(old, units))
    size = len({unit for units in common for unit in units})
    return Comparison(totals[0], totals[1], _interval(totals[1] - totals[0], differences, size), len(unpaired))


def figures_json(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {
        name: [{"weight": share.weight, "units": share.units} for share in figure] for name, figure in figures.items()
    }


def figures_of(value: Mapping[str, Any]) -> dict[str, Figure]:
    """Of `figures_json`."""
    return {name: [Share(share["units"], share["weight"]) for share in shares] for name, shares in value.items()}


def _arrays(share: Share, units: Sequence[str]) -> np.ndarray:
    """[2, n]"""
    return np.array([share.units[unit] for unit in units], dtype=np.float64).reshape(-1, 2).T


def _total(arrays: Sequence[np.ndarray], figure: Figure) -> float | None:
    sums = [array.sum(1) for array in arrays]
    if not sums or any(bottom == 0 for _, bottom in sums):
        return None
    return float(sum(share.weight * top / bottom for share, (top, bottom) in zip(figure, sums, strict=True)))


def _resampled(share: Share, units: Sequence[str]) -> np.ndarray:
    """[RESAMPLES] shares, without the weight; NaN where a resample has nothing to divide by.

    The draws depend on the units alone: shares over the same units, and before and after, see the same resamples.
    """
    arrays, count = _arrays(share, units), len(units)
    rng = np.random.default_rng(zlib.crc32("\n".join(units).encode("utf-8", "surrogatepass")))
    parts = []
    for _ in range(0, RESAMPLES, CHUNK):
        top, bottom = arrays[:, rng.integers(0, count, (CHUNK, count))].sum(2)
        parts.append(np.divide(top, bottom, out=np.full(CHUNK, np.nan), where=bottom != 0))
    return np.concatenate(parts)


def _interval(value: float, resampled: np.ndarray, size: int) -> Estimate:
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return {"value": value, "low": float(low), "high": float(high), "n": size}


def _size(figure: Figure) -> int:
    """Units that count."""
    return len({unit for share in figure for unit, (_, bottom) in share.units.items() if bottom})

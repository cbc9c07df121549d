"""The order in which training reads: a function of seed and epoch alone, known at any place without what was before.

Each epoch has its own order: shards are shuffled, and the records of `TOGETHER` neighbouring shards among each other,
so that a cache of some more shards than that is enough. Several sources are drawn from in turn, each by its share: the
i-th document of a source comes at a random moment of the i-th stretch of time that it has, so that shares are exact,
sources are mixed, and how many came before a moment is a multiplication.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

TOGETHER = 8
"""Shards whose records are shuffled among each other."""


class Order:
    """Which record is the i-th of a source, epoch after epoch without end."""

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        """sizes: records of each shard."""
        self.sizes, self.seed = np.asarray(sizes, np.int64), seed
        self.records = int(self.sizes.sum())
        self._starts = np.cumsum(self.sizes) - self.sizes
        self._epoch: tuple[int, np.ndarray, np.ndarray] = (-1, self._starts, self._starts)
        self._group: tuple[tuple[int, int], np.ndarray] = ((-1, -1), self._starts)

    def record(self, position: int) -> int:
        epoch, place = divmod(position, self.records)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, *self._shuffled_shards(epoch))
        _, shards, ends = self._epoch
        group = int(np.searchsorted(ends, place, side="right"))
        if self._group[0] != (epoch, group):
            self._group = ((epoch, group), self._numbers(epoch, shards[group * TOGETHER : (group + 1) * TOGETHER]))
        return int(self._group[1][place - (int(ends[group - 1]) if group else 0)])

    def _shuffled_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch, and where each group of them ends."""
        shards = np.argsort(random_bits(np.arange(len(self.sizes)), "shards", self.seed, epoch), kind="stable")
        ends = np.cumsum(self.sizes[shards])
        last = [min(start + TOGETHER, len(shards)) - 1 for start in range(0, len(shards), TOGETHER)]
        return shards, ends[last]

    def _numbers(self, epoch: int, shards: np.ndarray) -> np.ndarray:
        """The records of a group of shards in their order."""
        numbers = np.concatenate([self._starts[shard] + np.arange(int(self.sizes[shard])) for shard in shards])
        return numbers[np.argsort(random_bits(numbers, "records", self.seed, epoch), kind="stable")]


class Turns:
    """Whose turn it is: sources in the proportion of their shares, drawn from one after the other."""

    def __init__(self, shares: Sequence[float], seed: int) -> None:
        """shares: positive; their sum is 1."""
        self.shares, self.seed = tuple(shares), seed

    def before(self, time: int) -> list[int]:
        """How many documents each source has given before this moment; one comes a unit of time, on average."""
        return [self._before(source, time) for source in range(len(self.shares))]

    def between(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(source, position in it) of the documents between two moments, in their order."""
        drawn: list[tuple[float, int, int]] = []
        for source, share in enumerate(self.shares):
            positions = np.arange(self._before(source, start), self._before(source, stop))
            moments = (positions + self._within(source, positions)) / share
            drawn += [(moment, source, int(i)) for moment, i in zip(moments.tolist(), positions, strict=True)]
        return [(source, position) for _, source, position in sorted(drawn)]

    def _before(self, source: int, time: int) -> int:
        """Those whose stretch is over, and maybe the one whose stretch is on."""
        share = self.shares[source]
        first = max(math.floor(time * share) - 1, 0)
        near = np.arange(first, first + 4)
        return first + int(np.count_nonzero((near + self._within(source, near)) / share < time))

    def _within(self, source: int, positions: np.ndarray) -> np.ndarray:
        """At what part of its stretch each document comes, from 0 to 1."""
        return random_bits(positions, "turns", self.seed, source) / 2.0**64


def random_bits(numbers: np.ndarray, *salt: object) -> np.ndarray:
    """64 random bits for each number, the same on every machine: splitmix64 of the number and a salt."""
    start = np.uint64(int.from_bytes(hashlib.sha256(" ".join(map(str, salt)).encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        bits = np.asarray(numbers).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))

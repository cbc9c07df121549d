"""Replay: packed warm-up rows that RL goes on learning from, beside its own rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from ..data.mixture import PackedRows
from ..models.policy import UnifiedPolicy
from ..models.tokens.sequence import TokenBatch, collate
from .objective.algorithm import ReplayConfig


def replay_batches(
    config: ReplayConfig, policy: UnifiedPolicy, seed: int, rank: int, ranks: int, used: Callable[[], int]
) -> Iterator[TokenBatch]:
    """This rank's batches without end. `used` says, when the first is drawn, how many a resumed run has had.

    Raises InputError at once where a source is no folder of shards.
    """
    rows = PackedRows(
        config.sources, policy.processor, length=config.pack_length, seed=seed, rank=rank, world_size=ranks
    )

    def batches() -> Iterator[TokenBatch]:
        stream = islice(rows, used() * config.rows, None)
        while True:
            yield collate([next(stream) for _ in range(config.rows)], policy.vocabulary)

    return batches()

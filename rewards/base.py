"""The reward contract: a reward scores the completions of prompts, as a whole and by segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..models.documents.document import InterleavedDocument

FAILED = float("nan")
"""In place of a score that could not be had: the answer, or the segment, then takes no part in its group."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a reward sees of a rollout."""

    prompt: InterleavedDocument
    answer: InterleavedDocument
    """Trainable segments only, pictures painted."""
    ended: bool = True
    """False where the length limit cut the answer."""


@dataclass(frozen=True, slots=True)
class RewardOutput:
    """Scores of a batch of R completions. None means "does not apply", NaN (`FAILED`) that the scoring failed.

    Neither is ever a zero. What the answer lacks although it was asked for is no None but a low score. A weighted mean
    has a rule for what does not apply (`hybrid.PartRule`); with a part that failed there is no mean, because it could
    not be compared with those of the same group.
    """

    outcome: list[float | None]
    """One score a completion, 0 to 1."""
    segments: list[list[float | None]]
    """One score for each segment of each answer (ragged), 0 to 1: the process rewards."""
    breakdown: dict[str, list[float | None]] = field(default_factory=dict)
    """Named parts of the outcome, for people."""
    failed: dict[str, int] = field(default_factory=dict)
    """How many scorings failed, by kind; a guard counts them."""
    parts: dict[str, PartScores] = field(default_factory=dict)
    """What a weighted mean was taken of, for those who compare part by part; none where the score is no such mean."""


@dataclass(frozen=True, slots=True)
class PartScores:
    """One part as it entered a weighted mean: what has no mean (something failed, nothing applies) is None in all."""

    weight: float
    floor: float
    """Spread in a group below which the part's scores are not stretched any further."""
    outcome: list[float | None]
    """With the stated value in place of a score that does not apply."""
    segments: list[list[float | None]]


class Server(Protocol):
    """What a reward asks and may not be there: a judge, another machine. A reward that has any lists its `servers`."""

    @property
    def address(self) -> str: ...

    def probe(self) -> None:
        """Raises InputError, naming the address, where it gives no answer."""
        ...


class Reward(Protocol):
    name: str

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput: ...

"""The hybrid reward: a weighted mean of named rewards, outcome and process alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..configs.errors import InputError
from .base import Completion, Reward, RewardOutput
from .guard import GuardedReward


class HybridReward:
    """Weighted mean over the parts that apply, so that a missing score is never a zero; all parts go from 0 to 1.

    Where a part has failed there is no mean (None): of the others alone it would be another measure than that of the
    group it is compared with. Of the outcome and of each segment by itself.
    """

    name = "hybrid"

    def __init__(self, parts: Sequence[tuple[Reward, float]]):
        if not parts or any(weight < 0 for _, weight in parts) or not any(weight for _, weight in parts):
            raise InputError("rewards: give at least one reward with a positive weight, and none with a negative one")
        self.parts = list(parts)

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        outputs = [(reward, weight, self._checked(reward, completions)) for reward, weight in self.parts]
        breakdown = {reward.name: [known(score) for score in output.outcome] for reward, _, output in outputs}
        rows = range(len(completions))
        outcome = [weighted_mean([(output.outcome[i], weight) for _, weight, output in outputs]) for i in rows]
        segments = [
            [
                weighted_mean([(output.segments[i][k], weight) for _, weight, output in outputs])
                for k in range(len(c.answer.segments))
            ]
            for i, c in enumerate(completions)
        ]
        return RewardOutput(outcome, segments, breakdown)

    def segment_breakdown(self, completion: Completion) -> list[dict[str, float | None]]:
        """The parts of each segment's score, for a report."""
        outputs = {reward.name: self._checked(reward, [completion]).segments[0] for reward, _ in self.parts}
        return [
            {name: score for name, scores in outputs.items() if (score := known(scores[k])) is not None}
            for k in range(len(completion.answer.segments))
        ]

    @property
    def guards(self) -> list[GuardedReward]:
        return [reward for reward, _ in self.parts if isinstance(reward, GuardedReward)]

    def failures(self) -> dict[str, float]:
        """Failed calls and dropped scores of the parts since the run began, on this process."""
        return {name: count for guard in self.guards for name, count in guard.metrics().items()}

    def state_dict(self) -> dict[str, Any]:
        return {guard.name: guard.state_dict() for guard in self.guards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for guard in self.guards:
            if guard.name in state:
                guard.load_state_dict(state[guard.name])

    @staticmethod
    def _checked(reward: Reward, completions: Sequence[Completion]) -> RewardOutput:
        output = reward(completions)
        sizes = [len(segments) for segments in output.segments]
        if len(output.outcome) != len(completions) or sizes != [len(c.answer.segments) for c in completions]:
            raise InputError(f"reward {reward.name!r} did not score every completion and segment exactly once")
        scores = [*output.outcome, *(score for segments in output.segments for score in segments)]
        if any(score is not None and math.isinf(score) for score in scores):
            raise InputError(f"reward {reward.name!r} gave an infinite score; one that failed is NaN")
        return output


def weighted_mean(scores: list[tuple[float | None, float]]) -> float | None:
    """Weighted mean of the scores that apply; None where none does, or one has failed."""
    applicable = [(score, weight) for score, weight in scores if score is not None and weight > 0]
    total = sum(weight for _, weight in applicable)
    return known(sum(score * weight for score, weight in applicable) / total) if total else None


def known(score: float | None) -> float | None:
    """The score, or None where it failed."""
    return None if score is None or math.isnan(score) else score

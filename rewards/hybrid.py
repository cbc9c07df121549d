"""The hybrid reward: a weighted mean of named rewards, outcome and process alike.

A part that does not apply to an answer has a rule (`PartRule.absent`). Left out of the mean it would pay for whatever
keeps it from applying: with image consistency at 0.5 in a mean of good scores, the answer with one picture, which has
nothing to compare, earns more than the same answer with two. The rule is one of outcomes. A segment that is there keeps
the mean of the parts that score it: the first picture has no predecessor in any answer, and segments are compared with
their like. A segment that is not there is the affair of the advantages.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any, Literal

from ..configs.bounds import Range
from ..configs.errors import InputError
from .base import Completion, PartScores, Reward, RewardOutput, Server
from .guard import GuardedReward


@dataclass(frozen=True, slots=True)
class PartRule:
    """What the hybrid does with a part beside weighing it."""

    absent: Literal["worst", "mean", "leave-out"] | Annotated[float, Range(0, 1)] = "worst"
    """What an answer counts as that the part does not apply to: the worst score of the part among the answers to the
    same prompt, so that getting rid of a part never pays; their mean, which is neutral; a number; or nothing
    (`leave-out`: the mean goes over the others). A part that applies to no answer of a group is left out of it."""
    floor: Annotated[float, Range(0, 1)] = 1e-3
    """Spread in a group below which scores are not stretched any further; `reward_aggregation: normalise-then-sum`
    alone divides by the spread of a part."""


class HybridReward:
    """Weighted mean of parts that go from 0 to 1; a missing score is never a zero by accident.

    Where a part has failed there is no mean (None): of the others alone it would be another measure than that of the
    group it is compared with. Of the outcome and of each segment by itself. Answers belong to a group where id and text
    of their prompts agree.
    """

    name = "hybrid"

    def __init__(self, parts: Sequence[tuple[Reward, float]], rules: Mapping[str, PartRule] | None = None):
        """rules: by the name of a part; one that has none goes by the defaults."""
        if not parts or any(weight < 0 for _, weight in parts) or not any(weight for _, weight in parts):
            raise InputError("rewards: give at least one reward with a positive weight, and none with a negative one")
        self.parts = list(parts)
        self.rules = [(rules or {}).get(reward.name, PartRule()) for reward, _ in self.parts]
        self.over_ranks: Callable[[list[Any]], list[Any]] = list
        """A list of this process to that of all: a group may straddle them. A trainer puts its own here, and then all
        processes call the reward together."""

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        outputs = [(reward, weight, self._checked(reward, completions)) for reward, weight in self.parts]
        breakdown = {reward.name: [known(score) for score in output.outcome] for reward, _, output in outputs}
        rows = range(len(completions))
        columns = self._completed(completions, [output.outcome for _, _, output in outputs])
        weights = [weight for _, weight in self.parts]
        outcome = [weighted_mean([*zip(scores, weights, strict=True)]) for scores in zip(*columns, strict=True)]
        segments = [
            [
                weighted_mean([(output.segments[i][k], weight) for _, weight, output in outputs])
                for k in range(len(c.answer.segments))
            ]
            for i, c in enumerate(completions)
        ]
        parts = {
            reward.name: PartScores(
                weight,
                rule.floor,
                [column[i] if outcome[i] is not None else None for i in rows],
                [
                    [score if of_all is not None else None for score, of_all in zip(*both, strict=True)]
                    for both in zip(output.segments, segments, strict=True)
                ],
            )
            for (reward, weight, output), column, rule in zip(outputs, columns, self.rules, strict=True)
            if weight
        }
        return RewardOutput(outcome, segments, breakdown, parts=parts)

    def _completed(
        self, completions: Sequence[Completion], columns: list[list[float | None]]
    ) -> list[list[float | None]]:
        """Outcomes by part, what its rule says where it does not apply."""
        if not any(self.over_ranks([any(None in column for column in columns)])):
            return columns
        groups = [(completion.prompt.id, completion.prompt.text) for completion in completions]
        scored: dict[tuple[Any, int], list[float]] = defaultdict(list)
        for group, *scores in self.over_ranks([*zip(groups, *columns, strict=True)]):
            for part, score in enumerate(scores):
                if known(score) is not None:
                    scored[group, part].append(score)
        return [
            [
                stand_in(rule, scored[group, part]) if score is None else score
                for group, score in zip(groups, column, strict=True)
            ]
            for part, (rule, column) in enumerate(zip(self.rules, columns, strict=True))
        ]

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

    @property
    def servers(self) -> list[Server]:
        """What the parts ask, each once."""
        rewards = [reward.reward if isinstance(reward, GuardedReward) else reward for reward, _ in self.parts]
        scores = [getattr(reward, "score", reward) for reward in rewards]  # what people brought, in our form
        found = [server for score in scores for server in getattr(score, "servers", ())]
        return list({id(server): server for server in found}.values())

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


def stand_in(rule: PartRule, scored: Sequence[float]) -> float | None:
    """What stands for a score that does not apply, from those of the part in the group; None where nothing does."""
    if not isinstance(rule.absent, str):
        return rule.absent
    if rule.absent == "leave-out" or not scored:
        return None
    return min(scored) if rule.absent == "worst" else fmean(scored)


def weighted_mean(scores: list[tuple[float | None, float]]) -> float | None:
    """Weighted mean of the scores that apply; None where none does, or one has failed."""
    applicable = [(score, weight) for score, weight in scores if score is not None and weight > 0]
    total = sum(weight for _, weight in applicable)
    return known(sum(score * weight for score, weight in applicable) / total) if total else None


def known(score: float | None) -> float | None:
    """The score, or None where it failed."""
    return None if score is None or math.isnan(score) else score

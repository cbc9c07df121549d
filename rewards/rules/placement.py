"""Rewards of an inserter by rule from gold placements, as TRL calls them: a list of scores, one a completion.

Each is 0 to 1 and has a name of its own, under which TRL logs its mean; their weighted sum is the reward. None alone is
a good one: `order` keeps two thirds for a reversed list, `restraint` is 1 for an answer that inserts nothing, `format`
knows no gold at all. Together the gold answer, and it alone, earns the whole sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

from ...configs.bounds import Weight
from ...configs.errors import InputError
from ...configs.schema import check_ranges
from ...data.insertion.placements import InsertionTask, Placement
from ...data.insertion.prompt import Answer, as_json, from_json, read_answer
from .insertion import ordering_score, position_score, selection

Score = Callable[[Answer, Sequence[Placement], int, int], float | None]
"""(answer, gold, sentences of the text, candidates offered) -> 0 to 1, or None where it does not apply."""
TRLReward = Callable[..., list[float | None]]


@dataclass
class PlacementWeights:
    """Weights of the rewards; 0 leaves one out."""

    format: Weight = 1.0
    """A thought and an answer in their tags, and every entry of the list places something: 1, else 0."""
    selection: Weight = 2.0
    """F1 of the chosen candidates."""
    order: Weight = 1.0
    """Ordering score of MRAMG-Bench."""
    position: Weight = 2.0
    """1 - distance to the gold place in sentences / length; a gold candidate that is not placed scores 0."""
    abstention: Weight = 1.0
    """Whether something is inserted exactly where something belongs."""
    restraint: Weight = 2.0
    """1 - candidates inserted beyond the number that belongs / candidates that are offered beyond it."""

    def __post_init__(self) -> None:
        check_ranges(self, "insertion.rewards")
        if not any(getattr(self, item.name) for item in fields(self)):
            raise InputError("insertion.rewards: all weights are 0; give one more")


def format_score(answer: Answer, gold: Sequence[Placement], length: int, candidates: int) -> float:
    return float(answer.framed and not answer.faults)


def selection_score(answer: Answer, gold: Sequence[Placement], length: int, candidates: int) -> float:
    """0 where the answer cannot be read: who writes no list has not chosen to insert nothing."""
    if unreadable(answer):
        return 0.0
    return selection(_chosen(gold), _chosen(answer.placements)).f1


def order_score(answer: Answer, gold: Sequence[Placement], length: int, candidates: int) -> float:
    return 0.0 if unreadable(answer) else ordering_score(_chosen(gold), _chosen(answer.placements))


def place_score(answer: Answer, gold: Sequence[Placement], length: int, candidates: int) -> float | None:
    """Over all gold candidates, so that leaving out a doubtful one gains nothing; None without gold."""
    if not gold:
        return None
    found = len({*_chosen(gold)} & {*_chosen(answer.placements)})
    return (position_score(gold, answer.placements, length) or 0.0) * found / len(gold)


def abstention_score(answer: Answer, gold: Sequence[Placement], length: int, candidates: int) -> float:
    return float(not unreadable(answer) and bool(answer.placements) == bool(gold))


def restraint_score(answer: Answer, gold: Sequence[Placement], length: int, candidates: int) -> float:
    beyond = max(0, len(answer.placements) - len(gold))
    return 0.0 if unreadable(answer) else 1 - beyond / max(1, candidates - len(gold))


SCORES: dict[str, Score] = {
    "format": format_score,
    "selection": selection_score,
    "order": order_score,
    "position": place_score,
    "abstention": abstention_score,
    "restraint": restraint_score,
}


def unreadable(answer: Answer) -> bool:
    return bool(answer.faults["no answer"] or answer.faults["no JSON"])


def _chosen(placements: Sequence[Placement]) -> list[int]:
    return [placement.candidate for placement in placements]


def gold_columns(task: InsertionTask) -> dict[str, Any]:
    """What the rewards read of a task, as columns of TRL's dataset."""
    return {"gold": as_json(task.gold), "length": len(task.sentences), "candidates": len(task.candidates)}


def trl_rewards(weights: PlacementWeights) -> tuple[list[TRLReward], list[float]]:
    """(reward functions, their weights) for TRL's GRPOTrainer over a dataset with the columns of `gold_columns`."""
    given = {name: getattr(weights, name) for name in SCORES}
    used = [name for name, weight in given.items() if weight]
    return [_trl_reward(name, logs=name == used[0]) for name in used], [given[name] for name in used]


def _trl_reward(name: str, logs: bool) -> TRLReward:
    """logs: it is the one that logs the shares of faulty answers, too."""
    score = SCORES[name]

    @wraps(score)
    def reward(
        completions: Sequence[Any],
        gold: Sequence[Any],
        length: Sequence[int],
        candidates: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        answers = [
            read_answer(completion_text(completion), sentences, offered)
            for completion, sentences, offered in zip(completions, length, candidates, strict=True)
        ]
        if log_metric is not None and logs:
            for kind, share in fault_shares(answers).items():
                log_metric(f"faults/{kind}", share)
        return [
            score(answer, from_json(placements), sentences, offered)
            for answer, placements, sentences, offered in zip(answers, gold, length, candidates, strict=True)
        ]

    reward.__name__ = name  # TRL logs under it
    return reward


def completion_text(completion: Any) -> str:
    """Of TRL: a string, or a conversation whose last turn has text or structured content."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def fault_shares(answers: Sequence[Answer]) -> dict[str, float]:
    """Share of the answers with a fault of each kind."""
    counts = Counter(kind for answer in answers for kind in answer.faults)
    return {kind: count / len(answers) for kind, count in sorted(counts.items())}


def total(answer: Answer, task: InsertionTask, weights: PlacementWeights) -> float:
    """The weighted mean of the scores that apply, 0 to 1: what a completion earns, for tests and figures."""
    scores = {
        name: score(answer, task.gold, len(task.sentences), len(task.candidates)) for name, score in SCORES.items()
    }
    parts = [(getattr(weights, name), score) for name, score in scores.items() if score is not None]
    return sum(weight * score for weight, score in parts) / sum(weight for weight, _ in parts)

"""How well pictures were chosen and placed, by rule from a gold answer: pure functions over numbers and ids.

Formulas and vectors of MRAMG-Bench (arXiv 2502.04176); the ordering score's costs are not in the paper, those of its
re-implementations are the default. No function of these is a good reward alone: a reversed list keeps two thirds of
the ordering score, inserting everything has a recall of 1, inserting nothing a precision without a fault.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ...configs.bounds import Above0, Weight
from ...data.insertion.placements import Placement


@dataclass(frozen=True, slots=True)
class OrderingCosts:
    """Of the edits that turn a prediction into the gold order, and what a score of 0 costs."""

    insert: Weight = 3.0
    delete: Weight = 2.0
    substitute: Weight = 1.0
    worst: Above0 = 3.0


@dataclass(frozen=True, slots=True)
class Selection:
    """On sets; 0 to 1."""

    precision: float
    recall: float
    f1: float


def selection(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> Selection:
    """Both empty: all 1. Gold empty and something inserted: precision 0, recall 1. Nothing inserted: 0, 0."""
    wanted, got = set(gold), set(predicted)
    if not wanted and not got:
        return Selection(1.0, 1.0, 1.0)
    common = len(wanted & got)
    precision = common / len(got) if got else 0.0
    recall = common / len(wanted) if wanted else 1.0
    return Selection(precision, recall, 2 * precision * recall / (precision + recall) if common else 0.0)


def ordering_score(
    gold: Sequence[Hashable], predicted: Sequence[Hashable], costs: OrderingCosts = OrderingCosts()
) -> float:
    """|A n B| / n * (1 - min(dist(A, B) / max(n, m), p) / p), 0 to 1; A gold of length n, B predicted of length m.

    Both empty: 1; gold empty: 0; nothing in common: 0.
    """
    if not gold:
        return 0.0 if predicted else 1.0
    common = len(set(gold) & set(predicted))
    if not common:
        return 0.0
    distance = weighted_edits(predicted, gold, costs) / max(len(gold), len(predicted))
    return common / len(gold) * (1 - min(distance, costs.worst) / costs.worst)


def weighted_edits(source: Sequence[Hashable], target: Sequence[Hashable], costs: OrderingCosts) -> float:
    """Least cost of insertions, deletions and substitutions that turn `source` into `target`."""
    row = [j * costs.insert for j in range(len(target) + 1)]
    for item in source:
        diagonal, row[0] = row[0], row[0] + costs.delete
        for j, wanted in enumerate(target, 1):
            change = diagonal + (0 if item == wanted else costs.substitute)
            diagonal = row[j]
            row[j] = min(change, row[j] + costs.delete, row[j - 1] + costs.insert)
    return row[-1]


def position_score(gold: Sequence[Placement], predicted: Sequence[Placement], length: int) -> float | None:
    """1 - distance to the gold place in sentences / `length` of the answer, mean over candidates both have placed.

    None where they have none in common: what was not chosen has no place.
    """
    wanted = {placement.candidate: placement.after for placement in gold}
    common = [placement for placement in predicted if placement.candidate in wanted]
    if not common:
        return None
    return sum(1 - abs(p.after - wanted[p.candidate]) / max(1, length) for p in common) / len(common)

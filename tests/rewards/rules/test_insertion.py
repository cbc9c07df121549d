import math

import pytest

from limner.data.insertion.placements import Placement
from limner.rewards.rules.insertion import OrderingCosts, ordering_score, position_score, selection

VECTORS = [  # MRAMG-Bench's formula with the costs of its re-implementations
    ("abc", "abc", 1.0),
    ("abc", "acb", 0.7778),
    ("abc", "cba", 0.7778),
    ("abc", "bca", 0.6667),
    ("abc", "ab", 0.4444),
    ("a", "axyz", 0.5),
    ("abc", "aaa", 0.2593),
    ("abcd", "dcba", 0.6667),
    ("ab", "abcd", 0.6667),
    ("abc", "", 0),
    ("", "", 1),
    ("", "x", 0),
]


@pytest.mark.parametrize(("gold", "predicted", "score"), VECTORS)
def test_the_published_ordering_scores(gold, predicted, score):
    assert math.isclose(ordering_score(gold, predicted), score, abs_tol=1e-4)


def test_costs_can_be_chosen():
    assert ordering_score("ab", "abcd", OrderingCosts(delete=0)) == 1


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [("", "", (1, 1, 1)), ("", "x", (0, 1, 0)), ("ab", "", (0, 0, 0)), ("ab", "bc", (0.5, 0.5, 0.5))],
)
def test_selection_is_on_sets(gold, predicted, expected):
    found = selection(gold, predicted)
    assert (found.precision, found.recall, found.f1) == expected


def test_position_is_the_distance_of_what_both_placed():
    gold = [Placement(1, 1), Placement(4, 2)]
    assert position_score(gold, gold, 4) == 1
    assert position_score(gold, [Placement(3, 1), Placement(0, 7)], 4) == 0.5
    assert position_score(gold, [Placement(3, 7)], 4) is None

"""Which prompts are kept, by their answers' scores."""

import pytest

from limner.train.objective.difficulty import verdict


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.0, 0.0, 0.0], "too hard"),
        ([0.0, 0.0, 0.6], "kept"),
        ([1.0, 1.0, 0.4], "kept"),
        ([1.0, 1.0, 0.9], "too easy"),
        ([None, None], "not scored"),
        ([None, 1.0], "too easy"),
        ([], "not scored"),
    ],
)
def test_by_the_mean_of_what_could_be_scored(scores, said):
    assert verdict(scores, lowest=0.1, highest=0.9) == said


def test_the_bounds_themselves_are_kept():
    assert [verdict([0.25], 0.25, 1), verdict([1.0], 0, 1.0), verdict([0.0], 0, 1)] == ["kept"] * 3

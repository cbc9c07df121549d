"""Scores of a list of answers: by names of a configuration, by functions, by both."""

import pytest

from limner.configs.errors import InputError
from limner.models.documents.forms import document
from limner.models.writing import Answer
from limner.rewards.base import RewardOutput
from limner.rewards.scoring import parts_of, score
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

PICTURE = draw_scene(SCENES[0])
STORY = document("Draw: a circle.", answer=["A circle.", PICTURE])
ANSWERS = [Answer(STORY.completion, True, False, STORY.prompt), Answer(STORY.completion, False, True, STORY.prompt)]


def pictures(completions):
    return [len(completion.answer.images) / 2 for completion in completions]


class BySegment:
    def __call__(self, completions):
        rows = [[float(k) for k in range(len(c.answer.segments))] for c in completions]
        return RewardOutput([None] * len(completions), rows)


def test_named_parts_and_functions(capsys):
    assert score(ANSWERS, {"format": 1}).outcome == [1.0, 0.0]
    assert score([*ANSWERS, STORY], pictures).outcome == [0.5, 0.5, 0.5]
    both = score(
        ANSWERS, {"format": {"weight": 1, "pattern": "alternating"}, "mine": (pictures, 3), "each": BySegment()}
    )
    assert both.outcome == [0.625, 0.375] and both.breakdown["mine"] == [0.5, 0.5]
    assert both.segments == [[0.0, 1.0], [0.0, 1.0]]
    assert score(ANSWERS, lambda completions: [None] * len(completions)).outcome == [None, None]


def test_parts_of_every_form():
    assert parts_of({"format": 1, "f": pictures, "g": (pictures, 2)}) == (
        {"format": 1},
        {"f": (pictures, 1.0), "g": (pictures, 2)},
    )
    named, python = parts_of(lambda completions: [])
    assert not named and [*python] == ["lambda"]
    assert [*parts_of(BySegment())[1]] == ["BySegment"]


def test_what_cannot_score_is_named():
    def broken(completions):
        return 1 / 0

    for give, words in (
        (lambda: score(ANSWERS, broken), "reward 'broken' failed 1 calls in a row, last: it raised ZeroDivisionError"),
        (lambda: score(ANSWERS, lambda completions: [1.0]), "1 outcomes for 2 completions"),
        (lambda: score(ANSWERS, {"formatt": 1}), "did you mean format"),
        (lambda: score(ANSWERS, {"format": {"pattern": "odd"}}), "pattern"),
        (lambda: score(ANSWERS, {"mine": (pictures, -1)}), "no weight"),
        (lambda: score(ANSWERS, {}), "at least one reward"),
        (lambda: score(ANSWERS, BySegment), "not a type"),
        (lambda: score(ANSWERS, "format"), "not a str"),
        (lambda: score(ANSWERS, {"format": 1}, endpoint={}), "endpoint: unknown key; did you mean endpoints"),
        (lambda: score(ANSWERS[0], pictures), "give a list of answers, not an Answer"),
        (lambda: score(["text"], pictures), "answer 1 is a str"),
        (lambda: score([document("x")], pictures), "document 1 holds no answer"),
    ):
        with pytest.raises(InputError, match=words):
            give()

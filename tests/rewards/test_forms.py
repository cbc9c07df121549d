"""The forms in which people bring a reward, each as one contract: a list, an output, what TRL calls, what is async."""

import asyncio
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import FAILED, Completion, RewardOutput
from limner.rewards.forms import AdaptedReward, check_call, filled, is_trl_form, trl_columns
from limner.rewards.guard import GuardedReward

GIVEN = Image.new("RGB", (4, 4), "red")
DRAWN = [Image.new("RGB", (side, 4), "blue") for side in (5, 6)]
WORDY = InterleavedDocument(
    (TextSegment("Illustrate "), ImageSegment(GIVEN), TextSegment("this.")), "p1", {"answer": "a cat", "level": 3}
)
PLAIN = InterleavedDocument((TextSegment("Draw."),), "p2", {"answer": "a dog", "hint": "it barks"})
ROWS = [
    Completion(WORDY, InterleavedDocument((TextSegment("One.", True), ImageSegment(DRAWN[0], True)))),
    Completion(
        PLAIN,
        InterleavedDocument((ImageSegment(DRAWN[1], True), TextSegment("Two. ", True), TextSegment("Three.", True))),
        ended=False,
    ),
]
EMPTY = [[None, None], [None, None, None]]


def scored(function, **options):
    return AdaptedReward("mine", function, options)(ROWS)


# ---- lists and outputs ----


def test_a_list_of_outcomes():
    output = scored(lambda completions: [len(c.answer.segments) / 4 for c in completions])
    assert output == RewardOutput([0.5, 0.75], EMPTY)
    assert scored(lambda rows: (0.5, None)) == RewardOutput([0.5, None], EMPTY), "whatever it calls them"


@pytest.mark.parametrize("made", [np.array([0.5, 1.0]), torch.tensor([0.5, 1.0]), (0.5, 1.0)])
def test_arrays_and_tensors_are_lists(made):
    assert scored(lambda completions: made) == RewardOutput([0.5, 1.0], EMPTY)


def test_a_function_gets_its_options():
    def brevity(completions, words: int = 80, share=0.5):
        return [words * share for _ in completions]

    assert scored(brevity).outcome == [40.0, 40.0]
    assert scored(brevity, words=4).outcome == [2.0, 2.0]


def test_an_object_with_scores_of_segments():
    class Mine:
        def __call__(self, completions):
            return RewardOutput([0.5, None], [[1.0, None], [0.0, FAILED, 0.5]], {"part": [1.0, 0.0]}, {"image": 1})

    output = scored(Mine())
    assert output.segments[1][0] == 0.0 and output.breakdown == {"part": [1.0, 0.0]} and output.failed == {"image": 1}


@pytest.mark.parametrize("answer", [None, 0.5, "0.5", {"a": 1}])
def test_what_is_no_list_is_the_guards_to_refuse(answer):
    assert scored(lambda completions: answer) is answer
    guard = GuardedReward(AdaptedReward("mine", lambda completions: answer))
    assert guard(ROWS).outcome == [FAILED, FAILED] and dict(guard.failures) == {"no output": 1}
    assert "instead of a list of scores or a RewardOutput" in guard.last_reason


def test_a_list_of_another_length_is_the_guards_to_refuse():
    guard = GuardedReward(AdaptedReward("mine", lambda completions: [1.0]))
    assert guard(ROWS).outcome == [FAILED, FAILED] and dict(guard.failures) == {"wrong number of scores": 1}


# ---- TRL's form ----


def test_trls_form_gets_columns():
    seen = {}

    def reward(prompts, completions, **kwargs):
        seen.update(kwargs, prompts=prompts, completions=completions)
        return [1.0, None]

    assert scored(reward) == RewardOutput([1.0, None], EMPTY)
    assert seen["prompts"] == [WORDY.text, "Draw."] and seen["completions"] == ["One.", "Two. Three."]
    assert seen["answer"] == ["a cat", "a dog"]
    assert (seen["level"], seen["hint"]) == ([3, None], [None, "it barks"]), "a key of one prompt is None of the others"
    assert [[image.size for image in row] for row in seen["images"]] == [[(4, 4)], []]
    assert [[image.size for image in row] for row in seen["completion_images"]] == [[(5, 4)], [(6, 4)]]
    assert all(isinstance(image, Image.Image) for row in seen["images"] + seen["completion_images"] for image in row)
    assert seen["completion_ids"] is None and seen["trainer_state"] is None
    assert seen["log_metric"]("a", 1.0) is None and seen["log_extra"]("a", ["b"]) is None


def test_trls_form_without_prompts():
    assert scored(lambda completions, **kwargs: [len(c) / 20 for c in completions]).outcome == [0.2, 0.55]
    assert scored(lambda completions, **kwargs: [a == "a cat" for a in kwargs["answer"]]).outcome == [True, False]


def test_trls_form_with_a_column_by_name():
    def reward(prompts, completions, answer, level=None, unknown=7):
        assert unknown == 7, "what the prompts do not have keeps its default"
        return [float(a == "a cat") * (n or 0) for a, n in zip(answer, level, strict=True)]

    assert scored(reward).outcome == [3.0, 0.0]


def test_a_column_that_the_prompts_do_not_have_is_named():
    def reward(prompts, completions, solution):
        return []

    with pytest.raises(InputError, match="^reward: asks for 'solution', which the prompts do not have; put it into"):
        scored(reward)
    with pytest.raises(InputError, match="asks for 'solution'"):
        GuardedReward(AdaptedReward("mine", reward))(ROWS)

    class Mine:
        def __call__(self, prompts, completions, solution):
            return []

    with pytest.raises(InputError, match="^Mine: asks for 'solution'"):
        scored(Mine())


def test_a_class_in_trls_form():
    @dataclass
    class Mine:
        share: float = 0.5

        def __call__(self, completions, **kwargs):
            return [self.share * (answer == "a cat") for answer in kwargs["answer"]]

    assert scored(Mine(0.25)).outcome == [0.25, 0.0]


def test_columns_are_only_those_that_are_asked_for():
    assert [*trl_columns(lambda completions, images, answer: [], ROWS)] == ["completions", "images", "answer"]


@pytest.mark.parametrize(
    ("function", "is_trl"),
    [
        (lambda completions: [], False),
        (lambda completions, words=3: [], False),
        (lambda rows, **kwargs: [], False),
        (lambda completions, **kwargs: [], True),
        (lambda prompts, completions: [], True),
        (lambda completions, prompts, answer: [], True),
    ],
)
def test_trls_form_is_told_by_its_parameters(function, is_trl):
    assert is_trl_form(function) is is_trl
    assert filled(function) == (tuple(function.__code__.co_varnames) if is_trl else (function.__code__.co_varnames[0],))


def made(**methods):
    return type("Mine", (), methods)


FUNCTION = "takes no completions; a reward is a function of completions"
CLASS = "takes no completions; a reward is __call__(self, completions)"


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (lambda: [], FUNCTION),
        (lambda *, words=3: [], FUNCTION),
        (lambda **options: [], FUNCTION),
        (made(__call__=lambda self: []), CLASS),
        (made(__call__=lambda self, *, words=3: []), CLASS),
        (made(__call__=staticmethod(lambda: [])), CLASS),
        (made(__call__=lambda self: [])(), FUNCTION),
        (
            made(__call__=lambda self, rows, words: []),
            "__call__ asks for 'words', which nothing gives; options belong to the constructor",
        ),
    ],
)
def test_what_takes_no_completions_is_refused(score, words):
    with pytest.raises(InputError) as refused:
        check_call(score, "rewards.mine.py:f")
    assert str(refused.value) == f"rewards.mine.py:f: {words}"


@pytest.mark.parametrize(
    "score",
    [
        lambda rows: [],
        lambda rows, words=3: [],
        lambda *rows: [],
        lambda prompts, completions, **columns: [],
        lambda *, completions, **columns: [],
        made(__call__=lambda self, rows: []),
        made(__call__=lambda *everything: []),
        made(__call__=lambda self, prompts, completions, **columns: []),
        made(__call__=staticmethod(lambda rows: [])),
        made(__call__=lambda self, rows: [])(),
        max,
    ],
)
def test_what_takes_completions_passes(score):
    check_call(score, "here")
    assert filled(made(__call__=lambda self, rows: [])()) == ()


# ---- what is awaited ----


def test_async_functions_are_awaited():
    async def brevity(completions, share: float = 1.0):
        await asyncio.sleep(0)
        return [share for _ in completions]

    async def of_trl(prompts, completions, **kwargs):
        await asyncio.sleep(0)
        return torch.tensor([float(answer == "a cat") for answer in kwargs["answer"]])

    assert scored(brevity, share=0.5) == RewardOutput([0.5, 0.5], EMPTY)
    assert scored(of_trl) == RewardOutput([1.0, 0.0], EMPTY)

    class Mine:
        async def __call__(self, completions):
            return RewardOutput([0.5, 0.5], [[1.0, None], [None, None, 1.0]])

    assert scored(Mine()).segments == [[1.0, None], [None, None, 1.0]]


@pytest.mark.parametrize("timeout", [0, 60])
def test_async_functions_run_behind_the_guard(timeout):
    async def brevity(completions):
        await asyncio.sleep(0.01)
        return [float(threading.current_thread() is threading.main_thread())] * len(completions)

    output = GuardedReward(AdaptedReward("mine", brevity), timeout_s=timeout)(ROWS)
    assert output.outcome == [float(timeout == 0)] * 2

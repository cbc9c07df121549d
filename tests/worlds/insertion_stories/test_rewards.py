"""Choices on the world with candidates: the gold answer scores 1 everywhere, and every other choice loses."""

from dataclasses import replace

import pytest

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import Completion
from limner.rewards.build import RewardSettings, build_reward
from limner.worlds.insertion_stories.scenes import Plan, insertion_prompt, insertion_story
from limner.worlds.picture_stories.scenes import draw_scene, parse_scene, story_prompt

A, B, C = SCENES = tuple(
    map(parse_scene, ("small red circle top left", "big blue square bottom right", "small green triangle top right"))
)
NEAR = replace(B, size="small")
PLAN = Plan(SCENES, (True, True, False), (NEAR, A))
PROMPT = insertion_prompt(PLAN)
NEAR_PICTURE, A_PICTURE = PROMPT.candidates.values()
WEIGHTS = {"choice": 2, "text": 1, "image_plan": 1, "image_sentence": 1}
REWARD = build_reward(RewardSettings({f"insertion_stories/{name}": weight for name, weight in WEIGHTS.items()}))
PARTS = tuple(f"insertion_stories_{name}" for name in WEIGHTS)


def says(*scenes):
    return TextSegment(" ".join(scene.sentence for scene in scenes), trainable=True)


def draws(scene):
    return ImageSegment(draw_scene(scene), trainable=True, origin="generated")


CASES = {
    # name: answer, the parts' outcomes, the hybrid score of each segment (choice counts twice)
    "gold": ((says(A), A_PICTURE, says(B), draws(B), says(C)), (1, 1, 1, 1), [1, 1, 1, 1, 1]),
    "a near miss inserted": (
        (says(A), A_PICTURE, says(B), NEAR_PICTURE, says(C)),
        (2 / 3, 1, 0, 0),
        [1, 1, 1 / 3, 0, 1],
    ),
    "drawn where one fits": ((says(A), draws(A), says(B), draws(B), says(C)), (2 / 3, 1, 1, 1), [1 / 3, 0, 1, 1, 1]),
    "left where one fits": ((says(A, B), draws(B), says(C)), (2 / 3, 1, 1, 1), [2 / 3, 1, 1]),
    "left where one is to be drawn": ((says(A), A_PICTURE, says(B, C)), (2 / 3, 1, 0, 0), [1, 1, 2 / 3]),
    "drawn where none is wanted": (
        (says(A), A_PICTURE, says(B), draws(B), says(C), draws(C)),
        (2 / 3, 1, 1, 1),
        [1, 1, 1, 1, 1 / 3, 0],
    ),
    "inserted and drawn": (
        (says(A), A_PICTURE, draws(A), says(B), draws(B), says(C)),
        (2 / 3, 1, 1, 1),
        [1 / 3, 0, 0, 1, 1, 1],
    ),
    "drawn wrong": (
        (says(A), A_PICTURE, says(B), draws(NEAR), says(C)),
        (1, 1, 0.75, 0.75),
        [1, 1, 1, 0.875, 1],
    ),
    "ends early": ((says(A), A_PICTURE), (1 / 3, 1 / 3, 0, 0), [1, 1]),
    "goes on": (
        (says(A), A_PICTURE, says(B), draws(B), says(C, A)),
        (3 / 4, 3 / 4, 1, 1),
        [1, 1, 1, 1, 0.5],
    ),
    "nothing": ((), (0, 0, 0, 0), []),
}


@pytest.mark.parametrize("name", CASES)
def test_what_an_answer_earns(name):
    segments, parts, scores = CASES[name]
    output = REWARD([Completion(PROMPT, InterleavedDocument(segments))])
    assert [output.breakdown[part][0] for part in PARTS] == pytest.approx(list(parts))
    assert output.segments[0] == pytest.approx(scores)


def test_no_other_answer_earns_as_much_as_gold():
    answers = [InterleavedDocument(segments) for segments, *_ in CASES.values()]
    outcomes = REWARD([Completion(PROMPT, answer) for answer in answers]).outcome
    assert outcomes[0] == 1 and max(o for o in outcomes[1:] if o is not None) < 1


def test_a_picture_of_no_use_does_not_count_against_a_plan_that_wants_none_drawn():
    plan = Plan((A, C), (True, False), (A, NEAR))
    gold = insertion_story(plan)
    output = REWARD([Completion(gold.prompt, gold.completion)])
    assert output.outcome == [1] and output.breakdown["insertion_stories_image_plan"] == [None]


def test_a_prompt_of_another_world_is_refused():
    with pytest.raises(InputError, match="steps"):
        REWARD([Completion(story_prompt(SCENES, "p"), InterleavedDocument(()))])

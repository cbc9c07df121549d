"""Golden documents: the perfect story scores 1 everywhere, and each way to break it lowers exactly what it should."""

import math
from dataclasses import replace

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import FAILED, Completion, RewardOutput
from limner.rewards.build import RewardSettings, build_reward
from limner.rewards.hybrid import HybridReward, PartRule
from limner.rewards.rules.format import FormatReward
from limner.worlds.picture_stories.scenes import draw_scene, parse_scene, story, story_prompt

from .exact import STORIES

# Neighbours agree in no attribute, so that a picture at the wrong place scores 0.
A, B, C = PLAN = tuple(
    map(parse_scene, ("small red circle top left", "big blue square bottom right", "small green triangle top right"))
)
WRONG = replace(B, colour="purple")
PARTS = ("format", "picture_stories_text_plan", "picture_stories_image_plan", "picture_stories_image_sentence")
SETTINGS = RewardSettings(STORIES)


def says(scene):
    return TextSegment(scene if isinstance(scene, str) else scene.sentence, trainable=True)


def shows(scene):
    return ImageSegment(
        scene if isinstance(scene, Image.Image) else draw_scene(scene), trainable=True, origin="generated"
    )


def completion(*segments, ended=True, prompt=None):
    return Completion(story_prompt(PLAN) if prompt is None else prompt, InterleavedDocument(segments), ended)


def scene_step(scene):
    return says(scene), shows(scene)


NOISE = Image.effect_noise((32, 32), 200).convert("RGB")
GOLD = (*scene_step(A), *scene_step(B), *scene_step(C))

BROKEN = {
    # name: completion, PARTS, the hybrid score of each segment
    "gold": (completion(*GOLD), (1, 1, 1, 1), [1] * 6),
    "a wrong sentence, faithfully drawn": (
        completion(*GOLD[:2], *scene_step(WRONG), *GOLD[4:]),
        (1, 2.75 / 3, 2.75 / 3, 1),
        [1, 1, 0.75, 0.875, 1, 1],
    ),
    "a wrong sentence, the picture as planned": (
        completion(*GOLD[:2], says(WRONG), shows(B), *GOLD[4:]),
        (1, 2.75 / 3, 1, 2.75 / 3),
        [1, 1, 0.75, 0.875, 1, 1],
    ),
    "a wrong picture": (
        completion(*GOLD[:3], shows(replace(WRONG, size="small")), *GOLD[4:]),
        (1, 1, 2.5 / 3, 2.5 / 3),
        [1, 1, 1, 0.5, 1, 1],
    ),
    "an unreadable picture": (completion(*GOLD[:3], shows(NOISE), *GOLD[4:]), (1, 1, 2 / 3, 2 / 3), [1, 1, 1, 0, 1, 1]),
    "an unreadable sentence": (
        completion(*GOLD[:2], says("Something blue."), *GOLD[3:]),
        (1, 2 / 3, 1, 2 / 3),
        [1, 1, 0, 0.5, 1, 1],
    ),
    "the last picture missing": (completion(*GOLD[:5]), (0, 1, 2 / 3, 2 / 3), [1] * 5),
    # The third picture stands at the second place of the plan, yet it is faithful to its own sentence.
    "a picture missing in the middle": (
        completion(*GOLD[:3], *GOLD[4:]),
        (0, 1, 1 / 3, 2 / 3),
        [1, 1, 1, 1, 0.5],
    ),
    "a step missing": (completion(*GOLD[:4]), (0, 2 / 3, 2 / 3, 2 / 3), [1] * 4),
    "a step too many": (completion(*GOLD, *scene_step(A)), (0, 3 / 4, 3 / 4, 3 / 4), [1] * 6 + [0, 0]),
    "text after the last picture": (completion(*GOLD, says("The end.")), (0, 3 / 4, 1, 1), [1] * 6 + [0]),
    "cut before the end": (completion(*GOLD, ended=False), (0, 1, 1, 1), [1] * 6),
    "a picture twice": (
        completion(*GOLD[:2], shows(A), *GOLD[2:]),
        (0, 1, 1 / 4, 3 / 4),
        [1, 1, 0.5, 1, 0.5, 1, 0],
    ),
    "two pictures side by side, none too many": (
        completion(says(A), shows(A), shows(B), says(B), *GOLD[4:]),
        (0, 1, 1, 2 / 3),
        [1, 1, 0.5, 1, 1, 1],
    ),
    "pictures before their sentences": (
        completion(shows(A), says(A), shows(B), says(B), shows(C), says(C)),
        (0, 1, 1, 0),
        [0.5, 1] * 3,
    ),
    "nothing": (completion(), (0, 0, 0, 0), []),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_lowers_exactly_its_scores(name):
    item, parts, segments = BROKEN[name]
    output = build_reward(SETTINGS)([item])
    assert {part: scores[0] for part, scores in output.breakdown.items()} == pytest.approx(
        dict(zip(PARTS, parts, strict=True))
    )
    assert output.outcome == pytest.approx([sum(parts) / 4])
    assert output.segments[0] == pytest.approx(segments)


def test_scores_land_on_their_completion_and_segment_in_a_batch():
    batch = [item for item, *_ in BROKEN.values()]
    together, reward = build_reward(SETTINGS)(batch), build_reward(SETTINGS)
    alone = [reward([item]) for item in batch]
    assert together.outcome == [output.outcome[0] for output in alone]
    assert together.segments == [output.segments[0] for output in alone]


def test_the_worlds_own_gold_document_is_perfect():
    document = story(PLAN)
    output = build_reward(SETTINGS)([Completion(document.prompt, document.completion)])
    assert output.outcome == [1.0] and output.segments == [[1.0] * 6]


def test_the_parts_of_a_segments_score():
    item = BROKEN["a wrong sentence, faithfully drawn"][0]
    parts = build_reward(SETTINGS).segment_breakdown(item)
    _, sentence, plan, own = PARTS
    assert parts[2:4] == [{sentence: 0.75}, {plan: 0.75, own: 1.0}]


def test_weights_and_absent_parts():
    item = BROKEN["a wrong sentence, faithfully drawn"][0]
    weights = dict(zip(STORIES, (0, 3, 0, 1), strict=True))
    output = build_reward(RewardSettings(weights))([item])
    assert list(output.breakdown) == ["picture_stories_text_plan", "picture_stories_image_sentence"]
    assert output.outcome == pytest.approx([(3 * 2.75 / 3 + 1) / 4])
    with pytest.raises(InputError, match="positive weight"):
        build_reward(RewardSettings(dict.fromkeys(STORIES, 0)))


def test_a_prompt_of_another_world_is_refused():
    prompt = InterleavedDocument((TextSegment("How do I cook rice?"),), "rice")
    with pytest.raises(InputError, match="'rice' has no outline"):
        build_reward(SETTINGS)([completion(*GOLD, prompt=prompt)])


# ---- format ----

PICTURE = shows(A)
THINK_VIS = {
    "one step": ((says("<think>A circle.</think> <vis>"), PICTURE, says("</vis>")), 1),
    "two steps": (
        (
            says("<think>A circle.</think><vis>"),
            PICTURE,
            says("</vis>\n<think>A\nsquare.</think>\n<vis>"),
            PICTURE,
            says("</vis>\n"),
        ),
        1,
    ),
    "no tags": ((says("A circle."), PICTURE), 0),
    "vis left open": ((says("<think>A circle.</think><vis>"), PICTURE), 0),
    "thought left open": ((says("<think>A circle.<vis>"), PICTURE, says("</vis>")), 0),
    "empty thought": ((says("<think></think><vis>"), PICTURE, says("</vis>")), 0),
    "words between the tags": ((says("<think>A.</think> so <vis>"), PICTURE, says("</vis>")), 0),
    "words after the end": ((says("<think>A.</think><vis>"), PICTURE, says("</vis> The end.")), 0),
    "picture outside its tags": ((says("<think>A.</think>"), PICTURE, says("<vis></vis>")), 0),
    "two pictures in one tag": ((says("<think>A.</think><vis>"), PICTURE, PICTURE, says("</vis>")), 0),
    "tags without a picture": ((says("<think>A.</think><vis></vis>"),), 0),
    "a character that stands for a picture": ((says("<think>A.</think><vis>\ufffc</vis>"),), 0),
    "nothing": ((), 0),
}


@pytest.mark.parametrize("name", THINK_VIS)
def test_think_vis(name):
    segments, expected = THINK_VIS[name]
    free = InterleavedDocument((TextSegment("Show me."),))
    assert FormatReward("think-vis")([completion(*segments, prompt=free)]).outcome == [expected]
    assert FormatReward("think-vis")([completion(*segments, prompt=free, ended=False)]).outcome == [0]


def test_think_vis_has_a_step_for_each_planned_scene():
    one, two = THINK_VIS["one step"][0], THINK_VIS["two steps"][0]
    prompt = story_prompt((A, B))
    scores = FormatReward("think-vis")([completion(*one, prompt=prompt), completion(*two, prompt=prompt)]).outcome
    assert scores == [0, 1]


def test_without_an_outline_any_number_of_steps_is_well_formed():
    free = InterleavedDocument((TextSegment("Show me."),))
    answers = [completion(*GOLD[:n], prompt=free) for n in range(5)]
    assert FormatReward()(answers).outcome == [0, 0, 1, 0, 1]


def test_format_says_nothing_about_segments():
    assert FormatReward()([completion(*GOLD)]).segments == [[None] * 6]


def test_an_unknown_pattern_is_refused():
    message = "rewards.format: pattern: expected one of alternating, think-vis, got 'verse'"
    with pytest.raises(InputError, match=message):
        build_reward(RewardSettings({"format": {"weight": 1, "pattern": "verse"}}))


# ---- hybrid ----


class Fixed:
    def __init__(self, name, outcome, segments):
        self.name, self.output = name, RewardOutput(outcome, segments)

    def __call__(self, completions):
        return self.output


TWO = [completion(says(A), shows(A)), completion(says(A))]


def test_a_missing_score_is_never_a_zero():
    hybrid = HybridReward(
        [
            (Fixed("a", [0.5, None], [[1.0, None], [None]]), 1.0),
            (Fixed("b", [None, None], [[None, None], [None]]), 3.0),
            (Fixed("c", [1.0, None], [[0.0, 0.5], [None]]), 2.0),
        ],
        dict.fromkeys("abc", PartRule(absent="leave-out")),
    )
    output = hybrid(TWO)
    assert output.outcome == [pytest.approx(2.5 / 3), None]
    assert output.segments == [[pytest.approx(1 / 3), 0.5], [None]]
    assert output.breakdown == {"a": [0.5, None], "b": [None, None], "c": [1.0, None]}


@pytest.mark.parametrize("place", ["outcome", "segment"])
def test_an_infinite_score_is_refused(place):
    outcome, segment = ([math.inf, 1.0], 1.0) if place == "outcome" else ([1.0, 1.0], math.inf)
    with pytest.raises(InputError, match="'judge' gave an infinite score"):
        HybridReward([(Fixed("judge", outcome, [[1.0, segment], [1.0]]), 1.0)])(TWO)


def test_what_one_part_failed_to_score_has_no_mean():
    """Of the others alone it would be another measure than its group's: high where what failed is usually low."""
    easy = Fixed("format", [1.0, 1.0], [[None, 1.0], [1.0]])
    hard = Fixed("judge", [FAILED, 0.2], [[0.1, FAILED], [0.3]])
    output = HybridReward([(easy, 1.0), (hard, 1.0), (Fixed("off", [FAILED, 1.0], [[1.0, 1.0], [FAILED]]), 0.0)])(TWO)
    assert output.outcome == [None, pytest.approx(0.6)]
    assert output.segments == [[pytest.approx(0.1), None], [pytest.approx(0.65)]]
    assert output.breakdown["judge"] == [None, 0.2]


@pytest.mark.parametrize(
    ("outcome", "segments"),
    [([1.0], [[1.0, 1.0], [1.0]]), ([1.0, 1.0], [[1.0, 1.0]]), ([1.0, 1.0], [[1.0], [1.0]])],
    ids=["outcomes", "rows", "segments"],
)
def test_wrong_lengths_are_refused(outcome, segments):
    with pytest.raises(InputError, match="'judge' did not score every completion and segment"):
        HybridReward([(Fixed("judge", outcome, segments), 1.0)])(TWO)


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0]])
def test_weights_that_make_no_mean_are_refused(weights):
    with pytest.raises(InputError, match="positive weight"):
        HybridReward([(FormatReward(), weight) for weight in weights])

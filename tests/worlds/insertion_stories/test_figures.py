"""Choices and pictures, verified: gold answers are perfect, and each mistake stands in its place of the confusion."""

import pytest

from limner.models.documents.document import ImageSegment, InterleavedDocument
from limner.models.writing import Answer
from limner.worlds.insertion_stories.figures import DONE, score_candidate_questions, score_insertion, verify_insertion
from limner.worlds.insertion_stories.scenes import CHOICES, draw_plans, insertion_story
from limner.worlds.picture_stories.scenes import draw_scene

from .test_rewards import CASES, PLAN, PROMPT


def answer(segments, ended=True):
    return Answer(InterleavedDocument(tuple(segments)), ended, cut_image=False, prompt=PROMPT)


def test_gold_answers_are_perfect():
    plans = draw_plans(2, 60)
    scores, confusion = verify_insertion([answer(insertion_story(plan).completion.segments) for plan in plans], plans)
    for name, rows in scores.rows().items():
        assert len(rows) == len(plans) and set(rows) <= {1.0, None}, name
    for wanted in CHOICES:
        assert [done for done in DONE if confusion[wanted][done]] == [wanted]
    steps = sum(len(plan.scenes) for plan in plans)
    assert sum(confusion[wanted][wanted] for wanted in CHOICES) == steps


@pytest.mark.parametrize(
    ("name", "done"),
    {
        "a near miss inserted": ("insert", "insert another", "leave"),
        "drawn where one fits": ("generate", "generate", "leave"),
        "left where one fits": ("leave", "generate", "leave"),
        "left where one is to be drawn": ("insert", "leave", "leave"),
        "drawn where none is wanted": ("insert", "generate", "generate"),
        "inserted and drawn": ("several", "generate", "leave"),
        "ends early": ("insert", "missing", "missing"),
        "nothing": ("missing", "missing", "missing"),
    }.items(),
)
def test_each_mistake_has_its_place(name, done):
    scores, confusion = verify_insertion([answer(CASES[name][0])], [PLAN])
    for wanted, found in zip(("insert", "generate", "leave"), done, strict=True):
        assert confusion[wanted] == {**dict.fromkeys(DONE, 0), found: 1}
    right = [a == b for a, b in zip(("insert", "generate", "leave"), done, strict=True)]
    assert scores.choice == [pytest.approx(sum(right) / 3)]
    assert [scores.insert, scores.generate, scores.leave] == [[float(held)] for held in right]
    assert scores.picture_exact == [float(right[1])] and scores.story_exact == [0]
    assert scores.drawn_exact == [1.0 if right[1] else None]


def test_a_wrong_picture_a_cut_and_a_step_too_many_are_no_whole_story():
    for name, picture in (("drawn wrong", 0.0), ("goes on", 1.0)):
        scores, _ = verify_insertion([answer(CASES[name][0])], [PLAN])
        assert scores.choice == [1] and scores.picture_exact == scores.drawn_exact == [picture]
        assert scores.story_exact == [0]
    scores, _ = verify_insertion([answer(CASES["gold"][0], ended=False)], [PLAN])
    assert scores.choice == [1] and scores.story_exact == [0]


def test_an_inserted_picture_of_the_right_scene_is_not_a_drawn_one():
    """What stands at a step is judged by how it came there, not by its pixels."""
    segments = list(CASES["gold"][0])
    segments[3] = ImageSegment(draw_scene(PLAN.scenes[1]), True, "inserted", candidate=1)
    scores, confusion = verify_insertion([answer(segments)], [PLAN])
    assert confusion["generate"]["insert another"] == 1 and scores.picture_exact == [0]


def test_a_policy_is_scored(make_policy):
    policy, plans = make_policy(0), draw_plans(3, 4)
    scores, confusion = score_insertion(policy, plans, 1.0)
    assert len(scores.choice) == 4 and sum(sum(row.values()) for row in confusion.values()) == sum(
        len(plan.scenes) for plan in plans
    )
    again, _ = score_insertion(policy, plans, 1.0)
    assert again == scores
    assert set(score_candidate_questions(policy, 5)) <= {0.0, 1.0}

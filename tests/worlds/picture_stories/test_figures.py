"""Verified stories and abilities: gold answers are perfect, broken ones lose what they lack."""

from dataclasses import replace

import pytest

from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.writing import Answer
from limner.worlds.picture_stories import figures as picture_stories
from limner.worlds.picture_stories.figures import StoryScores, score_abilities, score_stories, verify_stories
from limner.worlds.picture_stories.scenes import QUESTIONS, SCENES, draw_scene, parse_scene, story

A, B = OUTLINE = (parse_scene("small red circle top left"), parse_scene("big blue square bottom right"))
WRONG = replace(B, colour="purple")


def says(scene):
    return TextSegment(scene.sentence, trainable=True)


def shows(scene):
    return ImageSegment(draw_scene(scene), trainable=True, origin="generated")


def answer(*segments, ended=True):
    return Answer(InterleavedDocument(segments), ended, cut_image=False)


GOLD = (says(A), shows(A), says(B), shows(B))
ANSWERS = {
    # name: answer, (story_exact, sentence_exact, image_exact, structure)
    "gold": (answer(*GOLD), (1, 1, 1, 1)),
    "cut before the end": (answer(*GOLD, ended=False), (0, 1, 1, 0)),
    "wrong sentence": (answer(*GOLD[:2], says(WRONG), shows(B)), (0, 0.5, 1, 1)),
    "wrong picture": (answer(*GOLD[:3], shows(WRONG)), (0, 1, 0.5, 1)),
    "faithful picture of a wrong sentence": (answer(*GOLD[:2], says(WRONG), shows(WRONG)), (0, 0.5, 0.5, 1)),
    "missing picture": (answer(*GOLD[:3]), (0, 1, 0.5, 0)),
    "missing step": (answer(*GOLD[:2]), (0, 0.5, 0.5, 0)),
    "step too many": (answer(*GOLD, says(A), shows(A)), (0, 1, 1, 0)),
    "text after the last picture": (answer(*GOLD, TextSegment("The end.", True)), (0, 1, 1, 0)),
    "steps in the wrong order": (answer(*GOLD[2:], *GOLD[:2]), (0, 0, 0, 1)),
    "pictures first": (answer(shows(A), says(A), shows(B), says(B)), (0, 1, 1, 0)),
    "nothing": (answer(), (0, 0, 0, 0)),
}


def rows(scores: StoryScores) -> list[tuple[float, ...]]:
    return list(zip(*scores.rows().values(), strict=True))


def test_the_worlds_gold_stories_are_perfect():
    outlines = [SCENES[i : i + 2 + i % 3] for i in range(0, 180, 15)]
    gold = [Answer(story(outline).completion, True, False) for outline in outlines]
    assert rows(verify_stories(gold, outlines)) == [(1, 1, 1, 1)] * len(outlines)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_broken_story_loses_what_it_lacks(name):
    broken, expected = ANSWERS[name]
    assert rows(verify_stories([broken], [OUTLINE])) == [expected]


def test_scores_stay_with_their_story_in_a_batch():
    answers = [item for item, _ in ANSWERS.values()]
    scores = verify_stories(answers, [OUTLINE] * len(answers))
    assert rows(scores) == [expected for _, expected in ANSWERS.values()]
    assert list(scores.rows()) == ["story_exact", "sentence_exact", "image_exact", "structure"]


def test_every_story_needs_its_outline():
    with pytest.raises(ValueError, match="zip"):
        verify_stories([answer(*GOLD)], [OUTLINE, OUTLINE])


def test_stories_are_written_and_scored(make_policy):
    """The model's own answers: an untrained one is wrong everywhere, and greedy answers are the same again."""
    policy, outlines = make_policy(0), [OUTLINE, OUTLINE[::-1]]
    first = score_stories(policy, outlines, temperature=0)
    assert all(len(scores) == 2 and sum(scores) < 2 for scores in first.rows().values())
    assert first == score_stories(policy, outlines, temperature=0)


def gold_abilities(right: bool):
    """Stands in for the model: writes the gold answer of each prompt, or that of another scene."""

    def write(policy, prompts, sampling):
        answers = []
        for prompt in prompts:
            scene = parse_scene(prompt.meta["scene"])
            scene = scene if right else replace(scene, size="big" if scene.size == "small" else "small")
            if prompt.meta["task"] == "text_to_image":
                answers.append(answer(shows(scene)) if right or scene.size == "big" else answer())
                continue
            asked = next((name for name, text in QUESTIONS.items() if text in prompt.prompt.text), None)
            answers.append(answer(TextSegment(getattr(scene, asked) if asked else scene.sentence, True)))
        return answers

    return write


def test_gold_answers_show_every_ability(monkeypatch, make_policy):
    monkeypatch.setattr(picture_stories, "write", gold_abilities(right=True))
    scores = score_abilities(make_policy(0), SCENES[:8])
    assert set(scores) == {"vqa", "caption", "text_to_image"}
    assert all(rows and all(score == 1 for score in rows) for rows in scores.values())


def test_wrong_answers_and_missing_pictures_show_none(monkeypatch, make_policy):
    monkeypatch.setattr(picture_stories, "write", gold_abilities(right=False))
    scores = score_abilities(make_policy(0), [SCENES[0], SCENES[100], SCENES[1], SCENES[101]])
    assert sum(scores["caption"]) == sum(scores["text_to_image"]) == 0
    assert sum(scores["vqa"]) / len(scores["vqa"]) == 0.75  # one question in four asks for the size

"""The world with candidates: what fits and what nearly fits, gold stories, and noise that moves the mode."""

import random
import re
from collections import Counter
from dataclasses import fields, replace
from itertools import islice

import pytest

from limner.configs.errors import InputError
from limner.data.prompts import read_prompts
from limner.models.documents.document import TextSegment
from limner.worlds.insertion_stories.scenes import (
    CHOICES,
    NO_NOISE,
    InsertionNoise,
    Plan,
    candidate_question,
    draw_plans,
    insertion_documents,
    insertion_prompt,
    insertion_story,
    looks,
    plan_of,
    read_plan,
    read_steps,
)
from limner.worlds.picture_stories.scenes import SCENES, parse_scene, read_pictures

PLANS = draw_plans(5, 400)


def apart(a, b):
    return sum(getattr(a, field.name) != getattr(b, field.name) for field in fields(a))


def test_candidates_fit_a_step_or_miss_one_by_one_attribute():
    wanted = Counter()
    for plan in PLANS:
        steps = [plan.wanted(step) for step in range(len(plan.scenes))]
        wanted.update(choice for choice, _ in steps)
        placed = [number for _, number in steps if number is not None]
        assert len(set(placed)) == len(placed)
        for number, candidate in enumerate(plan.candidates, 1):
            nearest = min(apart(candidate, scene) for scene in plan.scenes)
            assert nearest == 0 if number in placed else nearest == 1
    total = sum(wanted.values())
    assert all(0.2 < wanted[choice] / total < 0.5 for choice in CHOICES), wanted
    assert len(set(PLANS)) == len(PLANS) and not set(draw_plans(5, 50, frozenset(PLANS))) & set(PLANS)


def test_the_gold_story_does_what_is_wanted_and_is_read_back():
    for plan in PLANS[:100]:
        story = insertion_story(plan)
        steps = read_steps(story.completion.segments)
        assert [step.choice for step in steps] == [plan.wanted(step) for step in range(len(plan.scenes))]
        assert [step.said for step in steps] == list(plan.scenes) and plan_of(story) == plan
        for step, scene in zip(steps, plan.scenes, strict=True):
            assert [image.origin for image in step.images] != ["given"]
            assert read_pictures([image.pixels() for image in step.images]) == [scene] * len(step.images)


def test_only_pixels_tell_which_candidate_fits():
    for plan in PLANS[:50]:
        other = replace(plan, candidates=tuple(random.Random(0).sample(SCENES, len(plan.candidates))))
        prompt, swapped = insertion_prompt(plan), insertion_prompt(other)
        assert prompt.text == swapped.text and not any(image.alt for image in prompt.images)
        assert read_pictures([image.pixels() for image in prompt.images]) == list(plan.candidates)


def test_steps_of_an_answer():
    story = insertion_story(PLANS[0])
    first, second = story.prompt.candidates[1], story.prompt.candidates[2]
    a, b = (scene.sentence for scene in SCENES[:2])
    answer = (first, TextSegment(f"{a} {b} Something else.", True), first, second, TextSegment(" ", True), first)
    steps = read_steps(answer)
    assert [step.said for step in steps] == [None, SCENES[0], SCENES[1], None]
    assert [step.choice for step in steps] == [("insert", 1), ("leave", None), ("leave", None), None]
    assert [(step.segment, step.places) for step in steps] == [(None, (0,)), (1, ()), (1, ()), (1, (2, 3, 5))]


def test_noise_moves_the_mode_and_none_is_gold():
    rng, done = random.Random(0), Counter()
    for plan in draw_plans(6, 1500):
        steps = read_steps(insertion_story(plan, noise=InsertionNoise(), rng=rng).completion.segments)
        for number, step in enumerate(steps):
            wanted, near = plan.wanted(number)[0], bool(plan.near_misses(number))
            kind = (wanted, near) if wanted == "generate" else (wanted, plan.scenes[number].size)
            done[kind, step.choice and step.choice[0]] += 1

    def share(kind, choice):
        return done[kind, choice] / sum(count for (other, _), count in done.items() if other == kind)

    assert share(("generate", True), "insert") > 0.5 and share(("leave", "big"), "generate") > 0.5
    assert share(("generate", False), "generate") > 0.7 and share(("leave", "small"), "leave") > 0.8
    assert share(("insert", "big"), "insert") > 0.8
    for plan in PLANS[:50]:
        clean, gold = insertion_story(plan, noise=NO_NOISE, rng=rng), insertion_story(plan)
        assert clean.to_json() == gold.to_json()
    with pytest.raises(InputError, match="biased"):
        InsertionNoise(biased=1.1)


def test_looks_stop_at_the_first_word_that_differs():
    scenes = "small red circle top left", "big blue square top right", "big green circle top left"
    plan = Plan(
        tuple(map(parse_scene, scenes)),
        (True, True, False),
        tuple(map(parse_scene, ("small blue square top right", "small red circle top left"))),
    )
    texts = [segment.text for segment in insertion_story(plan).completion.segments if isinstance(segment, TextSegment)]
    assert texts == [
        "a) A small red circle at the top left. (1) small blue (2) small red circle top left",
        "b) A big blue square at the top right. (1) small (2) small",
        "c) A big green circle at the top left.",
    ]
    assert looks(plan.scenes[1], plan.candidates, inserted=1) == " (1) small blue square top right (2) small"


def test_answers_about_candidates_are_right():
    rng, described = random.Random(1), Counter()
    for _ in range(100):
        document = candidate_question(rng)
        question, answer = document.prompt.segments[-1].text.strip(), document.completion.text
        scenes = read_pictures([image.pixels() for image in document.prompt.images])
        _, _, asked = question.partition("?")
        described[not asked] += 1
        if not asked:
            assert answer == " ".join(f"({number}) {scene.words}" for number, scene in enumerate(scenes, 1))
            continue
        expected = [parse_scene(words) for words in asked.strip(" .").split("; ")]
        numbers = [str(scenes.index(scene) + 1) if scene in scenes else "none" for scene in expected]
        answered = re.findall(r"(An? [^.]+\.)(?: \([1-9]\)[ a-z]*)+ (none|[1-9])\.", answer)
        assert answered == [(scene.sentence, number) for scene, number in zip(expected, numbers, strict=True)]
    assert min(described.values()) > 30


def test_warm_up_documents_leave_out_what_is_held_out():
    first = [plan_of(d) for d in islice(insertion_documents("interleaved", 3, NO_NOISE, frozenset()), 40)]
    assert 8 < sum(not plan.candidates for plan in first) < 24
    offered = frozenset(plan for plan in first if plan.candidates)
    rest = [plan_of(d) for d in islice(insertion_documents("interleaved", 3, NO_NOISE, offered), 50)]
    assert not {plan.scenes for plan in offered} & {plan.scenes for plan in rest}
    kinds = {d.meta["task"] for d in islice(insertion_documents("understanding", 3, NO_NOISE, frozenset()), 60)}
    assert kinds == {"candidates", "caption", "vqa"}


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"steps": ["small red circle top left", "big blue square top right (no picture)"], '
        '"candidates": ["small red circle top left"]}\n'
    )
    (prompt,) = read_prompts(file)
    plan = plan_of(prompt)
    assert [plan.wanted(step) for step in (0, 1)] == [("insert", 1), ("leave", None)]
    assert plan_of(insertion_prompt(plan)) == plan


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"steps": ["small red circle top left"]},
        {"steps": [], "candidates": ["small red circle top left"]},
        {"steps": ["small red circle"], "candidates": ["small red circle top left"]},
        {"steps": ["small red circle top left"], "candidates": [1]},
        {"steps": ["small red circle top left"] * 2, "candidates": ["small red circle top left"]},
    ],
)
def test_a_plan_of_another_form_is_refused(value):
    with pytest.raises(InputError, match="^file:3: ") as error:
        read_plan(value, "file:3")
    assert "\n" not in str(error.value)


def test_a_plan_in_which_a_picture_has_two_places_is_refused():
    with pytest.raises(ValueError, match="twice"):
        Plan((SCENES[0], SCENES[0]), (True, True), (SCENES[1],))


def test_every_step_has_a_letter():
    plan = Plan(tuple(SCENES[:26]), (True,) * 26, ())
    assert "; z) " in insertion_prompt(plan).text and len(read_steps(insertion_story(plan).completion.segments)) == 26
    with pytest.raises(ValueError, match="27 steps; there are letters for 26"):
        Plan(tuple(SCENES[:27]), (True,) * 27, ())

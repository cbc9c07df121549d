"""The embedded world: its verifiers, the noise of its data, its outlines."""

import io
import itertools
import random

import numpy as np
import pytest
from PIL import Image, ImageChops

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, TextSegment
from limner.worlds.picture_stories.scenes import (
    ATTRIBUTES,
    BACKGROUND,
    CLEAN,
    QUESTIONS,
    SCENES,
    Noise,
    draw_scene,
    outlines,
    parse_scene,
    read_outline,
    read_pictures,
    read_sentence,
    story,
    story_prompt,
    warmup_documents,
)

PICTURES = [draw_scene(scene) for scene in SCENES]


def differences(scene, other) -> int:
    return round(4 - 4 * scene.matches(other))


# ---- verifiers ----


def test_every_sentence_and_every_picture_is_read_back():
    assert len(SCENES) == 192
    assert read_pictures(PICTURES) == list(SCENES)
    assert [read_sentence(scene.sentence) for scene in SCENES] == list(SCENES)
    assert [parse_scene(scene.words) for scene in SCENES] == list(SCENES)
    assert read_pictures([]) == []


def test_pictures_are_read_at_any_size_and_through_lossy_files():
    def jpeg(picture):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        return Image.open(file)

    assert read_pictures([picture.resize((64, 64)) for picture in PICTURES]) == list(SCENES)
    assert read_pictures([picture.convert("RGBA") for picture in PICTURES]) == list(SCENES)
    assert read_pictures([jpeg(picture) for picture in PICTURES]) == list(SCENES)


def test_no_two_pictures_are_near_each_other():
    pixels = np.stack([np.asarray(picture) for picture in PICTURES]).reshape(len(SCENES), -1) / 255
    error = np.stack([((pixels - picture) ** 2).mean(1) for picture in pixels])
    np.fill_diagonal(error, np.inf)
    assert error.min() > 0.0003
    # A picture on its way to the nearest other scene is still read as what it is.
    nearest = pixels[error.argmin(1)]
    blends = ((0.6 * pixels + 0.4 * nearest) * 255).round().astype(np.uint8).reshape(-1, 32, 32, 3)
    assert read_pictures([Image.fromarray(blend) for blend in blends]) == list(SCENES)


def test_noisy_pictures_are_read_until_they_show_nothing():
    rng = np.random.default_rng(0)

    def noisy(sigma):
        for picture in PICTURES:
            pixels = np.asarray(picture) + rng.normal(0, sigma * 255, (32, 32, 3))
            yield Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    assert read_pictures(list(noisy(0.05))) == list(SCENES)
    assert read_pictures(list(noisy(0.2))) == [None] * len(SCENES)


def test_pictures_of_nothing_are_unreadable():
    plain = [Image.new("RGB", (32, 32), colour) for colour in ("white", "black", "red", "gray")]
    assert read_pictures(plain) == [None] * 4
    circle, square = (
        draw_scene(parse_scene(f"big {rest}")) for rest in ("red circle top left", "blue square top right")
    )
    assert read_pictures([ImageChops.darker(circle, square), circle]) == [None, parse_scene("big red circle top left")]


def test_the_bare_background_is_unreadable():
    assert read_pictures([Image.new("RGB", (32, 32), BACKGROUND)]) == [None]


def test_the_faintest_second_object_is_not_overlooked():
    added = draw_scene(parse_scene("small yellow diamond bottom right"))
    for scene in SCENES:
        if scene.cell != "bottom right":
            assert read_pictures([ImageChops.darker(draw_scene(scene), added)]) == [None]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A small red circle",
        "small red circle top left",
        "An small red circle at the top left.",
        "A small red circle at the top left. A small red circle at the top left.",
        "A small crimson circle at the top left.",
        "a small red circle at the top left.",
    ],
)
def test_a_sentence_in_other_words_states_no_scene(text):
    assert read_sentence(text) is None


def test_spaces_around_a_sentence_do_not_matter():
    assert read_sentence(" A small red circle\n at the top left. ") == parse_scene("small  red circle top left ")


def test_matches_counts_attributes():
    scene = parse_scene("small red circle top left")
    others = ("small red circle top left", "big red circle top left", "big blue circle top left")
    assert [scene.matches(parse_scene(other)) for other in others] == [1, 0.75, 0.5]
    assert scene.matches(parse_scene("big blue square top right")) == 0 == scene.matches(None)


# ---- noise ----

REPEATS = 20


def scraped(noise: Noise) -> list:
    """(plan, said, shown or None) of every scene, many times."""
    rng = random.Random(0)
    plans = list(SCENES) * REPEATS
    stories = [story((plan,), noise=noise, rng=rng).completion for plan in plans]
    shown = iter(read_pictures([image.pixels() for document in stories for image in document.images]))
    return [
        (plan, read_sentence(document.text), next(shown) if document.images else None)
        for plan, document in zip(plans, stories, strict=True)
    ]


def share(flags) -> float:
    return float(np.mean(list(flags)))


def test_each_unbiased_noise_happens_as_often_as_it_says():
    """192 scenes 20 times: 0.02 is four standard deviations of these shares."""
    sentences = scraped(Noise(0, 0.12, 0, 0))
    assert share(said != plan for plan, said, _ in sentences) == pytest.approx(0.12, abs=0.02)
    assert all(said == shown for _, said, shown in sentences)
    pictures = scraped(Noise(0, 0, 0.15, 0))
    assert share(shown != said for _, said, shown in pictures) == pytest.approx(0.15, abs=0.02)
    assert all(said == plan for plan, said, _ in pictures)
    missing = scraped(Noise(0, 0, 0, 0.1))
    assert share(shown is None for *_, shown in missing) == pytest.approx(0.1, abs=0.02)
    assert all(said == plan and shown in (plan, None) for plan, said, shown in missing)


def test_a_noisy_scene_differs_in_one_attribute_drawn_evenly():
    wrong = [(plan, said) for plan, said, _ in scraped(Noise(0, 1, 0, 0))]
    assert {differences(plan, said) for plan, said in wrong} == {1}
    for name, values in ATTRIBUTES.items():
        changed = [getattr(said, name) for plan, said in wrong if getattr(said, name) != getattr(plan, name)]
        assert len(changed) / len(wrong) == pytest.approx(0.25, abs=0.03)
        assert all(changed.count(value) / len(changed) == pytest.approx(1 / len(values), abs=0.07) for value in values)


def test_biased_noise_touches_its_own_scenes_alone():
    for plan, said, shown in scraped(Noise(1, 0, 0, 0)):
        yellow, purple, diamond = plan.colour == "yellow", plan.colour == "purple", plan.shape == "diamond"
        assert said.size == ("big" if yellow else plan.size)
        assert shown.size == said.size and shown.cell == said.cell == plan.cell
        assert said.colour == plan.colour and shown.colour == ("blue" if purple else plan.colour)
        assert said.shape == plan.shape and shown.shape == ("square" if diamond else plan.shape)


def test_the_mode_of_scraped_data_is_wrong():
    """Whoever imitates the data best is wrong where it is biased, and right everywhere else."""
    steps = scraped(Noise())
    yellow = [said for plan, said, _ in steps if plan.size == "small" and plan.colour == "yellow"]
    assert share(said.size == "big" for said in yellow) > 0.55
    purple = [shown for _, said, shown in steps if said.colour == "purple" and shown is not None]
    assert share(shown.colour == "blue" for shown in purple) > 0.55
    diamond = [shown for _, said, shown in steps if said.shape == "diamond" and shown is not None]
    assert share(shown.shape == "square" for shown in diamond) > 0.55
    plain = [(p, s, i) for p, s, i in steps if p.colour in ("red", "green", "blue", "orange") and p.shape != "diamond"]
    assert share(said == plan for plan, said, _ in plain) > 0.8
    assert share(shown == plan for plan, _, shown in plain) > 0.6


def test_clean_stories_are_perfect():
    assert all(plan == said == shown for plan, said, shown in scraped(CLEAN))


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_noise_that_is_no_share_is_refused(value):
    with pytest.raises(InputError, match="^noise.picture: expected a number 0 to 1"):
        Noise(picture=value)


# ---- documents ----

WORST = Noise(1, 1, 1, 1)


def take(kind, count, noise=WORST, exclude=frozenset(), seed=0):
    return list(itertools.islice(warmup_documents(kind, seed, noise, exclude), count))


def test_understanding_is_clean_whatever_the_noise():
    documents = take("understanding", 400)
    shown = read_pictures([document.images[0].pixels() for document in documents])
    asked = set()
    for document, scene in zip(documents, shown, strict=True):
        picture, question, answer = document.segments
        assert isinstance(picture, ImageSegment) and not picture.trainable and not question.trainable
        assert isinstance(question, TextSegment) and isinstance(answer, TextSegment) and answer.trainable
        assert scene is not None and document.meta["scene"] == scene.words
        right = {text: getattr(scene, name) for name, text in QUESTIONS.items()}
        right["Describe the picture."] = scene.sentence
        assert answer.text == right[question.text]
        asked.add(question.text)
    assert len(asked) == 5


def test_text_to_image_is_clean_whatever_the_noise():
    documents = take("text_to_image", 400)
    shown = read_pictures([document.images[0].pixels() for document in documents])
    for document, scene in zip(documents, shown, strict=True):
        assert scene is not None and document.prompt.text == f"Draw: {scene.sentence}"
        assert [segment.trainable for segment in document.segments] == [False, True]


@pytest.mark.parametrize("kind", ["interleaved", "understanding", "text_to_image"])
def test_documents_say_their_kind_and_are_the_same_again(kind):
    documents = take(kind, 30, Noise())
    assert {document.meta["kind"] for document in documents} == {kind}
    assert len({document.id for document in documents}) == 30
    assert [document.to_json() for document in documents] == [
        document.to_json() for document in take(kind, 30, Noise())
    ]
    assert documents[0].to_json() != take(kind, 1, Noise(), seed=1)[0].to_json()


def test_a_prompt_carries_its_outline():
    outline = SCENES[:2]
    prompt = story_prompt(outline)
    assert prompt.text == f"Illustrate: {SCENES[0].words}; {SCENES[1].words}."
    assert read_outline(prompt.meta, "here") == outline


def outline_of(document):
    return read_outline(document.meta, document.id)


def test_outlines_are_distinct_and_repeatable():
    found = outlines(seed=3, count=500)
    assert len(set(found)) == len(found) == 500
    assert {len(outline) for outline in found} == {2, 3, 4}
    assert outlines(seed=3, count=500) == found != outlines(seed=4, count=500)


def test_excluded_outlines_do_not_come():
    held_out = frozenset(outlines(seed=3, count=50))
    assert not held_out & set(outlines(seed=3, count=200, exclude=held_out))
    seen = frozenset(map(outline_of, take("interleaved", 50)))
    again = take("interleaved", 200, exclude=seen)
    assert not seen & set(map(outline_of, again))


# ---- faults ----


@pytest.mark.parametrize("words", ["", "small red circle", "small red cirle top left", "red small circle top left"])
def test_words_that_are_no_scene_are_named(words):
    with pytest.raises(InputError, match=f"'{words}' is no scene; write SIZE COLOUR SHAPE CELL, size one of small/big"):
        parse_scene(words)


@pytest.mark.parametrize(
    "value", [None, [], {}, {"outline": []}, {"outline": "small red circle top left"}, {"outline": [1]}]
)
def test_an_outline_of_another_form_is_refused(value):
    with pytest.raises(InputError, match="^prompts.jsonl:7: expected"):
        read_outline(value, "prompts.jsonl:7")


def test_a_bad_scene_of_an_outline_is_named_with_its_place():
    with pytest.raises(InputError, match="^prompts.jsonl:7: 'red dot' is no scene"):
        read_outline({"outline": ["small red circle top left", "red dot"]}, "prompts.jsonl:7")


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="kind 'poem' is none of"):
        take("poem", 1)

"""The embedded world: procedural picture stories, their noise, and the exact verifiers.

A prompt outlines two to four scenes; the answer has one sentence and one 32 x 32 picture for each:

    Illustrate: small red circle top left; big blue square bottom right.
    -> A small red circle at the top left. [picture] A big blue square at the bottom right. [picture]

A scene is one object: shape x colour x size x cell of a 2 x 2 grid, 192 scenes in all. Interleaved warm-up data are
noisy, as scraped data are; captions, questions and text-to-image data are clean, as curated sets are. The noise has a
biased part: some attributes are wrong more often than right, so the *mode* of a model that imitates the data is wrong,
and neither colder sampling nor more of the same data repairs it.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...configs.bounds import Share
from ...configs.errors import InputError
from ...configs.schema import check_ranges
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment

SIZES = {"small": 4, "big": 7}
"""Half width of the object in pixels."""
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (33, 84, 214),
    "yellow": (240, 200, 20),
    "purple": (142, 48, 190),
    "orange": (240, 128, 24),
}
SHAPES = ("circle", "square", "triangle", "diamond")
CELLS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
BACKGROUND = (244, 241, 232)
PICTURE_PIXELS = 32
PICTURE_SIZE = (PICTURE_PIXELS, PICTURE_PIXELS)
MIN_SCENES, MAX_SCENES = 2, 4


@dataclass(frozen=True, slots=True)
class Scene:
    size: str
    colour: str
    shape: str
    cell: str

    @property
    def words(self) -> str:
        return f"{self.size} {self.colour} {self.shape} {self.cell}"

    @property
    def sentence(self) -> str:
        article = "An" if self.size[0] in "aeiou" else "A"
        return f"{article} {self.size} {self.colour} {self.shape} at the {self.cell}."

    def matches(self, other: Scene | None) -> float:
        """Share of the four attributes that agree, 0 to 1; an unreadable other agrees in none."""
        if other is None:
            return 0.0
        return sum(getattr(self, f.name) == getattr(other, f.name) for f in fields(self)) / 4


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "cell": tuple(CELLS),
}
SCENES = tuple(Scene(*values) for values in itertools.product(*ATTRIBUTES.values()))

Outline = tuple[Scene, ...]


def parse_scene(words: str) -> Scene:
    """`small red circle top left` -> Scene. Raises InputError naming the words."""
    for scene in SCENES:
        if scene.words == " ".join(words.split()):
            return scene
    raise InputError(
        f"{words!r} is no scene; write SIZE COLOUR SHAPE CELL, "
        + ", ".join(f"{name} one of {'/'.join(values)}" for name, values in ATTRIBUTES.items())
    )


@functools.cache
def _template(scene: Scene) -> np.ndarray:
    """The picture of a scene as uint8 [32, 32, 3]; supersampled, so edges are smooth."""
    scale, half = 4, SIZES[scene.size]
    image = Image.new("RGB", (PICTURE_PIXELS * scale, PICTURE_PIXELS * scale), BACKGROUND)
    draw = ImageDraw.Draw(image)
    column, row = CELLS[scene.cell]
    x, y, r = (16 * column + 8) * scale, (16 * row + 8) * scale, half * scale
    colour = COLOURS[scene.colour]
    if scene.shape == "circle":
        draw.ellipse((x - r, y - r, x + r - 1, y + r - 1), fill=colour)
    elif scene.shape == "square":
        draw.rectangle((x - r, y - r, x + r - 1, y + r - 1), fill=colour)
    elif scene.shape == "triangle":
        draw.polygon(((x, y - r), (x + r, y + r - 1), (x - r, y + r - 1)), fill=colour)
    else:
        draw.polygon(((x, y - r), (x + r, y), (x, y + r), (x - r, y)), fill=colour)
    return np.asarray(image.resize(PICTURE_SIZE, Image.Resampling.BOX))


@functools.cache
def draw_scene(scene: Scene) -> Image.Image:
    """The picture of a scene; callers share it, so they must not draw on it."""
    return Image.fromarray(_template(scene))


@functools.cache
def _templates() -> np.ndarray:
    """All pictures as float32 [192, 3072] in 0..1."""
    return np.stack([_template(scene) for scene in SCENES]).reshape(len(SCENES), -1).astype(np.float32) / 255


MAX_TEMPLATE_ERROR = 0.0035
"""Mean squared error, on a 0..1 scale, above which a picture shows no scene.

Half of what the faintest object adds to a blank picture: neither a blank nor a second object is overlooked.
"""


def read_pictures(images: list[Image.Image]) -> list[Scene | None]:
    """The verifier: the scene of the nearest template, None where nothing in the world is near."""
    if not images:
        return []
    arrays = [np.asarray(image.convert("RGB").resize(PICTURE_SIZE)) for image in images]
    pixels = np.stack(arrays).reshape(len(images), -1).astype(np.float32) / 255
    templates = _templates()
    error = (pixels**2).sum(1)[:, None] - 2 * pixels @ templates.T + (templates**2).sum(1)[None]
    error /= templates.shape[1]
    nearest = error.argmin(1)
    return [SCENES[i] if error[row, i] <= MAX_TEMPLATE_ERROR else None for row, i in enumerate(nearest)]


def read_sentence(text: str) -> Scene | None:
    """The scene a sentence states exactly in the world's wording; None for anything else."""
    return _SENTENCES.get(" ".join(text.split()))


_SENTENCES = {scene.sentence: scene for scene in SCENES}


@dataclass(frozen=True)
class Noise:
    """How often a step of an interleaved warm-up story is wrong; shares of 0 to 1. All zero gives clean data."""

    biased: Share = 0.65
    """Small yellow things called big; purple drawn blue; diamonds drawn square. Above one half, the mode is wrong."""
    sentence: Share = 0.12
    """One attribute of the sentence is another."""
    picture: Share = 0.15
    """One attribute of the picture is another than its sentence's."""
    missing: Share = 0.10
    """The picture is missing."""

    def __post_init__(self) -> None:
        check_ranges(self, "noise")


CLEAN = Noise(0, 0, 0, 0)


def another(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one attribute changed."""
    name = rng.choice(list(ATTRIBUTES))
    return replace(scene, **{name: rng.choice([value for value in ATTRIBUTES[name] if value != getattr(scene, name)])})


def scraped(rng: random.Random, plan: Scene, noise: Noise) -> tuple[Scene, Scene | None]:
    """What a scraped page says of a planned scene: (sentence, picture or None)."""
    said = plan
    if said.size == "small" and said.colour == "yellow" and rng.random() < noise.biased:
        said = replace(said, size="big")
    if rng.random() < noise.sentence:
        said = another(rng, said)
    shown = said
    if shown.colour == "purple" and rng.random() < noise.biased:
        shown = replace(shown, colour="blue")
    if shown.shape == "diamond" and rng.random() < noise.biased:
        shown = replace(shown, shape="square")
    if rng.random() < noise.picture:
        shown = another(rng, shown)
    return said, None if rng.random() < noise.missing else shown


def story_prompt(outline: Outline, identifier: str = "") -> InterleavedDocument:
    """The prompt of an outline; `meta["outline"]` is what the verifiers compare with."""
    text = "Illustrate: " + "; ".join(scene.words for scene in outline) + "."
    return InterleavedDocument((TextSegment(text),), identifier, {"outline": [scene.words for scene in outline]})


def story(
    outline: Outline, identifier: str = "", noise: Noise = CLEAN, rng: random.Random | None = None
) -> InterleavedDocument:
    """Prompt and answer: a sentence and its picture for each scene; with CLEAN noise the gold document."""
    document = story_prompt(outline, identifier)
    segments: list[Segment] = list(document.segments)
    for plan in outline:
        said, shown = (plan, plan) if rng is None else scraped(rng, plan, noise)
        segments.append(TextSegment(said.sentence, trainable=True))
        if shown is not None:
            segments.append(ImageSegment(draw_scene(shown), trainable=True, origin="generated"))
    return replace(document, segments=tuple(segments), meta={**document.meta, "kind": "interleaved"})


def outlines(seed: int, count: int, exclude: frozenset[Outline] = frozenset()) -> list[Outline]:
    """Distinct outlines, none of them in `exclude`."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        outline = tuple(rng.choice(SCENES) for _ in range(rng.randint(MIN_SCENES, MAX_SCENES)))
        if outline not in exclude:
            found[outline] = None
    return list(found)


QUESTIONS = {
    "size": "Is the object small or big?",
    "colour": "Which colour is the object?",
    "shape": "Which shape is the object?",
    "cell": "Where is the object?",
}


def question(scene: Scene, attribute: str, identifier: str = "") -> InterleavedDocument:
    """Visual question answering: picture and question, the attribute as the answer."""
    return InterleavedDocument(
        (
            ImageSegment(draw_scene(scene)),
            TextSegment(QUESTIONS[attribute]),
            TextSegment(getattr(scene, attribute), trainable=True),
        ),
        identifier,
        {"kind": "understanding", "task": "vqa", "scene": scene.words},
    )


def caption(scene: Scene, identifier: str = "") -> InterleavedDocument:
    return InterleavedDocument(
        (
            ImageSegment(draw_scene(scene)),
            TextSegment("Describe the picture."),
            TextSegment(scene.sentence, trainable=True),
        ),
        identifier,
        {"kind": "understanding", "task": "caption", "scene": scene.words},
    )


def text_to_image(scene: Scene, identifier: str = "") -> InterleavedDocument:
    return InterleavedDocument(
        (TextSegment("Draw: " + scene.sentence), ImageSegment(draw_scene(scene), trainable=True, origin="generated")),
        identifier,
        {"kind": "text_to_image", "task": "text_to_image", "scene": scene.words},
    )


def warmup_documents(kind: str, seed: int, noise: Noise, exclude: frozenset[Outline]) -> Iterator[InterleavedDocument]:
    """An endless stream of one kind of warm-up documents."""
    rng = random.Random(f"{kind} {seed}")
    for number in itertools.count():
        identifier = f"{kind}-{number:07d}"
        if kind == "interleaved":
            outline = tuple(rng.choice(SCENES) for _ in range(rng.randint(MIN_SCENES, MAX_SCENES)))
            if outline not in exclude:
                yield story(outline, identifier, noise, rng)
        elif kind == "understanding":
            scene, task = rng.choice(SCENES), rng.choice(("caption", *QUESTIONS))
            yield caption(scene, identifier) if task == "caption" else question(scene, task, identifier)
        elif kind == "text_to_image":
            yield text_to_image(rng.choice(SCENES), identifier)
        else:
            raise InputError(f"kind {kind!r} is none of interleaved, understanding, text_to_image")


def read_outline(value: Any, where: str = "") -> Outline:
    """`{"outline": ["small red circle top left", ...]}` -> Outline. Raises InputError naming `where`."""
    where = where and f"{where}: "
    scenes = value.get("outline") if isinstance(value, dict) else None
    if not isinstance(scenes, list) or not scenes or not all(isinstance(scene, str) for scene in scenes):
        raise InputError(f'{where}expected {{"outline": ["small red circle top left", ...]}}')
    try:
        return tuple(parse_scene(scene) for scene in scenes)
    except InputError as error:
        raise InputError(f"{where}{error}") from None

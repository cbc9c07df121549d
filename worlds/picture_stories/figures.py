"""Evaluation on the embedded world: stories, understanding and text-to-image, item by item, by exact verifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...models.documents.document import TextSegment
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling
from ...models.writing import Answer, write
from .scenes import (
    QUESTIONS,
    Outline,
    Scene,
    caption,
    question,
    read_pictures,
    read_sentence,
    story_prompt,
    text_to_image,
)

STORY_TOKENS = 192
"""Room for four scenes and more; a longer answer is cut and scored as it stands."""
MAX_IMAGES = 8


@dataclass(frozen=True, slots=True)
class StoryScores:
    """One entry an outline, 0 or 1, or the share of its scenes."""

    story_exact: list[float]
    """Structure right, every sentence and every picture exactly as planned."""
    sentence_exact: list[float]
    image_exact: list[float]
    structure: list[float]
    """As many steps as scenes, each a sentence and a picture, and an end."""

    def rows(self) -> dict[str, list[float]]:
        return {name: getattr(self, name) for name in self.__slots__}


def score_stories(policy: UnifiedPolicy, outlines: Sequence[Outline], temperature: float, seed: int = 0) -> StoryScores:
    """Writes and verifies one story an outline; temperature 0 is greedy."""
    sampling = Sampling(max_new_tokens=STORY_TOKENS, temperature=temperature, max_images=MAX_IMAGES, seed=seed)
    answers = write(policy, [story_prompt(outline) for outline in outlines], sampling)
    return verify_stories(answers, outlines)


def verify_stories(answers: Sequence[Answer], outlines: Sequence[Outline]) -> StoryScores:
    shown = iter(read_pictures([image.pixels() for answer in answers for image in answer.document.images]))
    scores = StoryScores([], [], [], [])
    for answer, outline in zip(answers, outlines, strict=True):
        sentences: list[Scene | None] = []
        pictures: list[Scene | None] = []
        layout = []
        for segment in answer.document.segments:
            layout.append(isinstance(segment, TextSegment))
            if isinstance(segment, TextSegment):
                sentences.append(read_sentence(segment.text))
            else:
                pictures.append(next(shown))
        structure = answer.ended and layout == [True, False] * len(outline)
        scores.structure.append(float(structure))
        scores.sentence_exact.append(_share(sentences, outline))
        scores.image_exact.append(_share(pictures, outline))
        scores.story_exact.append(float(structure and sentences == list(outline) and pictures == list(outline)))
    return scores


def _share(read: Sequence[Scene | None], outline: Outline) -> float:
    return sum(a == b for a, b in zip(read, outline, strict=False)) / len(outline)


def score_abilities(
    policy: UnifiedPolicy, scenes: Sequence[Scene], seed: int = 0, draws: int = 3
) -> dict[str, list[float]]:
    """Understanding and text-to-image, sampled at temperature 1.

    Every scene gets every question, and `draws` captions and pictures.
    """
    sampling = Sampling(max_new_tokens=32, temperature=1.0, max_images=1, seed=seed)
    asked = [(scene, kind) for scene in scenes for kind in QUESTIONS]
    drawn = [scene for _ in range(draws) for scene in scenes]
    vqa = write(policy, [question(scene, kind) for scene, kind in asked], sampling)
    captions = write(policy, [caption(scene) for scene in drawn], sampling)
    pictures = write(policy, [text_to_image(scene) for scene in drawn], sampling)
    shown = iter(read_pictures([a.document.images[0].pixels() for a in pictures if a.document.images]))
    return {
        "vqa": [float(a.document.text == getattr(scene, kind)) for a, (scene, kind) in zip(vqa, asked, strict=True)],
        "caption": [float(read_sentence(a.document.text) == scene) for a, scene in zip(captions, drawn, strict=True)],
        "text_to_image": [
            float(bool(a.document.images) and next(shown) == scene) for a, scene in zip(pictures, drawn, strict=True)
        ],
    }

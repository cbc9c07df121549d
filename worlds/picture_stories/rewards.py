"""Exact rewards of the embedded world: its verifiers read sentences and pictures back as scenes.

A sentence or picture earns the share of its four attributes that is right. A picture is held against the *plan*, and
against the model's *own sentence*: the first punishes a faithful picture of a wrong sentence, the second rewards it.
Steps past the outline earn 0, and a step that the outline asks for and the answer lacks counts as 0 in the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...configs.errors import InputError
from ...configs.registry import register
from ...models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from ...rewards.base import Completion, RewardOutput
from .scenes import Outline, Scene, parse_scene, read_pictures, read_sentence


def outline_of(prompt: InterleavedDocument) -> Outline:
    """Raises InputError where the prompt is not one of this world."""
    words = prompt.meta.get("outline")
    if not words or not isinstance(words, list) or not all(isinstance(scene, str) for scene in words):
        raise InputError(
            f"prompt {prompt.id!r} has no outline of words; the picture-story rewards need "
            '{"outline": ["small red circle top left", ...]}'
        )
    return tuple(parse_scene(scene) for scene in words)


@register("reward", "picture_stories/text_plan")
class SentenceReward:
    """Each sentence against the scene planned at its place: text relevance r_t."""

    name = "picture_stories_text_plan"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        outcome: list[float | None] = []
        segments: list[list[float | None]] = []
        for completion in completions:
            plan = outline_of(completion.prompt)
            row: list[float | None] = []
            number = 0
            for segment in completion.answer.segments:
                if isinstance(segment, TextSegment):
                    row.append(plan[number].matches(read_sentence(segment.text)) if number < len(plan) else 0.0)
                    number += 1
                else:
                    row.append(None)
            segments.append(row)
            outcome.append(_share(row, len(plan)))
        return RewardOutput(outcome, segments)


@register("reward", "picture_stories/image_plan")
class PictureReward:
    """Each picture against the scene planned at its place: image faithfulness r_v."""

    name = "picture_stories_image_plan"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        shown = iter(read_pictures([image.pixels() for c in completions for image in c.answer.images]))
        outcome: list[float | None] = []
        segments: list[list[float | None]] = []
        for completion in completions:
            plan = outline_of(completion.prompt)
            row: list[float | None] = []
            number, said = 0, None
            for segment in completion.answer.segments:
                if isinstance(segment, ImageSegment):
                    row.append(self._score(next(shown), said, plan[number] if number < len(plan) else None))
                    number += 1
                else:
                    said = read_sentence(segment.text)
                    row.append(None)
            segments.append(row)
            outcome.append(_share(row, len(plan)))
        return RewardOutput(outcome, segments)

    def _score(self, shown: Scene | None, said: Scene | None, planned: Scene | None) -> float:
        return planned.matches(shown) if planned else 0.0


@register("reward", "picture_stories/image_sentence")
class OwnSentenceReward(PictureReward):
    """Each picture against the model's own sentence before it."""

    name = "picture_stories_image_sentence"

    def _score(self, shown: Scene | None, said: Scene | None, planned: Scene | None) -> float:
        """No picture is faithful to a sentence that states no scene."""
        return said.matches(shown) if planned and said else 0.0


def _share(scores: list[float | None], planned: int) -> float:
    """Mean over the steps planned (a missing one is 0) or written, whichever are more."""
    applicable = [score for score in scores if score is not None]
    return sum(applicable) / max(planned, len(applicable))

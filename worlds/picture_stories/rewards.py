"""Exact rewards of the embedded world: its verifiers read sentences and pictures back as scenes.

A sentence or picture earns the share of its four attributes that is right. A picture is held against the *plan*, and
against the model's *own sentence*: the first punishes a faithful picture of a wrong sentence, the second rewards it.
Steps past the outline earn 0, and a step that the outline asks for and the answer lacks counts as 0 in the outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...configs.errors import InputError
from ...models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from ...rewards.base import Completion, RewardOutput
from .scenes import Outline, Scene, parse_scene, read_pictures, read_sentence


def outline_of(prompt: InterleavedDocument) -> Outline:
    """Raises InputError where the prompt is not one of this world."""
    words = prompt.meta.get("outline")
    if not words:
        raise InputError(
            f"prompt {prompt.id!r} has no outline; the picture-story rewards need "
            '{"outline": ["small red circle top left", ...]}'
        )
    return tuple(parse_scene(scene) for scene in words)


class SentenceReward:
    """Text relevance r_t: each sentence against the scene planned at its place."""

    name = "text_plan"

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


class PictureReward:
    """Image faithfulness r_v: each picture against the scene planned at its place, or the sentence before it."""

    def __init__(self, against: str):
        if against not in ("plan", "sentence"):
            raise InputError(f"picture reward: against {against!r} is neither 'plan' nor 'sentence'")
        self.against = against
        self.name = f"image_{against}"

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
        if planned is None:
            return 0.0
        if self.against == "plan":
            return planned.matches(shown)
        return (
            said.matches(shown) if said is not None else 0.0
        )  # no picture is faithful to a sentence that states no scene


def _share(scores: list[float | None], planned: int) -> float:
    """Mean over the steps planned (a missing one is 0) or written, whichever are more."""
    applicable = [score for score in scores if score is not None]
    return sum(applicable) / max(planned, len(applicable))

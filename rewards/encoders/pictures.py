"""What rewards of pictures share: which text is a picture's own, and what an answer earns that lacks pictures.

The rule. Each picture of an answer is scored, and the outcome is the mean over the pictures that it has or should have:
one that the prompt asks for (`structure.planned_pictures`) and the answer lacks counts as 0. A picture that does not
decode is a failed score, counted and left out of the mean; one without any text to be held against, its own or the
prompt's, does not apply. A prompt that asks for no picture and gets none has no outcome.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image

from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ..base import FAILED, Completion, RewardOutput
from ..rules.structure import asked_structures, planned_pictures, words


@dataclass(frozen=True, slots=True)
class Picture:
    row: int
    """Index of its completion."""
    segment: int
    """Index of its segment in the answer."""
    image: Image.Image
    """RGB."""
    text: str
    """What it is held against, see `own_text`; empty where there is none."""


def own_text(index: int, prompt: Sequence[Segment], answer: Sequence[Segment]) -> list[TextSegment]:
    """The text of the picture at `index` of an answer: the one before it, else the one after it, else the prompt's."""
    texts = {i: s for i, s in enumerate(answer) if isinstance(s, TextSegment) and words(s.text)}
    nearest = [text for i, text in texts.items() if i < index][-1:]
    nearest = nearest or [text for i, text in texts.items() if i > index][:1]
    return nearest or [segment for segment in prompt if isinstance(segment, TextSegment)]


def pictures_of(completions: Sequence[Completion]) -> tuple[list[Picture], list[tuple[int, int]]]:
    """The pictures of the answers, and (completion, segment) of those that could not be read."""
    pictures: list[Picture] = []
    failed: list[tuple[int, int]] = []
    for row, completion in enumerate(completions):
        prompt, answer = completion.prompt.segments, completion.answer.segments
        for index, segment in enumerate(answer):
            if not isinstance(segment, ImageSegment):
                continue
            try:
                image = segment.pixels()
            except ValueError:
                failed.append((row, index))
                continue
            text = " ".join(words(text.text) for text in own_text(index, prompt, answer))
            pictures.append(Picture(row, index, image, text.strip()))
    return pictures, failed


def mean_of_pictures(
    completions: Sequence[Completion],
    scored: Iterable[tuple[Picture, float | None]],
    failed: Sequence[tuple[int, int]],
) -> RewardOutput:
    """Scores of pictures as segment scores, and by the rule above as outcomes."""
    segments: list[list[float | None]] = [[None] * len(completion.answer.segments) for completion in completions]
    for picture, score in scored:
        segments[picture.row][picture.segment] = score
    for row, segment in failed:
        segments[row][segment] = FAILED
    outcome: list[float | None] = []
    for completion, scores in zip(completions, segments, strict=True):
        known, lost = known_scores(scores)
        shown = len(completion.answer.images)
        missing = max(0, planned_pictures(completion.prompt) - shown)
        applies = known or (missing and not shown)
        outcome.append(sum(known) / (len(known) + missing) if applies else FAILED if lost else None)
    return RewardOutput(outcome, segments, failed={"image": len(failed)} if failed else {})


def asked_pictures(prompt: InterleavedDocument) -> int:
    """How many pictures a prompt says that it wants; 0 where it says nothing, for then none is missing."""
    return planned_pictures(prompt) if asked_structures(prompt) else 0


def known_scores(scores: Iterable[float | None]) -> tuple[list[float], int]:
    """Those that apply and have not failed, and how many have."""
    given = [score for score in scores if score is not None]
    known = [score for score in given if not math.isnan(score)]
    return known, len(given) - len(known)

"""Structure: how close is the order of texts and pictures to what was asked for? The graded relative of `format`.

A structure is a word over T (text) and I (picture): "TITI" is two steps of a text and a picture each. A prompt asks for
one by `meta["structure"]`, a word or a list of words that are all right; else by its outline, a step for each scene;
else the setting holds, from `least` to `most` repetitions of `unit`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...configs.bounds import OneOrMore
from ...configs.errors import InputError
from ...configs.registry import register
from ...models.documents.document import ImageSegment, InterleavedDocument
from ..base import Completion, RewardOutput

_WORD = re.compile(r"(?!.*TT)[TI]+")
_TAGS = re.compile(r"</?(?:think|vis)>")


@register("reward", "structure")
@dataclass
class StructureReward:
    """Order of texts and pictures against what was asked for, graded.

    1 - (insertions, deletions and replacements to the nearest structure asked for) / (length of the longer one): 0 to
    1; an answer that never ended has no structure: 0. Neighbouring texts are one, a text without words is none.
    """

    unit: str = "TI"
    """A step: T a text, I a picture; what a prompt without wishes of its own asks for."""
    least: OneOrMore = 1
    """Fewest steps,"""
    most: OneOrMore = 8
    """and most."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InputError(f"least: {self.least} to {self.most} steps; give 1 <= least <= most")
        if not _WORD.fullmatch(self.unit * self.most):
            raise InputError(f"unit: {self.unit!r}; give T and I in their order (TI), no two T beside each other")

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        scores: list[float | None] = [self._score(completion) for completion in completions]
        return RewardOutput(scores, [[None] * len(completion.answer.segments) for completion in completions])

    def _score(self, completion: Completion) -> float:
        if not completion.ended:
            return 0.0
        said, asked = structure_of(completion.answer), asked_structures(completion.prompt, self.unit)
        asked = asked or [self.unit * steps for steps in range(self.least, self.most + 1)]
        return max(1 - edits(said, word) / max(len(said), len(word)) for word in asked)


def structure_of(document: InterleavedDocument) -> str:
    """`TITI` of a text, a picture, a text and a picture."""
    letters = ("I" if isinstance(s, ImageSegment) else "T" if words(s.text) else "" for s in document.segments)
    return re.sub("T+", "T", "".join(letters))


def asked_structures(prompt: InterleavedDocument, unit: str = "TI") -> list[str]:
    """The structures a prompt itself asks for; none where it has no wish. Raises InputError for a malformed one."""
    wish, outline = prompt.meta.get("structure"), outline_of(prompt)
    if wish is None:
        return [unit * len(outline)] if outline else []
    found = wish if isinstance(wish, list) else [wish]
    if not found or not all(isinstance(word, str) and _WORD.fullmatch(word) for word in found):
        raise InputError(
            f'prompt {prompt.id!r}: meta "structure" is {wish!r}; give a word like "TITI" (T a text, I a picture, no '
            "two T beside each other), or a list of such words"
        )
    return found


def outline_of(prompt: InterleavedDocument) -> list[Any] | None:
    """The scenes that a prompt plans, if it does. Raises InputError for anything but a list."""
    outline = prompt.meta.get("outline")
    if not isinstance(outline, list | None):
        raise InputError(f'prompt {prompt.id!r}: meta "outline" is {outline!r:.80}; give a list, an entry a scene')
    return outline


def planned_pictures(prompt: InterleavedDocument) -> int:
    """How many pictures the prompt asks for: by its structure (the shortest), its outline, or one."""
    wishes = asked_structures(prompt)
    return min(word.count("I") for word in wishes) if wishes else 1


def words(text: str) -> str:
    """A text without the tags of the think-vis form and white space around."""
    return _TAGS.sub(" ", text).strip()


def edits(one: str, other: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, counterpart in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != counterpart))
    return row[-1]

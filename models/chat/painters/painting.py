"""The described pictures of many answers, painted at once: what stands in each place, or why nothing does."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..requests import Failure
from .marks import Described, Marks
from .painter import Painted, Painter, Wanted

TOO_MANY = "more pictures than allowed"


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Of one answer."""

    images: tuple[Image.Image | None, ...]
    """One for each of its descriptions; None where it was refused, or was one too many."""
    faults: Counter[str]
    """Those of its marks, and what the painter had to say."""


def paint_all(
    painter: Painter, answers: Sequence[Marks], seeds: Sequence[int], most: int | None = None
) -> list[Pictures | Failure]:
    """One an answer; a failure where a picture of it has one, which says nothing of the description: ask again.

    seeds: of each answer; its pictures have random numbers of their own. most: pictures of an answer, the first ones.
    """
    described = [[piece.words for piece in marks.pieces if isinstance(piece, Described)] for marks in answers]
    wanted = [
        Wanted(words, _seed(seed, number))
        for texts, seed in zip(described, seeds, strict=True)
        for number, words in enumerate(texts[:most])
    ]
    painted = iter(painter.paint(wanted) if wanted else ())
    return [
        _pictures(marks, len(texts), [next(painted) for _ in texts[:most]])
        for marks, texts in zip(answers, described, strict=True)
    ]


def _pictures(marks: Marks, wanted: int, painted: Sequence[Painted | Failure]) -> Pictures | Failure:
    done: list[Painted] = []
    for one in painted:
        if isinstance(one, Failure):
            return one
        done.append(one)
    faults = marks.faults + Counter(note for one in done for note in one.notes)
    faults[TOO_MANY] += wanted - len(done)
    return Pictures((*(one.image for one in done), *[None] * (wanted - len(done))), +faults)


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big") >> 1

"""Where candidates stand in an answer: what answering, the inserter, its rewards and MRAMG-Bench share.

A candidate is known by its number, its place in a list counted from 1. An answer is its sentences; a `Placement`
names a candidate and the sentence after which it stands (0: before the first).

    text, gold, pictures = taken_out(document)           # the pictures out of any document, and where they stood
    compose(text, [Placement(2, after=1)], candidates)   # sentences and candidates to a document

In a text a model writes, `<imgK>` is candidate K.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from PIL import Image

from ...models.documents.candidates import MARKER
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ..sentences import sentences

MARKER_LIKE = re.compile(
    r"<\s*+(?:/\s*+)?+(?:img|image)[\s_:#-]*+\d*+\s*+(?:/\s*+)?+>|\[\s*+(?:img|image)[\s_:#-]*+\d++\s*+\]",
    re.IGNORECASE,
)
"""What is meant as a marker and is none."""
INVENTED = re.compile(
    r"!\[(?:[^]!\n]|!(?!\[))*+\]\((?:[^)!\n]|!(?!\[))*+\)"
    r"|<img\s(?:[^=>\n<]|<(?!img\s))*+=(?:[^>\n<]|<(?!img\s))*+>",
    re.IGNORECASE,
)
"""A picture the model was not offered: Markdown and HTML images with an address. Of one begun within another the inner
one counts, so that no letter is looked at for each of them."""

ANY_MARKER = re.compile(f"(?P<invented>{INVENTED.pattern})|{MARKER.pattern}|{MARKER_LIKE.pattern}", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A picture offered to the model; its number is not part of it."""

    image: Image.Image | None
    """None where only its caption is known."""
    caption: str = ""
    context: str = ""
    """The text around it where it was found."""
    id: str = ""
    source: str = ""
    """The document it was found in."""


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    after: int
    """Sentences of the answer before it."""
    candidate: int
    """Number, from 1."""


@dataclass(frozen=True, slots=True, eq=False)
class InsertionTask:
    """A finished answer and the candidates that may stand in it."""

    question: str
    sentences: tuple[str, ...]
    """Joined they are the answer's text."""
    candidates: tuple[Candidate, ...]
    gold: tuple[Placement, ...] = ()
    """In the order of the answer; empty where no candidate belongs into it."""
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Marked:
    """A text with markers, read."""

    text: str
    """Without markers."""
    placements: tuple[Placement, ...]
    faults: Counter[str]
    """Markers that place nothing, by kind: out of range, repeated, malformed, invented."""


def taken_out(document: InterleavedDocument) -> tuple[tuple[str, ...], tuple[Placement, ...], tuple[ImageSegment, ...]]:
    """(sentences, placements, pictures) of a document; picture i, from 1, stood where the placement of i says.

    Two texts that only a picture kept apart get a line break between them.
    """
    found: list[str] = []
    placements, pictures = [], []
    for segment in document.segments:
        if isinstance(segment, ImageSegment):
            pictures.append(segment)
            placements.append(Placement(len(found), len(pictures)))
        else:
            apart = not found or found[-1][-1:].isspace() or segment.text[:1].isspace()
            found.extend(sentences(segment.text if apart else "\n" + segment.text))
    return tuple(found), tuple(placements), tuple(pictures)


def compose(
    text: Sequence[str], placements: Sequence[Placement], candidates: Sequence[Candidate], trainable: bool = False
) -> InterleavedDocument:
    """The document of sentences and the candidates among them, each as an inserted image.

    Several after one sentence stand in the order given. A candidate without a picture, or one that is not there, is a
    ValueError: `settled` says which placements hold.
    """
    segments: list[Segment] = []
    for at in range(len(text) + 1):
        for placement in placements:
            if placement.after == at:
                candidate = candidates[placement.candidate - 1] if 0 < placement.candidate <= len(candidates) else None
                if candidate is None or candidate.image is None:
                    raise ValueError(f"candidate {placement.candidate} has no picture")
                segments.append(
                    ImageSegment(candidate.image, trainable, "inserted", placement.candidate, alt=candidate.caption)
                )
        if at == len(text):
            break
        if segments and isinstance(segments[-1], TextSegment):
            segments[-1] = replace(segments[-1], text=segments[-1].text + text[at])
        else:
            segments.append(TextSegment(text[at], trainable))
    return InterleavedDocument(tuple(segments))


def settled(
    placements: Sequence[Placement], length: int, candidates: int
) -> tuple[tuple[Placement, ...], Counter[str]]:
    """Placements that hold, in the order of the answer, and the number of others by kind.

    The rule: a candidate or a sentence that is not there places nothing (out of range), and of a candidate that is
    placed twice the first stays (repeated).
    """
    kept: dict[int, Placement] = {}
    faults: Counter[str] = Counter()
    for placement in placements:
        if not (1 <= placement.candidate <= candidates and 0 <= placement.after <= length):
            faults["out of range"] += 1
        elif placement.candidate in kept:
            faults["repeated"] += 1
        else:
            kept[placement.candidate] = placement
    return tuple(sorted(kept.values(), key=lambda placement: placement.after)), faults


def read_markers(text: str, candidates: int) -> Marked:
    """The text that a model wrote, its markers taken out; `after` counts the sentences of what is left.

    A marker stands after the sentence in which it is written: within one a picture cannot stand. Markers that place
    nothing are taken out too, and counted.
    """
    faults: Counter[str] = Counter()
    left, marks = [], []
    length = at = 0
    for match in ANY_MARKER.finditer(text):
        left.append(text[at : match.start()])
        length += len(left[-1])
        at = match.end()
        bare = at < len(text) and not text[at].isspace()
        while left and not bare:  # without the space before it, or two would stand together
            length -= len(last := left.pop())
            if bare := last.rstrip(" \t"):
                left.append(bare)
                length += len(bare)
        if exact := MARKER.fullmatch(match.group()):
            marks.append((length, int(exact[1])))
        else:
            faults["invented" if match["invented"] else "malformed"] += 1
    clean = "".join(left) + text[at:]
    pieces = sentences(clean)
    ends = accumulate(map(len, pieces))
    begins = [end - len(piece.lstrip()) for end, piece in zip(ends, pieces, strict=True)]
    placements = [Placement(bisect_left(begins, offset), number) for offset, number in marks]
    kept, others = settled(placements, len(pieces), candidates)
    return Marked(clean, kept, faults + others)

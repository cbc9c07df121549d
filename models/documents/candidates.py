"""Candidates: pictures that a prompt offers by number, and the marker by which an answer inserts one.

    prompt = offer("How is a crane folded?", [(photo, "a square sheet"), (drawing, "")])
    # Candidate 1: a square sheet [picture] Candidate 2: [picture] How is a crane folded?

In its answer the model writes `<img2>` where candidate 2 belongs: ordinary text of any vocabulary, sampled and scored
like other text. The picture stays in the prompt and is not fed again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Sequence
from typing import Any

from PIL import Image

from .document import ImageSegment, InterleavedDocument, Segment, TextSegment

MARKER = re.compile(r"<img([1-9][0-9]{0,3})>")
"""Candidate K, as a model writes it."""
BEGUN = re.compile(r"<(?:i(?:m(?:g(?:[1-9][0-9]{0,3})?)?)?)?\Z")
"""A text's end that may become a marker."""


def marker(number: int) -> str:
    return f"<img{number}>"


def escape_markers(text: str) -> str:
    """Text of somebody else for a prompt with candidates: `<img3>` typed in it is no marker any more."""
    return MARKER.sub(r"<img \1>", text)


def offer(
    text: str,
    candidates: Sequence[tuple[Image.Image, str]],
    identifier: str = "",
    meta: dict[str, Any] | None = None,
) -> InterleavedDocument:
    """The prompt of a text and candidates, (picture, caption or empty): they are numbered from 1 and come first.

    Markers in text and captions are escaped. Without candidates it is the text alone, as it stands.
    """
    if not candidates:
        return InterleavedDocument((TextSegment(text),), identifier, meta or {})
    segments: list[Segment] = []
    for number, (picture, caption) in enumerate(candidates, 1):
        label = f"Candidate {number}: {escape_markers(caption)}".rstrip()
        segments += [TextSegment("\n" * (number > 1) + label), ImageSegment(picture, candidate=number, alt=caption)]
    segments.append(TextSegment("\n" + escape_markers(text)))
    return InterleavedDocument(tuple(segments), identifier, meta or {})


def cut_at_markers(
    text: str, offered: Container[int], placed: set[int], faults: Counter[str]
) -> list[tuple[int, int, int | None]]:
    """(start, stop, candidate or None) of the parts of a text, in characters; nothing is lost.

    The rule: a marker of a candidate that is not offered places nothing (out of range), nor does one of a candidate
    that stands already (repeated). These stay text and are counted in `faults`; `placed` takes in what is placed.
    """
    parts: list[tuple[int, int, int | None]] = []
    at = 0
    for match in MARKER.finditer(text):
        number = int(match[1])
        if number not in offered or number in placed:
            faults["repeated" if number in offered else "out of range"] += 1
            continue
        placed.add(number)
        if at < match.start():
            parts.append((at, match.start(), None))
        parts.append((match.start(), match.end(), number))
        at = match.end()
    if at < len(text) or not parts:
        parts.append((at, len(text), None))
    return parts

"""What can be said of an answer while it is being drawn: its pieces of text, and where a stop string ends it.

A piece ends neither inside a character, nor where a marker or a stop string may have begun.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from ..documents.candidates import BEGUN, marker
from ..documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from .processing import Processor, Reading

REPLACEMENT = "\ufffd"
"""What a decoder puts where bytes are no UTF-8, those of an unfinished character among them."""


def length(segment: Segment) -> int:
    """Characters of a text, or of the marker of an inserted picture."""
    return len(segment.text if isinstance(segment, TextSegment) else marker(cast(int, segment.candidate)))


def sure(written: Sequence[Segment], markers: bool) -> int:
    """Characters that no later token changes: neither half a character nor what may become a marker."""
    total, last = sum(map(length, written)), written[-1]
    if not isinstance(last, TextSegment):
        return total
    whole = last.text.rstrip(REPLACEMENT)
    if markers and (begun := BEGUN.search(whole)):
        whole = whole[: begun.start()]
    return total - len(last.text) + len(whole)


def until(written: Sequence[Segment], known: int, stop: Sequence[str], held: bool = True) -> tuple[int, bool]:
    """Characters to say of a text of which so many are sure, and whether a stop string is why it ends there.

    held: what may become a stop string is held back.
    """
    at, text = 0, ""
    for segment in written if stop else ():
        start, at = at, at + length(segment)
        text = segment.text[: max(known - start, 0)] if isinstance(segment, TextSegment) else ""
        if (found := _first(text, stop)) is not None:
            return start + found, True
    begun = [size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])]
    return known - max(begun, default=0) * held, False


def between(written: Sequence[Segment], said: int, known: int) -> Iterator[str | ImageSegment]:
    """The pieces of a text from one character to another, and the pictures whose markers are there."""
    at = 0
    for segment in written:
        start, at = at, at + length(segment)
        if isinstance(segment, TextSegment):
            if piece := segment.text[max(said - start, 0) : max(known - start, 0)]:
                yield piece
        elif said <= start and at <= known:
            yield segment


def read(processor: Processor, ids: list[int], candidates: Mapping[int, ImageSegment], stop: Sequence[str]) -> Reading:
    """What drawn ids say, up to the first stop string: those after the id that completes it are not read."""
    reading = processor.read(ids, candidates)
    if _cut(reading.document, stop) is None:
        return reading

    def stands(number: int) -> bool:
        return _cut(_without_begun(processor.read(ids[:number], candidates), bool(candidates)), stop) is not None

    reading = processor.read(ids[: bisect_left(range(len(ids)), True, key=stands)], candidates)
    document = cast(InterleavedDocument, _cut(reading.document, stop))
    return replace(reading, document=document, ended=True, cut_image=False)


def _cut(document: InterleavedDocument, stop: Sequence[str]) -> InterleavedDocument | None:
    """The document up to the first stop string in its texts; None where there is none."""
    for index, segment in enumerate(document.segments):
        if isinstance(segment, TextSegment) and (at := _first(segment.text, stop)) is not None:
            last = (replace(segment, text=segment.text[:at]),) if at else ()
            return replace(document, segments=(*document.segments[:index], *last))
    return None


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins."""
    return min((at for word in stop if (at := text.find(word)) >= 0), default=None)


def _without_begun(reading: Reading, markers: bool) -> InterleavedDocument:
    """What later tokens leave as it is."""
    segments = reading.document.segments
    if reading.ended or reading.cut_image or not segments or not isinstance(last := segments[-1], TextSegment):
        return reading.document
    kept = last.text[: sure([last], markers)]
    return replace(reading.document, segments=(*segments[:-1], replace(last, text=kept)))

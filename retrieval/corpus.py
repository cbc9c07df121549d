"""Documents with pictures to chunks, the unit that is searched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a chunk, as it was encoded."""

    id: str
    """`DOCUMENT#i`: the document's i-th picture, from 1."""
    data: bytes
    caption: str
    """Alt text or caption of the source; may be empty."""
    context: str
    """The sentences before and behind it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring sentences of a document, and the pictures among them."""

    id: str
    """`DOCUMENT:n`, n from 0."""
    document: str
    """Id of its document: the file, or the benchmark's id."""
    title: str
    text: str
    """`<PIC>` where a picture stands; the k-th is `pictures[k]`."""
    pictures: tuple[Picture, ...]

"""The contract of whatever paints a description, local or behind a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from ..requests import Failure

REFUSED, CUT = "refused by the painter", "description cut by the painter"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A picture to be painted."""

    words: str
    seed: int
    """Of its noise, 0 <= seed < 2^63; as much of it as the painter takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Painted:
    """What came of it."""

    image: Image.Image | None
    """RGB, decoded; None where the painter refuses the description (`REFUSED`)."""
    notes: tuple[str, ...] = ()
    """What a reader should know of it, counted: `REFUSED`, `CUT`."""


class Painter(Protocol):
    """`counts` says how many were painted, cached, refused, and failed by kind."""

    counts: Counter[str]

    def paint(self, wanted: Sequence[Wanted]) -> list[Painted | Failure]:
        """In order. A failure may be tried again; a refusal would be repeated."""
        ...

    def close(self) -> None: ...

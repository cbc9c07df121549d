"""How a language model marks the pictures of its answer: `<picture>A red bicycle in the rain.</picture>`.

    read_marks(text) -> pieces in their order, texts and `Described` pictures, and the marks that are none, by kind

Exactly these two tags, a description between them, in one paragraph. Whatever else looks like a mark is taken for a
slip: its tags go, its words stay in the text, and it is counted. So is `[picture: ...]`, which stays whole.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

OPEN, CLOSE = "<picture>", "</picture>"
TAG = re.compile(r"<[ \t]*+/?+[ \t]*+picture(?:[ \t/][^<>\n]{0,200}+)?+>", re.IGNORECASE)
"""What is meant as one of them."""
BRACKETS = re.compile(r"\[[ \t]*+(?:picture|image|photo|illustration)[ \t]*+:[^]\n]{1,1000}+\]", re.IGNORECASE)
"""A picture in another form, which stays as it is."""
PARAGRAPH = re.compile(r"\n[ \t]*+\n")
NOT_CLOSED, EMPTY, MALFORMED = "picture mark not closed", "picture mark without words", "malformed picture mark"


@dataclass(frozen=True, slots=True)
class Described:
    """A picture that is to be painted."""

    words: str


@dataclass(frozen=True, slots=True)
class Marks:
    pieces: tuple[str | Described, ...]
    """In the order of the text; no text is empty, and no two stand side by side."""
    faults: Counter[str]


def read_marks(text: str) -> Marks:
    """Every letter outside of tags is in a piece: as text, or as a description, whose white space becomes spaces."""
    pieces: list[str | Described] = []
    words: list[str] = []
    inside: list[str] | None = None
    faults: Counter[str] = Counter()

    def as_text(fault: str, *given: str) -> None:
        faults[fault] += 1
        words.extend(given)

    at = 0
    for tag in TAG.finditer(text):
        (words if inside is None else inside).append(text[at : tag.start()])
        at = tag.end()
        if tag.group() == OPEN:
            if inside is not None:
                as_text(NOT_CLOSED, *inside)
            inside = []
        elif tag.group() == CLOSE and inside is not None:
            described = "".join(inside)
            if PARAGRAPH.search(described.strip()):  # what belongs to the answer would be painted
                as_text(NOT_CLOSED, described)
            elif description := " ".join(described.split()):
                pieces += [*_joined(words), Described(description)]
                words = []
            else:
                as_text(EMPTY)
            inside = None
        else:
            faults[MALFORMED] += 1
    (words if inside is None else inside).append(text[at:])
    if inside is not None:
        as_text(NOT_CLOSED, *inside)
    pieces += _joined(words)
    faults[MALFORMED] += sum(len(BRACKETS.findall(piece)) for piece in pieces if isinstance(piece, str))
    return Marks(tuple(pieces), +faults)


def _joined(words: list[str]) -> list[str]:
    return [text] if (text := "".join(words)) else []

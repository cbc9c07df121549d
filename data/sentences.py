"""Text to sentences, nothing lost: the unit in which a picture's place is counted, and of which chunks are made."""

from __future__ import annotations

import re

ABBREVIATIONS = "approx|cf|dr|e\\.g|eq|etc|fig|i\\.e|inc|mr|mrs|ms|no|nr|prof|sec|st|vs"
BOUNDARY = re.compile(
    r"""
    (?<!\b[A-Z]\.)                              # J. Smith
    (?:
        (?<=[.!?]) (?=\s+[^\sa-z])              # the next word is no continuation
      | (?<=[.!?]["')\]]) (?=\s+[^\sa-z])
      | (?<=[\u3002\uff01\uff1f]) (?![\u201d\u2019\u300d\u300f\uff09])  # Chinese and Japanese put no space between
      | (?<=[\u3002\uff01\uff1f][\u201d\u2019\u300d\u300f\uff09])
      | (?=\s*\n)                               # a line of a list or of a recipe is a sentence
    )
    """,
    re.VERBOSE,
)
UNFINISHED = re.compile(rf"(?:^|[\s(])(?:{ABBREVIATIONS})\.$|^\s*[0-9]{{1,3}}\.$", re.IGNORECASE)
"""An abbreviation, or the number of a list's item."""


def sentences(text: str) -> list[str]:
    """Joined they are `text`; each begins with the space that stands before it and has a letter, a digit or a sign.

    Rules of punctuation, English and Chinese: a full stop inside a line ends a sentence unless a lower-case word
    follows, or it ends an abbreviation, an initial or the number of a list item.
    """
    found: list[str] = []
    for piece in _pieces(text):
        if found and (not piece.strip() or not found[-1].strip() or UNFINISHED.search(found[-1])):
            found[-1] += piece
        else:
            found.append(piece)
    return found


def _pieces(text: str) -> list[str]:
    ends = [match.start() for match in BOUNDARY.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if start < end]

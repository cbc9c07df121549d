"""Text to sentences, nothing lost: the unit in which a picture's place is counted, and of which chunks are made."""

from __future__ import annotations

import re
from itertools import pairwise

ABBREVIATIONS = "approx|cf|dr|e\\.g|eq|etc|fig|i\\.e|inc|mr|mrs|ms|no|nr|prof|sec|st|vs"
BOUNDARY = re.compile(
    r"""
    (?<!\b[A-Z]\.)                              # J. Smith
    (?:
        (?<=[.!?]) (?=\s++[^a-z])               # the next word is no continuation
      | (?<=[.!?]["')\]]) (?=\s++[^a-z])
      | (?<=[\u3002\uff01\uff1f]) (?![\u201d\u2019\u300d\u300f\uff09])  # Chinese and Japanese put no space between
      | (?<=[\u3002\uff01\uff1f][\u201d\u2019\u300d\u300f\uff09])
      | (?=\n)                                  # a line of a list or of a recipe is a sentence
    )
    """,
    re.VERBOSE,
)
ABBREVIATED = re.compile(rf"(?:^|[\s(])(?:{ABBREVIATIONS})\.$", re.IGNORECASE)
NUMBER = re.compile(r"[0-9]{1,3}\.\n?")
TAIL = 16
"""Letters that hold any abbreviation and what stands before it."""


def sentences(text: str) -> list[str]:
    """Joined they are `text`; each begins with the space that stands before it and has a letter, a digit or a sign.

    Rules of punctuation, English and Chinese: a full stop inside a line ends a sentence unless a lower-case word
    follows, or it ends an abbreviation, an initial or the number of a list item.
    """
    begins: list[int] = []
    word: int | None = None  # where the last sentence's first word stands
    cuts = sorted({0, *(match.start() for match in BOUNDARY.finditer(text)), len(text)})
    for start, end in pairwise(cuts):
        piece = text[start:end].lstrip()
        if not begins or (piece and word is not None and not _unfinished(text, begins[-1], word, start)):
            begins.append(start)
            word = None
        if word is None and piece:
            word = end - len(piece)
    return [text[start:end] for start, end in pairwise([*begins, len(text)])]


def _unfinished(text: str, begin: int, word: int, end: int) -> bool:
    """Is the sentence up to `end`, its first word at `word`, an abbreviation's or the number of a list's item?"""
    numbered = end - word <= 5 and NUMBER.fullmatch(text, word, end)
    return bool(numbered or ABBREVIATED.search(text[max(begin, end - TAIL) : end]))

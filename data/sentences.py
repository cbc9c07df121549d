"""Text to sentences, nothing lost: the unit in which a picture's place is counted, and of which chunks are made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
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
    follows, or it ends an abbreviation, an initial or the number of a list item. A table and a fenced block of code
    are one sentence each: a picture or a chunk's end inside would break them.
    """
    begins: list[int] = []
    word: int | None = None  # where the last sentence's first word stands
    cuts = sorted({0, *_ends(text), len(text)})
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


@dataclass(frozen=True, slots=True)
class Block:
    """Lines of a Markdown text that make sense together only."""

    start: int
    end: int
    """Offset behind its last line, without the line break."""
    head: int
    """Lines without which the others are no block: two of a table, one of code."""
    foot: int
    """The same at the end: none of a table, one of code."""


def blocks(text: str) -> list[Block]:
    """Tables (a row, a row of dashes, the rows with a `|` that follow) and closed fences of code, also in lists."""
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    closing = _closing_lines(lines)
    found, number = [], 0
    while number < len(lines):
        last = None
        if last := closing.get(number):
            head, foot = 1, 1
        elif _is_table(lines[number : number + 2]):
            last = number + 1
            while last + 1 < len(lines) and "|" in lines[last + 1] and not _fence(lines[last + 1]):
                last += 1
            head, foot = 2, 0
        if last is None:
            number += 1
        else:
            found.append(Block(starts[number], starts[last] + len(lines[last]), head, foot))
            number = last + 1
    return found


def _closing_lines(lines: list[str]) -> dict[int, int]:
    """By the number of a line that opens a fence, that of the line which closes it."""
    found: dict[int, int] = {}
    opened, fence = -1, ""
    for number, line in enumerate(lines):
        mark = _fence(line)
        if not mark:
            continue
        if not fence:
            opened, fence = number, mark
        elif mark.startswith(fence) and line.strip(" \t\r>") == mark:
            found[opened], fence = number, ""
    return found


def _fence(line: str) -> str:
    """The backticks or tildes that a line opens or closes a block of code with, also as a list's item; else nothing."""
    match = re.match(r"[ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+|>[ \t]?)?(`{3,}|~{3,})", line)
    return match[1] if match and not ("`" in match[1] and "`" in line[match.end() :]) else ""


def _is_table(lines: list[str]) -> bool:
    if len(lines) < 2 or "|" not in lines[0]:
        return False
    dashes = lines[1].strip()
    return "-" in dashes and "|" in dashes and not dashes.strip("|-: \t")


def _ends(text: str) -> Iterator[int]:
    """Where sentences may end: not inside a block."""
    inside = iter(blocks(text))
    block = next(inside, None)
    for match in BOUNDARY.finditer(text):
        end = match.start()
        while block and block.end <= end:
            block = next(inside, None)
        if not block or end <= block.start:
            yield end

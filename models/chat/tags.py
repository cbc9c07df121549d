"""What stands between two tags of a reply, in one pass: `<score>(.*?)</score>` is quadratic in `<score>` alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

ANYTHING = "(.*?)"


class Tagged(NamedTuple):
    opening: re.Match[str]
    inside: str
    whole: str


def between(opening: re.Pattern[str], closing: re.Pattern[str], text: str) -> Iterator[Tagged]:
    """What `OPENING(.*?)CLOSING` finds, and no more; where nothing closes one, nothing closes those behind it."""
    at = 0
    while (begins := opening.search(text, at)) and (ends := closing.search(text, begins.end())):
        yield Tagged(begins, text[begins.end() : ends.start()], text[begins.start() : ends.end()])
        at = max(ends.end(), at + 1)


def tagged(pattern: str, text: str) -> Iterator[tuple[str, str]]:
    """(what the one group of the pattern holds, all that it matches) for each match; `.` is any character.

    `OPENING(.*?)CLOSING` is searched for in time that grows with the text; another pattern takes what it takes, and so
    does one whose two parts do not stand alone: groups around them, flags, alternatives.
    """
    opening, lazy, closing = pattern.partition(ANYTHING)
    if lazy and opening and closing and not {*"(|)"} & {*opening, *closing}:
        found = between(re.compile(opening, re.DOTALL), re.compile(closing, re.DOTALL), text)
        yield from ((tag.inside, tag.whole) for tag in found)
    else:
        yield from ((match[1], match[0]) for match in re.finditer(pattern, text, re.DOTALL))

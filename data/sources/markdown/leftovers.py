"""The last question to a page: in the text that is left, what looks like a picture?

The rules know the dialects that somebody wrote them for. Whatever they did not understand must not be lost in silence.
Every pattern is bounded, so that a page takes time in proportion to its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .page import Page, blanked
from .shown import EMBEDDED, EXTENSIONS, Shown

UNREAD = ("unread", "looks like a picture and is left in the text; write it as ![text](path)")
MOST_SHOWN = 80
"""Characters of such a place in the report."""
ENDING = rf"\.(?:{'|'.join(sorted(EXTENSIONS))})\b"
LOOKS = re.compile(
    "|".join(
        (
            r"(?<!\\)!\[\[[^\]\n]{0,200}",
            r"(?<!\\)!\[[^\]\n]{0,200}\][ \t]?[(\[][^)\]\n]{0,200}",
            r"(?<![\\\w])!\[[^\]\n]{1,200}\]",
            r"<(?:img|svg|picture|image)\b[^<>]{0,200}",
            r"\b(?:src|srcset|data-src|poster)\s{0,3}=\s{0,3}[\"'{(]{0,3}[^\s\"'<>=]{1,200}" + ENDING,
            r"\burl\(\s?[\"']?[^\s\"'()]{1,200}" + ENDING,
            r"\[\[[^\[\]\n]{1,200}" + ENDING,
            r"\[img\b[^\n\[]{0,200}",
            r"\bimage::?[^\s:\[]{1,200}" + ENDING,
            r"\.\. (?:\|[^|\n]{1,80}\| )?(?:image|figure)::[^\n]{0,200}",
            r"\\includegraphics\b[^\n}]{0,200}",
            r"\binclude_graphics\([^)\n]{0,200}",
            r"[`~:][ \t]?\{(?:figure|image)\}[^\n]{0,200}",
            r"(?<!\S)![^\s!\[]{1,200}" + ENDING + "!",
            r"\{[{%][^{}\n]{0,200}" + ENDING,
            rf"{EMBEDDED}[0-9]+",
            r"\bdata:image/[^\s\"')>]{0,200}",
            r"^[ \t]{0,8}[\w./%+-]{1,200}" + ENDING + r"[ \t]{0,8}$",
            r"^[ \t]{0,8}<?https?://[^\s<>]{1,200}" + ENDING + r"(?:\?[^\s<>]{0,200})?>?[ \t]{0,8}$",
        )
    ),
    re.IGNORECASE | re.MULTILINE,
)


def leftovers(text: str, start: int, page: Page) -> Iterator[tuple[int, Shown]]:
    """The places from `start` on that look like a picture, outside of what is cut out, code, or a comment."""
    for match in LOOKS.finditer(blanked(text, [(cut.start, cut.end) for cut in page.cuts] + page.quiet), start):
        yield match.start(), Shown(" ".join(match[0].split())[:MOST_SHOWN], fault=UNREAD)

"""Pictures written into a page as base64: taken out before it is parsed, so that they are neither text nor lost."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote

from .shown import EMBEDDED

DATA_URI = re.compile(
    r"data:image/[\w.+-]{1,40}(?:;[\w=.-]{1,60}){0,3};base64,[ \t]?([A-Za-z0-9+/_%-]*={0,2}"
    r"(?:[ \t]*\n[ \t]*[A-Za-z0-9+/_-]{60,}={0,2})*(?:[ \t]*\n[ \t]*[A-Za-z0-9+/_-]+={0,2}(?=[ \t]*[\"')>]))?)",
    re.IGNORECASE,
)


def taken_out(text: str) -> tuple[str, list[str]]:
    """The text with a short stand-in for each picture, and their base64 by number."""
    found: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        found.append(match[1])
        return f"{EMBEDDED}{len(found) - 1}"

    return DATA_URI.sub(stand_in, text), found


def data_of(target: str, embedded: list[str]) -> bytes | None:
    """The bytes that a stand-in stands for; None for any other target. Raises ValueError where they are no base64."""
    number = target.removeprefix(EMBEDDED)
    if number == target or not number.isascii() or not number.isdigit() or int(number[:9]) >= len(embedded):
        return None
    payload = "".join(unquote(embedded[int(number)]).split()).rstrip("=").translate({0x2D: "+", 0x5F: "/"})
    return base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)

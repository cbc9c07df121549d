"""Reads JSON of others strictly: what Python could not work with later is refused here, with its line and column."""

import json
import re
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any

DEEPEST = 100
"""Lists and mappings inside one another; Python's own functions give up at some hundreds."""
LONGEST_NUMBER = 300
"""Digits of a whole number: the longest that has a float."""


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, but every fault is a `JSONDecodeError`: also nesting without end, numbers of thousands of digits,
    half of a surrogate pair (`\\ud800`, which is no character and cannot be written), and bytes that are no text."""
    if isinstance(text, bytes | bytearray):
        text = _decoded(bytes(text))
    return _read(text, 0, lambda: (_DECODER.decode(text), len(text)))[0]


def json_at(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at a character of a text, and where it ends; faults are those of `parse_json`."""
    return _read(text, at, lambda: _DECODER.raw_decode(text, at))


def _read(text: str, at: int, decode: Callable[[], tuple[Any, int]]) -> tuple[Any, int]:
    try:
        value, end = decode()
    except RecursionError:
        raise _too_deep(text, at) from None
    except _LongNumber as error:
        digits = str(error)
        said = f"a number of {len(digits)} digits, at most {LONGEST_NUMBER}"
        raise JSONDecodeError(said, text, text.find(digits, at)) from None
    if text.count("[", at, end) + text.count("{", at, end) > DEEPEST and _deeper(value, DEEPEST):
        raise _too_deep(text, at)
    part = text[at:end]
    if not part.isascii() or re.search(r"\\u[dD][89a-fA-F]", part):
        _refuse_surrogates(value, text, at)
    return value, end


class _LongNumber(Exception):
    pass


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise _LongNumber(digits)
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def _decoded(data: bytes) -> str:
    try:
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        raise JSONDecodeError(f"not text: {error.reason} at byte {error.start + 1}", "", 0) from None


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings stand in one another more than so many times; level by level, without recursion."""
    layer = [value]
    for _ in range(levels + 1):
        containers = [item for item in layer if isinstance(item, dict | list)]
        layer = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        if not layer:
            return False
    return True


def _too_deep(text: str, at: int) -> JSONDecodeError:
    return JSONDecodeError(f"nested more than {DEEPEST} deep", text, at)


def _refuse_surrogates(value: Any, text: str, start: int) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        spelled = half.encode("unicode_escape").decode("ascii")
        at = max(text.find(half, start), text.lower().find(spelled, start), start)
        raise JSONDecodeError(f"{spelled} is half of a surrogate pair, no character", text, at) from None

"""Keys and passwords that somebody typed into settings: known by their names, and left out of every file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAME = re.compile(
    r"(.*_)?(api_?key|(access|private|secret)_key|secrets?|password|passwd|passphrase|credentials?|authorization|cookie)"
    r"|((access|api|auth|bearer|hf|hub|push_to_hub|refresh|session)_)?token"
)


def is_secret(name: object) -> bool:
    """`api_key`, `X-Api-Key`, `clientSecret`, `Authorization`, `hub_token`; not `max_tokens` or `pad_token`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|\W+", "_", str(name))
    return _NAME.fullmatch(words.lower()) is not None


def without_secrets(value: Any, place: str = "") -> tuple[Any, dict[str, Any]]:
    """A value of mappings, lists and scalars without what stands under such names, and that by its dotted name."""
    left: dict[str, Any] = {}
    if isinstance(value, Mapping):
        kept: dict[Any, Any] = {}
        for key, inner in value.items():
            name = f"{place}.{key}" if place else str(key)
            if not is_secret(key) or isinstance(inner, bool | int | float):
                kept[key], more = without_secrets(inner, name)
                left |= more
            elif inner:
                left[name] = inner
        return kept, left
    if isinstance(value, list | tuple):
        items = []
        for number, inner in enumerate(value):
            item, more = without_secrets(inner, f"{place}.{number}")
            items.append(item)
            left |= more
        return items, left
    return value, left


def texts_in(value: Any) -> Iterator[str]:
    """Every text within mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)

"""What stands before a page's text: YAML between `---`, TOML between `+++`, JSON in braces."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from ....configs.json_text import json_at
from .shown import is_picture

MAX_FRONT_MATTER = 50_000
"""YAML is slow to read: a megabyte takes half a minute."""
YAML_OPEN, TOML_OPEN = re.compile(r"---[ \t]*\n"), re.compile(r"\+\+\+[ \t]*\n")
YAML_CLOSE, TOML_CLOSE = re.compile(r"^(?:---|\.\.\.)[ \t]*$", re.M), re.compile(r"^\+\+\+[ \t]*$", re.M)
JSON_OPEN, REST = re.compile(r"\{\s*\""), re.compile(r"[ \t]*(?:\n|\Z)")
MOST_NESTED = 20


@dataclass(frozen=True, slots=True)
class FrontMatter:
    title: str = ""
    end: int = 0
    """Where the body begins."""
    fault: str = ""
    pictures: tuple[str, ...] = ()
    """Those that it names, a cover for instance: no place in the text is theirs."""


def front_matter(text: str) -> FrontMatter:
    """What is no mapping between two fences stays text."""
    for name, opening, closing, read in (
        ("YAML", YAML_OPEN, YAML_CLOSE, lambda inside: yaml.load(inside, Loader=yaml.BaseLoader)),  # strings alone
        ("TOML", TOML_OPEN, TOML_CLOSE, tomllib.loads),
    ):
        if (opened := opening.match(text)) and (closed := closing.search(text, opened.end())):
            end = REST.match(text, closed.end())
            assert end is not None
            return _read(name, text[opened.end() : closed.start()], end.end(), read)
    if JSON_OPEN.match(text):
        try:
            fields, end = json_at(text[:MAX_FRONT_MATTER], 0)
        except (ValueError, RecursionError):
            return FrontMatter()  # a text may begin with a brace
        if rest := REST.match(text, end):
            return _of(fields, rest.end())
    return FrontMatter()


def _read(name: str, inside: str, end: int, read: Any) -> FrontMatter:
    if len(inside) > MAX_FRONT_MATTER:
        return FrontMatter(fault=f"longer than {MAX_FRONT_MATTER} characters, so kept as text")
    try:
        return _of(read(inside), end)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return FrontMatter(fault=f"no valid {name}, so kept as text: {' '.join(str(error).split())[:200]}")


def _of(fields: Any, end: int) -> FrontMatter:
    if not isinstance(fields, dict):
        return FrontMatter()
    title = fields.get("title", "")
    title = " ".join(str(title).encode("utf-8", "replace").decode().split()) if isinstance(title, str | int) else ""
    return FrontMatter(title, end, "", tuple(value for value in _strings(fields) if is_picture(value)))


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list) and depth < MOST_NESTED:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part, depth + 1)

"""Outlines in files: a line of a prompt file, and a whole file of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...configs.registry import register
from ...configs.whole import write_atomically
from ...data.prompts import check_keys, read_lines
from ...models.documents.document import InterleavedDocument
from .scenes import Outline, read_outline, story_prompt


@register("prompt", "outline")
def outline_prompt(value: dict[str, Any], identifier: str) -> InterleavedDocument:
    """{"outline": ["small red circle top left", ...]}, of the picture stories"""
    check_keys(value, ("outline", "id"))
    return story_prompt(read_outline(value), identifier)


def read_outlines(path: Path) -> list[Outline]:
    """Outlines of a JSONL file, one `{"outline": ["small red circle top left", ...]}` a line."""
    return [read_outline(value, place) for place, value in read_lines(path)]


def write_outlines(path: Path, outlines: Sequence[Outline]) -> None:
    lines = [json.dumps({"outline": [scene.words for scene in outline]}) + "\n" for outline in outlines]
    write_atomically(path, "".join(lines))

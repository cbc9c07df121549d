"""Prompts of RL: documents as rows of a dataset, whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..models.document import InterleavedDocument
from ..models.errors import InputError
from .picture_stories import Outline, read_outline, story_prompt


def pack_prompt(prompt: InterleavedDocument) -> str:
    """A prompt as one string, pictures inline: the `prompt` column that TRL hands around."""
    return json.dumps(prompt.to_json())


def unpack_prompt(value: str) -> InterleavedDocument:
    return InterleavedDocument.from_json(json.loads(value))


def read_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, object) of each line of a JSONL file. Raises InputError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    found = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from None
        found += 1
        yield f"{path}:{number}", value
    if not found:
        raise InputError(f"{path}: no lines; expected one JSON object a line")


def read_outlines(path: Path) -> list[Outline]:
    """Outlines of a JSONL file, one `{"outline": ["small red circle top left", ...]}` a line."""
    return [read_outline(value, place) for place, value in read_lines(path)]


def read_prompts(path: Path) -> list[InterleavedDocument]:
    """Prompts of a JSONL file, one a line.

    `{"outline": [...]}`, `{"prompt": "text"}`, or a whole document `{"segments": [...]}`.
    """
    prompts = []
    for number, (place, value) in enumerate(read_lines(path)):
        if isinstance(value, dict) and "outline" in value:
            prompts.append(story_prompt(read_outline(value, place), f"prompt-{number}"))
        elif isinstance(value, dict) and isinstance(value.get("prompt"), str):
            prompts.append(
                InterleavedDocument.from_json({"id": f"prompt-{number}", "segments": [_text(value["prompt"])]})
            )
        else:
            try:
                prompts.append(InterleavedDocument.from_json(value).prompt)
            except ValueError as error:
                raise InputError(f"{place}: {error}") from None
    return prompts


def write_outlines(path: Path, outlines: Sequence[Outline]) -> None:
    lines = [json.dumps({"outline": [scene.words for scene in outline]}) + "\n" for outline in outlines]
    path.write_text("".join(lines), encoding="utf-8")


def _text(text: str) -> dict:
    return {"type": "text", "text": text}

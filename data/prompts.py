"""Prompts of RL: documents as rows of a dataset, whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..configs.errors import InputError, reading
from ..models.documents.document import InterleavedDocument, TextSegment
from ..worlds.insertion_stories.scenes import insertion_prompt, read_plan
from ..worlds.picture_stories.scenes import Outline, read_outline, story_prompt


def pack_prompt(prompt: InterleavedDocument) -> str:
    """A prompt as one string, pictures inline: the `prompt` column that TRL hands around.

    Raises InputError naming a prompt whose picture does not decode.
    """
    try:
        return json.dumps(prompt.to_json())
    except ValueError as error:
        raise InputError(f"prompt {prompt.id!r}: {error}") from None


def unpack_prompt(value: str) -> InterleavedDocument:
    return InterleavedDocument.from_json(json.loads(value))


def read_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, object) of each line of a JSONL file. Raises InputError naming file and line."""
    with reading(path):
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON strings may hold what `splitlines` splits at
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


def read_prompts(path: Path, least: int = 1) -> list[InterleavedDocument]:
    """Prompts of a JSONL file, one a line; raises InputError where there are fewer than `least`.

    `{"outline": [...]}`, `{"steps": [...], "candidates": [...]}`, `{"prompt": "text"}`, or a whole document
    `{"segments": [...]}`. A prompt without an id gets its file and line, by which later messages name it.
    """
    prompts = []
    for place, value in read_lines(path):
        identifier = Path(place).name
        if isinstance(value, dict) and "outline" in value:
            prompts.append(story_prompt(read_outline(value, place), identifier))
        elif isinstance(value, dict) and "steps" in value:
            prompts.append(insertion_prompt(read_plan(value, place), identifier))
        elif isinstance(value, dict) and isinstance(value.get("prompt"), str):
            prompts.append(InterleavedDocument((TextSegment(value["prompt"]),), identifier))
        else:
            try:
                prompt = InterleavedDocument.from_json(value).prompt
            except ValueError as error:
                raise InputError(
                    f'{place}: {error}; a line is {{"outline": [...]}}, {{"prompt": "text"}} or a document'
                ) from None
            prompts.append(replace(prompt, id=prompt.id or identifier))
    if len(prompts) < least:
        raise InputError(
            f"{path}: {len(prompts)} prompts, and a batch of rollouts takes {least}; add some, or lower "
            "steps_per_generation"
        )
    return prompts


def write_outlines(path: Path, outlines: Sequence[Outline]) -> None:
    lines = [json.dumps({"outline": [scene.words for scene in outline]}) + "\n" for outline in outlines]
    path.write_text("".join(lines), encoding="utf-8")

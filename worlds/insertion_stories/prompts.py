"""Plans in files: a line of a prompt file, and a whole file of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...configs.registry import register
from ...data.prompts import check_keys
from ...models.documents.document import InterleavedDocument
from ...models.documents.rendering import write_atomically
from .scenes import Plan, insertion_prompt, read_plan


@register("prompt", "steps")
def steps_prompt(value: dict[str, Any], identifier: str) -> InterleavedDocument:
    """{"steps": [...], "candidates": [...]}, of the stories with candidates"""
    check_keys(value, ("steps", "candidates", "id"))
    return insertion_prompt(read_plan(value), identifier)


def write_plans(path: Path, plans: Sequence[Plan]) -> None:
    """JSONL, as `limner grpo --prompts` reads it."""
    lines = [
        json.dumps({"steps": plan.steps, "candidates": [scene.words for scene in plan.candidates]}) for plan in plans
    ]
    write_atomically(path, "\n".join(lines) + "\n")

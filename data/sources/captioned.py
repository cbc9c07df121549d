"""A picture and its caption as a document: to be drawn from its words, or described."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...configs.json_text import parse_json
from ...models.documents.document import InterleavedDocument, TextSegment
from .chat import Built, valid_text
from .pictures import Picture, PictureSettings
from .report import Refused

CAPTIONS = ("text", "caption", "prompt", "sharegpt4v", "description", "txt")
"""Where a caption is looked for, in this order."""
INSTRUCTIONS = {"text_to_image": "Draw: {caption}", "understanding": "Describe the picture."}


@dataclass
class CaptionSettings(PictureSettings):
    task: Literal["text_to_image", "understanding", "both"] = "text_to_image"
    """The picture is learnt from its caption, or the caption from its picture, or both are, as two documents."""
    instruction: str = ""
    """Before the caption, or the question about the picture; by default `Draw: {caption}`, `Describe the picture.`"""
    caption: str = ""
    """Field or member that holds the caption; by default text, caption, prompt, sharegpt4v, description, txt."""


def caption_of(value: Mapping[str, Any], field: str = "") -> str:
    """Raises Refused where there is none: a caption is never made up."""
    for name in (field,) if field else CAPTIONS:
        found = value.get(name)
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, str) and found.strip():
            return valid_text(found.strip())
    raise Refused("no text", f"no caption in {field or ', '.join(CAPTIONS)}")


def captioned(
    picture: Picture, caption: str, name: str, settings: CaptionSettings, meta: Mapping[str, Any] = {}
) -> list[Built]:
    """The documents of a pair. Pictures of one caption are held out together."""
    group = hashlib.sha256(caption.lower().encode()).hexdigest()[:16]
    tasks: Sequence[str] = [settings.task] if settings.task != "both" else ["text_to_image", "understanding"]
    found: list[Built] = []
    for task in tasks:
        words = settings.instruction if settings.task == task and settings.instruction else INSTRUCTIONS[task]
        asked = TextSegment(words.replace("{caption}", caption))
        if task == "text_to_image":
            segments = (asked, picture.learnt())
        else:
            segments = (picture.given(), asked, TextSegment(caption, trainable=True))
        suffix = "" if settings.task != "both" else f"#{task}"
        document = InterleavedDocument(segments, name + suffix, {"kind": task, "group": group, **meta})
        found.append((document, [picture.original]))
    return found


def of_json(data: bytes, what: str) -> dict[str, Any]:
    """An object of JSON; empty where it is something else. Raises Refused where it is none."""
    try:
        value = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise Refused("broken line", f"{what} is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}

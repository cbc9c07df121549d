"""Steps of text and picture as a document that goes on from its first, in the paper's form or in a plain one.

    paper   "Continue ... <BEGIN> c0" [0]   "<think>c1</think> <vis>" [1] "</vis> <think>c2</think> <vis>" [2] "</vis>"
    plain   "Continue ... c0" [0]           "c1" [1] "c2" [2]

All tags are plain text. A record may give several views of itself, which are held out together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ....configs.bounds import Range
from ....models.documents.document import InterleavedDocument, Segment, TextSegment
from ..chat import Built, valid_text
from ..pictures import Picture, PictureSettings
from ..report import Refused

View = Literal["whole", "t2t", "t2i", "ti2i"]
FORBIDDEN = str.maketrans({"<": "(", ">": ")", "\ufffc": " "})
"""What would be read as a tag, or as a picture."""


@dataclass(frozen=True, slots=True)
class Step:
    text: str
    """May be empty in the first: a question stands in its place."""
    picture: Picture


@dataclass
class StorySettings(PictureSettings):
    form: Literal["paper", "plain"] = "paper"
    """With the paper's tags (`<BEGIN>`, `<think>`, `<vis>`), or texts and pictures alone."""
    views: list[View] = field(default_factory=lambda: ["whole"])
    """What is made of a record: all of it, text from text, a picture from its text, the next picture from text and
    picture."""
    instruction: str = ""
    """What stands first; by default a sentence of the source."""
    max_pictures: Annotated[int, Range(2, 1000)] = 30
    """A longer story ends there (`more pictures`)."""


def story(
    name: str, group: str, asked: str, steps: Sequence[Step], settings: StorySettings, meta: dict[str, Any]
) -> Iterator[Built]:
    """The documents of a story. Raises Refused where it is too short.

    asked: the instruction, with the question if there is one. group: what is held out together.
    """
    if len(steps) < 2:
        raise Refused("too short", f"{len(steps)} steps; at least two are needed")
    begin = " <BEGIN>" if settings.form == "paper" else ""
    for view in settings.views:
        kind = "interleaved" if view == "whole" else "understanding" if view == "t2t" else "text_to_image"
        base = {**meta, "kind": kind, "group": group}
        if view == "whole":
            lead = f"{asked}{begin} {steps[0].text}".strip()
            segments: list[Segment] = [TextSegment(lead), steps[0].picture.given(), *_answer(steps[1:], settings.form)]
            yield _built(segments, [step.picture for step in steps], name, base)
            continue
        for number, step in enumerate(steps):
            before = steps[number - 1]
            if view == "t2i" and step.text:
                made: list[Segment] = [TextSegment(f"Draw: {step.text}"), step.picture.learnt()]
                yield _built(made, [step.picture], f"{name}#t2i{number}", base)
            elif view == "ti2i" and number:
                made = [before.picture.given(), TextSegment(f"Draw what follows: {step.text}"), step.picture.learnt()]
                yield _built(made, [before.picture, step.picture], f"{name}#ti2i{number}", base)
        if view == "t2t":
            texts = "\n".join(step.text for step in steps[1:])
            made = [TextSegment(f"{asked}{begin} {steps[0].text}".strip()), TextSegment(texts, trainable=True)]
            yield _built(made, [], f"{name}#t2t", base)


def _answer(steps: Sequence[Step], form: str) -> Iterator[Segment]:
    """What is learnt."""
    for number, step in enumerate(steps):
        if form == "plain":
            yield TextSegment(step.text, trainable=True)
        else:
            yield TextSegment(f"{'</vis> ' * (number > 0)}<think>{step.text}</think> <vis>", trainable=True)
        yield step.picture.learnt()
    if form == "paper":
        yield TextSegment("</vis>", trainable=True)


def _built(segments: Sequence[Segment], pictures: Sequence[Picture], name: str, meta: dict[str, Any]) -> Built:
    return InterleavedDocument(tuple(segments), name, meta), [picture.original for picture in pictures]


def caption(text: Any) -> str:
    """A caption as it may stand between tags. Raises Refused where there is none."""
    words = " ".join(str(text).translate(FORBIDDEN).split()) if isinstance(text, str) else ""
    if not words:
        raise Refused("no text", "a caption is empty")
    return valid_text(words)


def natural(name: str) -> list[tuple[int, Any]]:
    """So that 10 comes after 2."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]

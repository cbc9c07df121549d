"""Answers to one prompt beside each other: as strips of pictures, or as columns with the reward of every segment.

A sample is {"prompt", "pictures", "answers": {name: {"document", "outcome", "components", "segments"}}}: documents as
JSON; `pictures` is how many an answer should have, where that is known; segments are [{"index", "reward", "parts"}],
with the index of the segment in the answer's document. All of it may be anything: what cannot be read is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.documents.document import InterleavedDocument
from ..models.documents.rendering import document_html
from .metrics import dig, mapping, records
from .page import Html, chip, element, join, note, number


def strip(sample: Mapping[str, Any], name: str, title: str, colour: int) -> Html:
    """An answer as a row of its pictures, each with its words; under its title the reward of the whole."""
    answer = dig(sample, "answers", name)
    head = element("h4", f"{title} ", chip("reward", number(dig(answer, "outcome"))))
    return element("div", head, _answer(sample, answer, {}), style=f"strip answer c{colour}")


def column(sample: Mapping[str, Any], name: str, title: str, colour: int) -> Html:
    """An answer with the rewards of the whole and of every segment; without a title where it stands alone."""
    answer = dig(sample, "answers", name)
    segments = records(answer, "segments")
    notes = {s["index"]: _segment_chips(s) for s in segments if isinstance(s.get("index"), int)}
    whole = {"outcome": number(dig(answer, "outcome"))} if "outcome" in mapping(answer) else {}
    parts = {key: number(value) for key, value in mapping(answer, "components").items()}
    return element(
        "div",
        element("h4", title) if title else "",
        chips(whole | parts) if whole or parts else "",
        _answer(sample, answer, notes),
        style=f"answer c{colour}",
    )


def chips(values: Mapping[str, float | None]) -> Html:
    return element("div", *(chip(key.replace("_", " "), value) for key, value in values.items()), style="chips")


def document(value: Any, notes: Mapping[int, Html] | None = None) -> Html:
    """A document from its JSON; of one that holds prompt and answer, the answer alone.

    notes: HTML to stand with a segment, by its index.
    """
    try:
        read = InterleavedDocument.from_json(value)
    except ValueError as error:
        return note(f"This document cannot be shown: {error}")
    skipped = len(read.prompt.segments) if read.completion.segments else 0
    shown = read.completion if skipped else read
    if not shown.segments:
        return note("Empty.")
    return Html(document_html(shown, notes={index - skipped: text for index, text in (notes or {}).items()}))


def _answer(sample: Mapping[str, Any], answer: Any, notes: Mapping[int, Html]) -> Html:
    """With a place for every picture that it should have and has not: behind texts that have none, then at the end."""
    value, notes = dig(answer, "document"), dict(notes)
    segments = records(value, "segments")
    start = next((index for index, segment in enumerate(segments) if segment.get("trainable") is True), 0)
    kinds = [segment.get("type") for segment in segments]
    left_out = int(number(sample.get("pictures")) or 0) - kinds[start:].count("image")
    bare = [i for i in range(start, len(kinds)) if kinds[i] == "text" and kinds[i + 1 : i + 2] != ["image"]]
    gap = element("div", "No picture", style="placeholder")
    for index in bare[: max(0, left_out)]:
        notes[index] = join([notes.get(index, ""), gap])
    rest = left_out - len(bare)
    return join([document(value, notes), element("div", *[gap] * rest, style="gaps") if rest > 0 else ""])


def _segment_chips(segment: Mapping[str, Any]) -> Html:
    parts = {key: number(value) for key, value in mapping(segment, "parts").items()}
    return chips({"reward": number(segment.get("reward")), **parts})

"""The plain way in, a document a line, its pictures named by path:

    {"id": "fold", "segments": [{"text": "How do I fold a boat?"},
                                {"text": "Fold it once.", "trainable": true},
                                {"image": "boats/1.jpg", "trainable": true, "alt": "a folded sheet"}]}
    {"prompt": ["How do I fold a boat?"], "answer": ["Fold it once.", {"image": "boats/1.jpg"}]}

The second says the same in short: of `answer` all is learnt. `kind`, `group` (held out together) and `meta` may stand
beside them. Rules of its own: no segments, segment, broken text, and those of pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...configs.registry import register
from ...models.documents.document import InterleavedDocument, Segment, TextSegment
from ..records import KINDS
from .chat import Built, row_id, valid_text
from .pictures import Pictures, PictureSettings, shown
from .report import Problem, Refused, Report
from .rows import Row, first_record, rows

FIELDS = {"id", "segments", "prompt", "answer", "kind", "group", "meta"}
SEGMENT_FIELDS = {"type", "text", "image", "trainable", "alt", "candidate"}


@register("source", "jsonl")
@dataclass
class Jsonl(PictureSettings):
    """A document a line: segments, or prompt and answer, with the paths of their pictures."""

    cuts: ClassVar[bool] = True
    kind: str = "interleaved"
    """Of records that do not say it: interleaved, understanding, text_to_image."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        gallery = self.gallery(path, report)
        for row in rows(path, report):
            try:
                yield document_of(row.value, row, gallery.of(row.folder), self.kind)
            except Refused as error:
                report.problems.append(Problem(row.file, row.number, error.rule, "", error.reason))

    @staticmethod
    def fits(path: Path) -> bool:
        record = first_record(path)
        return record is not None and is_document(record)


def is_document(record: Mapping[str, Any]) -> bool:
    listed = record.get("segments", record.get("answer"))
    return isinstance(listed, list) and bool(listed)


def document_of(value: Mapping[str, Any], row: Row, pictures: Pictures, kind: str) -> Built:
    """Raises Refused."""
    if unknown := sorted(set(value) - FIELDS):
        raise Refused("segment", f"unknown field {unknown[0]!r}; a record has {', '.join(sorted(FIELDS))}")
    if "segments" in value:
        parts = [(part, False) for part in _listed(value, "segments")]
    else:
        parts = [(part, False) for part in _listed(value, "prompt")]
        parts += [(part, True) for part in _listed(value, "answer")]
    if not parts:
        raise Refused("no segments", "expected `segments`, or `prompt` and `answer`")
    segments: list[Segment] = []
    originals: list[bytes | None] = []
    for number, (part, learnt) in enumerate(parts, 1):
        segment, original = _segment(part, learnt, pictures, f"segment {number}")
        segments.append(segment)
        originals += [] if isinstance(segment, TextSegment) else [original]
    kind = value.get("kind", kind)
    if kind not in KINDS:
        raise Refused("segment", f"kind {kind!r} is none of {', '.join(KINDS)}")
    meta = value.get("meta", {})
    if not isinstance(meta, dict):
        raise Refused("segment", "`meta` is an object")
    group = {"group": str(value["group"])} if "group" in value else {}
    return InterleavedDocument(tuple(segments), row_id(value, row), {**meta, "kind": kind, **group}), originals


def _listed(value: Mapping[str, Any], name: str) -> list[Any]:
    listed = value.get(name, [])
    listed = [listed] if isinstance(listed, str | dict) else listed
    if not isinstance(listed, list):
        raise Refused("no segments", f"`{name}` is a list of texts and pictures")
    return listed


def _segment(part: Any, learnt: bool, pictures: Pictures, place: str) -> tuple[Segment, bytes | None]:
    part = {"text": part} if isinstance(part, str) else part
    if isinstance(part, dict):  # a table writes None where a part has no such field
        part = {name: given for name, given in part.items() if given is not None}
    if not isinstance(part, dict) or ("text" in part) == ("image" in part):
        raise Refused("segment", f'{place}: expected a text, {{"text": ..}} or {{"image": PATH}}')
    if unknown := sorted(set(part) - SEGMENT_FIELDS):
        raise Refused("segment", f"{place}: unknown field {unknown[0]!r}")
    learnt = part.get("trainable", learnt)
    if not isinstance(learnt, bool):
        raise Refused("segment", f"{place}: `trainable` is true or false")
    if "text" in part:
        if not isinstance(part["text"], str):
            raise Refused("segment", f"{place}: `text` is a {type(part['text']).__name__}")
        return TextSegment(valid_text(part["text"]), learnt), None
    if learnt and "candidate" in part:
        raise Refused("segment", f"{place}: a picture that is learnt is no candidate")
    try:
        picture = pictures.read(part["image"])
        alt = valid_text(str(part.get("alt", "")))
        segment = picture.learnt(alt) if learnt else picture.given(alt, part.get("candidate"))
    except Refused as error:
        raise Refused(error.rule, f"{place}: {shown(part['image'])}: {error.reason}") from None
    except (TypeError, ValueError) as error:
        raise Refused("segment", f"{place}: {error}") from None
    return segment, picture.original

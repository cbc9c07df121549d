"""VIST and Zebra-CoT: stories of five photos, and reasoning that draws.

    sis/train.story-in-sequence.json, images/ID.jpg          VIST
    TASK/train-00000-of-00001.parquet                        Zebra-CoT: Question, Text Reasoning Trace, Final Answer,
                                                             problem_image_N, reasoning_image_N

Rules of its own: too short (VIST: fewer than five photos with their sentences).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....configs.errors import InputError
from ....configs.registry import register
from ....models.documents.document import InterleavedDocument, Segment, TextSegment
from ..chat import Built, valid_text
from ..pictures import SUFFIXES, Pictures, PictureSettings, shown
from ..report import Problem, Refused, Report
from ..rows import first_record, rows
from .captions import Problems, read_object, without_stills
from .stories import Step, StorySettings, caption, story

PHOTOS = 5
PLACE = re.compile(r"<image_start>\[?(\w+?)\]?<image_end>")
THOUGHT = re.compile(r"THOUGHT\s+\d+\s*:\s*")


@register("source", "vist")
@dataclass
class Vist(StorySettings):
    """VIST: sis/train.story-in-sequence.json and a folder images."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        files = sorted(path.rglob("train*.story-in-sequence.json")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: no train*.story-in-sequence.json; name VIST's folder")
        base = path if path.is_dir() else path.parent
        root = Path(self.images) if self.images else base
        pictures = Pictures([root, root / "images"], report, self.min_side, self.max_aspect)
        for file in files:
            for number, (name, sentences) in enumerate(_stories(read_object(file)).items(), 1):
                report.record()
                problems = Problems(report, file.name, number)
                try:
                    if len(sentences) != PHOTOS:
                        raise Refused("too short", f"story {name} has {len(sentences)} of {PHOTOS} sentences")
                    steps = [Step(caption(text), pictures.read(_found(root, photo))) for photo, text in sentences]
                    asked = self.instruction or "Tell the story of these photos in text and pictures."
                    kept = without_stills(steps, problems, self.max_pictures)
                    album = {"origin_id": name}
                    yield from story(f"vist:{name}", name, asked, kept, self, album)
                except Refused as error:
                    problems.add(error.rule, error.reason)

    @staticmethod
    def fits(path: Path) -> bool:
        return path.is_dir() and any(path.glob("**/train*.story-in-sequence.json"))


def _stories(value: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """(photo, sentence) in their order, by story."""
    found: dict[str, list[tuple[int, str, str]]] = {}
    for entry in value.get("annotations") or ():
        one = entry[0] if isinstance(entry, list) and entry else entry
        if isinstance(one, dict) and {"story_id", "photo_flickr_id", "worker_arranged_photo_order"} <= one.keys():
            place = (int(one["worker_arranged_photo_order"]), str(one["photo_flickr_id"]), str(one.get("text", "")))
            found.setdefault(str(one["story_id"]), []).append(place)
    return {name: [(photo, text) for _, photo, text in sorted(places)] for name, places in found.items()}


def _found(root: Path, photo: str) -> str:
    """The file of a photo, whatever its suffix."""
    for folder in (root / "images", root):
        for suffix in SUFFIXES:
            if (folder / f"{photo}{suffix}").is_file():
                return str((folder / f"{photo}{suffix}").resolve())
    return f"{photo}.jpg"


@register("source", "zebra-cot")
@dataclass
class ZebraCoT(PictureSettings):
    """Zebra-CoT: parquet or JSON lines with problem_image_N and reasoning_image_N; for research (CC BY-NC 4.0)."""

    vis: bool = False
    """Put each drawn picture between `<vis>` and `</vis>`."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        gallery = self.gallery(path, report)
        for row in rows(path, report):
            row.check_columns("Question", "Text Reasoning Trace", "Final Answer")
            try:
                name = f"zebra-cot:{row.file}:{row.number}"
                yield self._document(row.value, name, gallery.of(row.folder))
            except Refused as error:
                report.problems.append(Problem(row.file, row.number, error.rule, "", error.reason))

    def _document(self, value: Mapping[str, Any], name: str, pictures: Pictures) -> Built:
        segments: list[Segment] = []
        originals: list[bytes | None] = []

        def put(text: str, trainable: bool, open_: str = "", close: str = "") -> None:
            """A text, and the pictures that it names where it names them."""
            for at, part in enumerate(PLACE.split(text)):
                if at % 2:
                    try:
                        picture = pictures.read(value.get(part))
                    except Refused as error:
                        raise Refused(error.rule, f"{part}: {shown(value.get(part))}: {error.reason}") from None
                    before, after = ("<vis>", "</vis>") if self.vis and trainable else ("", "")
                    segments.extend([TextSegment(before, trainable)] * bool(before))
                    segments.append(picture.learnt() if trainable else picture.given())
                    segments.extend([TextSegment(after, trainable)] * bool(after))
                    originals.append(picture.original)
                elif words := " ".join(part.split()):
                    segments.append(TextSegment(f"{open_}{words}{close}", trainable))

        put(_text(value, "Question"), False)
        if not segments:
            raise Refused("no text", "an empty question")
        for thought in THOUGHT.split(_text(value, "Text Reasoning Trace")):
            put(thought, True, "<think>", "</think>")
        put(_text(value, "Final Answer"), True, "<answer>", "</answer>")
        return InterleavedDocument(tuple(segments), name, {"kind": "interleaved"}), originals

    @staticmethod
    def fits(path: Path) -> bool:
        record = first_record(path)
        return record is not None and "Text Reasoning Trace" in record


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        raise Refused("no text", f"no {name}")
    return valid_text(text)

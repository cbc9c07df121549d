"""A folder of pictures with captions, as Hugging Face and most trainers of text-to-image models lay it out:

    cats/metadata.jsonl     {"file_name": "a.png", "text": "a red cat"}       or metadata.csv, metadata.parquet
    cats/a.png

    cats/a.png  cats/a.txt  (or a.caption, a.json)                            or a file of words beside each picture

Rules of its own: no text, no file name, not listed (a picture that the metadata do not name).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs.errors import InputError
from ...configs.registry import register
from .captioned import CaptionSettings, caption_of, captioned, of_json
from .chat import Built
from .pictures import SUFFIXES
from .report import Problem, Refused, Report
from .rows import rows

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
BESIDE = (".txt", ".caption", ".json")
FILE_NAMES = ("file_name", "image", "path", "image_path", "filename")
MAX_CAPTION_BYTES = 2**20


@register("source", "imagefolder")
@dataclass
class ImageFolder(CaptionSettings):
    """A folder of pictures with metadata.jsonl, .csv or .parquet, or a caption file beside each picture."""

    def documents(self, path: Path, report: Report) -> Iterator[Built]:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; name a folder of pictures with captions")
        gallery = self.gallery(path, report)
        if metadata_files(path):
            yield from self._listed(path, report)
            return
        found = False
        for file in picture_files(path):
            found = True
            report.record()
            name = file.relative_to(path).as_posix()
            try:
                words = caption_of(_beside(file), self.caption)
                pictures = gallery.of(file.parent)
                yield from captioned(pictures.read(file.name), words, name, self)
            except Refused as error:
                report.problems.append(Problem(name, 1, error.rule, "", error.reason))
        if not found:
            raise InputError(f"{path}: no picture in it ({', '.join(SUFFIXES)})")

    def _listed(self, path: Path, report: Report) -> Iterator[Built]:
        gallery, named = self.gallery(path, report), set[str]()
        for row in rows(path, report, METADATA):
            try:
                name = next((row.value[f] for f in FILE_NAMES if isinstance(row.value.get(f), str)), None)
                if not name:
                    columns = ", ".join(sorted(map(str, row.value))[:12])
                    raise Refused("no file name", f"has {columns}; expected file_name")
                place = os.path.normpath(os.path.join(os.path.dirname(row.file), name))
                named.add(place)
                words = caption_of(row.value, self.caption)
                yield from captioned(gallery.of(row.folder).read(name), words, place, self)
            except Refused as error:
                report.problems.append(Problem(row.file, row.number, error.rule, "", error.reason))
        if not self.images:
            for file in picture_files(path):
                if (name := file.relative_to(path).as_posix()) not in named:
                    report.problems.append(Problem(name, 1, "not listed", "", "no line of the metadata names it"))

    @staticmethod
    def fits(path: Path) -> bool:
        if not path.is_dir():
            return False
        if metadata_files(path):
            return True
        first = next(picture_files(path), None)
        return first is not None and any(first.with_suffix(suffix).is_file() for suffix in BESIDE)


def metadata_files(path: Path) -> list[Path]:
    return [file for name in METADATA for file in path.rglob(name)]


def picture_files(path: Path) -> Iterator[Path]:
    """By path, links to folders not followed."""
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(folder, name)


def _beside(file: Path) -> dict[str, Any]:
    """The words beside a picture as a record. Raises Refused."""
    for suffix in BESIDE:
        words = file.with_suffix(suffix)
        if words.is_file() and not words.is_symlink() and words.stat().st_size <= MAX_CAPTION_BYTES:
            data = words.read_bytes()
            if suffix == ".json":
                return of_json(data, words.name)
            return {"text": data.decode("utf-8-sig", "replace")}
    raise Refused("no text", f"none of {', '.join(file.stem + suffix for suffix in BESIDE)} is beside it")

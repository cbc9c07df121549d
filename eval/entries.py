"""Entries, each a text, a picture file or both: the form of MMIE's files, and that in which answers are kept.

[{"text": "Peel the apples.", "image": "images/peel.png"}, {"text": "Serve.", "image": null}]
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..configs.errors import InputError
from ..data.prompts import inside as below
from ..models.documents.document import ImageSegment, InterleavedDocument, Origin, Segment, TextSegment, open_image


@dataclass(frozen=True, slots=True)
class Entry:
    text: str | None = None
    image: Path | None = None
    """File of the picture, which comes after the text; it need not exist."""


class PictureFault(InputError):
    """A picture of an item that is not there or does not open."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind
        """`missing image` or `unreadable image`."""


def read_entries(value: Any, root: Path, place: str) -> tuple[Entry, ...]:
    """Entries of a JSON value: a text, an entry, a list of either, or null.

    root: the folder that pictures are relative to and may not leave. `place` names record and field in an InputError.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        return (Entry(value),)
    if isinstance(value, list):
        parts = (read_entries(item, root, f"{place}[{number}]") for number, item in enumerate(value))
        return tuple(entry for part in parts for entry in part)
    if not isinstance(value, dict) or not {"text", "image"} & set(value):
        what = f"an object with {', '.join(map(repr, value))}" if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{place}: expected a text, or an object with `text` and `image`, got {what}")
    text, image = value.get("text"), value.get("image")
    if not isinstance(text, str | None) or not isinstance(image, str | None):
        raise InputError(f"{place}: `text` and `image` are strings or null")
    return (Entry(text, inside(root, image, place) if image else None),)


def inside(root: Path, name: str, place: str) -> Path:
    """The file of that name. Raises InputError where it lies outside the folder."""
    try:
        return below(root, name, "name the folder of the pictures with --images")
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def segments_of(entries: Iterable[Entry], trainable: bool = False, origin: Origin = "given") -> tuple[Segment, ...]:
    """Texts and opened pictures in their order. Raises PictureFault."""
    segments: list[Segment] = []
    for entry in entries:
        if entry.text is not None:
            segments.append(TextSegment(entry.text, trainable))
        if entry.image is not None:
            segments.append(ImageSegment(open_picture(entry.image), trainable, origin))
    return tuple(segments)


def spaced(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """With a line break between neighbouring texts, which would run together in a prompt."""
    result: list[Segment] = []
    for segment in segments:
        if isinstance(segment, TextSegment) and result and isinstance(result[-1], TextSegment):
            result.append(TextSegment("\n", segment.trainable))
        result.append(segment)
    return tuple(result)


def decoded(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """With every picture decoded: one that several requests share must not be decoded by their threads at once.

    Raises PictureFault.
    """
    result: list[Segment] = []
    for segment in segments:
        if isinstance(segment, ImageSegment):
            try:
                segment = replace(segment, image=segment.pixels())
            except ValueError as error:
                raise PictureFault("unreadable image", str(error)) from None
        result.append(segment)
    return tuple(result)


def open_picture(path: Path) -> Image.Image:
    """The picture, not yet decoded. Raises PictureFault."""
    try:
        return open_image(path.read_bytes())
    except FileNotFoundError:
        raise PictureFault("missing image", f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise PictureFault("unreadable image", f"{path}: {error}") from None


def entries_of(document: InterleavedDocument, save: Callable[[Image.Image, int], Path]) -> list[Entry]:
    """The document's segments, a text and the picture after it as one entry.

    save: writes a picture, number 1 and up, and says where.
    """
    entries: list[Entry] = []
    number = 0
    for segment in document.segments:
        if isinstance(segment, TextSegment):
            entries.append(Entry(segment.text))
            continue
        number += 1
        path = save(segment.pixels(), number)
        if entries and entries[-1].image is None:
            entries[-1] = Entry(entries[-1].text, path)
        else:
            entries.append(Entry(None, path))
    return entries


def entries_json(entries: Sequence[Entry], root: Path) -> list[dict[str, str | None]]:
    """What `read_entries` reads, pictures relative to the folder."""
    return [
        {"text": entry.text, "image": None if entry.image is None else entry.image.relative_to(root).as_posix()}
        for entry in entries
    ]


class Copies:
    """Puts pictures into `FOLDER/images` and says their names relative to the folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names: dict[Path, str] = {}
        (folder / "images").mkdir()

    def __call__(self, path: Path) -> str:
        """Raises PictureFault where there is no such file."""
        if path not in self.names:
            name = f"images/{len(self.names):06d}{path.suffix}"
            try:
                shutil.copyfile(path, self.folder / name)
            except OSError as error:
                raise PictureFault("missing image", f"{path}: cannot be copied: {error.strerror}") from None
            self.names[path] = name
        return self.names[path]

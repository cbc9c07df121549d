"""A record's pictures: found inside one folder, decoded to the last pixel, upright, or refused by a rule with a name.

    pictures = Pictures(Path("pictures"), report)
    picture = pictures.read("coco/1.jpg")          # a path, a data URI, or {"bytes": .., "path": ..} of a parquet file

Rules that refuse: missing, outside, remote, corrupt, format not supported, not downloaded, too large, too small,
aspect. Rules that change: turned (as its EXIF says), frames (the first of an animation).
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from PIL import Image, ImageOps, features

from ...configs.bounds import MILLION, Range, Side
from ...configs.errors import InputError
from ...models.documents.document import MAX_IMAGE_BYTES, ImageSegment, open_image, to_rgb
from .report import Refused, Report

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
"""Of files that are pictures; those that limner does not read are refused by name, and not overlooked."""
ORIENTATION = 0x0112
STARTS = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"%PDF", "PDF"),
    (b"%!PS", "EPS"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\1\0", "ICO"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x1f\x8b", "compressed SVG"),
    (b"\x1aE\xdf\xa3", "video"),
)
AVIF = "" if features.check("avif") else "AVIF"
BRANDS = {b"avif": AVIF, b"avis": AVIF} | dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"mif1"), "HEIC")
"""Of ISO media files; any other brand is video."""
SHOWN = 200
"""Characters of a reference that a report shows: it may be a data URI."""


@dataclass(frozen=True, slots=True)
class Picture:
    image: Image.Image
    """Upright; of one that shows itself so, not yet decoded."""
    original: bytes | None
    """The file it came from, where that shows it so."""

    def given(self, alt: str = "", candidate: int | None = None) -> ImageSegment:
        return ImageSegment(self.image, candidate=candidate, alt=alt)

    def learnt(self, alt: str = "") -> ImageSegment:
        """One that the model is to draw."""
        return ImageSegment(self.image, True, "generated", alt=alt)


@dataclass
class Pictures:
    roots: Sequence[Path]
    """Folders in which a path is looked up; nothing outside them is read."""
    report: Report
    min_side: int = 16
    max_aspect: float = 10.0

    def __post_init__(self) -> None:
        self.roots = [root.resolve() for root in self.roots]
        self._allowed = tuple(os.path.join(root, "") for root in self.roots)

    def read(self, reference: Any) -> Picture:
        """Raises Refused."""
        return self.decode(self.bytes_of(reference))

    def bytes_of(self, reference: Any) -> bytes:
        """The encoded picture. Raises Refused."""
        if isinstance(reference, dict):
            if isinstance(data := reference.get("bytes"), bytes | bytearray):
                return bytes(data)
            reference = reference.get("path") or reference.get("url")
        if isinstance(reference, bytes | bytearray):
            return bytes(reference)
        if reference is None or reference == "":
            raise Refused("missing", "no picture is named")
        if not isinstance(reference, str):
            raise Refused("missing", f"a picture is named by a path, not by a {type(reference).__name__}")
        if reference.startswith("data:"):
            return _of_data_uri(reference)
        path = self._file(reference.removeprefix("file://"))
        try:
            if path.stat().st_size > MAX_IMAGE_BYTES:
                raise Refused("too large", f"the limit is {MAX_IMAGE_BYTES} bytes")
            return path.read_bytes()
        except OSError as error:
            raise Refused("missing", error.strerror or str(error)) from None

    def _file(self, name: str) -> Path:
        if "://" in name:
            raise Refused("remote", "only files are read; download it, and give --images FOLDER")
        outside = False
        for root in self.roots:
            try:
                path = os.path.realpath(root / name)
                inside = path.startswith(self._allowed)
                outside = outside or not inside
                if inside and os.path.isfile(path):
                    return Path(path)
            except (OSError, ValueError, RuntimeError):  # a name too long, a NUL in it, a loop of links
                continue
        shown = " or ".join(map(str, dict.fromkeys(self.roots)))
        if outside:
            raise Refused("outside", f"not inside {shown}; give --images FOLDER that holds it")
        raise Refused("missing", f"no such file in {shown}; give --images FOLDER that holds it")

    def decode(self, data: bytes) -> Picture:
        """Raises Refused for what does not decode to its last pixel: of a cut JPEG, grey would be learnt."""
        try:
            opened = open_image(data)
            width, height = opened.size
            if max(width, height) > self.max_aspect * min(width, height):
                raise Refused("aspect", f"{width} x {height}; max_aspect is {self.max_aspect:g}")
            if min(width, height) < self.min_side:
                raise Refused("too small", f"{width} x {height}; min_side is {self.min_side}")
            to_rgb(opened)
        except Refused:
            raise
        except Exception as error:  # whatever Pillow raises over bytes of this kind
            rule = "too large" if "limit" in str(error) else "corrupt"
            raise Refused(*unread(data) or (rule, str(error))) from None
        if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":  # what phones add to a JPEG is no animation
            self.report.note("frames")
            return Picture(to_rgb(opened), None)
        try:
            turned = opened.getexif().get(ORIENTATION, 1) != 1
            upright = ImageOps.exif_transpose(opened) if turned else opened
        except Exception:  # Pillow raises many types for malformed EXIF; the picture itself has decoded
            turned = False
        if turned:
            self.report.note("turned")
            return Picture(to_rgb(upright), None)
        return Picture(open_image(data), data)  # opened anew: what waits to be written need not hold its pixels


@dataclass
class PictureSettings:
    """Options of every source of records with pictures."""

    beside: ClassVar[bool] = True
    """Records may lie among pages, as captions and tables do: the folder then is one of pages."""
    images: str = ""
    """Folder of the pictures (`--images`); by default that of the file that names them, then SRC."""
    min_side: Side = 16
    """A picture with a shorter side is refused: `too small`."""
    max_aspect: Annotated[float, Range(1, MILLION)] = 10.0
    """A picture whose longer side is more than so many times its shorter is refused: `aspect`."""

    def gallery(self, path: Path, report: Report) -> Gallery:
        """Of a source's path. Raises InputError where `images` is no folder."""
        if self.images and not Path(self.images).is_dir():
            raise InputError(f"images: {self.images}: no such folder; name the one that holds the pictures")
        return Gallery(self, path if path.is_dir() else path.parent, report)


@dataclass
class Gallery:
    """The pictures of a source, whose records may lie in several folders."""

    settings: PictureSettings
    base: Path
    report: Report
    _of: dict[Path, Pictures] = field(default_factory=dict)

    def of(self, folder: Path) -> Pictures:
        """The pictures of the records in a folder."""
        if folder not in self._of:
            own = self.settings
            roots = [Path(own.images)] if own.images else [folder, self.base]
            self._of[folder] = Pictures(roots, self.report, own.min_side, own.max_aspect)
        return self._of[folder]


def shown(reference: Any) -> str:
    """A reference for a report."""
    if isinstance(reference, dict):
        reference = reference.get("path") or reference.get("url") or "bytes"
    return str(reference)[:SHOWN]


def _of_data_uri(text: str) -> bytes:
    head, comma, payload = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise Refused("corrupt", "a data URI that is not base64")
    if len(payload) > MAX_IMAGE_BYTES * 4 // 3 + 4:
        raise Refused("too large", f"the limit is {MAX_IMAGE_BYTES} bytes")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise Refused("corrupt", f"a data URI that is not base64: {error}") from None


def unread(data: bytes) -> tuple[str, str] | None:
    """Kind and reason for a sound file of a kind that is not read; None for one of no known kind."""
    head = data[:1000].lstrip().lower()
    name = next((name for start, name in STARTS if data.startswith(start)), "")
    if data[4:8] == b"ftyp":
        name = BRANDS.get(data[8:12], "video")
    elif b"<svg" in head:
        name = "SVG"
    elif head.startswith((b"<!doctype html", b"<html")):
        return "corrupt", "a web page, not the picture; download it again"
    elif head.startswith(b"version https://git-lfs"):
        return "not downloaded", "a pointer of Git LFS; git lfs pull brings the picture"
    return ("format not supported", f"{name} is not read; convert it to PNG or JPEG") if name else None

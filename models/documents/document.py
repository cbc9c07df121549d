"""InterleavedDocument, the one noun: a prompt, a completion, a training sample, a served answer.

document = InterleavedDocument((
    TextSegment("Draw a red circle."),
    TextSegment("A red circle.", trainable=True),
    ImageSegment(picture, trainable=True, origin="generated"),
))
document.prompt      # the segments before the first trainable one
document.completion  # the rest
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...configs.errors import plain_file

Origin = Literal["given", "generated", "inserted"]
ORIGINS: tuple[Origin, ...] = ("given", "generated", "inserted")

MAX_IMAGE_BYTES = 32 * 2**20
"""An encoded image larger than this is refused."""
MAX_IMAGE_PIXELS = 64 * 10**6
"""An image with more pixels than this is refused before it is decoded (decompression bombs)."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF")

MOST_CANDIDATES = 9999
"""A marker has at most four digits."""

TEXT_FIELDS = {"type", "text", "trainable"}
IMAGE_FIELDS = {"type", "image", "codes", "origin", "candidate", "alt", "trainable"}
"""Of a segment as JSON."""


@dataclass(frozen=True, slots=True)
class TextSegment:
    text: str
    trainable: bool = False
    """True where the model is to learn to write this."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageSegment:
    image: Image.Image | None
    """Pixels. PIL decodes a file lazily, so an image of a shard whose codes are cached is never decoded."""
    trainable: bool = False
    origin: Origin = "given"
    candidate: int | None = None
    """Number, from 1, of the candidate that a given image is, or that was inserted."""
    codes_N: np.ndarray | None = None
    """Image codes [N], or [N, D] where a position has several, if known: cached in a shard, or as they were sampled."""
    alt: str = ""
    """Description of a given picture (Markdown alt text); for people, never fed to the model."""

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise ValueError(f"image segment: origin {self.origin!r} is none of {', '.join(ORIGINS)}")
        if self.origin == "inserted" and self.candidate is None:
            raise ValueError("image segment: an inserted image names its candidate")
        if self.origin == "generated" and self.candidate is not None:
            raise ValueError("image segment: a generated image is no candidate")
        if self.candidate is not None and not 1 <= self.candidate <= MOST_CANDIDATES:
            raise ValueError(f"image segment: candidate {self.candidate}; numbers go from 1 to {MOST_CANDIDATES}")
        if self.image is None and self.codes_N is None:
            raise ValueError("image segment: neither an image nor codes")

    def pixels(self) -> Image.Image:
        """The picture as RGB. Raises ValueError where there are codes only, or where the file does not decode."""
        if self.image is None:
            raise ValueError("image segment: only codes are here; decode them with the image tokenizer first")
        return to_rgb(self.image)


Segment = TextSegment | ImageSegment


@dataclass(frozen=True, slots=True)
class InterleavedDocument:
    segments: tuple[Segment, ...]
    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    """What a source or a verifier knows of the document (JSON values): its kind, outline, file."""

    @property
    def prompt(self) -> InterleavedDocument:
        """The segments before the first trainable one."""
        return replace(self, segments=self.segments[: self._first_trainable()])

    @property
    def completion(self) -> InterleavedDocument:
        """The segments from the first trainable one on."""
        return replace(self, segments=self.segments[self._first_trainable() :])

    @property
    def images(self) -> tuple[ImageSegment, ...]:
        return tuple(segment for segment in self.segments if isinstance(segment, ImageSegment))

    @property
    def candidates(self) -> dict[int, ImageSegment]:
        """The pictures that are offered, by number, each as an answer that inserts it holds it."""
        return {
            image.candidate: replace(image, trainable=True, origin="inserted")
            for image in self.images
            if image.origin == "given" and image.candidate is not None
        }

    @property
    def text(self) -> str:
        """The text alone, a space where a picture stands between two texts."""
        return " ".join(segment.text.strip() for segment in self.segments if isinstance(segment, TextSegment)).strip()

    def __add__(self, other: InterleavedDocument) -> InterleavedDocument:
        return replace(self, segments=self.segments + other.segments)

    def steps(self) -> list[tuple[Segment, ...]]:
        """For people: each text with the images up to the next text; images before any text are a step of their own."""
        steps: list[list[Segment]] = []
        for segment in self.segments:
            if isinstance(segment, TextSegment) or not steps:
                steps.append([])
            steps[-1].append(segment)
        return [tuple(step) for step in steps]

    def _first_trainable(self) -> int:
        return next((i for i, segment in enumerate(self.segments) if segment.trainable), len(self.segments))

    def to_json(self) -> dict[str, Any]:
        """A JSON value with every picture inline (PNG data URI); `from_json` is its exact inverse."""
        return {"id": self.id, "meta": self.meta, "segments": [_segment_to_json(segment) for segment in self.segments]}

    @classmethod
    def from_json(cls, value: Any) -> InterleavedDocument:
        """Raises ValueError naming the field at fault."""
        if not isinstance(value, dict) or not isinstance(value.get("segments"), list):
            raise ValueError("document: expected an object with a list `segments`")
        if unknown := set(value) - {"id", "meta", "segments"}:
            raise ValueError(f"document: unknown field {min(map(repr, unknown))}")
        identifier, meta = value.get("id", ""), value.get("meta", {})
        if not isinstance(identifier, str) or not isinstance(meta, dict):
            raise ValueError("document: `id` is a string and `meta` an object")
        segments = []
        for index, segment in enumerate(value["segments"]):
            try:
                segments.append(_segment_from_json(segment))
            except ValueError as error:
                raise ValueError(f"document {identifier!r}, segment {index}: {error}") from None
        return cls(tuple(segments), identifier, meta)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; transparency over white. Raises ValueError where the pixels do not decode."""
    try:
        image.load()
        if image.mode == "RGB":
            return image
        if image.mode.startswith("I;16"):  # 16-bit grey: PIL would clip all but the darkest to white
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"image does not decode: {error}") from None


def open_image(data: bytes) -> Image.Image:
    """Opens an encoded image without decoding its pixels.

    Raises ValueError for anything that is no image of a common raster format or is larger than the two limits above.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"image of {len(data)} bytes; the limit is {MAX_IMAGE_BYTES}")
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise ValueError(f"image does not open: {reason} ({len(data)} bytes)") from None
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(f"image of {image.width} x {image.height} pixels; the limit is {MAX_IMAGE_PIXELS}")
    return image


def read_image(path: Path) -> Image.Image:
    """The same of a file, which is looked at before it is opened. Raises OSError, or ValueError without the path."""
    return open_image(plain_file(path, MAX_IMAGE_BYTES).read_bytes())


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, format="PNG")
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode("ascii")


def _segment_to_json(segment: Segment) -> dict[str, Any]:
    if isinstance(segment, TextSegment):
        return {"type": "text", "text": segment.text, "trainable": segment.trainable}
    value: dict[str, Any] = {"type": "image", "origin": segment.origin, "trainable": segment.trainable}
    if segment.image is not None:
        value["image"] = data_uri(segment.image)
    if segment.codes_N is not None:
        value["codes"] = segment.codes_N.tolist()
    if segment.candidate is not None:
        value["candidate"] = segment.candidate
    if segment.alt:
        value["alt"] = segment.alt
    return value


def _codes_from_json(value: Any) -> np.ndarray:
    """A list of codes, or where a position has several one of lists that are equally long."""
    rows: list[Any] = value if isinstance(value, list) else [None]
    several = bool(rows) and isinstance(rows[0], list)
    lists = [row if isinstance(row, list) else [None] for row in rows] if several else [rows]
    if not all(type(code) is int and 0 <= code < 2**31 for row in lists for code in row):
        raise ValueError("`codes` is a list of numbers, 0 <= code < 2^31")
    if len({len(row) for row in lists}) > 1:
        raise ValueError("`codes`: the positions have different numbers of codes")
    return np.asarray(rows, dtype=np.int64)


def _segment_from_json(value: Any) -> Segment:
    if not isinstance(value, dict) or not isinstance(value.get("trainable", False), bool):
        raise ValueError("expected an object with a boolean `trainable`")
    kind = value.get("type")
    if kind not in ("text", "image"):
        raise ValueError(f"`type` is {kind!r}, neither 'text' nor 'image'")
    if unknown := set(value) - (TEXT_FIELDS if kind == "text" else IMAGE_FIELDS):
        raise ValueError(f"unknown field {min(map(repr, unknown))}")
    if kind == "text":
        if not isinstance(value.get("text"), str):
            raise ValueError("a text segment needs a string `text`")
        return TextSegment(value["text"], value.get("trainable", False))
    if not isinstance(value.get("alt", ""), str) or type(value.get("candidate", 0)) is not int:
        raise ValueError("`alt` is a string and `candidate` a number")
    image = codes = None
    if "image" in value:
        head, comma, payload = str(value["image"]).partition(",")
        if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
            raise ValueError("`image` is not a base64 data URI")
        try:
            image = open_image(base64.b64decode(payload, validate=True))
        except ValueError as error:
            raise ValueError(f"`image`: {error}") from None
    if "codes" in value:
        codes = _codes_from_json(value["codes"])
    return ImageSegment(
        image,
        value.get("trainable", False),
        value.get("origin", "given"),
        value.get("candidate"),
        codes,
        value.get("alt", ""),
    )

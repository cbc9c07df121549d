"""A page's picture as it is kept, or the reason why it is not: what is said is what is so.

Read are PNG, JPEG, WEBP, GIF, BMP and AVIF, by Pillow. TIFF is not: libtiff's record with files of strangers is bad.
SVG and HEIC need libraries beyond Pillow, the first a whole renderer that may load files of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ....models.documents.document import MAX_IMAGE_BYTES, open_image, to_rgb
from ..pictures import unread
from ..report import Refused

MIN_SIDE = 6
"""Pixels; what is smaller is a spacer or a tracking pixel."""
MOST_COUNTED = 4 * 2**20
"""Bytes of an animation whose frames are counted: each is looked for, one after the other."""


@dataclass(frozen=True, slots=True)
class Picture:
    image: Image.Image
    """Upright."""
    original: bytes | None
    """Its bytes, where those show it upright."""
    frames: str
    """How many there are in an animation, of which the first is kept; empty for a still picture."""


def read_picture(path: Path) -> Picture:
    """Raises Refused where it is no picture, where its pixels do not decode, or where it shows nothing."""
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise Refused("too large", f"the limit is {MAX_IMAGE_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise Refused("unreadable", str(error)) from None
    return decoded(data)


def decoded(data: bytes) -> Picture:
    """The same for the bytes of a file. Raises Refused."""
    try:
        opened = open_image(data)
    except ValueError as error:
        if "limit" in str(error):
            raise Refused("too large", str(error)) from None
        raise Refused(*unread(data) or ("corrupt", str(error))) from None
    if min(opened.size) < MIN_SIDE:
        raise Refused("too small", f"{opened.width} x {opened.height} pixels, a spacer")
    try:
        flat = len(to_rgb(opened).getcolors(1) or ()) == 1
    except ValueError as error:
        raise Refused("corrupt", str(error)) from None
    frames = _frames(data)
    if flat:
        first = f"the first of {frames} frames, the one that is kept, is" if frames else "it is"
        raise Refused("one colour", f"{first} of one colour")
    try:
        turned = opened.getexif().get(0x0112, 1) != 1
        upright = ImageOps.exif_transpose(opened) if turned else opened
    except Exception:  # Pillow raises many types for malformed EXIF; the picture itself has decoded
        turned = False
    if turned:
        return Picture(upright, None, frames)
    return Picture(open_image(data), data, frames)  # opened anew: a document in memory need not hold pixels


def _frames(data: bytes) -> str:
    """How many frames an animation has, as far as counted; empty for a still picture."""
    try:
        image = open_image(data)
        if image.format == "JPEG" or not getattr(image, "is_animated", False):
            return ""
        return str(getattr(image, "n_frames", 1)) if len(data) <= MOST_COUNTED else "many"
    except Exception:  # Pillow raises many types for frames that are malformed; the first one has decoded
        return "several"

"""Pictures of a request: bytes inside it, or links to pictures of ours. Nothing is fetched, and no file is opened."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from PIL import Image

from ...models.documents.document import open_image, to_rgb
from ..store import ID, PictureStore
from .fields import Fault, wrong

LINK = re.compile(r"!\[[^\]\n]{0,400}\]\(\s*<?(?:https?://[^\s)>/]{1,255})?/v1/images/([A-Za-z0-9_-]{22})>?\s*\)")
"""A picture of ours in Markdown, wherever the server was reached."""
URL = re.compile(r"(?:https?://[^\s/]{1,255})?/v1/images/([^/?#\s]{1,64})")
DATA = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,32};base64,")


@dataclass
class Pictures:
    """Opens those of one request, up to the limits of all of them together."""

    store: PictureStore
    most: int = 32
    most_pixels: int = 128 * 10**6

    def __post_init__(self) -> None:
        self.count = self.pixels = 0

    def of_url(self, url: str, param: str) -> Image.Image:
        """Of a data URI, or of a link to a picture of this server. Raises Fault."""
        if found := URL.fullmatch(url):
            return self.of_bytes(self._kept(found[1], param), param)
        if not (head := DATA.match(url)):
            raise wrong(
                param, "give the picture itself, data:image/png;base64,...; no address is fetched, no file opened"
            )
        return self.of_base64(url[head.end() :], param)

    def of_base64(self, text: str, param: str) -> Image.Image:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise wrong(param, "not base64") from None
        return self.of_bytes(data, param)

    def of_bytes(self, data: bytes, param: str) -> Image.Image:
        """RGB. What the decoder says of a broken picture stays here: it may name addresses."""
        self.count += 1
        if self.count > self.most:
            raise Fault(413, f"{param}: more than {self.most} pictures", param)
        try:
            image = open_image(data)
        except Exception:
            raise wrong(param, "the picture does not open; send PNG, JPEG, WebP, GIF, BMP or AVIF") from None
        self.pixels += image.width * image.height
        if self.pixels > self.most_pixels:
            raise Fault(413, f"{param}: the pictures have more than {self.most_pixels // 10**6} megapixels", param)
        try:
            return to_rgb(image)
        except Exception:
            raise wrong(param, "the picture does not decode; it is cut off or damaged") from None

    def linked(self, name: str) -> bytes | None:
        return self.store.get(name)

    def _kept(self, name: str, param: str) -> bytes:
        data = self.store.get(name) if ID.fullmatch(name) else None
        if data is None:
            raise wrong(param, "that picture is not kept any more; send it as data:image/png;base64,...")
        return data

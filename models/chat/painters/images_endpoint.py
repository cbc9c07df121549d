"""Pictures of an OpenAI-compatible server (`/v1/images/generations`): asked, tried again and cached as a chat is.

A picture is a reply whose text is the base64 of its file. It is taken from the reply itself (`b64_json`); an address is
fetched only from hosts that the settings name, without the key, and never a redirect of it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ....configs.bounds import Seconds
from ....configs.errors import InputError
from ....configs.json_text import parse_json
from ....configs.redaction import without_secrets
from ...documents.document import MAX_IMAGE_BYTES, InterleavedDocument, TextSegment, open_image, to_rgb
from ..endpoint import Endpoint, ServerConfig
from ..http_client import Unreadable, bounded_client
from ..requests import Failure, Prepared, Reply, Request, prepare
from .painter import REFUSED, Painted, Wanted

SIZE = re.compile(r"auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")
POLICY = re.compile(r"content_policy|moderation|safety", re.IGNORECASE)
"""How servers say that they will not paint something."""
SEEDS = 2**31
"""Servers take a seed of 31 bits."""


@dataclass
class ImagesEndpointConfig(ServerConfig):
    timeout: Seconds = 240.0
    size: str = "1024x1024"
    """WIDTHxHEIGHT, or `auto`."""
    send_seed: bool = False
    """Send each picture's own seed: vLLM and SGLang take one, OpenAI refuses it."""
    url_hosts: list[str] = field(default_factory=list)
    """Hosts from which a picture is fetched whose address the server sends in place of it; without any, none is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not SIZE.fullmatch(self.size):
            raise InputError(f"size: {self.size!r}; give WIDTHxHEIGHT, as 1024x1024, or auto")


@dataclass(frozen=True, slots=True)
class PictureRequest(Request):
    seed: int = 0


class ImagesEndpoint(Endpoint):
    """A `Painter`. `counts` are those of `Endpoint`, and `refused by the painter`."""

    path = "/images/generations"

    def __init__(self, config: ImagesEndpointConfig):
        super().__init__(config)

    def paint(self, wanted: Sequence[Wanted]) -> list[Painted | Failure]:
        """Raises InputError for a server that only fails (`patience`)."""
        requests = [
            PictureRequest(InterleavedDocument((TextSegment(one.words),)), seed=one.seed % SEEDS) for one in wanted
        ]
        return [self._painted(answer) for answer in self.complete(requests)]

    def _painted(self, answer: Reply | Failure) -> Painted | Failure:
        if isinstance(answer, Reply):
            return Painted(decoded(answer.text))
        if answer.kind != "rejected" or not POLICY.search(answer.reason):
            return answer
        self.counts[REFUSED] += 1
        return Painted(None, (REFUSED,))

    def manifest(self) -> dict[str, Any]:
        return settings_of(self.config)

    def prepared(self, request: Request) -> Prepared:
        """The seed is part of what a picture depends on, whether it is sent or not: two pictures of one description
        are two."""
        return prepare(request, 0, {**settings_of(self.config), "seed": _seed(request)})

    def body(self, request: Request, prepared: Prepared) -> dict[str, Any]:
        body = {
            "model": self.config.model,
            "prompt": request.content.text,
            "n": 1,
            "size": self.config.size,
            "response_format": "b64_json",
            "seed": _seed(request) if self.config.send_seed else None,
            **self.config.extra_body,
        }
        return {name: value for name, value in body.items() if value is not None}

    async def read(self, body: str) -> Reply:
        """Raises ValueError for what holds no picture, and Unreadable for an address that may not be fetched."""
        try:
            value = parse_json(body)
            entry, usage = value["data"][0], value.get("usage") or {}
            encoded, url = entry.get("b64_json"), entry.get("url")
            tokens = int(usage.get("input_tokens") or 0), int(usage.get("output_tokens") or 0)
            if not isinstance(encoded or url, str):
                raise TypeError("neither b64_json nor url")
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            reason = f"the server's answer holds no picture ({type(error).__name__}: {error}): {body[:100]}"
            raise ValueError(reason) from None
        if not encoded:
            kind, comma, inside = url.partition(",")
            encoded = inside if comma and kind.startswith("data:image/") else await self._fetched(url)
        decoded(encoded)
        return Reply(encoded, "stop", *tokens)

    async def _fetched(self, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.username or parts.hostname not in self.config.url_hosts:
            raise Unreadable(
                f"the server sends an address ({url[:100]}) in place of a picture; have it send b64_json, or allow the "
                f"host by url_hosts: [{parts.hostname or 'HOST'}]"
            )
        try:
            async with (
                asyncio.timeout(self.config.timeout),
                bounded_client(self.config.timeout, MAX_IMAGE_BYTES) as one,
            ):
                reply = await one.get(url)
        except Exception as error:
            raise ValueError(f"{url[:100]}: {type(error).__name__}: {error}") from None
        if reply.status_code != 200:
            raise ValueError(f"{url[:100]}: HTTP {reply.status_code}")
        return base64.b64encode(reply.content).decode("ascii")


def _seed(request: Request) -> int:
    return request.seed if isinstance(request, PictureRequest) else 0


def decoded(encoded: str) -> Image.Image:
    """The picture, RGB. Raises ValueError where it is none, or too large."""
    if len(encoded) > 4 * MAX_IMAGE_BYTES // 3 + 4:
        raise ValueError(f"a picture of {len(encoded)} letters of base64; the limit is {MAX_IMAGE_BYTES} bytes")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("b64_json is no base64") from None
    return to_rgb(open_image(data))


def settings_of(config: ImagesEndpointConfig) -> dict[str, Any]:
    """What a picture depends on beside its words and seed."""
    extra_body, _ = without_secrets(config.extra_body)
    return {"images": True, "model": config.model, "revision": config.revision, "size": config.size} | {
        "send_seed": config.send_seed,
        "extra_body": extra_body,
    }

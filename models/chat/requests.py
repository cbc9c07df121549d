"""Asking a vision-language model: a request, its answer, and the contract of whatever answers (server or local)."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image

from ..documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment, to_rgb
from .reply_cache import ReplyCache, canonical, key_of

_DECODING = threading.Lock()
"""PIL decodes a file when its pixels are first asked for, and two threads may not do that to one picture."""

FailureKind = Literal[
    "timeout",
    "connection",
    "rate limit",
    "server error",
    "rejected",
    "malformed",
    "budget",
    "offline",
    "image",
]


@dataclass(frozen=True, slots=True)
class Request:
    content: InterleavedDocument
    """The user's turn: texts and pictures in their order."""
    system: str = ""
    template: str = ""
    """Identity of the prompt template that made it; part of the cache's key."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, whatever it is worth: reading a score from it is the asker's task."""

    text: str
    finish: str = "stop"
    """Why it ended: "stop", "length" (cut at max_new_tokens), "refusal", "content_filter", or the server's word."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that has no reply, and why."""

    kind: FailureKind
    reason: str


Answer = Reply | Failure


@runtime_checkable
class ChatModel(Protocol):
    """Answers requests, in order. `counts` says how many were asked, cached, and failed by kind."""

    counts: Counter[str]

    def complete(self, requests: Sequence[Request]) -> list[Answer]: ...

    def as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
        """(index, answer) in the order in which they are answered."""
        ...

    def manifest(self) -> dict[str, Any]:
        """A JSON value: the model, its revision, and every setting that its replies depend on."""
        ...

    def close(self) -> None: ...


PLACE = re.compile(r"\{(\w+)\}")
"""Where a prompt template takes something in."""


def fill(text: str, places: Mapping[str, Sequence[Segment]], nothing: str = "(nothing)") -> InterleavedDocument:
    """The text with documents at its places; neighbouring texts become one segment, `nothing` stands for an empty one.

    What is filled in is never searched for places itself: `{answer}` in somebody's answer stays as it is.
    """
    segments: list[Segment] = []
    for index, piece in enumerate(PLACE.split(text)):
        filling = [TextSegment(piece)] if index % 2 == 0 else places[piece] or [TextSegment(nothing)]
        for segment in filling:
            if isinstance(segment, TextSegment) and segments and isinstance(segments[-1], TextSegment):
                segments[-1] = TextSegment(segments[-1].text + segment.text)
            elif isinstance(segment, ImageSegment) or segment.text:
                segments.append(segment)
    return InterleavedDocument(tuple(segments))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as it is sent, and its place in the cache."""

    parts: list[str | Image.Image]
    """Texts, and pictures at the size at which they are sent, RGB."""
    system: str
    question: str
    """Canonical JSON of all that the reply depends on; pictures by their hash."""
    key: str
    """sha256 of the question."""


def prepare(request: Request, image_side: int, settings: Mapping[str, Any]) -> Prepared:
    """Raises ValueError where a picture does not decode.

    A picture counts by its pixels after resizing, so another PNG library changes no key.
    """
    parts: list[str | Image.Image] = []
    content: list[dict[str, str]] = []
    for segment in request.content.segments:
        if isinstance(segment, TextSegment):
            text = _encodable(segment.text)
            parts.append(text)
            content.append({"text": text})
        else:
            with _DECODING:
                pixels = segment.pixels()
            image = resized(pixels, image_side)
            digest = hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes())
            parts.append(image)
            content.append({"image": digest.hexdigest()})
    system = _encodable(request.system)
    question = canonical({**settings, "template": request.template, "system": system, "content": content})
    return Prepared(parts, system, question, key_of(question))


def resized(image: Image.Image, side: int) -> Image.Image:
    """RGB, its longer side at most `side` pixels (0: as it is); a smaller picture is not enlarged."""
    image = to_rgb(image)
    longer = max(image.size)
    if not side or longer <= side:
        return image
    width, height = (max(1, round(length * side / longer)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def recall(cache: ReplyCache | None, key: str) -> Reply | None:
    found = None if cache is None else cache.get(key)
    return None if found is None else Reply(**found, cached=True)


def remember(cache: ReplyCache | None, prepared: Prepared, reply: Reply) -> None:
    if cache is not None:
        stored = asdict(reply)
        del stored["cached"]
        cache.put(prepared.key, prepared.question, stored)


def _encodable(text: str) -> str:
    """Without lone surrogates, which JSON can carry and UTF-8 cannot."""
    return text.encode("utf-8", errors="replace").decode("utf-8")

"""An answer as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from starlette.types import Receive, Scope, Send

from .rows.events import Event
from .service import Asking

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
SILENCE = b": keep-alive\n\n"


class EventStream:
    """An ASGI answer. The end of it, however it comes, runs `at_end`, which frees the slot."""

    def __init__(
        self,
        asking: Asking,
        first: list[Event],
        source: AsyncIterator[list[Event]],
        at_end: ExitStack,
        seconds: float,
        abort: Callable[[], None] | None = None,
    ):
        self.asking, self.first, self.source, self.at_end = asking, first, source, at_end
        self.seconds = seconds
        """A client that takes nothing for so long is hung up on."""
        self.abort = abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.at_end:
            writing = asyncio.ensure_future(self._write(send))
            gone = asyncio.ensure_future(disconnected(receive))
            try:
                await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    await self._end(writing)
            finally:
                for task in (writing, gone):
                    task.cancel()
                await asyncio.gather(writing, gone, return_exceptions=True)

    async def _end(self, writing: asyncio.Future[None]) -> None:
        """Raises what is a fault of ours."""
        try:
            writing.result()
        except TimeoutError:
            if self.abort is not None:
                self.abort()
                await asyncio.sleep(0)

    async def _write(self, send: Send) -> None:
        async def out(body: bytes, more: bool = True) -> None:
            async with asyncio.timeout(self.seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        form, meta = self.asking.form, self.asking.meta
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await out(_lines(form.opening(meta)))
        for event in self.first:
            await out(_lines(form.chunks(event, meta)))
        async for events in self.source:
            for event in events:
                if body := _lines(form.chunks(event, meta)):
                    await out(body)
            if not events:
                await out(SILENCE)
        await out(b"", more=False)


def _lines(values: Iterable[Mapping[str, Any] | str]) -> bytes:
    """With the name of an event where it has a type."""
    parts = []
    for value in values:
        name = f"event: {value['type']}\n" if isinstance(value, Mapping) and "type" in value else ""
        said = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        parts.append(f"{name}data: {said}\n\n")
    return "".join(parts).encode()


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass

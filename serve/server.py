"""uvicorn as it is run here: bounded in connections, headers and time, and drained before it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from threading import Thread
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .api import make_app
from .service import Service

HEADERS_S = 30.0
"""Seconds until the headers of a request are there, from the connection or their first byte on."""
MOST_HEADERS = 64 * 2**10
"""Bytes of a request's headers."""


class Connection(H11Protocol):
    """Hangs up on clients that do not say what they want; and lets an answer hang up on those that do not read it."""

    _late: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.access_log = False  # paths and queries are a client's words

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        if self.limit_concurrency and len(self.connections) > 2 * self.limit_concurrency:
            transport.abort()
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._came()

    def connection_lost(self, exc: Exception | None) -> None:
        self._came()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self.transport.abort)

    def _came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Server(uvicorn.Server):
    def __init__(self, service: Service):
        self.service = service
        config = uvicorn.Config(
            make_app(service),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=service.config.connections,
            h11_max_incomplete_event_size=MOST_HEADERS,
            timeout_graceful_shutdown=10,
        )
        super().__init__(config)
        self._ending = False

    def serve_at(self, listener: socket.socket, ready: Callable[[str], None]) -> None:
        """Until it is told to stop; says its address once it answers."""
        host, port = listener.getsockname()[:2]
        self._ready = lambda: ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
        try:
            self.run(sockets=[listener])
        finally:
            self.service.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once."""
        if self._ending:
            self.should_exit = self.force_exit = True
            return
        self._ending = True
        Thread(target=self.stop, daemon=True, name="drain").start()

    def stop(self) -> None:
        """Lets the running answers end, within their time; then the server ends."""
        self._ending = True
        self.service.engine.drain(self.service.config.drain_seconds)
        self.should_exit = True

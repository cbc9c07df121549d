"""The HTTP side: routes, who may use them, and events of the engine to streams and whole answers.

    app = make_app(Service(model, config))          # ASGI; `limner serve` runs it under uvicorn

The event loop only passes things on: bodies are read and pictures opened in other threads, and the model has its own.
Whoever goes away, in the middle of a stream or before a whole answer, frees his slot.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..configs.errors import InputError
from ..models.documents.rendering import PAGE_CSS
from ..report.page import style
from .access import Bodies, Quota, check_headers
from .engine import Refused
from .rows.events import Event, Failed, Shown, Text
from .service import Asking, Read, Service
from .streams import EventStream, disconnected
from .wire import chat, responses
from .wire.fields import Fault

T = TypeVar("T")
logger = logging.getLogger(__name__)

FORMS: dict[str, Read] = {"/v1/chat/completions": chat.read, "/v1/responses": responses.read}
"""How a request of a path is read."""
PAGE = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
WORKERS = 4
"""Threads that read requests."""
REFUSED = {"full": 429, "draining": 503, "dead": 503}


def make_app(service: Service) -> ASGIApp:
    api = Api(service)
    routes = [
        *(Route(path, api.keyed(api.ask(read)), methods=["POST"]) for path, read in FORMS.items()),
        Route("/v1/models", api.keyed(api.models)),
        Route("/metrics", api.keyed(api.metrics)),
        Route("/v1/images/{name}", api.picture),
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/{name:path}", api.page),
    ]
    faults: Mapping[Any, Any] = dict.fromkeys((Fault, Refused, InputError, HTTPException, ClientDisconnect), _fault)
    return _Guarded(Starlette(routes=routes, exception_handlers={**faults, Exception: _bug}), service)


class Api:
    def __init__(self, service: Service):
        self.service = service
        self.bodies = Bodies(service.config.max_megabytes * 2**20)
        self.quotas: dict[str, Quota] = {}
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="request")
        self.files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in TYPES}
        """The page, in memory: no name of a client is ever looked up on the disk."""
        self.files["look.css"] = (PAGE_CSS + style()).encode()  # what our reports look like

    def keyed(self, endpoint: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Any]]:
        """An endpoint that asks for the key."""

        async def checked(request: Request) -> Any:
            sent = dict(request.scope["headers"]).get(b"authorization", b"")
            request.state.owner = self.service.keys.owner(sent)
            return await endpoint(request)

        return checked

    def ask(self, read: Read) -> Callable[[Request], Awaitable[Any]]:
        """The endpoint of a wire form."""

        async def endpoint(request: Request) -> Any:
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise Fault(415, "send JSON: Content-Type: application/json")
            engine, config = self.service.engine, self.service.config
            engine.check_open()
            quota = self.quotas.setdefault(request.state.owner, Quota(config))
            quota.enter(engine.retry_s)
            with ExitStack() as at_end:
                at_end.callback(quota.leave)
                asking = await self._begin(read, await self.bodies.read(request), request)
                at_end.callback(lambda: quota.charge(tokens=asking.drawn(), pictures=asking.pictures))
                at_end.callback(asking.close)
                if not asking.wanted.stream:
                    events = await unless_gone(_all(asking), request.receive)
                    return JSONResponse(asking.form.whole(events, asking.meta))
                source = asking.events()
                first = await unless_gone(anext(source), request.receive)
                if not any(isinstance(event, Text | Shown) for event in first):  # what is there is not taken back
                    _refuse_failed(first, asking)
                abort = request.scope.get("state", {}).get("abort")
                return EventStream(asking, first, source, at_end.pop_all(), config.reader_seconds, abort)
            raise AssertionError("returned above")

        return endpoint

    async def _begin(self, read: Read, body: bytes, request: Request) -> Asking:
        """In a thread. Who goes away meanwhile leaves nothing behind."""
        base = self.service.config.public_url.rstrip("/") or f"{request.url.scheme}://{request.url.netloc}"
        loop, owner = asyncio.get_running_loop(), request.state.owner
        future = loop.run_in_executor(self.pool, self.service.begin, body, read, owner, base, loop)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: done.exception() or done.result().close())
            raise

    async def models(self, request: Request) -> Response:
        made = self.service.created
        data = [{"id": name, "object": "model", "created": made, "owned_by": "limner"} for name in self.service.models]
        data[0]["limner"] = asdict(self.service.about)  # of the model, not of an index
        return JSONResponse({"object": "list", "data": data})

    async def picture(self, request: Request) -> Response:
        png = self.service.store.get(request.path_params["name"])
        if png is None:
            raise Fault(404, "no such picture, or it is not kept any more")
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    async def health(self, request: Request) -> Response:
        alive = self.service.engine.alive
        return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)

    async def ready(self, request: Request) -> Response:
        engine = self.service.engine
        if engine.draining or not engine.alive:
            raise Fault(503, "no requests are taken", retry_s=engine.retry_s)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        name = request.path_params["name"] or "index.html"
        if name not in self.files:
            raise Fault(404, f"no such path; questions go to {' and '.join(FORMS)}")
        kind = TYPES[name[name.rfind(".") :]]
        return Response(self.files[name], headers={"Content-Type": kind, "Cache-Control": "no-cache"})


async def _all(asking: Asking) -> list[Event]:
    found: list[Event] = []
    async for events in asking.events():
        _refuse_failed(events, asking)
        found += events
    return found


def _refuse_failed(events: list[Event], asking: Asking) -> None:
    """A fault that comes before the first byte is an HTTP status."""
    if events and isinstance(events[-1], Failed):
        raise asking.meta.fault(events[-1])


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """What the work gives. Raises ClientDisconnect as soon as the client goes away."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _fault(request: Request, error: Exception) -> Response:
    """Whatever a request is refused for, as OpenAI's API says it."""
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, Refused):
        error = Fault(REFUSED[error.reason], str(error), code=error.reason, retry_s=error.retry_s)
    elif isinstance(error, InputError):
        error = Fault(400, str(error))
    elif isinstance(error, HTTPException):
        error = Fault(error.status_code, error.detail)
    elif not isinstance(error, Fault):
        error = Fault(400, "the client has gone away")
    if error.retry_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_s))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)


async def _bug(request: Request, error: Exception) -> Response:
    """It is logged behind this, without what the client sent."""
    return JSONResponse(Fault(500, "a fault of the server; its log says more").body(), 500)


class _Guarded:
    """Looks at the name by which the server is asked, and puts the headers of safety on every answer."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.hosts = app, service.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            check_headers(scope["headers"])
            self.hosts.check(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
        except Fault as fault:
            return await (await _fault(Request(scope), fault))(scope, receive, with_headers)
        return await self.app(scope, receive, with_headers)

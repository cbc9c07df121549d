"""`limner serve-rewards`: rewards over HTTP, so that the GPUs that train and those that score can differ.

limner serve-rewards --rewards '{image/clipscore: 1, my_rewards.py:Brevity: 1}' --port 8400
limner grpo ... --rewards '{remote/image_clipscore: {url: "http://gpu-2:8400"}, remote/Brevity: {url: "http://gpu-2:8400"}}'

The parts that have a weight are served, one by one and unweighted; `remote.py` has the protocol. Nothing that arrives
is unpickled or run: documents are JSON, checked field by field. Bodies and requests under way are bounded. There is no
TLS: beyond a network that you trust, put it behind a proxy or a tunnel.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Lock
from typing import Any
from urllib.parse import unquote

import torch

from ...configs import parse
from ...configs.bounds import OneOrMore, Port
from ...configs.errors import InputError, keeping
from ...configs.terminal import say
from ..base import Reward
from ..build import RewardSettings, reward_parts
from ..guard import cleaned
from .client import KEY_VARIABLE, check_variable, pack_output, unpack_completions

logger = logging.getLogger(__name__)

HEADERS_S = 30.0
"""Seconds that a request may take until its headers are there, from the first byte on, all of it;"""
SLOWEST = 2**20
"""then a second more for each so many bytes of its body."""
CONNECTIONS = 8
"""At a time, in `max_waiting`: each has a thread."""
HELD = 4
"""Bytes of bodies in memory at a time, in `max_megabytes`."""
NO_PATH = "no such path; there are GET /rewards and POST /rewards/NAME"


@dataclass
class ServerConfig(RewardSettings):
    host: str = "127.0.0.1"
    """Address to listen at; one that other machines reach (0.0.0.0) needs a key."""
    port: Port = 8400
    """0 takes a free one."""
    api_key_env: str = KEY_VARIABLE
    """*Name* of the environment variable that holds the key that clients must send; unset or empty: none."""
    max_megabytes: OneOrMore = 256
    """Largest request, pictures included."""
    max_waiting: OneOrMore = 16
    """Requests scored, or waiting for that, at a time; further ones are sent away with 503 and come back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_variable(self.api_key_env)
        for name in ("max_megabytes", "max_waiting"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)}; at least 1")
        if not 0 <= self.port < 2**16:
            raise InputError(f"port: {self.port}; 0 to 65535")


class _Fault(Exception):
    """An answer that is none: a status, and a line for the client."""

    def __init__(self, status: HTTPStatus, line: str):
        super().__init__(line)
        self.status = status


class RewardServer(ThreadingHTTPServer):
    """Calls of one reward wait for each other. Raises InputError where the address is taken or open without a key."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, config: ServerConfig, parts: Sequence[Reward]):
        self.config = config
        self.key = os.environ.get(config.api_key_env, "")
        if not self.key and not _is_loopback(config.host):
            raise InputError(f"host: {config.host} is open to others; set a key: export {config.api_key_env}=...")
        self.most_bytes = config.max_megabytes * 2**20
        self.parts = {part.name: (part, Lock()) for part in parts}
        self.slots = BoundedSemaphore(config.max_waiting)
        self.connections = BoundedSemaphore(CONNECTIONS * config.max_waiting)
        self.held = 0
        """Bytes of bodies in memory."""
        self.deadlines: dict[socket.socket, float] = {}
        """When a connection that sends its request is given up."""
        self.lock = Lock()
        try:
            super().__init__((config.host, config.port), _Handler)
        except OSError as error:
            raise InputError(f"{config.host}:{config.port}: {error.strerror}; take another --host or --port") from None

    @property
    def url(self) -> str:
        return f"http://{self.config.host}:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.connections.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.send(b"HTTP/1.0 503 Service Unavailable\r\n\r\n", socket.MSG_DONTWAIT)
            self.shutdown_request(request)
            return
        with self.lock:
            self.deadlines[request] = time.monotonic() + HEADERS_S
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no more threads
            self.forget(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.forget(request)

    def forget(self, request: socket.socket) -> None:
        self.has_sent(request)
        self.connections.release()

    def may_send_until(self, request: socket.socket, deadline: float) -> None:
        with self.lock:
            self.deadlines[request] = deadline

    def has_sent(self, request: socket.socket) -> None:
        with self.lock:
            self.deadlines.pop(request, None)

    def service_actions(self) -> None:
        """Hangs up on those that send too slowly; `serve_forever` calls it several times a second."""
        with self.lock:
            late = [request for request, deadline in self.deadlines.items() if deadline < time.monotonic()]
        for request in late:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RD)

    def hold(self, size: int) -> bool:
        """Is there room for so many bytes more? Then they count, until as many are given back (below 0)."""
        with self.lock:
            fits = self.held + size <= HELD * self.most_bytes
            self.held += size * fits
        return fits

    def score(self, name: str, body: bytes) -> dict[str, Any]:
        """Raises _Fault."""
        if name not in self.parts:
            raise _Fault(HTTPStatus.NOT_FOUND, f"no reward {name!r}; there are {', '.join(self.parts)}")
        try:
            completions = unpack_completions(json.loads(body))  # an answer may hold half a surrogate pair
        except (ValueError, TypeError, RecursionError) as error:
            raise _Fault(HTTPStatus.BAD_REQUEST, f"the request holds no completions: {error}") from None
        part, lock = self.parts[name]
        try:
            with lock, torch.no_grad():
                output = cleaned(part(completions), completions)
        except InputError as error:
            raise _Fault(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        except Exception as error:  # the client counts it as a failed call; the next one may do
            logger.exception("reward %r failed", name)
            raise _Fault(HTTPStatus.INTERNAL_SERVER_ERROR, f"it raised {type(error).__name__}: {error}") from None
        return pack_output(output)


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = HEADERS_S
    taken = 0
    """Bytes of the body that have been read."""

    def do_GET(self) -> None:
        self._answer(self._names)

    def do_POST(self) -> None:
        self._answer(self._scores)

    def log_message(self, format: str, *args: Any) -> None:
        logger.info(format, *args)

    def _answer(self, make: Callable[[], dict[str, Any]]) -> None:
        try:
            status, value = self._made(make)
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has gone, or is silent
            self.close_connection = True

    def _made(self, make: Callable[[], dict[str, Any]]) -> tuple[HTTPStatus, dict[str, Any]]:
        try:
            sent = self.headers.get("Authorization", "").encode()
            if self.server.key and not hmac.compare_digest(sent, f"Bearer {self.server.key}".encode()):
                line = "the key is missing or wrong; api_key_env names the variable that holds it, on either side"
                raise _Fault(HTTPStatus.UNAUTHORIZED, line)
            return HTTPStatus.OK, make()
        except _Fault as fault:
            self._drain()
            return fault.status, {"error": str(fault)}

    def _drain(self) -> None:
        """Reads on without keeping anything: a connection closed with bytes unread would take the answer with it."""
        left = min(self._length(), 10 * self.server.most_bytes) - self.taken
        self.server.may_send_until(self.connection, time.monotonic() + HEADERS_S)
        while left > 0 and (chunk := self.rfile.read1(min(left, 2**16))):
            left -= len(chunk)

    def _length(self) -> int:
        length = self.headers.get("Content-Length", "")
        return int(length) if re.fullmatch(r"\d{1,15}", length, re.ASCII) else 0

    def _names(self) -> dict[str, Any]:
        if self.path != "/rewards":
            raise _Fault(HTTPStatus.NOT_FOUND, NO_PATH)
        return {"rewards": list(self.server.parts)}

    def _scores(self) -> dict[str, Any]:
        length, most = self._length(), self.server.most_bytes
        if not self.path.startswith("/rewards/"):
            raise _Fault(HTTPStatus.NOT_FOUND, NO_PATH)
        if not length:
            raise _Fault(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
        if length > most:
            line = f"a request of {length / 2**20:.1f} MB; send fewer completions at a time, or raise max_megabytes"
            raise _Fault(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{line} ({most // 2**20})")
        body = bytearray()
        try:
            self._read(body, length)
            if not self.server.slots.acquire(blocking=False):
                line = f"{self.server.config.max_waiting} requests are under way"
                raise _Fault(HTTPStatus.SERVICE_UNAVAILABLE, line)
            try:
                return self.server.score(unquote(self.path.removeprefix("/rewards/")), bytes(body))
            finally:
                self.server.slots.release()
        finally:
            self.server.hold(-len(body))

    def _read(self, body: bytearray, length: int) -> None:
        """The body, as it comes; what is in it counts as held. Raises _Fault."""
        self.server.may_send_until(self.connection, time.monotonic() + HEADERS_S + length / SLOWEST)
        while (missing := length - len(body)) and (chunk := self.rfile.read1(min(missing, 2**16))):
            self.taken += len(chunk)
            if not self.server.hold(len(chunk)):
                raise _Fault(HTTPStatus.SERVICE_UNAVAILABLE, "the requests under way fill the memory that is set aside")
            body += chunk
        self.server.has_sent(self.connection)
        if missing:
            self.taken = length  # no more will come
            raise _Fault(HTTPStatus.REQUEST_TIMEOUT, f"{len(body)} of {length} bytes came")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse((ServerConfig,), argv, prog="limner serve-rewards")
    parts = [part for part, _ in reward_parts(config)]
    if not parts:
        raise InputError("rewards: give at least one a weight; those are served")
    with RewardServer(config, parts) as server:
        say(f"serving {', '.join(server.parts)} at {server.url}", flush=True)
        with keeping("the server has stopped; start it again for the runs that still ask it"):
            server.serve_forever()

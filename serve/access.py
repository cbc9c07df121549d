"""Who may ask, and how much: keys, hosts, limits by key, and the bytes of bodies that are read."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from .settings import ServeConfig
from .wire.fields import Fault

BODY_S = 30.0
"""Seconds that a body may take, and a second more for each so many bytes:"""
SLOWEST = 2**20
HELD = 4
"""Bytes of bodies in memory at a time, in `max_megabytes`."""
MOST_HEADERS, HEADER_BYTES = 100, 32 * 2**10
NOBODY = "anonymous"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises Fault for too many of them, or too long ones."""
    if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES:
        raise Fault(431, f"more than {MOST_HEADERS} headers, or {HEADER_BYTES // 2**10} KiB of them")


class Keys:
    """The keys of clients, of which only digests are kept."""

    def __init__(self, keys: Sequence[str]):
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, authorization: bytes) -> str:
        """Whose key a header holds, `key 1`. Raises Fault. All keys are compared, each in constant time."""
        if not self._digests:
            return NOBODY
        scheme, _, key = authorization.partition(b" ")
        sent = hashlib.sha256(key.strip()).digest()
        found = [number for number, known in enumerate(self._digests, 1) if hmac.compare_digest(sent, known)]
        if not found or scheme.lower() != b"bearer":
            raise Fault(
                401, "the key is missing or wrong; send it as Authorization: Bearer KEY", code="invalid_api_key"
            )
        return f"key {found[0]}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Hosts:
    """Names under which the server is asked. At a loopback address a page of another site could reach it by a name of
    its own that leads here (DNS rebinding), so there all names but localhost are refused."""

    def __init__(self, config: ServeConfig):
        self.names = {name.lower() for name in config.hosts}
        self.checked = bool(self.names) or is_loopback(config.host)

    def check(self, header: str) -> None:
        """Raises Fault."""
        name = header.lower()
        name = name[: name.rfind("]") + 1] if name.startswith("[") else name.partition(":")[0]
        if self.checked and name not in self.names and not is_loopback(name):
            raise Fault(403, "this host name is not served; add it to `hosts` of limner serve")


@dataclass
class Bucket:
    """So many a minute: it fills with time, and who empties it waits."""

    a_minute: int
    level: float = field(init=False)
    filled: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.level = float(self.a_minute)

    def wait_s(self) -> float:
        """Seconds until something is in it again; 0 where something is."""
        now = time.monotonic()
        self.level = min(self.a_minute, self.level + (now - self.filled) * self.a_minute / 60)
        self.filled = now
        return 0.0 if self.level >= 1 else (1 - self.level) * 60 / self.a_minute

    def take(self, amount: float) -> None:
        self.level -= amount


class Quota:
    """What one key has under way, and has used in the last minute. Used on the event loop alone."""

    KINDS = ("requests", "tokens", "pictures")

    def __init__(self, config: ServeConfig):
        self.most, self.under_way = config.key_concurrency, 0
        limits = {name: getattr(config, f"key_{name}") for name in self.KINDS}
        self.buckets = {name: Bucket(limit) for name, limit in limits.items() if limit}

    def enter(self, retry_s: float) -> None:
        """One more request. Raises Fault."""
        if self.under_way >= self.most:
            raise Fault(429, f"{self.most} requests of this key are under way", code="concurrency", retry_s=retry_s)
        for name, bucket in self.buckets.items():
            if wait_s := bucket.wait_s():
                raise Fault(429, f"{bucket.a_minute} {name} a minute are used up", code=name, retry_s=wait_s)
        self.under_way += 1
        self.charge(requests=1)

    def leave(self) -> None:
        self.under_way -= 1

    def charge(self, **used: float) -> None:
        for name, amount in used.items():
            if name in self.buckets:
                self.buckets[name].take(amount)


class Bodies:
    """Reads bodies: no longer ones than allowed, no slower ones, and not too many at a time."""

    def __init__(self, most_bytes: int):
        self.most, self.held = most_bytes, 0

    async def read(self, request: Request) -> bytes:
        """Raises Fault, and ClientDisconnect."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.most:
            raise self._too_large()
        body = bytearray()
        end = asyncio.get_running_loop().time() + BODY_S + (int(length) if length.isdecimal() else 0) / SLOWEST
        try:
            async with asyncio.timeout_at(end):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > self.most:
                        raise self._too_large()
                    if self.held + len(chunk) > HELD * self.most:
                        raise Fault(503, "the requests under way fill the memory set aside for them", retry_s=1.0)
                    self.held += len(chunk)
                    body += chunk
        except TimeoutError:
            raise Fault(408, "the request came too slowly") from None
        finally:
            self.held -= len(body)
        return bytes(body)

    def _too_large(self) -> Fault:
        return Fault(413, f"the request is larger than {self.most / 2**20:g} MiB")

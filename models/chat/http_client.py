"""An HTTP client that nobody fills: a reply has a size limit, sent and unpacked, and leads to no other place."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

ENCODINGS = {
    "": 0,
    "identity": 0,
    "gzip": 16 + zlib.MAX_WBITS,
    "x-gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}
"""zlib's name of each; others are not asked for and not read."""


class Unreadable(ValueError):
    """A reply that is too large, or packed in a way that was not asked for."""


def bounded_client(timeout_s: float, most: int) -> httpx2.AsyncClient:
    """most: bytes of a body, as it is sent and again unpacked; a longer one raises Unreadable where it is read."""
    import httpx2

    class Bounded(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await super().handle_async_request(request)
            body = bytearray()
            try:
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > most:
                        raise Unreadable(f"a reply of more than {most} bytes")
            finally:
                await response.aclose()
            unpacked = unpack(bytes(body), response.headers, most)
            packed = ("content-encoding", "content-length", "transfer-encoding")
            headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in packed]
            return httpx2.Response(response.status_code, headers=headers, content=unpacked, request=request)

    headers = {"Accept-Encoding": "gzip, deflate"}
    return httpx2.AsyncClient(transport=Bounded(), timeout=timeout_s, follow_redirects=False, headers=headers)


def unpack(body: bytes, headers: Mapping[str, str], most: int) -> bytes:
    """The body of a reply without its encoding, which the header names. Raises Unreadable."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ENCODINGS:
        raise Unreadable(f"a reply packed as {encoding[:40]!r}, which was not asked for")
    if not ENCODINGS[encoding]:
        return body
    unpacker = zlib.decompressobj(ENCODINGS[encoding])
    try:
        unpacked = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise Unreadable(f"a reply that does not unpack: {error}") from None
    if len(unpacked) > most:
        raise Unreadable(f"a reply of more than {most} bytes, unpacked")
    if not unpacker.eof:
        raise Unreadable("a reply that ends before it is unpacked")
    return unpacked


def could_not_connect(error: Exception) -> bool:
    """Did nobody take the connection: refused, no such host, no route? Not: too slow, or cut off later."""
    import httpx2

    return isinstance(error.__cause__, httpx2.ConnectError)

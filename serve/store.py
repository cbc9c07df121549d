"""Pictures of answers, kept for a while under ids that nobody can guess: an `<img>` sends no key."""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from threading import Lock

ID = re.compile(r"[A-Za-z0-9_-]{22}", re.ASCII)
"""128 random bits."""


class PictureStore:
    """PNG files in memory, bounded by bytes and by age; the oldest go first."""

    def __init__(self, most_bytes: int, seconds: float):
        self.most_bytes, self.seconds = most_bytes, seconds
        self.bytes = 0
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._lock = Lock()

    def put(self, png: bytes) -> str:
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = time.monotonic(), png
            self.bytes += len(png)
            self._drop()
        return name

    def get(self, name: str) -> bytes | None:
        with self._lock:
            self._drop()
            found = self._kept.get(name)
        return found and found[1]

    def _drop(self) -> None:
        oldest = time.monotonic() - self.seconds
        while self._kept:
            name, (made, png) = next(iter(self._kept.items()))
            if self.bytes <= self.most_bytes and made >= oldest:
                return
            del self._kept[name]
            self.bytes -= len(png)

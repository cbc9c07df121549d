"""What an answer says while it is being written, and the box in which a request's events wait for their reader."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Literal

from ...models.documents.document import ImageSegment
from ...models.writing import Answer

Why = Literal["stop", "length", "time", "shutdown"]
"""Why an answer has ended: by itself or a stop string; at its limit of tokens; at its deadline; with the server."""


@dataclass(frozen=True, slots=True)
class Text:
    piece: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A picture is being drawn."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Of the picture that is being drawn, 0 to 1."""

    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture stands here: one that was drawn, or a candidate."""

    image: ImageSegment
    png: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    answer: Answer
    why: Why
    told: list[list[dict]] | None = None
    """Tokens of each run of text, `{token, bytes, logprob, top_logprobs}`, where the request asked for them."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There is no answer."""

    kind: Literal["time", "slow", "shutdown", "engine", "cancelled", "nothing"]
    line: str


Event = Text | Begun | Progress | Shown | Ended | Failed

LAST = (Ended, Failed)


class Mailbox:
    """Events of one request, from the threads that write it to the one that reads it.

    Whoever puts something in never waits. Pieces of text and progress that nobody has taken yet become one event, so
    what waits is bounded by the answer itself; a box that holds more than `MOST` is full, and since when is known.
    """

    MOST = 8

    def __init__(self, notify: Callable[[], None] = lambda: None):
        self.notify = notify
        """Called, from any thread, when there is something to take."""
        self.full_since: float | None = None
        self.closed = False
        self._events: list[Event] = []
        self._lock = Lock()

    def put(self, event: Event) -> None:
        """After the last event, nothing more comes in."""
        with self._lock:
            if self.closed:
                return
            last = self._events[-1] if self._events else None
            if isinstance(event, Text) and isinstance(last, Text):
                self._events[-1] = Text(last.piece + event.piece)
            elif isinstance(event, Progress) and isinstance(last, Progress):
                self._events[-1] = event
            else:
                self._events.append(event)
            self.closed = isinstance(event, LAST)
            if len(self._events) > self.MOST and self.full_since is None:
                self.full_since = time.monotonic()
        self.notify()

    def take(self) -> list[Event]:
        with self._lock:
            events, self._events, self.full_since = self._events, [], None
        return events

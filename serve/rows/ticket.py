"""One request on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event as Flag

from ...models.documents.document import InterleavedDocument
from ...models.sampler.request import Request, Sampling
from ...models.writing import Answer
from .events import Ended, Event, Failed, Mailbox


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants."""

    prompt: InterleavedDocument
    sampling: Sampling
    stop: tuple[str, ...] = ()
    owner: str = ""
    """Whose turn it takes: owners are served in turn."""
    row: int = 0
    """With the seed, the key of its random stream: that of answer `row` of `Model.write(..., n=...)`."""
    log_probs: bool = False
    """The last event holds the log-prob of each token of the texts."""


@dataclass(slots=True)
class Times:
    """Moments of the monotonic clock, and what lies between them; 0 for what has not been."""

    arrived: float
    admitted: float = 0.0
    prefilled: float = 0.0
    first: float = 0.0
    """The first event that a client sees."""
    picture: float = 0.0
    """The first picture."""
    ended: float = 0.0


@dataclass(slots=True, eq=False)
class Ticket:
    number: int
    asked: Asked
    request: Request
    """To the sampler; its `max_new_tokens` leaves no more than the model's positions."""
    deadline: float
    mailbox: Mailbox
    times: Times = field(default_factory=lambda: Times(time.monotonic()))
    cancelled: bool = False
    drawn: int = 0
    """Tokens so far, those of a picture once it is whole."""

    @property
    def owner(self) -> str:
        return self.asked.owner

    @property
    def slots(self) -> int:
        return 2 if self.request.sampling.guided else 1

    @property
    def tokens(self) -> int:
        """Of its worst case, a slot."""
        return len(self.request.prompt) + self.request.sampling.max_new_tokens


class Reply:
    """The events of one request for a caller that waits: what a test, a bench or a strategy asks the engine."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._there = Flag()
        self.ticket: Ticket | None = None

    def notify(self) -> None:
        self._there.set()

    def wait(self, seconds: float | None = None, seen: Callable[[Event], None] = lambda event: None) -> Ended | Failed:
        """Raises TimeoutError where the last event does not come in time."""
        assert self.ticket is not None
        while True:
            if not self._there.wait(seconds):
                raise TimeoutError("no event")
            self._there.clear()
            for event in self.ticket.mailbox.take():
                self.events.append(event)
                seen(event)
                if isinstance(event, Ended | Failed):
                    return event

    def answer(self, seconds: float | None = None) -> Answer:
        """Raises RuntimeError where there is none."""
        last = self.wait(seconds)
        if isinstance(last, Failed):
            raise RuntimeError(last.line)
        return last.answer

"""Ids to events, beside the loop of the engine: reads texts, paints pictures, and never makes the model wait.

What one request says is written in order, by one thread at a time; the pictures of different requests are painted next
to each other. Ids that come while a request is being written are read together.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch

from ...models.documents.document import ImageSegment, TextSegment, encode_png
from ...models.policy import UnifiedPolicy
from ...models.tokens.pieces import REPLACEMENT
from ...models.tokens.reader import BEGUN, Reader, offered, painted
from ...models.writing import answer_of
from ..metrics import Metrics
from .events import Begun, Ended, Failed, Progress, Shown, Text, Why
from .ticket import Ticket

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """What the engine says of a row: its next ids, how far its picture is, or that it has ended and why."""

    ids: list[int] = field(default_factory=list)
    share: float = 0.0
    why: Why | None = None
    log_probs: list[float] | None = None


class Scribe:
    def __init__(self, policy: UnifiedPolicy, metrics: Metrics, workers: int = 2):
        self.policy, self.metrics = policy, metrics
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="scribe")

    def open(self, ticket: Ticket) -> Writing:
        return Writing(self, ticket)

    def submit(self, writing: Writing) -> None:
        self._pool.submit(writing.run)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class Writing:
    """Of one request."""

    def __init__(self, scribe: Scribe, ticket: Ticket):
        self.scribe, self.ticket, self.metrics = scribe, ticket, scribe.metrics
        self.done = False
        """A stop string has come, or a fault: the row is of no more use."""
        self._reader: Reader | None = None
        self._pictures: list[ImageSegment] = []
        self._waiting: deque[Row] = deque()
        self._busy = False
        self._lock = Lock()
        self._begun_at = self._said_at = 0.0

    def tell(self, row: Row) -> None:
        """From the engine's thread."""
        with self._lock:
            self._waiting.append(row)
            if self._busy:
                return
            self._busy = True
        self.scribe.submit(self)

    def run(self) -> None:
        while True:
            with self._lock:
                rows, self._waiting = list(self._waiting), deque()
                self._busy = bool(rows)
            if not rows:
                return
            try:
                with torch.inference_mode():
                    for row in rows:
                        self._write(row)
            except Exception:  # a fault of this row; the others go on
                logger.exception("request %d: its answer could not be read or painted", self.ticket.number)
                self.done = True
                self.metrics.count("request_failure", reason="engine")
                self.ticket.mailbox.put(Failed("engine", "the answer could not be painted"))

    def _write(self, row: Row) -> None:
        ticket, asked = self.ticket, self.ticket.asked
        if ticket.mailbox.closed:
            return
        if self._reader is None:
            processor = self.scribe.policy.processor
            self._reader = Reader(processor, offered(processor, asked.prompt), asked.stop)
        for part in self._reader.take_all([*row.ids, *([None] if row.why else [])]):
            self._say(part)
        self.done = self.done or self._reader.stopped
        if row.share and not self.done:
            ticket.mailbox.put(Progress(row.share))
        if row.why is not None:
            answer = answer_of(self._reader, asked.prompt, asked.sampling, self._pictures)
            why = "stop" if answer.ended else row.why
            told = tokens_told(self._reader, row.log_probs) if asked.log_probs and row.log_probs else None
            ticket.mailbox.put(Ended(answer, why, told))
            self._count(why, len(self._reader.ids))

    def _say(self, part: object) -> None:
        box, times, now = self.ticket.mailbox, self.ticket.times, time.monotonic()
        if not times.first:
            times.first = now
            self.metrics.observe("time_to_first_token_seconds", now - times.arrived)
        if part is BEGUN:
            self._begun_at, self._said_at = now, 0.0
            box.put(Begun())
        elif isinstance(part, ImageSegment):
            drawn = part.image is None
            if drawn:
                part = painted(self.scribe.policy.processor, part)
                self._pictures.append(part)
                self.metrics.observe("picture_decode_seconds", time.monotonic() - now)
                self.metrics.observe("picture_seconds", time.monotonic() - self._begun_at)
            if not times.picture:
                times.picture = time.monotonic()
                self.metrics.observe("time_to_first_picture_seconds", times.picture - times.arrived)
            self.metrics.count("pictures", origin=part.origin)
            box.put(Shown(part, encode_png(part.pixels())))
        else:
            if self._said_at:
                self.metrics.observe("inter_token_latency_seconds", now - self._said_at)
            self._said_at = now
            box.put(Text(str(part)))

    def _count(self, why: str, tokens: int) -> None:
        times, metrics = self.ticket.times, self.metrics
        times.ended = time.monotonic()
        metrics.count("request_success", finished_reason=why)
        metrics.count("generation_tokens", tokens)
        metrics.observe("e2e_request_latency_seconds", times.ended - times.arrived)
        metrics.observe("request_decode_time_seconds", times.ended - times.prefilled)
        if tokens > 1 and times.first:
            spent = (times.ended - times.first) / (tokens - 1)
            metrics.observe("request_time_per_output_token_seconds", spent)


def tokens_told(reader: Reader, log_probs: list[float]) -> list[list[dict[str, Any]]]:
    """Of each text of an answer its tokens, as OpenAI's API says them. A token that ends inside a character is empty,
    and the one that ends it is the character."""
    reading, decode = reader.reading(), reader.processor.tokenizer.decode
    told = []
    for number, segment in enumerate(reading.document.segments):
        if not isinstance(segment, TextSegment):
            continue
        at = (reading.segment_C == number).nonzero()[:, 0].tolist()
        ids, said, run = [reader.ids[place] for place in at], "", []
        for count, place in enumerate(at, 1):
            now = str(decode(ids[:count])).rstrip(REPLACEMENT)
            piece, said = now[len(said) :], now if len(now) > len(said) else said
            run.append({"token": piece, "bytes": [*piece.encode()], "logprob": log_probs[place], "top_logprobs": []})
        told.append(run)
    return told

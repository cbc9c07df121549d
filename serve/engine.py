"""The engine: one thread that owns the model, and rows that join and leave while others run.

    with Engine(policy) as engine:
        reply = Reply()
        engine.submit(Asked(read_prompt("How do I fold a crane?"), policy_sampling), reply)
        reply.answer()

An answer is, id by id, what `Model.write` gives alone for its prompt and settings. Requests wait in `waiting`, are
admitted while the worst case of their KV cache fits, and leave at their end, their deadline, or when nobody reads them.
Texts are read and pictures painted beside the loop (`scribe`).
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from threading import Condition, Thread
from typing import Literal

import torch

from ..configs.errors import InputError
from ..models.policy import UnifiedPolicy
from ..models.sampler.chunked import prefill_in_chunks
from ..models.sampler.generation import evaluating
from ..models.sampler.prefill import Prefix
from ..models.sampler.request import Request, Sampling
from ..models.sampler.slots import Sampler
from ..models.sampler.steps import Steps, check_steps
from .metrics import Metrics
from .rows.events import Failed, Mailbox, Why
from .rows.scribe import Row, Scribe, Writing
from .rows.ticket import Asked, Reply, Ticket
from .rows.waiting import Room, Waiting

logger = logging.getLogger(__name__)

PREFILL = 512
"""Tokens of prompts that are prefilled in a turn, for rows that run wait for them. A longer prompt takes several."""
PAUSE_S = 0.1
"""Between looks at those that wait while the engine pauses."""
ROUND_S = 0.02
"""Rows come, go and are read no more often: that takes the time of the processor from a model of short steps."""
EIGHTHS = 8
"""A picture's progress is said so often."""
FEW_LEFT = 0.75
"""Free slots that nobody waits for are dropped when no more than this share is in use; then the cache is copied."""


class Refused(Exception):
    """A request that is not taken. `retry_s`: seconds after which it may be."""

    def __init__(self, reason: Literal["full", "draining", "dead"], line: str, retry_s: float):
        super().__init__(line)
        self.reason, self.retry_s = reason, retry_s


@dataclass(frozen=True, slots=True)
class Limits:
    slots: int = 16
    """Rows at a time; a guided one takes two."""
    cache_tokens: int = 0
    """Of all slots together; 0 is as many as the slots can hold at the model's full length."""
    waiting: int = 64
    """Requests in the queue; further ones are refused."""
    seconds: float = 600.0
    """An answer that takes longer is given up, the wait included."""
    reader_seconds: float = 30.0
    """A reader that leaves its events untaken for so long is given up."""
    steps: Steps = "plain"
    """Of the sampler: how the model is run."""


class Engine:
    def __init__(self, policy: UnifiedPolicy, limits: Limits | None = None, metrics: Metrics | None = None):
        self.policy, self.limits, self.metrics = policy, limits or Limits(), metrics or Metrics()
        slots, in_buckets = self.limits.slots, self.limits.steps != "plain"
        tokens = self.limits.cache_tokens or Room(slots, 0, in_buckets).taken(slots, policy.longest)
        self.room = Room(slots, tokens, in_buckets)
        check_steps(policy, self.limits.steps, next(policy.model.parameters()).device)
        self.metrics.gauges = self.gauges
        self.dead = False
        self.draining = False
        self._scribe = Scribe(policy, self.metrics)
        self._waiting = Waiting()
        self._running: dict[int, Ticket] = {}
        self._writings: dict[int, Writing] = {}
        self._shares: dict[int, int] = {}
        self._handed = 0.0
        self._numbers = count()
        self._spent: deque[float] = deque([1.0], maxlen=64)
        self._turn = Condition()
        """Guards the queue and the wishes below; notified when there is something to do, and when all is done."""
        self._pausing = self._paused = self._stopping = False
        policy.processor.text_ids("a")  # a tokenizer's setting, which no two threads should make at a time
        self._sampler: Sampler | None = None
        self._reading: tuple[Ticket, Iterator[Prefix | None]] | None = None
        """The request whose long prompt is being prefilled, a part a turn."""
        self._thread = Thread(target=self._run, daemon=True, name="engine")
        self._thread.start()

    # ---- for callers, from any thread ----

    def submit(self, asked: Asked, reply: Reply | None = None, notify: Callable[[], None] = lambda: None) -> Ticket:
        """A ticket whose mailbox gets the events. Encodes the prompt here, in the caller's thread.

        Raises InputError for a prompt that is none, or that could never fit, and Refused for now.
        """
        self._check_room()
        with torch.inference_mode():
            prompt = self.policy.processor.encode(asked.prompt)
        self.policy.check_prompt(len(prompt))
        left = self.policy.longest - len(prompt)
        sampling = replace(asked.sampling, max_new_tokens=min(asked.sampling.max_new_tokens, left))
        mailbox = Mailbox(reply.notify if reply else notify)
        deadline = time.monotonic() + self.limits.seconds
        ticket = Ticket(next(self._numbers), asked, Request(prompt, sampling, asked.row), deadline, mailbox)
        if not self.room.holds(ticket.slots, ticket.tokens):
            raise InputError(
                f"prompt and answer may take {ticket.tokens:,} tokens in {ticket.slots} slots, and the cache holds "
                f"{self.room.tokens:,} in {self.room.slots}; shorten the prompt, or lower max_tokens"
            )
        if reply:
            reply.ticket = ticket
        with self._turn:
            self._check_room()
            self._waiting.put(ticket)
            self._turn.notify_all()
        return ticket

    def check_open(self) -> None:
        """Raises Refused where no request is taken."""
        if self.dead:
            raise self._refused("dead", "the engine has stopped")
        if self.draining:
            raise self._refused("draining", "the server is shutting down")

    def _check_room(self) -> None:
        """Before the prompt is encoded, and again behind that: it takes a while."""
        self.check_open()
        if len(self._waiting) >= self.limits.waiting:
            raise self._refused("full", f"{len(self._waiting)} requests are waiting already")

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants it any more; that may be said at any time, and more than once."""
        ticket.cancelled = True
        with self._turn:
            self._turn.notify_all()

    def pause(self) -> None:
        """Lets the running rows end and starts no other; when this returns, the weights may change until `resume`."""
        with self._turn:
            self._pausing = True
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._paused or self.dead)

    def resume(self) -> None:
        with self._turn:
            self._pausing = False
            self._turn.notify_all()

    def drain(self, seconds: float) -> None:
        """Takes no request any more, gives those that are here so much time, and ends what is left of them."""
        end = time.monotonic() + seconds
        with self._turn:
            self.draining, self._pausing = True, False
            self._turn.notify_all()
            self._turn.wait_for(lambda: self.idle or self.dead, max(end - time.monotonic(), 0))
            for ticket in self._all():
                ticket.deadline = -1.0
            self._turn.notify_all()
            self._turn.wait_for(lambda: self.idle or self.dead, 30)

    def close(self) -> None:
        self.drain(0)
        with self._turn:
            self._stopping = True
            self._turn.notify_all()
        self._thread.join()
        self._scribe.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self.dead

    @property
    def idle(self) -> bool:
        with self._turn:
            return not self._all()

    def _all(self) -> list[Ticket]:
        reading, running = self._reading, list(self._running.values())
        return [*self._waiting, *([reading[0]] if reading else []), *running]

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def slots_in_use(self) -> int:
        return 0 if self._sampler is None else self._sampler.busy

    @property
    def retry_s(self) -> float:
        """Seconds after which there may be room: the median of what a slot is taken for."""
        return max(1.0, statistics.median(list(self._spent)))

    def gauges(self) -> dict[str, float]:
        rows = list(self._running.values())
        used = self.room.taken(sum(row.slots for row in rows), max((row.tokens for row in rows), default=0))
        return {
            "num_requests_running": len(rows),
            "num_requests_waiting": len(self._waiting),
            "kv_cache_usage_perc": used / self.room.tokens,
            "engine_alive": float(self.alive),
        }

    def _refused(self, reason: Literal["full", "draining", "dead"], line: str) -> Refused:
        self.metrics.count("admission_rejections", reason=reason)
        return Refused(reason, line, self.retry_s)

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._stopping:
                with torch.inference_mode(), evaluating(self.policy, [Sampling()], self.limits.steps):
                    self._serve()
                with self._turn:
                    self._paused = True
                    self._turn.notify_all()
                while self._pausing and not self._stopping:
                    self._give_up_waiting()
                    with self._turn:
                        self._turn.wait(PAUSE_S)
                self._paused = False
        except Exception:
            logger.exception("the engine has stopped; start the server again")
            self._die()

    def _serve(self) -> None:
        """Turns, until the engine pauses or stops."""
        self._sampler = sampler = Sampler(self.policy, self.limits.steps)
        while True:
            self._give_up_waiting()
            self._give_up(sampler)
            self._admit(sampler)
            if not self._running and self._reading:
                continue
            if not self._running:
                self._sampler = sampler = Sampler(self.policy, self.limits.steps)  # without the memory of the last rows
                with self._turn:
                    self._turn.notify_all()
                    if self._pausing or self._stopping:
                        return
                    if not len(self._waiting):
                        self._turn.wait(1.0)
                continue
            self._step(sampler)
            self._leave(sampler, {})

    def _step(self, sampler: Sampler) -> None:
        """One step; of a small model several, until it is time to look at the rows."""
        due = False
        while not due:
            sampler.draw()
            due = not sampler.running or time.monotonic() - self._handed >= ROUND_S
            if due and not sampler.late:  # then the ids are known already, and need not wait for the model
                self._hand_out(sampler)
            sampler.feed()
            due = due or not sampler.running
        if sampler.late:
            self._hand_out(sampler)

    def _admit(self, sampler: Sampler) -> None:
        """The next ones, while there is room for their worst case, and not too much to prefill."""
        if self._reading is not None:
            self._read_on(sampler)
            return
        taken: list[Ticket] = []
        with self._turn:
            while not self._pausing and (ticket := self._waiting.first()):
                rows = [*self._running.values(), *taken]
                slots = sum(row.slots for row in rows) + ticket.slots
                longest = max([row.tokens for row in rows] + [ticket.tokens, sampler.cache.columns])
                prompts = {id(row.request.prompt): len(row.request.prompt) for row in [*taken, ticket]}
                if not self.room.holds(slots, longest) or (taken and sum(prompts.values()) > PREFILL):
                    break
                taken.append(self._waiting.pop())
                if len(ticket.request.prompt) > PREFILL:  # it is alone
                    self._reading = ticket, prefill_in_chunks(self.policy, ticket.request, PREFILL)
                    ticket.times.admitted = time.monotonic()
                    return
            self._running |= {ticket.number: ticket for ticket in taken}
        self._begin(sampler, taken)

    def _read_on(self, sampler: Sampler) -> None:
        """The next part of a long prompt; its row runs from the turn on in which it has been read."""
        assert self._reading is not None
        ticket, parts = self._reading
        fault = self._fault(ticket, time.monotonic())
        prefix = None if fault else next(parts)
        if not fault and prefix is None:
            return
        with self._turn:
            self._reading = None
            self._running |= {} if fault else {ticket.number: ticket}
            self._turn.notify_all()
        if fault:
            self._fail(ticket, fault)
        elif prefix is not None:
            sampler.know(prefix)
            self._begin(sampler, [ticket])

    def _begin(self, sampler: Sampler, taken: Sequence[Ticket]) -> None:
        if not taken:
            return
        begun = time.monotonic()
        rows = self._running.values()
        longest = max([sampler.cache.columns, *(row.tokens for row in rows)])
        if self.room.taken(sampler.slots, longest) > self.room.tokens:
            sampler.shrink()  # free slots would be as long as the new rows
        sampler.admit([ticket.number for ticket in taken], [ticket.request for ticket in taken])
        for ticket in taken:
            times = ticket.times
            times.admitted, times.prefilled = times.admitted or begun, time.monotonic()
            self._writings[ticket.number] = self._scribe.open(ticket)
            self.metrics.count("prompt_tokens", len(ticket.request.prompt))
            self.metrics.observe("request_queue_time_seconds", times.admitted - times.arrived)
            self.metrics.observe("request_prefill_time_seconds", times.prefilled - times.admitted)

    def _hand_out(self, sampler: Sampler) -> None:
        """New ids to those who read them, and how far pictures are."""
        self._handed, read, shares = time.monotonic(), sampler.read(), sampler.shares_painted()
        for number, writing in self._writings.items():
            ids, eighth = read.get(number, []), int(EIGHTHS * shares.get(number, 0.0))
            writing.ticket.drawn += len(ids)
            if ids or eighth > self._shares.get(number, 0):
                writing.tell(Row(ids, eighth / EIGHTHS))
            self._shares[number] = eighth

    def _leave(self, sampler: Sampler, why: dict[int, Why]) -> None:
        """Frees the slots of rows that have ended, and says so."""
        if sampler.running == len(self._running):
            return
        samples = sampler.leave()
        for number, sample in samples.items():
            self._writings[number].tell(Row(why=why.get(number, "length"), log_probs=sample.logp_C.tolist()))
        self._forget(samples)
        if sampler.busy <= FEW_LEFT * sampler.slots and not len(self._waiting):
            sampler.shrink()

    def _forget(self, numbers: Sequence[int] | dict) -> None:
        now = time.monotonic()
        for number in numbers:
            ticket = self._running[number]
            self._spent.append(now - ticket.times.admitted)
            self._writings.pop(number, None)
            self._shares.pop(number, None)
        with self._turn:
            for number in numbers:
                del self._running[number]
            self._turn.notify_all()

    def _give_up_waiting(self) -> None:
        """Those in the queue whose time is over, or that nobody wants any more."""
        now = time.monotonic()
        with self._turn:
            gone = {ticket: fault for ticket in self._waiting if (fault := self._fault(ticket, now))}
            self._waiting.remove(gone)
            self._turn.notify_all()
        for ticket, fault in gone.items():
            self._fail(ticket, fault)

    def _give_up(self, sampler: Sampler) -> None:
        """Those that run and that nobody wants, waits for or reads any more."""
        now, ended = time.monotonic(), dict[int, Why]()
        for number, ticket in self._running.items():
            fault = self._fault(ticket, now)
            if self._writings[number].done or (fault and fault.kind == "shutdown"):
                ended[number] = "shutdown" if fault else "stop"
            elif fault:
                ended[number] = "stop"
                self._fail(ticket, fault)
        if ended:
            sampler.end([*ended])
            self._hand_out(sampler)
            self._leave(sampler, ended)

    def _fault(self, ticket: Ticket, now: float) -> Failed | None:
        full = ticket.mailbox.full_since
        if ticket.cancelled:
            return Failed("cancelled", "the request was cancelled")
        if ticket.deadline < 0:
            return Failed("shutdown", "the server is shutting down")
        if now > ticket.deadline:
            return Failed("time", f"no whole answer within {self.limits.seconds:g} s")
        if full is not None and now - full > self.limits.reader_seconds:
            return Failed("slow", "nobody reads the answer")
        return None

    def _fail(self, ticket: Ticket, fault: Failed) -> None:
        self.metrics.count("request_failure", reason=fault.kind)
        ticket.mailbox.put(fault)

    def _die(self) -> None:
        with self._turn:
            self.dead = True
            lost = self._all()
            self._waiting, self._running, self._reading = Waiting(), {}, None
            self._turn.notify_all()
        for ticket in lost:
            self._fail(ticket, Failed("engine", "the engine has stopped"))

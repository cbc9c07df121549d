"""A model and what stands around it, and one request from its reading to its last event; no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..configs.errors import InputError
from ..configs.json_text import parse_json
from ..models.policy import UnifiedPolicy
from ..models.writing import Model, changed
from .access import Hosts, Keys
from .engine import Engine, Limits
from .indexed import Indexed, Question
from .metrics import Metrics
from .rows.events import LAST, Event, Mailbox, Shown
from .rows.ticket import Asked
from .rows.waiting import bytes_of_a_token
from .settings import ServeConfig
from .store import PictureStore
from .wire.fields import Fault, shown
from .wire.pictures import Pictures
from .wire.prompt import Given, Wanted
from .wire.reply import Meta

SILENCE_S = 15.0
"""After so long without an event a stream gets a comment: proxies hang up on silence, and a picture takes seconds."""
FREE_SHARE = 0.8
"""Of a GPU's free memory, for the KV cache."""


class Form(Protocol):
    """How events become what a client reads."""

    def opening(self, meta: Meta) -> Any: ...
    def chunks(self, event: Event, meta: Meta) -> Any: ...
    def whole(self, events: list[Event], meta: Meta) -> dict[str, Any]: ...


Read = Callable[[Any, Given, Pictures], tuple[Wanted, Form]]


class Service:
    def __init__(self, model: Model, config: ServeConfig, keys: Sequence[str] = ()):
        self.config, self.keys, self.hosts = config, Keys(keys), Hosts(config)
        self.policy, self.about = model.policy, model.about
        self.metrics = Metrics(config.name)
        self.store = PictureStore(config.picture_megabytes * 2**20, config.picture_minutes * 60)
        self.given = Given(changed(model.sampling, config.sampling), config.max_tokens, config.max_images)
        self.engine = Engine(model.policy, limits_of(model.policy, config), self.metrics)
        try:
            self.indexed = Indexed(config, model, self.engine) if config.index else None
        except InputError:
            self.engine.close()
            raise
        self.models = [config.name, *([f"{config.name}-index"] if self.indexed else [])]
        self.created = int(time.time())

    def begin(self, body: bytes, read: Read, owner: str, base_url: str, loop: asyncio.AbstractEventLoop) -> Asking:
        """Reads a request and puts it into the queue; in a thread, for pictures are opened here.

        Raises Fault, InputError and Refused.
        """
        try:
            value = parse_json(body)
        except ValueError as error:
            raise Fault(400, f"the request is no JSON: {getattr(error, 'msg', 'it cannot be read')}") from None
        pictures = Pictures(self.store, self.config.max_pictures, self.config.max_megapixels * 10**6)
        wanted, form = read(value, self.given, pictures)
        if wanted.model not in self.models:
            raise Fault(
                404, f"model: {shown(wanted.model)} is not served here; {', '.join(self.models)}", "model", "no_model"
            )
        meta = Meta(wanted.model, wanted.sampling.seed, self.store, self.policy.vocabulary, base_url)
        meta.log_probs, meta.retry_s = wanted.log_probs, self.engine.retry_s
        asking = Asking(wanted, form, meta, loop)
        if self.indexed and wanted.model == self.models[-1]:
            if wanted.prompt.images:
                raise Fault(400, "an index is asked in words; leave the pictures out", "messages")
            asking.mailbox = Mailbox(asking.notify)
            question = Question(wanted.question, owner, wanted.sampling, lambda found: setattr(meta, "sources", found))
            asking.cancel, asking.drawn = question.cancel, lambda: question.drawn
            self.indexed.ask(question, asking.mailbox)
            return asking
        asked = Asked(wanted.prompt, wanted.sampling, wanted.stop, owner, log_probs=wanted.log_probs)
        ticket = self.engine.submit(asked, notify=asking.notify)
        asking.mailbox, asking.cancel = ticket.mailbox, lambda: self.engine.cancel(ticket)
        asking.drawn = lambda: ticket.drawn
        asking.meta.prompt_tokens = len(ticket.request.prompt)
        return asking

    def close(self) -> None:
        self.engine.close()


def limits_of(policy: UnifiedPolicy, config: ServeConfig) -> Limits:
    """With as many tokens in the cache as the memory allows."""
    tokens = 0
    if config.cache_gib:
        tokens = int(config.cache_gib * 2**30) // bytes_of_a_token(policy)
    elif (device := next(policy.model.parameters()).device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        tokens = min(int(FREE_SHARE * free) // bytes_of_a_token(policy), config.slots * policy.longest)
    return Limits(config.slots, tokens, config.waiting, config.seconds, config.reader_seconds, config.steps)


@dataclass
class Asking:
    """One request, as the event loop sees it."""

    wanted: Wanted
    form: Form
    meta: Meta
    loop: asyncio.AbstractEventLoop
    mailbox: Mailbox = field(default_factory=Mailbox)
    cancel: Callable[[], None] = lambda: None
    drawn: Callable[[], int] = lambda: 0
    """Tokens so far, whether anybody reads them or not."""
    ended: bool = False
    pictures: int = 0
    """Read so far."""

    def __post_init__(self) -> None:
        self._there = asyncio.Event()

    def notify(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self.loop.call_soon_threadsafe(self._there.set)

    async def events(self) -> AsyncIterator[list[Event]]:
        """As they come, the last one last; an empty list after each silence."""
        while not self.ended:
            try:
                await asyncio.wait_for(self._there.wait(), SILENCE_S)
            except TimeoutError:
                yield []
                continue
            self._there.clear()
            events = self.mailbox.take()
            for event in events:
                self.pictures += isinstance(event, Shown)
                self.ended = self.ended or isinstance(event, LAST)
            if events:
                yield events

    def close(self) -> None:
        """Nobody reads any more; nothing happens where the last event has been read."""
        if not self.ended:
            self.cancel()

"""Questions answered from an index, with sources: retrieval's strategies, and for `unified` the served model.

What the model is asked waits in the engine's queue like everything else. The answer is held to the rules of placement,
which are known when it is whole, so it comes at once and not word by word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import BoundedSemaphore, Lock
from typing import Any

from ..configs.errors import InputError
from ..configs.registry import find
from ..models.documents.document import InterleavedDocument, TextSegment, encode_png
from ..models.documents.forms import read_prompt
from ..models.sampler.request import Sampling
from ..models.writing import Answer, Model, changed
from ..retrieval.answering import Answered, Means, Source, Strategy, answer, encoding
from ..retrieval.index.corpus import Hit
from ..retrieval.index.store import Index
from ..retrieval.placing import PlacementRules
from ..retrieval.strategies.unified import Unified
from .engine import Engine, Refused
from .rows.events import Ended, Event, Failed, Mailbox, Shown, Text
from .rows.ticket import Asked, Reply, Ticket
from .settings import ServeConfig
from .wire.fields import Fault

logger = logging.getLogger(__name__)

HITS = 10
STRATEGIES = ("rule", "inserter", "unified")
WORKERS = 4


@dataclass
class Question:
    text: str
    owner: str
    sampling: Sampling
    say_sources: Callable[[list[dict[str, Any]]], None]
    """Called before the last event."""

    def __post_init__(self) -> None:
        self._ticket: Ticket | None = None
        self._cancel: Callable[[], None] = lambda: None
        self._gone = False

    @property
    def drawn(self) -> int:
        """Tokens of the served model so far."""
        return 0 if self._ticket is None else self._ticket.drawn

    def asks(self, engine: Engine, ticket: Ticket) -> None:
        """The served model is at work for it."""
        self._ticket, self._cancel = ticket, lambda: engine.cancel(ticket)
        if self._gone:
            self._cancel()

    def cancel(self) -> None:
        self._gone = True
        self._cancel()


class Through(Model):
    """The served model, for a strategy that asks it: each answer waits for its turn in the engine."""

    def __init__(self, model: Model, engine: Engine, question: Question):
        self.policy, self.sampling = model.policy, question.sampling
        self.engine, self.question = engine, question

    def write(self, prompt: Any, pictures: Sequence[Any] = (), *, n: Any = None, stop: Any = (), **changes: Any) -> Any:
        reply = Reply()
        asked = Asked(read_prompt(prompt, pictures), changed(self.sampling, changes), tuple(stop), self.question.owner)
        ticket = self.engine.submit(asked, reply)
        self.question.asks(self.engine, ticket)
        return reply.answer()


class Indexed:
    def __init__(self, config: ServeConfig, model: Model, engine: Engine):
        """Raises InputError for an index that is none or empty, and a strategy that cannot be."""
        if config.strategy not in STRATEGIES:
            raise InputError(f"strategy: {config.strategy!r}; one of {', '.join(STRATEGIES)}")
        if (config.strategy == "inserter") != bool(config.inserter):
            raise InputError("inserter: the model of the strategy `inserter`, and of no other")
        self.index = Index.open(config.index, device=config.device)
        if not self.index.documents:
            raise InputError(f"{config.index}: the index is empty; fill it with limner index SRC --out {config.index}")
        self.name, self.model, self.engine, self.rules = config.strategy, model, engine, PlacementRules()
        means = Means(self.rules, _no_chat, document=self.index.chunks_of, model=config.inserter)
        self.inserter = find("strategy", "inserter").thing(means) if config.inserter else None
        """Loaded once; a rule is made for what was found."""
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="index")
        self._room = BoundedSemaphore(config.waiting)
        self._one = Lock()
        """The index, its encoder and an inserter are used by one thread at a time."""

    def ask(self, question: Question, mailbox: Mailbox) -> None:
        """The events go into the box. Raises Fault and Refused."""
        if not question.text.strip():
            raise Fault(400, "the question is empty", "messages")
        self.engine.check_open()
        if not self._room.acquire(blocking=False):
            raise Refused("full", "too many questions are waiting", self.engine.retry_s)
        self._pool.submit(self._answer, question, mailbox)

    def _answer(self, question: Question, mailbox: Mailbox) -> None:
        try:
            for event in self._events(question, self._answered(question)):
                mailbox.put(event)
        except InputError as error:
            mailbox.put(Failed("nothing", str(error)))
        except Refused as refused:
            mailbox.put(Failed("shutdown", str(refused)))
        except RuntimeError as error:  # the engine gave no answer, and says why
            mailbox.put(Failed("engine", str(error)))
        except Exception:
            logger.exception("a question to the index could not be answered")
            mailbox.put(Failed("engine", "the question could not be answered"))
        finally:
            self._room.release()

    def _answered(self, question: Question) -> Answered:
        with self._one:
            hits = self.index.search(question.text, limit=HITS)
            matching = self.index.matching()
            if self.name != "unified":
                strategy = self.inserter or self._rule(matching.encoder, hits)
                return answer(question.text, hits, strategy, self.rules, matching)
        model = Through(self.model, self.engine, question)
        return answer(question.text, hits, Unified(model, self.rules), self.rules, matching)

    def _rule(self, encoder: Any, hits: Sequence[Hit]) -> Strategy:
        """It goes by the encoder of the index, where that reads what was found."""
        means = Means(self.rules, _no_chat, encode=encoding(encoder, hits), document=self.index.chunks_of)
        return find("strategy", "rule").thing(means)

    def _events(self, question: Question, answered: Answered) -> list[Event]:
        events: list[Event] = []
        for segment in answered.document.segments:
            if isinstance(segment, TextSegment):
                events.append(Text(segment.text))
            else:
                events.append(Shown(replace(segment, image=segment.pixels()), encode_png(segment.pixels())))
        question.say_sources([_said(source) for source in answered.sources])
        written = Answer(answered.document, True, False, InterleavedDocument(()), answered.faults)
        return [*events, Ended(written, "stop")]


def _said(source: Source) -> dict[str, Any]:
    return {
        "title": source.title,
        "document": source.document,
        "text": bool(source.chunks),
        "pictures": list(source.pictures),
    }


def _no_chat() -> Any:
    raise InputError("this strategy asks a chat model, which the server has not")

"""Models behind an OpenAI-compatible server (vLLM, SGLang, hosted): one client for rewards, retrieval and evaluation.

    with Endpoint(EndpointConfig(base_url="http://localhost:8000/v1", model="Qwen/Qwen2.5-VL-7B-Instruct")) as model:
        answers = model.complete([Request(document) for document in documents])  # Reply or Failure, in order

Every request ends as a `Reply` or as a `Failure` that says why; both are counted. Calls may come from any thread: the
event loop runs in a thread of its own, and a call waits for its own requests.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import math
import os
import queue
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Thread
from time import monotonic, time
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ...configs.bounds import Limit, NoneOrMore, OneOrMore, Seconds, Seed, Side, Temperature
from ...configs.errors import InputError, Unavailable
from ...configs.json_text import parse_json
from ...configs.redaction import texts_in, without_secrets
from ...configs.schema import check_ranges
from ..documents.document import InterleavedDocument, TextSegment, data_uri
from .http_client import Unreadable, bounded_client, could_not_connect
from .reply_cache import ReplyCache
from .requests import Answer, Failure, Prepared, Reply, Request, prepare, recall, remember

T = TypeVar("T")
LONGEST_WAIT = 120.0
"""Seconds between two attempts, at most; a server that asks for more is not asked again."""
AHEAD = 2
"""Requests handed over at a time, in `concurrency`: the next ones are ready when a slot falls free."""
LONGEST_REASON = 300
"""Characters."""
MOST_IN_A_ROW = 100
"""Requests that fail, none answered in between, which stop a call however fast they do."""
MOST_REPLY_BYTES = 16 * 2**20
"""Of a reply, as it is sent and as it is read."""
SHORTEST_KEY = 8
"""Characters of an API key that is worth hiding: local servers are often given `EMPTY`."""


@dataclass
class ServerConfig:
    """A server, and how it is asked: what models that write and models that paint have in common."""

    base_url: str = ""
    """Of the server, with its version: `http://localhost:8000/v1`."""
    model: str = ""
    """Name under which the server knows the model."""
    revision: str = ""
    """Of the model, as you know it; for the cache and the manifest, the server is not asked."""
    api_key_env: str = "OPENAI_API_KEY"
    """*Name* of the environment variable that holds the key; the key itself stands nowhere else."""
    concurrency: OneOrMore = 16
    """Requests under way at a time, of this process."""
    timeout: Seconds = 120.0
    """Seconds an attempt may take, all of it."""
    retries: NoneOrMore = 5
    """Further attempts after a timeout, a lost connection, HTTP 408, 409, 429 or 5xx, or a reply that is none."""
    backoff: Seconds = 0.5
    """Seconds before the second attempt; doubles with each. The server's Retry-After comes first."""
    patience: Seconds = 240.0
    """Seconds without one reply, while requests fail, until the call stops with an error; 0: never. So long a server is
    waited for that has answered before and is gone; one that nobody ever reached stops the call at once."""
    max_requests: Limit = 0
    """Attempts this process may send, 0 without limit; what is over fails as `budget`."""
    max_tokens_total: Limit = 0
    """Tokens, read and written, after which this process sends nothing more; 0 without limit."""
    seed: Seed = 0
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Further fields of the request; null takes one of ours out (`{max_tokens: null, max_completion_tokens: 512}`).
    Of what is named like a secret (`api_key`, `token`) nothing is written, into no manifest, cache or configuration."""
    cache: str = ""
    """SQLite file of replies: what stands there is not asked again."""
    offline: bool = False
    """Answer from the cache alone."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):  # not shown: it may be the key
            raise InputError("api_key_env: give the name of an environment variable, not the key itself")
        check_ranges(self)
        if not self.timeout:
            raise InputError(f"timeout: {self.timeout}; a number of seconds above 0")
        if self.patience and self.patience < self.timeout:
            raise InputError(
                f"patience: {self.patience:g} s; 0, or no less than an attempt's timeout ({self.timeout:g} s)"
            )
        if self.offline and not Path(self.cache).is_file():
            raise InputError(f"cache: offline needs the file of replies, and {self.cache!r} is none")


@dataclass
class EndpointConfig(ServerConfig):
    temperature: Temperature = 0.0
    max_new_tokens: OneOrMore = 1024
    image_side: Side = 1024
    """Pictures are shrunk to this many pixels on their longer side; 0 sends them as they are."""


class Endpoint:
    """A `ChatModel`. Raises InputError for settings that cannot work, and for a server that only fails (`patience`).

    `counts`: `requests` (attempts sent), `retries` (those after a first), `replies`, `cached`, `shared` (asked by
    somebody else at the same time), `prompt_tokens`, `completion_tokens`, and `failures/<kind>`.
    """

    path = "/chat/completions"
    """Where the server is asked; `prepared`, `body` and `read` are what is asked there, and what comes back."""

    def __init__(self, config: ServerConfig):
        self.config: Any = config
        self.counts: Counter[str] = Counter()
        self._client: Any = None if config.offline else _client(config)
        self._cache = ReplyCache(Path(config.cache)) if config.cache else None
        _, secrets = without_secrets(config.extra_body)
        self._hidden = [text for text in texts_in(secrets) if len(text) >= SHORTEST_KEY]
        self._slots = asyncio.Semaphore(config.concurrency)
        self._under_way: dict[str, asyncio.Task[Answer]] = {}
        self._failed_in_a_row = 0
        self._silent_since: float | None = None
        """When the first attempt began that has failed since the last reply."""
        self._answered = False
        """Has there been a reply, ever?"""
        self._fault: InputError | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True, name="endpoint")
        self._thread.start()
        atexit.register(self.close)

    def complete(self, requests: Sequence[Request]) -> list[Answer]:
        answers = dict(self.as_completed(requests))
        return [answers[index] for index in range(len(requests))]

    def as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
        """(index, answer) as they come in, for progress and for results that are written one by one.

        Requests are taken, in the caller's thread, as there is room for them: few are in memory at a time.
        """
        self._fault, self._failed_in_a_row, self._silent_since = None, 0, None
        ended: queue.SimpleQueue[tuple[int, Future[Answer]]] = queue.SimpleQueue()
        under_way: dict[int, Future[Answer]] = {}

        def next_ended() -> tuple[int, Answer]:
            index, future = ended.get()
            del under_way[index]
            return index, future.result()

        try:
            for index, request in enumerate(requests):
                future = under_way[index] = asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)
                future.add_done_callback(lambda future, index=index: ended.put((index, future)))
                while len(under_way) >= AHEAD * self.config.concurrency or not ended.empty():
                    yield next_ended()
            while under_way:
                yield next_ended()
        finally:
            for future in list(under_way.values()):
                future.cancel()

    @property
    def address(self) -> str:
        return self.config.base_url

    def prepared(self, request: Request) -> Prepared:
        """Raises ValueError where a picture of the request does not decode."""
        return prepare(request, self.config.image_side, settings_of(self.config))

    def body(self, request: Request, prepared: Prepared) -> dict[str, Any]:
        return _body(prepared, self.config)

    async def read(self, body: str) -> Reply:
        """Raises ValueError for what is no reply: it is asked for again."""
        return read_reply(body)

    def probe(self) -> None:
        """Asks the server for a word, past the cache. Raises InputError where it gives no reply."""
        if self.config.offline:
            return
        self._fault, self._silent_since = None, None
        question = Request(InterleavedDocument((TextSegment("Say yes."),)))
        body = self.body(question, self.prepared(question))
        answer = asyncio.run_coroutine_threadsafe(self._ask(body), self._loop).result()
        if isinstance(answer, Failure):
            raise self._fault or InputError(self._in_vain(answer))

    def manifest(self) -> dict[str, Any]:
        return {"base_url": self.config.base_url, **settings_of(self.config), "image_side": self.config.image_side}

    def close(self) -> None:
        """Gives up what is under way and ends the thread; the cache keeps what had arrived."""
        if self._loop.is_closed():
            return
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(timeout=30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._cache is not None:
            self._cache.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _answer(self, request: Request) -> Answer:
        """Requests with the same question that are under way at the same time share one answer."""
        async with self._slots:
            try:
                prepared = await _aside(request, self.prepared, request)
            except ValueError as error:
                answer: Answer = Failure("image", str(error))
            else:
                task = self._under_way.get(prepared.key)
                if task is None:
                    task = self._under_way[prepared.key] = asyncio.create_task(self._recall_or_ask(request, prepared))
                    task.add_done_callback(lambda _: self._under_way.pop(prepared.key))
                else:
                    self.counts["shared"] += 1
                answer = await asyncio.shield(task)  # an asker that gives up leaves the others their answer
        if isinstance(answer, Failure):
            self.counts[f"failures/{answer.kind}"] += 1
        if self._fault:
            raise self._fault
        return answer

    async def _recall_or_ask(self, request: Request, prepared: Prepared) -> Answer:
        if reply := recall(self._cache, prepared.key):
            self.counts["cached"] += 1
            return reply
        if self.config.offline:
            reason = f"no reply to this question in {self.config.cache}; ask once with offline off and these settings"
            return Failure("offline", reason)
        answer = await self._ask(await _aside(request, self.body, request, prepared))
        if isinstance(answer, Reply):
            self._count(answer)
            remember(self._cache, prepared, answer)
        elif answer.kind != "budget":
            self._failed_in_a_row += 1
            if self.config.patience and self._failed_in_a_row == MOST_IN_A_ROW:
                self._fault = InputError(f"{self._in_vain(answer)} ({MOST_IN_A_ROW} requests in a row have failed)")
        return answer

    def _in_vain(self, failure: Failure) -> str:
        return (
            f"{self.config.base_url}: {failure.kind}: {failure.reason}; see that the server runs and knows the model "
            f"{self.config.model!r}, and that ${self.config.api_key_env} holds its key"
        )

    def _count(self, reply: Reply) -> None:
        self.counts["replies"] += 1
        self.counts["prompt_tokens"] += reply.prompt_tokens
        self.counts["completion_tokens"] += reply.completion_tokens
        if self.config.max_tokens_total and not reply.prompt_tokens:
            line = f"max_tokens_total: {self.config.base_url} does not say how many tokens it uses; set it to 0"
            self._fault = InputError(line)

    async def _ask(self, body: dict[str, Any]) -> Answer:
        for attempt in itertools.count():
            if over := self._over_budget():
                return over
            self.counts["requests"] += 1
            self.counts["retries"] += attempt > 0
            begun = monotonic()
            outcome = await self._attempt(body)
            if isinstance(outcome, Reply):
                self._answered, self._failed_in_a_row, self._silent_since = True, 0, None
                return outcome
            left_s = self._patience_left(begun, outcome)
            waits = outcome.absent and self.config.patience > 0  # a server that is away is no fault of the request
            if self._fault or not outcome.again or (attempt >= self.config.retries and not waits):
                return outcome.failure
            wait_s = self.config.backoff * 2 ** min(attempt, 30) if outcome.wait_s is None else outcome.wait_s
            wait_s = min(wait_s, LONGEST_WAIT) * random.uniform(1, 1.25)  # apart from others that failed with it
            await asyncio.sleep(min(wait_s, left_s))
        raise AssertionError("attempts have no end")

    def _patience_left(self, begun: float, outcome: _Fault) -> float:
        """Seconds, after an attempt has failed; where there are none the call has a fault."""
        self._silent_since = begun if self._silent_since is None else self._silent_since
        left_s = self._silent_since + self.config.patience - monotonic() if self.config.patience else math.inf
        failure = outcome.failure
        if outcome.absent and not self._answered:
            line = f"{failure.kind}: {failure.reason}; nothing answers there: start the server, or correct base_url"
            self._fault = InputError(f"{self.config.base_url}: {line}")
        elif left_s <= 0:
            line = f"no reply for {self.config.patience:g} s (patience)"
            self._fault = Unavailable(f"{self._in_vain(failure)}; {line}")
        return left_s

    def _over_budget(self) -> Failure | None:
        sent, limit = self.counts["requests"], self.config.max_requests
        if limit and sent >= limit:
            return Failure("budget", f"{sent} requests have been sent; raise max_requests ({limit})")
        spent, limit = self.counts["prompt_tokens"] + self.counts["completion_tokens"], self.config.max_tokens_total
        if limit and spent >= limit:
            return Failure("budget", f"{spent} tokens have been used; raise max_tokens_total ({limit})")
        return None

    async def _attempt(self, body: dict[str, Any]) -> Reply | _Fault:
        import openai

        try:
            async with asyncio.timeout(self.config.timeout):  # the client's own limits start anew with each byte
                # Not `chat.completions.create`, whose typed objects take what servers send on trust.
                text = await self._client.post(self.path, cast_to=str, body=body)
        except (TimeoutError, openai.APITimeoutError):
            return _Fault(Failure("timeout", f"no answer within {self.config.timeout:g} s"))
        except openai.APIStatusError as error:
            said = f"{error.message} ({error.code})" if error.code else error.message
            return status_fault(error.status_code, error.response.headers, self._redacted(said))
        except Unreadable as error:
            return _Fault(Failure("malformed", self._redacted(str(error))), again=False)
        except openai.APIConnectionError as error:
            reason = self._redacted(f"{error.message} {error.__cause__ or ''}")
            return _Fault(Failure("connection", reason), absent=could_not_connect(error))
        try:
            return await self.read(text)
        except ValueError as error:
            again = not isinstance(error, Unreadable)
            return _Fault(Failure("malformed", self._redacted(str(error))), again)

    def _redacted(self, text: str) -> str:
        """One line without the key and other secrets, which servers like to repeat."""
        key = os.environ.get(self.config.api_key_env, "")
        for secret in (*self._hidden, *([key] if len(key) >= SHORTEST_KEY else [])):
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._client:
            await self._client.close()


@dataclass(frozen=True, slots=True)
class _Fault:
    """An attempt without a reply."""

    failure: Failure
    again: bool = True
    wait_s: float | None = None
    """Seconds to wait before the next attempt, where the server said so."""
    absent: bool = False
    """Was there nobody to connect to?"""


def read_reply(body: str) -> Reply:
    """The reply in the body of a chat completion; one without text is a reply, its text is empty. Raises ValueError."""
    try:
        value = parse_json(body)
        choice, usage = value["choices"][0], value.get("usage") or {}
        text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        if not isinstance(text, str | None) or not isinstance(refusal, str | None):
            raise TypeError("the message is no text")
        finish = "refusal" if refusal and not text else str(choice.get("finish_reason") or "stop")
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        return Reply(text or refusal or "", finish, *tokens)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        reason = f"the server's answer is no chat completion ({type(error).__name__}: {error}): {body[:100]}"
        raise ValueError(reason) from None


def status_fault(status: int, headers: Mapping[str, str], message: str) -> _Fault:
    """What an HTTP error means."""
    kind = "rate limit" if status == 429 else "server error" if status >= 500 else "rejected"
    wait_s = retry_after(headers)
    if wait_s is not None and wait_s > LONGEST_WAIT:
        return _Fault(Failure(kind, f"HTTP {status}: asks to wait {wait_s:.0f} s: {message}"), again=False)
    again = status in (408, 409, 429) or (status >= 500 and status not in (501, 505))  # those it will never do
    if 300 <= status < 400:
        message = f"leads to {headers.get('location', 'nowhere')}, which is not followed; give base_url as it is"
    return _Fault(Failure(kind, f"HTTP {status}: {message}"), again, wait_s)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, in either of its forms (RFC 9110, 10.2.3); None where there is none."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None


async def _aside(request: Request, function: Callable[..., T], *args: Any) -> T:
    """Work on pictures goes to a thread, where it does not hold up the replies to others."""
    return await asyncio.to_thread(function, *args) if request.content.images else function(*args)


def settings_of(config: EndpointConfig) -> dict[str, Any]:
    """What a reply depends on beside the messages; where the model is served, and by which key, is not part of it."""
    names = ("model", "revision", "temperature", "max_new_tokens", "seed")
    extra_body, _ = without_secrets(config.extra_body)
    return {**{name: getattr(config, name) for name in names}, "extra_body": extra_body}


def _body(prepared: Prepared, config: EndpointConfig) -> dict[str, Any]:
    """The JSON of a request; the only place where pictures are encoded."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_uri(part)}}
        for part in prepared.parts
    ]
    system = [{"role": "system", "content": prepared.system}] if prepared.system else []
    body = {
        "model": config.model,
        "messages": [*system, {"role": "user", "content": content}],
        "temperature": config.temperature,
        "max_tokens": config.max_new_tokens,
        "seed": config.seed,
        **config.extra_body,
    }
    return {name: value for name, value in body.items() if value is not None}


def _client(config: ServerConfig) -> Any:
    try:
        from openai import AsyncOpenAI
    except ImportError:
        raise InputError("the openai client is not installed: pip install 'limner[judge]'") from None
    url = urlsplit(config.base_url)
    if url.scheme not in ("http", "https") or not url.hostname or url.username:
        raise InputError("base_url: give the server's address, without a password: http://localhost:8000/v1")
    if not config.model:
        raise InputError("model: missing; name the model that the server is to use")
    key = os.environ.get(config.api_key_env) or "EMPTY"
    client = bounded_client(config.timeout, MOST_REPLY_BYTES)
    return AsyncOpenAI(base_url=config.base_url, api_key=key, timeout=config.timeout, max_retries=0, http_client=client)

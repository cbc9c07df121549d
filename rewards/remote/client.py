"""Rewards of another machine: the client of `limner serve-rewards`, and the form in which completions travel.

    GET  /rewards         answer: {"rewards": [names]}
    POST /rewards/NAME    {"prompts": [document], "completions": [{"prompt": index, "answer": document, "ended": bool}]}
                          answer: the fields of a RewardOutput; a score that failed is "failed"

Documents are those of `InterleavedDocument.to_json`, pictures as PNG, so that they arrive as they were. A fault of what
was sent is 4xx with {"error": line}, an overloaded server 503, a reward that broke 500.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Timer
from typing import Any
from urllib.parse import quote, urlsplit

from ...configs.bounds import NoneOrMore, Seconds
from ...configs.errors import InputError, Unavailable
from ...configs.json_text import parse_json
from ...configs.registry import register
from ...models.documents.document import InterleavedDocument
from ..base import FAILED, Completion, RewardOutput, Server

KEY_VARIABLE = "LIMNER_REWARDS_KEY"
MOST_BYTES = 8 * 2**20
"""Of an answer, which holds numbers alone."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most."""


def check_variable(api_key_env: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", api_key_env):  # not shown: it may be the key
        raise InputError("api_key_env: give the name of an environment variable, not the key itself")


class NotThere(Exception):
    """Nobody listens at the address."""


class RemoteFailed(Exception):
    """The server is there and gave no scores, after all attempts."""


@register("reward", "remote/REWARD")
@dataclass
class RemoteReward:
    """One reward of a server on another machine (`limner serve-rewards`).

    Raises InputError for what asking again would not change (address, key, name, prompts that the reward cannot score),
    RemoteFailed where the reward broke there, Unavailable where the server is away or has no time: the guard waits for
    it. A server that was never there is an InputError, too.
    """

    reward: str
    """Under which name the server has it."""
    url: str
    """Of the server: `http://gpu-2:8400`."""
    api_key_env: str = KEY_VARIABLE
    """*Name* of the environment variable that holds the server's key; unset for a server without one."""
    timeout: Seconds = 240.0
    """Seconds an attempt may take, all of it."""
    retries: NoneOrMore = 3
    """Further attempts after a lost connection, silence, HTTP 429 or 5xx."""
    backoff: Seconds = 1.0
    """Seconds before the second attempt; doubles with each."""

    def __post_init__(self) -> None:
        self.name = f"remote_{self.reward}"
        check_variable(self.api_key_env)
        if not 0 < self.timeout < math.inf:
            raise InputError(f"timeout: {self.timeout}; a number of seconds above 0")
        url = urlsplit(self.url)
        if url.scheme not in ("http", "https") or not url.hostname or url.username:
            raise InputError("url: give the server's address, without a password: http://gpu-2:8400")
        self._answered = False
        """Has it been there, ever?"""
        self._connection = HTTPSConnection if url.scheme == "https" else HTTPConnection
        self._address = url.netloc
        self._path = f"{url.path.rstrip('/')}/rewards/{quote(self.reward, safe='')}"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        body = json.dumps(pack_completions(completions)).encode()
        reason, failed = "", Unavailable
        for attempt in range(self.retries + 1):
            if attempt:
                wait_s = min(self.backoff * 2 ** (attempt - 1), LONGEST_WAIT)
                time.sleep(wait_s * random.uniform(1, 1.25))  # apart from other ranks that failed together with it
            try:
                status, text = self._ask("POST", self._path, body)
            except NotThere as error:
                if not self._answered:
                    raise InputError(f"{self.url}: {error}; start limner serve-rewards there, or correct url") from None
                reason, failed = str(error), Unavailable
                continue
            except (OSError, HTTPException) as error:
                reason, failed = f"{type(error).__name__}: {error}", Unavailable
                continue
            self._answered = True
            if status == 200:
                return unpack_output(text)
            reason, failed = f"HTTP {status}: {_said(text)}", RemoteFailed if status == 500 else Unavailable
            if status < 500 and status != 429:
                raise InputError(f"{self.url}: reward {self.reward!r}: {reason}")
        raise failed(f"{self.url}, {self.retries + 1} attempts, last: {reason}")

    @property
    def servers(self) -> list[Server]:
        return [self]

    @property
    def address(self) -> str:
        return self.url

    def probe(self) -> None:
        """Asks what there is. Raises InputError where nobody answers, or has no such reward."""
        try:
            status, text = self._ask("GET", self._path.rpartition("/")[0], b"")
            names = parse_json(text)["rewards"] if status == 200 else []
        except (NotThere, OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            said = str(error) if isinstance(error, NotThere) else f"{type(error).__name__}: {error}"
            raise InputError(f"{self.url}: {said}; see that limner serve-rewards runs there") from None
        if status != 200:
            raise InputError(f"{self.url}: HTTP {status}: {_said(text)}")
        if self.reward not in names:
            raise InputError(f"{self.url}: no reward {self.reward!r}; there are {', '.join(map(str, names))[:200]}")
        self._answered = True

    def _ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body. Raises NotThere, OSError or HTTPException; what takes too long is TimeoutError."""
        key = os.environ.get(self.api_key_env, "")
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        connection = self._connection(self._address, timeout=self.timeout)
        until = time.monotonic() + self.timeout
        try:
            connection.connect()
        except (ConnectionRefusedError, socket.gaierror) as error:
            raise NotThere(f"{type(error).__name__}: {error}") from None
        # Time limits of a socket start anew with each byte: at the end of the time it is hung up from here.
        watch = Timer(max(0.0, until - time.monotonic()), _hang_up, [connection.sock])
        watch.daemon = True
        watch.start()
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read(MOST_BYTES + 1)
        except (OSError, HTTPException):
            if time.monotonic() < until:
                raise
            raise TimeoutError(f"no answer within {self.timeout:g} s") from None
        finally:
            watch.cancel()
            connection.close()
        if time.monotonic() >= until:
            raise TimeoutError(f"no answer within {self.timeout:g} s")
        if len(text) > MOST_BYTES:
            raise HTTPException(f"more than {MOST_BYTES} bytes of scores")
        return response.status, text


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


def pack_completions(completions: Sequence[Completion]) -> dict[str, Any]:
    """A JSON value; the rows of a group share their prompt."""
    prompts = {id(completion.prompt): completion.prompt for completion in completions}
    places = {key: place for place, key in enumerate(prompts)}
    return {
        "prompts": [prompt.to_json() for prompt in prompts.values()],
        "completions": [
            {"prompt": places[id(c.prompt)], "answer": c.answer.to_json(), "ended": c.ended} for c in completions
        ],
    }


def unpack_completions(value: Any) -> list[Completion]:
    """Raises ValueError for anything that `pack_completions` does not make."""
    if not isinstance(value, dict) or set(value) != {"prompts", "completions"}:
        raise ValueError("expected an object with `prompts` and `completions`")
    if not all(isinstance(part, list) for part in value.values()):
        raise ValueError("`prompts` and `completions` are lists")
    prompts = [InterleavedDocument.from_json(prompt) for prompt in value["prompts"]]
    completions = []
    for row, item in enumerate(value["completions"]):
        if not isinstance(item, dict) or set(item) != {"prompt", "answer", "ended"} or type(item["ended"]) is not bool:
            raise ValueError(f"completion {row}: expected `prompt`, `answer` and a boolean `ended`")
        if type(item["prompt"]) is not int or not 0 <= item["prompt"] < len(prompts):
            raise ValueError(f"completion {row}: no prompt {item['prompt']!r}")
        answer = InterleavedDocument.from_json(item["answer"])
        completions.append(Completion(prompts[item["prompt"]], answer, item["ended"]))
    return completions


def pack_output(output: RewardOutput) -> dict[str, Any]:
    """A JSON value; JSON has no NaN, so that a failed score is the word "failed"."""
    return {
        "outcome": _packed(output.outcome),
        "segments": [_packed(row) for row in output.segments],
        "breakdown": {name: _packed(part) for name, part in output.breakdown.items()},
        "failed": output.failed,
    }


def unpack_output(body: bytes) -> RewardOutput:
    """Raises RemoteFailed for what is no output; whether its scores are in order is the guard's to check."""
    try:
        value = parse_json(body)
        segments = [_unpacked(row) for row in value["segments"]]
        breakdown = {name: _unpacked(part) for name, part in value["breakdown"].items()}
        return RewardOutput(_unpacked(value["outcome"]), segments, breakdown, value["failed"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RemoteFailed(f"the server's answer holds no scores ({type(error).__name__}: {error})") from None


def _packed(scores: Sequence[float | None]) -> list[float | str | None]:
    return ["failed" if score is not None and math.isnan(score) else score for score in scores]


def _unpacked(scores: Sequence[Any]) -> list[Any]:
    return [FAILED if score == "failed" else score for score in scores]


def _said(body: bytes) -> str:
    """The server's own line of an error, one line in any case."""
    try:
        text = str(parse_json(body)["error"])
    except (ValueError, LookupError, TypeError):
        text = body[:200].decode(errors="replace")
    return " ".join(text[:2000].split())

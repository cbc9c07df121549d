"""A running server over a tiny model, on a port of its own, and a client without opinions."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pytest

from limner.models.writing import Model
from limner.serve.command import listen
from limner.serve.server import Server
from limner.serve.service import Service
from limner.serve.settings import ServeConfig

PROMPT = "Draw: a red circle."


class Running:
    def __init__(self, server: Server, url: str):
        self.server, self.service, self.engine, self.url = server, server.service, server.service.engine, url
        self.port = int(url.rpartition(":")[2])

    def ask(self, path, body=None, headers=None, method=None):
        """(status, headers, body): JSON where it is some."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        data = body if isinstance(body, bytes | str | None) else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method or ("GET" if body is None else "POST"), path, data, {**kind, **(headers or {})})
        answer = connection.getresponse()
        content, found = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return answer.status, found, json.loads(content) if "json" in found.get("content-type", "") else content

    def chat(self, content=PROMPT, **more):
        messages = content if isinstance(content, list) and "role" in content[0] else None
        messages = messages or [{"role": "user", "content": content}]
        headers = more.pop("headers", None)
        body = {"model": "tiny", "messages": messages, "max_tokens": 60, "seed": 1, **more}
        return self.ask("/v1/chat/completions", body, headers)


@contextmanager
def running(policy, keys=(), **settings) -> Iterator[Running]:
    config = ServeConfig(model="tiny", port=0, **{"drain_seconds": 5, **settings})
    server = Server(Service(Model(policy), config, keys))
    said: list[str] = []
    ready = Event()
    thread = Thread(target=server.serve_at, args=(listen(config), lambda url: (said.append(url), ready.set())))
    thread.start()
    try:
        assert ready.wait(30)
        yield Running(server, said[0])
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy(1)


@pytest.fixture(scope="module")
def server(policy) -> Iterator[Running]:
    with running(policy) as found:
        yield found


def events_of(stream: bytes) -> list:
    """Objects of a stream of server-sent events; a word as it stands."""
    found = []
    for block in stream.decode().split("\n\n"):
        for line in block.splitlines():
            if line.startswith("data: "):
                word = line.removeprefix("data: ")
                found.append(json.loads(word) if word.startswith("{") else word)
    return found

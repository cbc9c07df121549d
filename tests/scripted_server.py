"""An OpenAI-compatible server that says what a test tells it to, faults included: real HTTP on localhost, in a thread.

def answer(body):                       # the parsed request
    if "picture" in texts(body):
        return "<score>7</score>"       # a completion with this text
    return Fault(status=429, headers={"Retry-After": "0.1"})

with ScriptedServer(answer) as server:
    EndpointConfig(base_url=server.url, model="scripted")
    server.bodies                       # every request as it came

An images endpoint of the same server gets the bodies that have a `prompt`, and answers with `picture(image)`.
"""

import base64
import io
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Fault:
    """Anything but a well-formed completion."""

    status: int = 200
    body: str = '{"error": {"message": "scripted fault"}}'
    headers: dict[str, str] = field(default_factory=dict)
    hang_s: float = 0.0
    """Says nothing for so long."""
    cut: bool = False
    """Announces a longer body than it sends, then hangs up."""
    raw: bytes | None = None
    """The body as bytes, in place of `body`."""
    drip_s: float = 0.0
    """Between two bytes of it."""


TOO_MANY = Fault(429, headers={"Retry-After": "0.05"})
BROKEN = Fault(500)
HANGING = Fault(hang_s=60)
MALFORMED = Fault(body='{"choices": [{"mess')
TRUNCATED = Fault(body='{"choices": [', cut=True)
NO_CHOICES = Fault(body='{"choices": []}')

PATHS = ("/v1/chat/completions", "/v1/images/generations")

Script = Callable[[dict[str, Any]], str | dict[str, Any] | Fault]
"""What to answer: the text of a completion, a whole body, or a fault."""


class ScriptedServer:
    """`delay_s` passes before each answer. Every request is kept as it came: `bodies`, `headers` (lower-case names)."""

    def __init__(self, script: Script, delay_s: float = 0.0, port: int = 0):
        self.script, self.delay_s, self.port = script, delay_s, port
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.files: dict[str, bytes] = {}
        """What a GET finds, by path."""
        self.most_at_once = 0
        self.closing = Event()
        self._lock, self._at_once = Lock(), 0

    def __enter__(self) -> "ScriptedServer":
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                owner._handle(self)

            def do_GET(self) -> None:
                data = owner.files.get(self.path)
                owner.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, http: BaseHTTPRequestHandler) -> None:
        raw = http.rfile.read(int(http.headers["Content-Length"]))
        if self.closing.is_set():  # it has gone, for those too whose connection it kept
            http.close_connection = True
            return
        with self._lock:
            self.bodies.append(json.loads(raw))
            self.headers.append({name.lower(): value for name, value in http.headers.items()})
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if http.path not in PATHS:
                answer: str | dict[str, Any] | Fault = Fault(404, '{"error": {"message": "no such path"}}')
            else:
                answer = self.script(json.loads(raw))
            time.sleep(self.delay_s)
        finally:
            with self._lock:
                self._at_once -= 1
        try:
            self._send(http, answer)
        except OSError:  # the client has hung up, which is its right
            http.close_connection = True

    def _send(self, http: BaseHTTPRequestHandler, answer: str | dict[str, Any] | Fault) -> None:
        if isinstance(answer, str):
            answer = completion(answer)
        fault = answer if isinstance(answer, Fault) else Fault(body=json.dumps(answer))
        if fault.hang_s:
            self.closing.wait(fault.hang_s)
        body = fault.body.encode() if fault.raw is None else fault.raw
        http.send_response(fault.status)
        for name, value in {"Content-Type": "application/json", **fault.headers}.items():
            http.send_header(name, value)
        http.send_header("Content-Length", str(len(body) + 100 * fault.cut))
        http.end_headers()
        for piece in [body[at : at + 1] for at in range(len(body))] if fault.drip_s else [body]:
            http.wfile.write(piece)
            time.sleep(fault.drip_s)
        http.close_connection = http.close_connection or fault.cut


@contextmanager
def server_process(script: Script, delay_s: float) -> Iterator[str]:
    """The URL of a server in a process of its own, as a real one is: in ours, both wait for one interpreter lock."""

    def serve() -> None:
        with ScriptedServer(script, delay_s) as server:
            theirs.send(server.url)
            theirs.recv()

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("end")
        process.join()


def completion(text: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """The body of a chat completion; a token is taken to be four characters."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 10, "completion_tokens": len(text or "") // 4}
    return {"id": "scripted", "object": "chat.completion", "model": "scripted", "choices": [choice], "usage": usage}


def picture(image: Image.Image) -> dict[str, Any]:
    """The body of an images endpoint's answer."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"created": 0, "data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]}


def parts(body: dict[str, Any]) -> list[str | Image.Image]:
    """The user's turn of a request: texts, and pictures decoded."""
    return [
        part["text"] if part["type"] == "text" else _decoded(part["image_url"]["url"])
        for part in body["messages"][-1]["content"]
    ]


def texts(body: dict[str, Any]) -> str:
    return "".join(part for part in parts(body) if isinstance(part, str))


def images(body: dict[str, Any]) -> list[Image.Image]:
    return [part for part in parts(body) if isinstance(part, Image.Image)]


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))

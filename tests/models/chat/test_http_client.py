"""Servers that are away, that never end, or that send too much: each call ends, in seconds that were stated."""

import gzip
import json
import threading
import time
import zlib

import pytest

from limner.configs.errors import InputError, Unavailable
from limner.models.chat import endpoint as endpoint_module
from limner.models.chat.endpoint import Endpoint, EndpointConfig

from ...scripted_server import BROKEN, HANGING, MALFORMED, Fault, ScriptedServer, completion
from .test_endpoint import ask, echo, settings


def test_a_server_that_was_never_there_stops_the_call_at_once():
    start = time.monotonic()
    config = EndpointConfig("http://127.0.0.1:9/v1", "m", backoff=60, concurrency=2)
    for call in (lambda model: model.complete(ask(*map(str, range(50)))), Endpoint.probe):
        with Endpoint(config) as model, pytest.raises(InputError, match=r"^http://127.0.0.1:9/v1: connection: .*start"):
            call(model)
        assert model.counts["retries"] == 0
    assert time.monotonic() - start < 30


def test_a_server_that_has_gone_is_waited_for_so_many_seconds():
    with ScriptedServer(echo) as server, Endpoint(settings(server, timeout=2, patience=2)) as model:
        assert model.complete(ask("a"))[0].text == "you said a"
        server.__exit__()
        start = time.monotonic()
        with pytest.raises(Unavailable, match=f"^{server.url}: connection: .*OPENAI_API.*no reply for 2 s"):
            model.complete(ask("b", "c"))
        assert 2 <= time.monotonic() - start < 20 and model.counts["retries"] > 4


def test_a_server_that_comes_back_is_asked_again():
    """`retries` are those of a request; that nobody listens is no fault of it."""
    with ScriptedServer(echo) as server, Endpoint(settings(server, timeout=30, patience=60)) as model:
        model.complete(ask("a"))
        server.__exit__()
        threading.Timer(0.5, lambda: ScriptedServer(echo, port=int(server.url.split(":")[2][:-3])).__enter__()).start()
        assert [answer.text for answer in model.complete(ask("b", "c"))] == ["you said b", "you said c"]


@pytest.mark.parametrize("fault", [BROKEN, HANGING, MALFORMED])
def test_patience_is_a_matter_of_seconds_whatever_the_fault(fault):
    with ScriptedServer(lambda body: fault) as server:
        config = settings(server, timeout=0.5, patience=1, retries=1, concurrency=1)
        start = time.monotonic()
        with Endpoint(config) as model, pytest.raises(Unavailable, match="no reply for 1 s .patience"):
            model.complete(ask(*map(str, range(99))))
        assert time.monotonic() - start < 20


def test_requests_that_fail_at_once_stop_the_call_by_their_number():
    with ScriptedServer(lambda body: Fault(400)) as server, Endpoint(settings(server)) as model:
        with pytest.raises(InputError, match="rejected: HTTP 400.*100 requests in a row have failed"):
            model.complete(ask(*map(str, range(300))))
        assert len(server.bodies) < 150


def test_a_probe_asks_past_the_cache(tmp_path):
    with ScriptedServer(echo) as server, Endpoint(settings(server, cache=str(tmp_path / "c.sqlite"))) as model:
        model.probe()
        model.probe()
        assert len(server.bodies) == 2
    for fault, said in ((Fault(501), "HTTP 501"), (Fault(404), "HTTP 404"), (MALFORMED, "no chat completion")):
        with ScriptedServer(lambda body, fault=fault: fault) as server, Endpoint(settings(server)) as model:
            with pytest.raises(InputError, match=f"{server.url}: .*{said}.*knows the model 'scripted'"):
                model.probe()
            assert len(server.bodies) == (3 if fault is MALFORMED else 1)


def test_a_redirect_is_not_followed():
    with (
        ScriptedServer(echo) as other,
        ScriptedServer(lambda body: Fault(307, headers={"Location": other.url})) as server,
        Endpoint(settings(server)) as model,
    ):
        (answer,) = model.complete(ask("a"))
    assert answer.kind == "rejected" and f"HTTP 307: leads to {other.url}" in answer.reason and not other.bodies


def packed(size, encoding, pack):
    return Fault(raw=pack(b" " * size), headers={"Content-Encoding": encoding})


LARGE = {
    "as it is": (Fault(body=" " * 40_000), "more than 30000 bytes"),
    "without end": (Fault(body=" " * 40_000, cut=True), "more than 30000 bytes"),
    "unpacked": (packed(10_000_000, "gzip", gzip.compress), "more than 30000 bytes, unpacked"),
    "deflated": (packed(10_000_000, "deflate", zlib.compress), "more than 30000 bytes, unpacked"),
    "another packing": (packed(10, "br", bytes), "packed as 'br'"),
    "twice": (packed(10, "gzip, gzip", lambda body: gzip.compress(gzip.compress(body))), "packed as 'gzip, gzip'"),
    "damaged": (packed(10, "gzip", bytes), "does not unpack"),
    "half": (packed(10_000, "gzip", lambda body: gzip.compress(body)[:-9]), "ends before"),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_reply_has_a_size_limit_sent_and_unpacked(name, monkeypatch):
    monkeypatch.setattr(endpoint_module, "MOST_REPLY_BYTES", 30_000)
    fault, reason = LARGE[name]
    with ScriptedServer(lambda body: fault) as server, Endpoint(settings(server)) as model:
        (answer,) = model.complete(ask("a"))
    assert answer.kind == "malformed" and reason in answer.reason and len(server.bodies) == 1


def test_a_packed_reply_is_read():
    def script(body):
        return Fault(raw=gzip.compress(json.dumps(completion("good")).encode()), headers={"Content-Encoding": "gzip"})

    with ScriptedServer(script) as server, Endpoint(settings(server)) as model:
        assert model.complete(ask("a"))[0].text == "good"


def test_a_reply_that_drips_runs_into_the_deadline():
    with (
        ScriptedServer(lambda body: Fault(body=" " * 100, drip_s=0.1)) as server,
        Endpoint(settings(server, timeout=0.5, retries=0)) as model,
    ):
        assert model.complete(ask("a"))[0].kind == "timeout"


def test_patience_is_no_less_than_a_timeout():
    with pytest.raises(InputError, match="patience: 100 s; 0, or no less than an attempt's timeout .120 s"):
        EndpointConfig(patience=100)  # requests, before it was seconds
    assert EndpointConfig(patience=0).patience == 0

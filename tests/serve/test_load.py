"""Many clients at a time, some of whom misbehave; and requests that chance has spoilt."""

import copy
import http.client
import json
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from limner.models.documents.forms import read_prompt
from limner.models.sampler.request import Sampling
from limner.models.writing import write

from .conftest import PROMPT, events_of, running
from .test_security import HEAD, ODD, png, shown, uri

SEEDS = 8


def body_of(seed, **more):
    return {"model": "tiny", "input": PROMPT, "max_output_tokens": 24, "seed": seed, "max_images": 2, **more}


@pytest.fixture(scope="module")
def expected(policy):
    """By seed the items that a whole answer has: texts, and None for a picture."""
    found = {}
    for seed in range(SEEDS):
        (answer,) = write(policy, [read_prompt(PROMPT)], Sampling(24, max_images=2, seed=seed))
        found[seed] = [getattr(segment, "text", None) for segment in answer.document.segments]
    return found


def items_of(response):
    kept = [item for item in response["output"] if item.get("status") != "failed"]
    return [item["content"][0]["text"] if item["type"] == "message" else None for item in kept]


def good(server, seed, stream):
    """The items of an answer, after as many tries as it takes."""
    while True:
        status, headers, reply = server.ask("/v1/responses", body_of(seed, stream=stream))
        if status == 200:
            response = events_of(reply)[-1]["response"] if stream else reply
            assert response["status"] in ("completed", "incomplete")
            return items_of(response)
        assert status == 429 and int(headers["retry-after"]) >= 1, reply
        time.sleep(0.2)


def leaves(server, seed, chance):
    """Asks and goes away, sooner or later."""
    data = json.dumps(body_of(seed, stream=chance.random() < 0.5, max_output_tokens=200)).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=300) as connection:
        connection.sendall(f"{HEAD}Content-Length: {len(data)}\r\n\r\n".encode() + data[: chance.choice([20, None])])
        time.sleep(chance.random() / 20)


def reads_slowly(server, seed, chance):
    """Reads a byte now and then, and gives up."""
    data = json.dumps(body_of(seed, stream=True)).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=300) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(f"{HEAD}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        for _ in range(chance.randrange(5)):
            connection.recv(1)
            time.sleep(0.02)


def talks_nonsense(server, seed, chance):
    body = chance.choice([b"{", b"[]", json.dumps(body_of(seed, temperature="hot")), json.dumps({"model": "tiny"})])
    assert server.ask("/v1/responses", body, {"Content-Type": "application/json"}, "POST")[0] in (400, 429)


def load(server, requests, expected, clients):
    """(answers checked, faults)"""
    numbers, checked, faults = iter(range(requests)), [], []
    lock = threading.Lock()

    def client():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            chance = random.Random(number)
            seed, kind = number % SEEDS, chance.random()
            try:
                if kind < 0.7:
                    items = good(server, seed, kind < 0.35)
                    checked.append(number)
                    assert items == expected[seed], f"request {number} got another answer"
                else:
                    chance.choice([leaves, reads_slowly, talks_nonsense])(server, seed, chance)
            except Exception as fault:
                faults.append(f"request {number}: {type(fault).__name__}: {fault}")

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(checked), faults


def idle(server, seconds=60):
    end = time.monotonic() + seconds
    while not server.engine.idle or server.engine.slots_in_use:
        assert time.monotonic() < end, "a slot has leaked"
        time.sleep(0.02)


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("clients", "requests"), [(12, 60), pytest.param(64, 2000, marks=pytest.mark.slow)])
def test_many_clients_some_of_whom_misbehave(policy, expected, clients, requests, caplog):
    if not Path("/proc/self/statm").is_file():
        pytest.skip("memory is read from /proc")
    with running(policy, slots=16, waiting=max(clients // 2, 8), key_concurrency=200, picture_megabytes=1) as server:
        load(server, 2 * clients, expected, clients)
        idle(server)
        before = resident()
        checked, faults = load(server, requests, expected, clients)
        idle(server)
        assert not faults and checked > requests / 2
        assert good(server, 0, False) == expected[0]
        assert (grown := resident() - before) < 48 * 2**20, f"{grown / 2**20:.0f} MiB more than before"
    assert "Traceback" not in caplog.text


VALUES = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**300, 0.5, -0.0, 1e308, "", "a", "<boi>", "\x00", "\U0001f600" * 50,
    [], {}, [[]], [None], {"type": "text"}, {"type": "input_image", "image_url": "file:///etc/passwd"},
    "data:image/png;base64,", "/v1/images/AAAAAAAAAAAAAAAAAAAAAA",
]  # fmt: skip


def spoilt(chance):
    """A path and a body that was a request before chance had its way."""
    path = chance.choice(["/v1/chat/completions", "/v1/responses"])
    image = uri(chance.choice([*ODD.values(), png()]))
    if path.endswith("responses"):
        parts = [{"type": "input_text", "text": PROMPT}, {"type": "input_image", "image_url": image, "candidate": 1}]
        body = body_of(1, input=[{"role": "user", "content": parts}], stream=chance.random() < 0.3, max_output_tokens=4)
    else:
        body = {"model": "tiny", "messages": [{"role": "user", "content": shown(image, candidate=1, caption="a")}]}
        body |= {"max_tokens": 4, "stop": ["x"], "modalities": ["text"], "stream": chance.random() < 0.3}
    for _ in range(chance.randrange(4)):
        _spoil(body, chance)
    data = json.dumps(body)
    if chance.random() < 0.2:
        at = chance.randrange(len(data))
        data = (
            data[:at]
            + chance.choice(["", "\\", '"', "\ud83d", "9" * 400, "{" * 200])
            + data[at + chance.randrange(3) :]
        )
    return path, data.encode("utf-8", "surrogatepass")


def _spoil(value, chance):
    """Changes, drops or adds something somewhere in it."""
    while isinstance(value, dict | list) and value:
        key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        if isinstance(value[key], dict | list) and chance.random() < 0.7:
            value = value[key]
            continue
        kind = chance.random()
        if kind < 0.7:
            value[key] = copy.deepcopy(chance.choice(VALUES))
        elif kind < 0.85:
            del value[key]
        elif isinstance(value, dict):
            value[chance.choice(["seed", "n", "tools", "x\x00", "candidate", "temperature"])] = copy.deepcopy(
                chance.choice(VALUES)
            )
        return


@pytest.mark.timeout(3600)
@pytest.mark.slow
def test_spoilt_requests_never_break_the_server(policy, caplog, request):
    cases = request.config.getoption("--fuzz-requests")
    with running(policy) as server:
        states: dict[int, int] = {}
        for number in range(cases):
            path, data = spoilt(random.Random(number))
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            connection.close()
            states[answer.status] = states.get(answer.status, 0) + 1
            assert answer.status in (200, 400, 404, 413), (number, answer.status, said[:500], data[:500])
            if number % 100 == 0:
                assert server.chat(max_tokens=3)[0] == 200
        idle(server)
    assert states[200] > cases / 20 and states[400] > cases / 4
    assert "Traceback" not in caplog.text

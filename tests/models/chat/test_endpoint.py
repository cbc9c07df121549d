"""The client of OpenAI-compatible servers, against a scripted one over real HTTP: every request ends and is counted."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from email.utils import formatdate

import numpy as np
import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.models.chat.endpoint import Endpoint, EndpointConfig, retry_after
from limner.models.chat.reply_cache import ReplyCache
from limner.models.chat.requests import Failure, Reply, Request
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment

from ...scripted_server import (
    BROKEN,
    HANGING,
    MALFORMED,
    NO_CHOICES,
    TOO_MANY,
    TRUNCATED,
    Fault,
    ScriptedServer,
    completion,
    parts,
    texts,
)

SECRET = "sk-very-secret-0123456789"


def ask(*words: str) -> list[Request]:
    return [Request(InterleavedDocument((TextSegment(word),))) for word in words]


def settings(server: ScriptedServer, **others) -> EndpointConfig:
    given = {"concurrency": 8, "timeout": 30.0, "retries": 2, "backoff": 0.01, **others}
    return EndpointConfig(base_url=server.url, model="scripted", **given)


def echo(body):
    return f"you said {texts(body)}"


def test_texts_and_pictures_arrive_in_order_and_at_their_size():
    wide, small = Image.effect_noise((300, 100), 50).convert("RGB"), Image.new("RGB", (8, 4), "red")
    document = InterleavedDocument(
        (
            ImageSegment(wide),
            TextSegment("mid \ud800"),
            ImageSegment(small),
            ImageSegment(small),
            TextSegment("end"),
        )
    )
    with ScriptedServer(echo) as server, Endpoint(settings(server, image_side=60, extra_body={"seed": None})) as model:
        (reply,) = model.complete([Request(document, system="Judge.")])
    assert reply == Reply("you said mid ?end", "stop", 10, 4)
    body = server.bodies[0]
    seen = parts(body)
    assert [part if isinstance(part, str) else part.size for part in seen] == [
        *[(60, 20), "mid ?", (8, 4), (8, 4), "end"]
    ]
    assert seen[0].tobytes() == wide.resize((60, 20), Image.Resampling.LANCZOS).tobytes()
    assert body["messages"][0] == {"role": "system", "content": "Judge."}
    assert body["temperature"] == 0 and body["max_tokens"] == 1024 and body["model"] == "scripted"
    assert "seed" not in body


FAULTS = {
    "429": (TOO_MANY, "rate limit"),
    "500": (BROKEN, "server error"),
    "malformed": (MALFORMED, "malformed"),
    "not json": (Fault(body="<html>", headers={"Content-Type": "text/html"}), "malformed"),
    "null": (Fault(body='{"choices": [{"message": null}]}'), "malformed"),
    "truncated": (TRUNCATED, "connection"),
    "no choices": (NO_CHOICES, "malformed"),
    "400": (Fault(400), "rejected"),
}


def test_with_every_fault_every_request_ends_and_is_counted():
    """Each fault once, which a retry repairs, and for ever."""
    seen = set()

    def script(body):
        name, _, mode = texts(body).partition(", ")
        if name == "well" or (mode == "once" and texts(body) in seen):
            return "good"
        seen.add(texts(body))
        return FAULTS[name][0]

    words = [*(f"well, {i}" for i in range(6)), *(f"{name}, {mode}" for name in FAULTS for mode in ("once", "always"))]
    with ScriptedServer(script) as server, Endpoint(settings(server, concurrency=24)) as model:
        answers = dict(zip(words, model.complete(ask(*words)), strict=True))
        counts = model.counts
    for word, answer in answers.items():
        name, _, mode = word.partition(", ")
        if name == "well" or (mode == "once" and name != "400"):  # what the client got wrong is not asked again
            assert isinstance(answer, Reply) and answer.text == "good", (word, answer)
        else:
            assert isinstance(answer, Failure) and answer.kind == FAULTS[name][1] and answer.reason, (word, answer)
    failures = {name: count for name, count in counts.items() if name.startswith("failures/")}
    assert counts["replies"] + sum(failures.values()) == len(words)
    assert failures == {
        "failures/rate limit": 1,
        "failures/server error": 1,
        "failures/malformed": 4,
        "failures/connection": 1,
        "failures/rejected": 2,
    }
    assert counts["requests"] == len(server.bodies) == 6 + 7 * (2 + 3) + 2 and counts["retries"] == 7 * (1 + 2)


def test_a_server_that_says_nothing_is_a_timeout():
    """A slow machine lets others run out too, and they are asked again: only the least number of requests is sure."""
    hung = []

    def script(body):
        if "once" in texts(body) and hung.count("once"):
            return "good"
        hung.append(texts(body))
        return HANGING

    with ScriptedServer(script) as server, Endpoint(settings(server, timeout=1.0, retries=3)) as model:
        once, always = model.complete(ask("once", "always"))
        counts = model.counts
    assert isinstance(once, Reply) and once.text == "good"
    assert isinstance(always, Failure) and always.kind == "timeout" and "within 1 s" in always.reason
    assert counts["replies"] == counts["failures/timeout"] == 1
    assert counts["requests"] >= 2 + 4 and counts["retries"] == counts["requests"] - 2


def test_retry_after_is_obeyed():
    times = []

    def script(body):
        times.append(time.monotonic())
        return "good" if len(times) > 1 else Fault(429, headers={"Retry-After": "0.5"})

    with ScriptedServer(script) as server, Endpoint(settings(server)) as model:
        assert model.complete(ask("x"))[0].text == "good"
    assert times[1] - times[0] >= 0.5
    with ScriptedServer(lambda body: Fault(503, headers={"Retry-After": "3600"})) as server:
        with Endpoint(settings(server)) as model:
            (answer,) = model.complete(ask("x"))
        assert answer.kind == "server error" and "3600 s" in answer.reason and len(server.bodies) == 1
    assert retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) == pytest.approx(60, abs=5)
    assert retry_after({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0
    assert retry_after({"retry-after": "soon"}) is retry_after({}) is None


def test_concurrency_is_used_and_bounded():
    with ScriptedServer(echo, delay_s=0.4) as server, Endpoint(settings(server, concurrency=16)) as model:
        words = [str(number) for number in range(64)]
        start = time.monotonic()
        answers = model.complete(ask(*words))
        took = time.monotonic() - start
    assert [answer.text for answer in answers] == [f"you said {word}" for word in words]
    assert took < 0.25 * 64 * 0.4 and server.most_at_once == 16


def test_what_is_in_the_cache_is_not_asked_again(tmp_path):
    noise = Image.effect_noise((20, 20), 50).convert("RGB")
    pictured = Request(InterleavedDocument((TextSegment("see"), ImageSegment(noise))))
    requests, cache = [*ask("a", "b"), pictured], str(tmp_path / "cache" / "replies.sqlite")
    with ScriptedServer(echo) as server:
        config = settings(server, cache=cache)
        with Endpoint(config) as model:
            first = model.complete(requests)
        with Endpoint(config) as model:
            again = model.complete(requests)
            assert model.counts["cached"] == 3 and model.counts["requests"] == 0
        assert len(server.bodies) == 3
        assert again == [replace(reply, cached=True) for reply in first]

        other_pixel = noise.copy()
        other_pixel.putpixel((3, 3), (1, 2, 3))
        changed = [
            (config, Request(InterleavedDocument((TextSegment("see"), ImageSegment(other_pixel))))),
            (config, Request(InterleavedDocument((ImageSegment(noise), TextSegment("see"))))),
            (config, replace(requests[0], template="relevance.v2")),
            (config, replace(requests[0], system="Judge.")),
            *((replace(config, **{name: value}), requests[0]) for name, value in OTHER_SETTINGS.items()),
        ]
        for number, (other, request) in enumerate(changed, 4):
            with Endpoint(other) as model:
                model.complete([request])
            assert len(server.bodies) == number, (other, request)


OTHER_SETTINGS = {"model": "m2", "revision": "r2", "temperature": 0.5, "max_new_tokens": 7, "seed": 1}
OTHER_SETTINGS |= {"extra_body": {"top_p": 0.5}}


def test_offline_replays_and_counts_what_is_missing(tmp_path):
    cache = str(tmp_path / "replies.sqlite")
    with ScriptedServer(echo) as server:
        config = settings(server, cache=cache)
        with Endpoint(config) as model:
            model.complete(ask("a"))
    with Endpoint(replace(config, offline=True)) as model:  # the server has gone
        known, unknown = model.complete(ask("a", "b"))
        assert model.counts["failures/offline"] == 1
    assert known.text == "you said a" and unknown.kind == "offline" and cache in unknown.reason
    with pytest.raises(InputError, match="offline needs the file of replies"):
        replace(config, offline=True, cache=str(tmp_path / "none.sqlite"))


def test_equal_requests_under_way_are_asked_once():
    with ScriptedServer(echo, delay_s=0.3) as server, Endpoint(settings(server)) as model:
        answers = model.complete(ask(*["same"] * 6, "other"))
        assert {answer.text for answer in answers} == {"you said same", "you said other"}
        assert len(server.bodies) == 2 and model.counts["shared"] == 5


CLIENT = """
import sys
from limner.models.chat.requests import Request
from limner.models.documents.document import InterleavedDocument, TextSegment
from limner.models.chat.endpoint import Endpoint, EndpointConfig
url, cache, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = Endpoint(EndpointConfig(base_url=url, model="scripted", cache=cache, concurrency=4))
requests = [Request(InterleavedDocument((TextSegment(str(number)),))) for number in range(count)]
print(sum(answer.text == f"you said {number}" for number, answer in enumerate(model.complete(requests))))
"""
"""It leaves the endpoint open: a process ends all the same."""


def client(server: ScriptedServer, cache, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", CLIENT, server.url, str(cache), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_share_a_cache(tmp_path):
    cache = tmp_path / "replies.sqlite"
    with ScriptedServer(echo, delay_s=0.01) as server:
        clients = [client(server, cache, 60) for _ in range(2)]
        assert [process.communicate(timeout=120)[0].strip() for process in clients] == ["60", "60"]
        assert [process.returncode for process in clients] == [0, 0]
    assert len(ReplyCache(cache)) == 60 <= len(server.bodies) <= 120


@pytest.mark.slow
def test_after_a_kill_nothing_that_was_answered_is_asked_again(tmp_path):
    cache, count = tmp_path / "replies.sqlite", 40
    with ScriptedServer(echo, delay_s=0.1) as server:
        process = client(server, cache, count)
        deadline = time.monotonic() + 100
        while len(server.bodies) < count // 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.3)  # the server finishes what it was asked
        before = [texts(body) for body in server.bodies]
        kept = len(ReplyCache(cache))
        assert count // 4 <= kept < count and len(before) - kept <= 4  # only what was under way is lost
        assert client(server, cache, count).communicate(timeout=120)[0].strip() == str(count)
    after = [texts(body) for body in server.bodies][len(before) :]
    assert len(after) == len(set(after)) == count - kept
    assert set(before) | set(after) == {str(number) for number in range(count)}


@pytest.mark.parametrize("budget", [{"max_requests": 3}, {"max_tokens_total": 25}])
def test_a_budget_ends_in_counted_failures(budget):
    with ScriptedServer(lambda body: "word word") as server:  # 10 tokens read, 2 written
        with Endpoint(settings(server, concurrency=1, **budget)) as model:
            answers = model.complete(ask(*"abcdef"))
            assert (model.counts["replies"], model.counts["failures/budget"]) == (3, 3)
        assert len(server.bodies) == 3
    assert all(next(iter(budget)) in answer.reason for answer in answers if isinstance(answer, Failure))


def test_a_token_budget_needs_a_server_that_counts():
    silent = {**completion("good"), "usage": None}
    with (
        ScriptedServer(lambda body: silent) as server,
        Endpoint(settings(server, max_tokens_total=9)) as model,
        pytest.raises(InputError, match="max_tokens_total: .* does not say"),
    ):
        model.complete(ask("a"))


def test_the_key_stands_nowhere(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MY_JUDGE_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    cache = tmp_path / "replies.sqlite"

    def script(body):
        return "fine" if texts(body) == "a" else Fault(401, f'{{"error": {{"message": "wrong key {SECRET}"}}}}')

    with ScriptedServer(script) as server:
        config = settings(server, api_key_env="MY_JUDGE_KEY", cache=str(cache))
        with Endpoint(config) as model:
            answers = model.complete(ask("a", "b"))
            words = [repr(model), repr(config), repr(model.manifest()), repr(answers), caplog.text]
        assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    assert answers[1].kind == "rejected" and "wrong key ***" in answers[1].reason
    assert all(SECRET not in word for word in words)
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(InputError, match="name of an environment variable") as refused:
        EndpointConfig(api_key_env=SECRET)
    assert SECRET not in str(refused.value)


def test_a_key_in_extra_body_is_sent_and_stands_nowhere(tmp_path):
    hidden = {"auth": {"api_key": SECRET}, "top_p": 0.5}

    def script(body):
        assert body["auth"] == {"api_key": SECRET} and body["top_p"] == 0.5
        return "fine" if texts(body) == "a" else Fault(401, f'{{"error": {{"message": "wrong key {SECRET}"}}}}')

    with ScriptedServer(script) as server:
        config = settings(server, extra_body=hidden, cache=str(tmp_path / "replies.sqlite"))
        with Endpoint(config) as model:
            answers = model.complete(ask("a", "b"))
            assert model.manifest()["extra_body"] == {"auth": {}, "top_p": 0.5}
        other = replace(config, extra_body={"auth": {"api_key": "another"}, "top_p": 0.5})
        with Endpoint(other) as model:
            (again,) = model.complete(ask("a"))
            assert again.cached  # by whom a reply was paid changes nothing of it
    assert "wrong key ***" in answers[1].reason
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_threads_may_ask_at_once():
    with ScriptedServer(echo, delay_s=0.05) as server, Endpoint(settings(server)) as model:
        found = {}
        threads = [
            threading.Thread(target=lambda name=name: found.update({name: model.complete(ask(name, name + "2"))}))
            for name in "abc"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {name: [a.text for a in answers] for name, answers in found.items()} == {
        name: [f"you said {name}", f"you said {name}2"] for name in "abc"
    }


def test_requests_are_taken_as_there_is_room_for_them():
    """A whole benchmark's pictures would not fit into memory."""
    taken = []

    def requests():
        for request in ask(*map(str, range(40))):
            taken.append(request)
            yield request

    with ScriptedServer(echo, delay_s=0.01) as server, Endpoint(settings(server, concurrency=4)) as model:
        answers = {}
        for index, answer in model.as_completed(requests()):
            answers[index] = answer.text
            assert len(taken) <= len(answers) + 8
    assert answers == {index: f"you said {index}" for index in range(40)}


def test_closing_ends_a_call_that_waits():
    with ScriptedServer(lambda body: HANGING) as server:
        model = Endpoint(settings(server))
        ended = []

        def wait():
            try:
                model.complete(ask("a"))
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        while not server.bodies:
            time.sleep(0.01)
        model.close()
        model.close()
        thread.join(20)
        assert not thread.is_alive() and len(ended) == 1


def test_a_picture_that_does_not_decode_fails_alone():
    codes_only = InterleavedDocument((ImageSegment(None, codes_N=np.zeros(4, dtype=np.int64)),))
    with ScriptedServer(echo) as server, Endpoint(settings(server)) as model:
        bad, good = model.complete([Request(codes_only), *ask("a")])
    assert bad.kind == "image" and "codes" in bad.reason and good.text == "you said a"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"image_side": -1}, "image_side"),
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "http://me:secret@host/v1"}, "base_url"),
        ({"model": ""}, "model"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, name):
    with pytest.raises(InputError, match=f"^{name}: "):
        Endpoint(EndpointConfig(**{"base_url": "http://localhost:1/v1", "model": "m", **given}))


def test_a_file_that_is_no_cache_is_left_alone(tmp_path):
    text, foreign = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("my notes, which are longer than the header of a database" * 10)
    with sqlite3.connect(foreign) as file:
        file.execute("CREATE TABLE mine (x)")
    file.close()
    for path in (text, foreign):
        content = path.read_bytes()
        with pytest.raises(InputError, match=f"{path}: .*name another file"):
            ReplyCache(path)
        assert path.read_bytes() == content

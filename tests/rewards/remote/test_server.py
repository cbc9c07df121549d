"""Rewards over real HTTP: the same scores as here, and every fault where it belongs."""

import contextlib
import hashlib
import json
import socket
import time
from http.client import HTTPConnection
from threading import Event, Thread, active_count

import numpy as np
import pytest
from PIL import Image

from limner.configs import build
from limner.configs.errors import InputError, Unavailable
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import FAILED, Completion, RewardOutput
from limner.rewards.build import RewardSettings, build_reward
from limner.rewards.guard import GuardedReward
from limner.rewards.remote import server as server_module
from limner.rewards.remote.client import (
    RemoteFailed,
    RemoteReward,
    pack_completions,
    unpack_completions,
)
from limner.rewards.remote.server import RewardServer, ServerConfig
from limner.rewards.rules.format import FormatReward
from limner.rewards.rules.structure import StructureReward
from limner.worlds.picture_stories.rewards import PictureReward
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story_prompt

from ..exact import STORIES

PLAN = SCENES[5], SCENES[100]
PROMPT = story_prompt(PLAN, "p1")


def answer(*scenes, prompt=PROMPT, ended=True):
    parts = [(TextSegment(s.sentence, True), ImageSegment(draw_scene(s), True, "generated")) for s in scenes]
    return Completion(prompt, InterleavedDocument(tuple(part for pair in parts for part in pair)), ended)


ROWS = [answer(*PLAN), answer(PLAN[1], PLAN[0]), answer(PLAN[0], ended=False), answer()]


class Part:
    """A reward that does what it is told to."""

    def __init__(self, name, score):
        self.name, self.score = name, score

    def __call__(self, completions):
        return self.score(completions)


def flat(completions, score=0.5):
    return RewardOutput([score] * len(completions), [[None] * len(c.answer.segments) for c in completions])


class Running:
    """A server in a thread; `with` gives its address."""

    def __init__(self, *parts, **settings):
        self.server = RewardServer(ServerConfig(port=0, **settings), parts)

    def __enter__(self):
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self.server.url

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def remote(url, name, **others):
    return RemoteReward(name, url, **{"retries": 0, "backoff": 0.01, **others})


def test_a_remote_reward_scores_as_the_same_reward_here():
    digests = Part("digest", lambda rows: flat(rows, int(hashlib.sha256(pixels(rows)).hexdigest()[:6], 16) / 2**24))
    with Running(PictureReward(), digests) as url:
        here, there = PictureReward()(ROWS), remote(url, "picture_stories_image_plan")(ROWS)
        assert there == here and there.segments[0] == [None, 1.0, None, 1.0]
        assert remote(url, "digest")(ROWS) == digests(ROWS)  # every pixel arrived
        connection = HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", "/rewards")
        assert json.loads(connection.getresponse().read()) == {"rewards": ["picture_stories_image_plan", "digest"]}


def pixels(rows):
    return b"".join(image.pixels().tobytes() for row in rows for image in row.answer.images)


def test_completions_travel_as_they_are():
    given = ImageSegment(Image.effect_noise((9, 7), 90).convert("RGB"))
    prompt = InterleavedDocument(
        (TextSegment("A \ud800 surrogate"), given), "p2", {"outline": ["x"], "reference": None}
    )
    row = Completion(prompt, InterleavedDocument((ImageSegment(None, True, codes_N=np.arange(4)),)), ended=False)
    sent = json.loads(json.dumps(pack_completions([row, row, *ROWS])))
    assert len(sent["prompts"]) == 2  # rows of a group share theirs
    found = unpack_completions(sent)
    assert json.dumps(pack_completions(found)) == json.dumps(pack_completions([row, row, *ROWS]))
    assert found[0].prompt.meta == prompt.meta and not found[0].ended and found[0].prompt is found[1].prompt
    with Running(Part("flat", flat)) as url:
        assert remote(url, "flat")([row]) == flat([row])


def test_missing_and_failed_scores_stay_missing():
    def score(rows):
        output = flat(rows, float("nan"))
        return RewardOutput(
            [np.float32(0.5), None, *output.outcome[2:]], output.segments, {"part": [1.0] * 4}, {"cut": 2}
        )

    with Running(Part("partly", score)) as url:
        output = remote(url, "partly")(ROWS)
    assert output.outcome == [0.5, None, FAILED, FAILED] and output.breakdown == {"part": [1.0] * 4}
    assert output.failed == {"cut": 2}


def test_faults_of_settings_and_prompts_stop_at_once(monkeypatch):
    calls = []
    with Running(Part("flat", lambda rows: calls.append(1) or flat(rows)), PictureReward(), max_megabytes=1) as url:
        with pytest.raises(
            InputError, match="'flatt': HTTP 404: no reward 'flatt'; there are flat, picture_stories_im"
        ):
            remote(url, "flatt", retries=5, backoff=60)(ROWS)
        no_outline = InterleavedDocument((TextSegment("Draw."),), "p3")
        with pytest.raises(InputError, match="HTTP 422: prompt 'p3' has no outline"):
            remote(url, "picture_stories_image_plan", retries=5, backoff=60)([answer(prompt=no_outline)])
        noise = ImageSegment(Image.effect_noise((900, 900), 90).convert("RGB"), True, "generated")
        large = Completion(PROMPT, InterleavedDocument((noise,) * 2))
        with pytest.raises(InputError, match="HTTP 413: a request of .* MB; .* max_megabytes"):
            remote(url, "flat")([large])
        assert not calls
    monkeypatch.setenv("THE_KEY", "s3cret-s3cret")
    with Running(Part("flat", flat), api_key_env="THE_KEY") as url:
        with pytest.raises(InputError, match="HTTP 401: the key is missing or wrong"):
            remote(url, "flat")(ROWS)
        assert remote(url, "flat", api_key_env="THE_KEY")(ROWS) == flat(ROWS)
    with pytest.raises(InputError, match="host: 0.0.0.0 is open to others; set a key: export LIMNER_REWARDS_KEY"):
        Running(Part("flat", flat), host="0.0.0.0")


def test_failures_are_tried_again_and_then_counted():
    answers = [RuntimeError("out of memory"), RuntimeError("again"), None, "always"]

    def score(rows):
        fault = answers[0] if answers[0] == "always" else answers.pop(0)
        if fault:
            raise RuntimeError(str(fault))
        return flat(rows)

    with Running(Part("shaky", score)) as url:
        assert remote(url, "shaky", retries=2)(ROWS) == flat(ROWS)
        with pytest.raises(RemoteFailed, match="2 attempts, last: HTTP 500: it raised RuntimeError: always"):
            remote(url, "shaky", retries=1)(ROWS)
        guard = GuardedReward(remote(url, "shaky"))
        assert guard(ROWS).outcome == [FAILED] * 4 and guard.failures == {"raised RemoteFailed": 1}
    for ask in (remote(url, "shaky", retries=9, backoff=60), remote(url, "shaky").probe):
        with pytest.raises(InputError, match=f"{url}: ConnectionRefusedError.*limner serve-rewards"):
            ask(ROWS) if isinstance(ask, RemoteReward) else ask()


def test_a_silent_server_is_given_up():
    slow = Part("slow", lambda rows: time.sleep(0.6) or flat(rows))
    with Running(slow) as url, pytest.raises(Unavailable, match="TimeoutError: no answer within 0.2 s"):
        remote(url, "slow", timeout=0.2)(ROWS)


def test_a_server_that_went_away_is_waited_for():
    running = Running(Part("flat", flat))
    with running as url:
        call = remote(url, "flat")
        assert call(ROWS) == flat(ROWS)
    with pytest.raises(Unavailable, match=f"{url}, 1 attempts, last: ConnectionRefusedError"):
        call(ROWS)


def answering(*pieces, every_s=0.0):
    """The address of a server that says so to the first that asks, piece by piece."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            connection, _ = listening.accept()
            with connection:
                connection.recv(2**16)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(every_s)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):
                    pass

    Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "drips its headers": ((OK, *[b"x: y\r\n"] * 90), 0.05, Unavailable, "no answer within 0.5 s"),
    "drips its scores": ((OK, b"Content-Length: 900\r\n\r\n", *[b" "] * 900), 0.05, Unavailable, "no answer within"),
    "sends too much": ((OK, b"\r\n", *[b" " * 2**20] * 9), 0, Unavailable, "more than 8388608 bytes"),
    "nests": ((OK, b"\r\n", b"[" * 10**6), 0, RemoteFailed, "nested more than 100 deep"),
    "a long number": ((OK, b"\r\n", b'{"segments": [[' + b"1" * 5000), 0, RemoteFailed, "no scores"),
    "other types": ((OK, b"\r\n", b'{"segments": 5, "breakdown": [], "outcome": 1}'), 0, RemoteFailed, "no scores"),
    "leads elsewhere": ((b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9\r\n\r\n",), 0, InputError, "HTTP 302"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_bounded_in_time_and_size(name):
    pieces, every_s, error, reason = ANSWERS[name]
    start = time.monotonic()
    with pytest.raises(error, match=reason):
        remote(answering(*pieces, every_s=every_s), "flat", timeout=0.5 if every_s else 30)(ROWS[3:])
    assert time.monotonic() - start < 30


def test_a_probe_asks_for_the_name_and_the_key(monkeypatch):
    with Running(Part("flat", flat)) as url:
        remote(url, "flat").probe()
        with pytest.raises(InputError, match=f"{url}: no reward 'flatt'; there are flat"):
            remote(url, "flatt").probe()
    monkeypatch.setenv("THE_KEY", "s3cret-s3cret")
    with Running(Part("flat", flat), api_key_env="THE_KEY") as url:
        with pytest.raises(InputError, match="HTTP 401: the key is missing"):
            remote(url, "flat").probe()
        reward = build_reward(RewardSettings({"remote/flat": {"url": url, "api_key_env": "THE_KEY"}, "format": 1}))
        (server,) = reward.servers
        assert server.address == url
        server.probe()


OTHER_TYPES = [
    (FormatReward, {"outline": 5}),
    (PictureReward, {"outline": 5}),
    (PictureReward, {"outline": [[]]}),
    (StructureReward, {"outline": {"a": 1}}),
    (StructureReward, {"structure": 5}),
    (StructureReward, {"structure": [5]}),
]


@pytest.mark.parametrize(("reward", "meta"), OTHER_TYPES)
def test_what_a_prompt_says_in_other_types_is_a_fault_of_the_request(reward, meta):
    row = Completion(InterleavedDocument((TextSegment("Draw."),), "p4", meta), answer(PLAN[0]).answer)
    with Running(Part("part", reward())) as url, pytest.raises(InputError, match="HTTP 422: .*'p4'"):
        remote(url, "part")([row])


# ---- clients that are slow, many or large ----


def begun(url, body=b"x" * 10, length=2000, headers=b""):
    """A connection that announces more than it sends."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(b"POST /rewards/flat HTTP/1.1\r\n" + headers)
    connection.sendall(b"Content-Length: %d\r\n\r\n" % length + body if length else b"")
    return connection


def test_who_is_still_sending_takes_no_slot():
    with Running(Part("flat", flat), max_waiting=1) as url:
        slow = [begun(url) for _ in range(4)]
        assert remote(url, "flat")(ROWS) == flat(ROWS)
        for connection in slow:
            connection.close()


@pytest.mark.parametrize("length", [0, 2000])
def test_who_sends_without_end_is_hung_up_on(length, monkeypatch):
    """One byte now and then, of the headers or of the body, keeps nobody connected."""
    monkeypatch.setattr(server_module, "HEADERS_S", 0.5)
    with Running(Part("flat", flat)) as url, begun(url, length=length) as connection:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(600):
                connection.sendall(b"x")
                time.sleep(0.05)
                connection.settimeout(0.001)
                with contextlib.suppress(TimeoutError):
                    if not (said := connection.recv(2**16)) or b"408" in said:
                        break
        assert time.monotonic() - start < 20


def test_connections_are_bounded(monkeypatch):
    monkeypatch.setattr(server_module, "CONNECTIONS", 2)
    running = Running(Part("flat", flat), max_waiting=2)
    with running as url:
        held = [begun(url) for _ in range(4)]
        until(lambda: len(running.server.deadlines) == 4)
        threads = active_count()
        for _ in range(10):
            with contextlib.suppress(OSError), begun(url) as another:
                while another.recv(2**16):  # until it is sent away
                    pass
        assert active_count() <= threads and len(running.server.deadlines) == 4
        with pytest.raises(Unavailable):
            remote(url, "flat")(ROWS)
        for connection in held:
            connection.close()
        until(lambda: not running.server.deadlines)
        assert remote(url, "flat", retries=9, backoff=0.1)(ROWS) == flat(ROWS)


def until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_bytes_in_memory_are_bounded(monkeypatch):
    monkeypatch.setattr(server_module, "HELD", 1)
    running = Running(Part("flat", flat), max_megabytes=1)
    with running as url:
        held = begun(url, b"x" * 900_000, 1_000_000)
        until(lambda: running.server.held >= 900_000)
        noise = ImageSegment(Image.effect_noise((400, 400), 90).convert("RGB"), True, "generated")
        row = Completion(PROMPT, InterleavedDocument((noise,)))
        with pytest.raises(Unavailable, match="HTTP 503: the requests under way fill the memory"):
            remote(url, "flat")([row])
        held.close()
        assert remote(url, "flat", retries=9)([row]) == flat([row])
    assert running.server.held == 0


def test_more_requests_than_the_server_takes_come_back():
    taken, free = Event(), Event()

    def score(rows):
        taken.set()
        free.wait(60)
        return flat(rows)

    with Running(Part("slow", score), max_waiting=1) as url:
        outputs = []
        call = remote(url, "slow", retries=12, backoff=0.05)
        threads = [Thread(target=lambda: outputs.append(call(ROWS))) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert taken.wait(60)
        with pytest.raises(Unavailable, match="HTTP 503: 1 requests are under way"):
            remote(url, "slow")(ROWS)
        free.set()
        for thread in threads:
            thread.join()
    assert outputs == [flat(ROWS)] * 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"null",
        b'{"prompts": [], "completions": {}}',
        b'{"prompts": 5, "completions": [null]}',
        b'{"prompts": [5], "completions": []}',
        b'{"prompts": [{"segments": [[]]}], "completions": []}',
        b'{"prompts": [{"segments": [{"type": ["text"], "text": 1}]}], "completions": []}',
        b'{"prompts": [{"segments": [{"type": "image", "origin": {}, "codes": [1]}]}], "completions": []}',
        b'{"prompts": [{"segments": [{"type": "image", "codes": ["1"]}]}], "completions": []}',
        b'{"prompts": [{"segments": [], "id": 5, "meta": []}], "completions": []}',
        b'{"prompts": [{"segments": []}], "completions": [{"prompt": [], "answer": 5, "ended": 1}]}',
        b'{"prompts": [' + b"9" * 5000 + b'], "completions": []}',
        b"\xff\xfe",
        b'{"prompts": [], "completions": [{"prompt": 0, "answer": {"segments": []}, "ended": true}]}',
        b'{"prompts": [{"segments": []}], "completions": [{"prompt": 0, "answer": {}, "ended": true}]}',
        b'{"prompts": [{"segments": [{"type": "image", "image": "file:///etc/passwd"}]}], "completions": []}',
    ],
)
def test_what_holds_no_completions_is_refused(body):
    with Running(Part("flat", flat)) as url:
        connection = HTTPConnection(url.removeprefix("http://"))
        connection.request("POST", "/rewards/flat", body)
        response = connection.getresponse()
        assert response.status in (400, 411) and set(json.loads(response.read())) == {"error"}


def test_settings(monkeypatch, capsys):
    with Running(PictureReward(), Part("flat", flat)) as url:
        weights = {"picture_stories_image_plan": 3, "flat": 1}
        parts = {f"remote/{name}": {"weight": weight, "url": url} for name, weight in weights.items()}
        output = build_reward(build(RewardSettings, {"rewards": parts}, "my.yaml"))(ROWS)
    assert output.breakdown["remote_flat"] == [0.5] * 4 and output.outcome[0] == (3 + 0.5) / 4
    wrong = {"url": "gpu-2", "weight": -1, "api_key_env": "sk-secret", "timeout": 0, "retries": -1, "backoff": "nan"}
    for name, value in wrong.items():
        part = {"url": "http://gpu-2", name: value}
        with pytest.raises(InputError, match=f"^rewards.remote/flat: .*{'.*no weight' if name == 'weight' else name}"):
            build_reward(RewardSettings({"remote/flat": part}))
    with pytest.raises(InputError, match="api_key_env: give the name") as caught:
        build_reward(RewardSettings({"remote/flat": {"url": "http://gpu-2", "api_key_env": wrong["api_key_env"]}}))
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(InputError, match="rewards.remote/flat: url: missing"):
        build_reward(RewardSettings({"remote/flat": 1}))

    monkeypatch.setattr(RewardServer, "serve_forever", lambda self: None)
    mine = {**STORIES, "picture_stories/text_plan": 0}
    server_module.main(["--rewards", json.dumps(mine), "--rewards.text/rouge_l", "1", "--port", "0"])
    served = "format, picture_stories_image_plan, picture_stories_image_sentence, text_rouge_l"
    assert capsys.readouterr().out.startswith(f"serving {served} at http://127.0.0.1:")
    with pytest.raises(InputError, match="give at least one a weight; those are served"):
        server_module.main(["--rewards.format", "0"])
    with pytest.raises(InputError, match="max_waiting: expected a number 1"):
        server_module.main(["--max_waiting", "0"])

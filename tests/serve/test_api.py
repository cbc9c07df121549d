"""What is around an answer: models, health, figures, candidates, turns, and the command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from limner.models.checkpoints.hub import save_model
from limner.models.documents.candidates import offer
from limner.models.sampler.request import Request
from limner.models.writing import Model
from limner.serve.rows.events import Failed, Mailbox, Text
from limner.serve.rows.ticket import Ticket
from limner.serve.store import PictureStore
from limner.serve.wire import chat, responses
from limner.serve.wire.pictures import Pictures
from limner.serve.wire.prompt import Given
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from .conftest import PROMPT, events_of, running
from .test_security import picture, png, uri


def asked(read, body):
    from limner.models.sampler.request import Sampling

    wanted, _ = read({"model": "m", **body}, Given(Sampling()), Pictures(PictureStore(2**20, 60)))
    return wanted


def parts_of(document):
    return [getattr(s, "text", None) or (s.candidate, s.alt, s.pixels().tobytes()) for s in document.segments]


def test_candidates_make_the_prompt_that_models_are_trained_on():
    red, blue = draw_scene(SCENES[1]), draw_scene(SCENES[2])
    from limner.models.documents.document import data_uri

    expected = parts_of(offer("Which one, <img2>?", [(red, "a <img1> first"), (blue, "")]))
    given = [
        {"type": "text", "text": "Which one, <img2>?"},
        picture(data_uri(blue), candidate=2),
        picture(data_uri(red), candidate=1, caption="a <img1> first"),
    ]
    found = asked(chat.read, {"messages": [{"role": "user", "content": given}]})
    assert parts_of(found.prompt) == expected
    given = [
        {"type": "input_image", "image_url": data_uri(red), "candidate": 1, "caption": "a <img1> first"},
        {"type": "input_image", "image_url": data_uri(blue), "candidate": 2},
        {"type": "input_text", "text": "Which one, <img2>?"},
    ]
    assert parts_of(asked(responses.read, {"input": [{"role": "user", "content": given}]}).prompt) == expected


@pytest.mark.parametrize("numbers", [(1, 1), (2, 3), (0, 1), (True, 2), (1, 99)])
def test_candidates_are_numbered_from_1(server, numbers):
    content = [picture(uri(png()), candidate=number) for number in numbers]
    status, _, reply = server.chat([*content, {"type": "text", "text": "Which?"}])
    assert status == 400 and "candidate" in reply["error"]["message"]


def test_turns_are_one_prompt():
    turns = [("system", "Be short."), ("user", "Hello"), ("assistant", "Yes?"), ("user", "Go on.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = ["Be short.\n\nHello\n\nYes?\n\nGo on."]
    assert parts_of(asked(chat.read, {"messages": messages}).prompt) == expected
    body = {"instructions": "Be short.", "input": messages[1:]}
    assert parts_of(asked(responses.read, body).prompt) == expected
    assert parts_of(asked(responses.read, {"input": "Go on."}).prompt) == ["Go on."]


def test_a_request_without_a_seed_has_one_of_its_own(server):
    replies = [server.chat(seed=None, max_tokens=20)[2] for _ in range(2)]
    seeds = [reply["limner"]["seed"] for reply in replies]
    assert seeds[0] != seeds[1]
    again = server.chat(seed=seeds[0], max_tokens=20)[2]
    assert again["usage"] == replies[0]["usage"] and again["limner"] == replies[0]["limner"]


def test_fields_that_clients_send_by_habit_are_taken_and_unknown_ones_named(server):
    habit = {"n": 1, "presence_penalty": 0, "user": "somebody", "tools": [], "response_format": {"type": "text"}}
    assert server.chat(max_tokens=2, **habit)[0] == 200
    for name, value in (("n", 3), ("tools", [{"type": "function"}]), ("temprature", 1), ("presence_penalty", 1.5)):
        status, _, reply = server.chat(**{name: value})
        assert (status, reply["error"]["param"]) == (400, name)


def test_models_health_and_figures(server):
    server.chat()
    (model,) = server.ask("/v1/models")[2]["data"]
    assert (model["id"], model["limner"]) == ("tiny", {"knows": "", "examples": []})
    assert server.ask("/health")[2] == server.ask("/ready")[2] == {"status": "ok"}
    text = server.ask("/metrics")[2].decode()
    for line in text.splitlines():
        assert line.startswith("# ") or line.startswith("limner:") and 'model_name="tiny"' in line
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    base = '{model_name="tiny"}'
    assert found[f"limner:num_requests_running{base}"] == 0 and found[f"limner:generation_tokens_total{base}"] > 20
    assert found[f"limner:time_to_first_token_seconds_count{base}"] >= 1
    assert found['limner:pictures_total{model_name="tiny",origin="generated"}'] >= 1
    assert found['limner:time_to_first_picture_seconds_bucket{model_name="tiny",le="+Inf"}'] >= 1


def test_a_dead_engine_shows_in_health(make_policy, monkeypatch):
    policy = make_policy(2)
    with running(policy) as server:
        monkeypatch.setattr(policy, "hidden", lambda *_: 1 / 0)
        assert server.chat()[0] == 500
        assert server.ask("/health")[0] == 503
        status, headers, _ = server.ask("/ready")
        assert status == 503 and headers["retry-after"]
        assert server.chat()[0] == 503


def test_a_deadline_before_the_first_byte_is_504(policy):
    with running(policy, seconds=0.05) as server:
        server.engine.pause()
        assert server.chat()[0] == server.chat(stream=True)[0] == 504


def test_a_fault_that_comes_with_the_first_words_does_not_take_them_back(server, monkeypatch):
    def submit(asked, notify):
        ticket = Ticket(0, asked, Request([0], asked.sampling, 0), 1e12, Mailbox(notify))
        for event in (Text("Fold it. "), Failed("engine", "the engine has stopped")):
            ticket.mailbox.put(event)
        return ticket

    monkeypatch.setattr(server.engine, "submit", submit)
    status, _, stream = server.chat(stream=True)
    said = [event for event in events_of(stream) if isinstance(event, dict)]
    assert status == 200 and "".join(e["choices"][0]["delta"].get("content", "") for e in said[:-1]) == "Fold it. "
    assert said[-1]["error"]["code"] == "engine"
    assert server.chat()[0] == 500, "a whole answer has no place for both"


def test_the_page_is_there(server):
    status, headers, page = server.ask("/")
    assert status == 200 and headers["content-type"].startswith("text/html") and b"<!doctype html>" in page


def test_a_port_that_is_taken_and_a_missing_extra_are_one_line(limner, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = limner("serve", "--model", "x", "--port", taken.getsockname()[1])
        assert code == 2 and "Address already in use; take another --host or --port" in err
    monkeypatch.setitem(sys.modules, "starlette", None)
    code, _, err = limner("serve", "--model", "x")
    assert code == 2 and err.strip().endswith("pip install 'limner[serve]'")
    code, _, err = limner("serve")
    assert code == 2 and "model: missing" in err


@pytest.mark.slow
def test_the_command_says_where_it_is_and_drains_on_sigterm(tmp_path, make_policy):
    save_model(Model(make_policy(1)), tmp_path / "tiny")
    (tmp_path / "serve.yaml").write_text(f"model: {tmp_path / 'tiny'}\nport: 0\n")
    words = ["-c", "from limner.cli import main; main()", "serve", "--config", str(tmp_path / "serve.yaml")]
    command = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        line = command.stdout.readline()
        assert line.startswith("serving tiny at http://127.0.0.1:")
        body = json.dumps({"model": "tiny", "input": PROMPT, "stream": True, "max_output_tokens": 300, "seed": 3})
        url, headers = line.split()[-1], {"Content-Type": "application/json"}
        answer = urllib.request.urlopen(urllib.request.Request(f"{url}/v1/responses", body.encode(), headers))
        first = answer.read(50)
        command.send_signal(signal.SIGTERM)
        stream = first + answer.read()
        assert b"response.completed" in stream or b"response.incomplete" in stream
        assert command.wait(30) == 0
    finally:
        command.kill()


def test_time_is_what_silence_is_filled_with(policy, monkeypatch):
    monkeypatch.setattr("limner.serve.service.SILENCE_S", 0.05)
    with running(policy) as server:
        server.engine.pause()
        from threading import Timer

        Timer(0.4, server.engine.resume).start()
        begun = time.monotonic()
        _, _, stream = server.chat(stream=True, max_tokens=3)
        assert time.monotonic() - begun > 0.3 and stream.count(b": keep-alive\n\n") >= 2

"""The engine gives what `write` gives, whoever comes, goes, waits or fails beside it."""

import random
import threading
import time

import pytest

from limner.models.documents.candidates import offer
from limner.models.documents.forms import read_prompt
from limner.models.sampler.request import Sampling
from limner.models.writing import write
from limner.serve.engine import Engine, Limits
from limner.serve.rows.events import Failed, Shown, Text
from limner.serve.rows.ticket import Asked, Reply
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

PROMPTS = [
    read_prompt("Draw: a red circle."),
    read_prompt("Describe the picture.", [draw_scene(SCENES[3])]),
    offer("Which one?", [(draw_scene(SCENES[1]), "first"), (draw_scene(SCENES[2]), "")]),
]
SETTINGS = [
    Sampling(60, seed=1),
    Sampling(50, 0.8, guidance=2.5, max_images=2, seed=2),
    Sampling(40, 0),
    Sampling(30, 1.2, top_k=20, top_p=0.9, max_images=0, seed=3),
    Sampling(1, seed=4),
    Sampling(45, 0.7, begin_with_image=True, guidance=0.5, seed=5),
]


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy(1)


def ask(engine, prompt, sampling, **more):
    reply = Reply()
    engine.submit(Asked(prompt, sampling, **more), reply)
    return reply


def said(events):
    """The answer as the events tell it: texts joined, pictures as their codes, or their candidate."""
    parts = [""]
    for event in events:
        if isinstance(event, Text):
            parts[-1] += event.piece
        elif isinstance(event, Shown):
            parts += [event.image.candidate or event.image.codes_N.tolist(), ""]
    return parts


def told(document):
    parts = [""]
    for segment in document.segments:
        if hasattr(segment, "text"):
            parts[-1] += segment.text
        else:
            parts += [segment.candidate or segment.codes_N.tolist(), ""]
    return parts


def test_random_arrivals_settings_and_cancels_leave_every_answer_what_write_gives(policy):
    chance = random.Random(0)
    asked = [(chance.choice(PROMPTS), chance.choice(SETTINGS), chance.random() < 0.2) for _ in range(40)]
    with Engine(policy, Limits(slots=6)) as engine:
        replies = []
        for prompt, sampling, dropped in asked:
            reply = ask(engine, prompt, sampling, owner=chance.choice("abc"))
            replies.append(reply)
            if dropped:
                threading.Timer(chance.random() / 10, engine.cancel, [reply.ticket]).start()
            time.sleep(chance.random() / 100)
        ends = [reply.wait(60) for reply in replies]
        assert engine.idle
    whole = 0
    for (prompt, sampling, dropped), reply, end in zip(asked, replies, ends, strict=True):
        if isinstance(end, Failed):
            assert dropped and end.kind == "cancelled"
            continue
        (alone,) = write(policy, [prompt], sampling)
        assert end.answer.ids_C.tolist() == alone.ids_C.tolist()
        assert said(reply.events) == told(alone.document) == told(end.answer.document)
        assert (end.why == "stop") == alone.ended
        whole += 1
    assert whole > 25

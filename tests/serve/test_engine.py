"""The engine gives what `write` gives, whoever comes, goes, waits or fails beside it."""

import random
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from limner.configs.errors import InputError
from limner.models.documents.candidates import offer
from limner.models.documents.forms import read_prompt
from limner.models.sampler.cache import SlotCache
from limner.models.sampler.request import Sampling
from limner.models.sampler.slots import Sampler
from limner.models.writing import write
from limner.serve.engine import Engine, Limits, Refused
from limner.serve.rows import scribe
from limner.serve.rows.events import Begun, Ended, Failed, Mailbox, Progress, Shown, Text
from limner.serve.rows.ticket import Asked, Reply
from limner.serve.rows.waiting import Waiting
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from ..models.families.tiny import FAMILIES

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


@pytest.mark.parametrize("steps", ["plain", "fixed"])
def test_random_arrivals_settings_and_cancels_leave_every_answer_what_write_gives(policy, steps):
    check_random_arrivals(policy, steps, seed=len(steps))


@pytest.mark.slow
def test_random_arrivals_of_every_family(name):  # 220 requests in all
    check_random_arrivals(FAMILIES[name](), seed=1)


def check_random_arrivals(policy, steps="plain", seed=0):
    """20 requests of random settings at random moments, of which a fifth is cancelled."""
    chance = random.Random(seed)
    asked = [(chance.choice(PROMPTS), chance.choice(SETTINGS), chance.random() < 0.2) for _ in range(20)]
    with Engine(policy, Limits(slots=6, steps=steps)) as engine:
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
    assert whole > 10


LONG = Sampling(300, seed=9, max_images=8, begin_with_image=True)


@pytest.mark.parametrize("late", [False, True])
def test_every_family_answers_as_alone(name, late, monkeypatch):
    family = FAMILIES[name]()
    monkeypatch.setattr("limner.serve.engine.Sampler", partial(Sampler, late=late))
    settings = [replace(each, max_new_tokens=min(each.max_new_tokens, 50)) for each in SETTINGS]
    with Engine(family, Limits(slots=5)) as engine:
        replies = [ask(engine, PROMPTS[n % 2], each) for n, each in enumerate(settings)]
        answers = [reply.answer(60) for reply in replies]
    for n, (answer, each) in enumerate(zip(answers, settings, strict=True)):
        (alone,) = write(family, [PROMPTS[n % 2]], each)
        assert answer.ids_C.tolist() == alone.ids_C.tolist()


@pytest.mark.parametrize("late", [False, True])
def test_a_long_prompt_is_read_in_parts_while_others_write(name, late, monkeypatch):
    family = FAMILIES[name]()
    monkeypatch.setattr("limner.serve.engine.Sampler", partial(Sampler, late=late))
    monkeypatch.setattr("limner.serve.engine.PREFILL", 7)
    widths, hidden = [], family.hidden
    monkeypatch.setattr(family, "hidden", lambda ids, *rest: widths.append(ids.shape) or hidden(ids, *rest))
    prompts = [PROMPTS[1], read_prompt("Fold"), read_prompt("One, two, three. " * 3, [draw_scene(SCENES[5])])]
    settings = [Sampling(12, seed=3), Sampling(30, seed=4, max_images=0), Sampling(24, guidance=2.0, seed=5)]
    with Engine(family, Limits(slots=5)) as engine:
        replies = [ask(engine, *pair) for pair in zip(prompts, settings, strict=True)]
        answers = [reply.answer(60) for reply in replies]
    assert max(width for rows, width in widths if width > 1) <= 7
    monkeypatch.setattr(family, "hidden", hidden)
    for answer, prompt, sampling in zip(answers, prompts, settings, strict=True):
        assert answer.ids_C.tolist() == write(family, [prompt], sampling)[0].ids_C.tolist()


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        fast = ("gemma3", "janus_reencode")
        marks = [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in FAMILIES]
        metafunc.parametrize("name", marks)


def test_a_stop_string_ends_the_row_where_write_cuts_it(policy):
    whole = write(policy, [PROMPTS[0]], SETTINGS[0])[0]
    word = max((s.text for s in whole.document.segments if hasattr(s, "text")), key=len)[1:3]
    with Engine(policy) as engine:
        reply = ask(engine, PROMPTS[0], replace(SETTINGS[0], max_new_tokens=400), stop=(word,))
        end = reply.wait(30)
    (cut,) = write(policy, [PROMPTS[0]], SETTINGS[0], stop=(word,))
    assert end.why == "stop" and end.answer.ids_C.tolist() == cut.ids_C.tolist()
    assert said(reply.events) == told(cut.document)


def test_a_cancel_at_any_event_frees_the_slot_at_once(policy):
    with Engine(policy, Limits(slots=4)) as engine:
        lasting = ask(engine, PROMPTS[0], LONG)
        while not engine.slots_in_use:  # it runs, and is not only about to
            time.sleep(0.01)
        for number in range(12):
            reply, seen = Reply(), []
            engine.submit(Asked(PROMPTS[1], replace(LONG, guidance=2.0)), reply)

            def drop(event, reply=reply, seen=seen, number=number):
                seen.append(event)
                if len(seen) > number:
                    engine.cancel(reply.ticket)

            if not number:
                engine.cancel(reply.ticket)
            assert isinstance(reply.wait(30, drop), Failed | Ended)
            until(lambda: engine.slots_in_use <= 1)  # that of the lasting one, while it does
        assert lasting.answer(60).ids_C.tolist() == write(policy, [PROMPTS[0]], LONG)[0].ids_C.tolist()
    assert engine.idle and not engine.slots_in_use


def test_the_queue_is_bounded_and_owners_take_turns(policy):
    with Engine(policy, Limits(slots=1, waiting=4)) as engine:
        engine.pause()
        many = [ask(engine, PROMPTS[0], Sampling(5, max_images=0), owner="many") for _ in range(3)]
        one = ask(engine, PROMPTS[0], Sampling(5, max_images=0), owner="one")
        with pytest.raises(Refused) as caught:
            ask(engine, PROMPTS[0], SETTINGS[0])
        assert caught.value.reason == "full" and caught.value.retry_s >= 1
        engine.resume()
        ended = [reply.wait(30) and reply.ticket.times.admitted for reply in (*many, one)]
        assert ended[0] < ended[3] < ended[1] < ended[2]


def test_the_queue_can_be_counted_while_it_changes():
    waiting, over = Waiting(), threading.Event()

    def change():
        while not over.is_set():
            for owner in "abcdefgh":
                waiting.put(SimpleNamespace(owner=owner))
            while waiting.first():
                waiting.pop()

    changing = threading.Thread(target=change)
    changing.start()
    try:
        assert all(0 <= len(waiting) <= 8 for _ in range(50_000))
    finally:
        over.set()
        changing.join()


@pytest.mark.parametrize(("steps", "room"), [("plain", 700), ("fixed", 1600)])
def test_the_reservation_is_never_exceeded(policy, monkeypatch, steps, room):
    sizes, begin = [], SlotCache.begin
    monkeypatch.setattr(SlotCache, "begin", lambda c, seen: sizes.append(c.slots * c.columns) or begin(c, seen))
    with Engine(policy, Limits(slots=6, cache_tokens=room, steps=steps)) as engine:
        if steps == "plain":
            with pytest.raises(InputError, match="may take .* tokens in 2 slots"):
                ask(engine, PROMPTS[0], Sampling(400, guidance=2.0))
        lengths = [10, 20, 10, 150, 10, 300, 10, 10, 150, 20]
        replies = [ask(engine, PROMPTS[0], Sampling(n, seed=n, max_images=0)) for n in lengths]
        for reply in replies:
            reply.answer(60)
    assert sizes and max(sizes) <= room


def test_short_requests_end_while_a_long_one_runs(policy):
    with Engine(policy, Limits(slots=4)) as engine:
        long = ask(engine, PROMPTS[0], replace(LONG, guidance=2.0))
        while not engine.running:
            time.sleep(0.001)
        short = [ask(engine, PROMPTS[0], Sampling(8, seed=n, max_images=0)) for n in range(10)]
        for reply in short:
            reply.answer(60)
        assert not long.ticket.times.ended
        long.answer(60)
        assert max(reply.ticket.times.ended for reply in short) < long.ticket.times.ended


def test_a_reader_that_takes_nothing_is_given_up_and_stops_nobody(policy, monkeypatch):
    monkeypatch.setattr(Mailbox, "MOST", 1)
    with Engine(policy, Limits(slots=2, reader_seconds=0.05)) as engine:
        slow = engine.submit(Asked(PROMPTS[0], replace(LONG, max_new_tokens=400, max_images=None)))
        for _ in range(3):
            ask(engine, PROMPTS[0], SETTINGS[0]).answer(30)
        until(lambda: not engine.running)
        assert isinstance(last := slow.mailbox.take()[-1], Failed) and last.kind == "slow"


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_box_holds_no_more_than_its_answer():
    box = Mailbox()
    for _ in range(1000):
        box.put(Text("a"))
        box.put(Text("b"))
    assert box.take() == [Text("ab" * 1000)] and box.take() == []
    for _ in range(Mailbox.MOST):
        box.put(Begun())
        box.put(Progress(0.1))
        box.put(Progress(0.2))
    assert box.full_since is not None
    box.put(Failed("slow", "x"))
    box.put(Text("too late"))
    assert box.take()[-1] == Failed("slow", "x") and box.full_since is None


def test_a_deadline_ends_what_waits_and_what_runs(policy):
    with Engine(policy, Limits(slots=1, seconds=0.1)) as engine:
        replies = [ask(engine, PROMPTS[0], replace(LONG, max_new_tokens=400, max_images=None)) for _ in range(3)]
        ends = [reply.wait(30) for reply in replies]
        assert all(isinstance(end, Failed) and end.kind == "time" for end in ends)
        until(lambda: not engine.slots_in_use)


def test_draining_lets_running_answers_end_or_cuts_them(policy):
    with Engine(policy, Limits(slots=1)) as engine:
        whole, waits = ask(engine, PROMPTS[0], SETTINGS[0]), ask(engine, PROMPTS[0], SETTINGS[0])
        engine.drain(30)
        assert whole.answer(1).ids_C.tolist() == waits.answer(1).ids_C.tolist()
        with pytest.raises(Refused, match="shutting down"):
            ask(engine, PROMPTS[0], SETTINGS[0])
    with Engine(policy, Limits(slots=1)) as engine:
        runs, waits = ask(engine, PROMPTS[0], replace(LONG, max_new_tokens=400)), ask(engine, PROMPTS[0], SETTINGS[0])
        until(lambda: engine.running)
        engine.drain(0)
        end, lost = runs.wait(1), waits.wait(1)
    assert isinstance(end, Ended) and end.why == "shutdown" and end.answer.ids_C is not None
    assert isinstance(lost, Failed) and lost.kind == "shutdown"


def test_a_fault_of_the_forward_ends_all_and_shows(make_policy, monkeypatch, caplog):
    broken = make_policy(2)
    with Engine(broken) as engine:
        reply = ask(engine, PROMPTS[0], LONG)
        until(lambda: engine.running)
        monkeypatch.setattr(broken, "hidden", lambda *_: 1 / 0)
        end = reply.wait(30)
        assert isinstance(end, Failed) and end.kind == "engine" and not engine.alive
        with pytest.raises(Refused) as caught:
            ask(engine, PROMPTS[0], SETTINGS[0])
        assert caught.value.reason == "dead"
    assert "the engine has stopped" in caplog.text


def test_a_fault_of_one_row_s_painting_ends_that_row_alone(policy, monkeypatch, caplog):
    stock = scribe.painted
    monkeypatch.setattr(scribe, "painted", lambda processor, picture: 1 / 0)
    with Engine(policy, Limits(slots=2)) as engine:
        lost = ask(engine, PROMPTS[0], LONG).wait(30)
        monkeypatch.setattr(scribe, "painted", stock)
        assert isinstance(lost, Failed) and lost.kind == "engine" and engine.alive
        assert ask(engine, PROMPTS[0], LONG).answer(30).images
        until(lambda: not engine.slots_in_use)
    assert "could not be read or painted" in caplog.text


def test_weights_change_between_two_answers_never_within_one(make_policy):
    policy, other = make_policy(3), make_policy(4)
    before = write(policy, [PROMPTS[0]], SETTINGS[0])[0].ids_C.tolist()
    with Engine(policy, Limits(slots=1)) as engine:
        old, new = ask(engine, PROMPTS[0], SETTINGS[0]), None
        until(lambda: engine.running or old.ticket.mailbox.closed)
        new = ask(engine, PROMPTS[0], SETTINGS[0])
        engine.pause()
        policy.model.load_state_dict(other.model.state_dict())
        engine.resume()
        assert old.answer(30).ids_C.tolist() == before
        assert new.answer(30).ids_C.tolist() == write(other, [PROMPTS[0]], SETTINGS[0])[0].ids_C.tolist() != before

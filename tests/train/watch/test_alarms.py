"""Alarms: planted faults raise exactly their alarm, healthy noisy curves none, and the state survives JSON."""

import json
import math
import random

import pytest

from limner.configs.errors import InputError
from limner.train.watch.alarms import DUPLICATES, HELDOUT, Alarms, AlarmsConfig

POINTS = 80
BF16 = {"replay_gap": 0.05, "gap_noise": 0.4}
PLANTED_AT = 30


def healthy(seed, top=0.98, replay_gap=4e-6, gap_noise=0.8):
    """A run as the demo's go, one point every 4 steps: the figures, their noise and their heavy tails are measured.

    Entropy falls to a twentieth because the task is learned; KL spikes; half of the groups die at the end.
    """
    rng = random.Random(seed)
    for index in range(POINTS):
        learned = 1 - math.exp(-index / 8)
        solved = top > 0.9
        point = {
            "reward": 0.7 + (top - 0.7) * learned + rng.gauss(0, 0.012),
            "dead_groups": sum(rng.random() < 0.5 * learned for _ in range(16)) / 16,
            "completions/cut": sum(rng.random() < 0.08 for _ in range(128)) / 128,
            "completions/images": 2.2 - 0.2 * learned + rng.gauss(0, 0.06),
            "completions/text/repeated": 0.08 + 0.05 * learned + rng.gauss(0, 0.01),
            DUPLICATES: sum(rng.random() < 0.05 for _ in range(60)) / 60,
            "entropy/text": (0.12 - (0.113 if solved else 0.07) * learned) * rng.lognormvariate(0, 0.25),
            "entropy/image": (0.065 - 0.045 * learned) * rng.lognormvariate(0, 0.15),
            "kl/text": 0.04 * (1e-3 + learned) * rng.lognormvariate(0, 0.9),
            "kl/image": 0.03 * (1e-3 + learned) * rng.lognormvariate(0, 0.4),
            "signal/text": 0.2 * (1.1 - learned) * rng.lognormvariate(0, 0.3),
            "signal/image": 0.6 * (1.2 - learned) * rng.lognormvariate(0, 0.3),
        }
        for modality in ("text", "image"):
            point[f"replay_gap/{modality}"] = replay_gap * rng.lognormvariate(0, gap_noise)
        if index % 5 == 0:
            score = 0.12 + (0.8 * top - 0.12) * learned
            point[HELDOUT] = sum(rng.random() < score for _ in range(128)) / 128
        yield point


def raised(points, **settings):
    """Alarms in order, with the index of their point."""
    alarms = Alarms(AlarmsConfig(**settings))
    return [(index, alarm) for index, point in enumerate(points) for alarm in alarms.update(4 * index, point)]


@pytest.mark.parametrize("shape", [{}, {"top": 0.75}, BF16], ids=["solved", "plateau", "bf16"])
def test_healthy_runs_raise_nothing(shape):
    for seed in range(12):
        assert raised(healthy(seed, **shape)) == [], seed


def test_kl_that_only_grows_linearly_is_no_alarm():
    for seed in range(12):
        rng = random.Random(seed)
        assert raised({"kl/text": 0.004 * index * rng.lognormvariate(0, 0.3)} for index in range(POINTS)) == [], seed


def test_kl_that_grows_ever_faster_is_seen_before_it_reaches_the_bound():
    for seed in range(12):
        rng = random.Random(seed)
        (_, alarm), *_ = raised({"kl/text": 0.01 * 2 ** (i / 6) * rng.lognormvariate(0, 0.1)} for i in range(32))
        assert alarm.name == "kl_runaway/text" and "grows faster than linearly" in alarm.text


def constant(value):
    return lambda since, before, rng: value * rng.lognormvariate(0, 0.1)


PLANTED = {
    # alarm: run, metric -> value from points since the fault and the healthy value
    "reward_hacking": ({"top": 0.8}, {HELDOUT: lambda since, before, rng: before - 0.008 * since}),
    "entropy_collapse/text": ({"top": 0.75}, {"entropy/text": constant(0.004)}),
    "entropy_collapse/image": ({"top": 0.75}, {"entropy/image": constant(0.002)}),
    "kl_runaway/text": ({}, {"kl/text": constant(1.5)}),
    "kl_runaway/image": ({}, {"kl/image": lambda since, before, rng: before * 2 ** (since / 4)}),
    "vanishing_gradient/image": ({}, {"signal/image": constant(1e-5)}),
    "vanishing_gradient/text": ({}, {"signal/text": lambda since, before, rng: 0.0}),
    "dead_groups": ({"top": 0.75}, {"dead_groups": lambda since, before, rng: 1.0}),
    "completions_cut": ({}, {"completions/cut": lambda since, before, rng: min(1.0, before + 0.02 * since)}),
    "fewer_pictures": ({}, {"completions/images": lambda since, before, rng: max(1.0, before - 0.03 * since)}),
    "more_pictures": ({}, {"completions/images": lambda since, before, rng: min(8.0, before + 0.05 * since)}),
    "repeated_text": ({}, {"completions/text/repeated": lambda since, before, rng: min(1.0, before + 0.02 * since)}),
    "replay_gap/text": ({}, {"replay_gap/text": constant(0.02)}),
    "replay_gap/image": (BF16, {"replay_gap/image": constant(0.6)}),
    "near_duplicates": ({}, {DUPLICATES: lambda since, before, rng: min(1.0, before + 0.03 * since)}),
}


def planted(name, seed):
    shape, faults = PLANTED[name]
    rng = random.Random(f"{name} {seed}")
    for index, point in enumerate(healthy(seed, **shape)):
        if (since := index - PLANTED_AT) >= 0:
            point |= {metric: fault(since, point[metric], rng) for metric, fault in faults.items() if metric in point}
            if name == "reward_hacking":
                point["reward"] += 0.004 * since
        yield point


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_raises_its_alarm_once_and_no_other(name):
    for seed in range(4):
        found = raised(planted(name, seed))
        assert [alarm.name for _, alarm in found] == [name], (seed, found)
        ((index, alarm),) = found
        assert index > PLANTED_AT
        assert alarm.text.startswith(f"step {4 * index}: ") and "\n" not in alarm.text and alarm.text.endswith(".")
        assert "nan" not in alarm.text and ": " in alarm.text[len("step 000:") :]


def test_sentences_hold_the_numbers():
    hacking, cut = (raised(planted(name, 0))[0][1].text for name in ("reward_hacking", "completions_cut"))
    assert "training reward rose from 0." in hacking and "held-out score fell from 0." in hacking
    assert "the length limit cuts" in cut and "max_completion_length" in cut
    ((_, alarm),) = raised({"kl/text": 1.5} for _ in range(10))
    assert alarm.text.startswith("step 28: the KL of text tokens to the reference is 1.5 nats a token (bound 0.5)")


def test_an_alarm_is_raised_again_only_after_it_cleared():
    figures = [0.1] * 10 + [1.0] * 20 + [0.5] * 10 + [0.1] * 10 + [1.0] * 10  # 0.5 is the bound: it does not clear
    found = raised({"kl/text": value} for value in figures)
    assert len(found) == 2 and found[0][0] < 20 and found[1][0] > 50


def test_a_frozen_modality_has_no_gradient_to_vanish():
    alarms = Alarms(AlarmsConfig(), modalities=("text",))
    assert not any(alarms.update(step, {"signal/text": 0.5, "signal/image": 0.0}) for step in range(40))


@pytest.mark.parametrize("value", [math.nan, math.inf, None], ids=str)
def test_what_is_no_number_raises_nothing_and_changes_nothing(value):
    names = list(next(iter(healthy(0)))) + [HELDOUT]
    assert raised(dict.fromkeys(names, value) for _ in range(POINTS)) == []
    assert raised({} for _ in range(POINTS)) == []
    # Points that lack everything in between do not move an alarm.
    holes = [point for full in planted("kl_runaway/text", 0) for point in (full, dict.fromkeys(names, value), {})]
    ((index, _),) = raised(planted("kl_runaway/text", 0))
    assert [found for found, _ in raised(holes)] == [3 * index]


@pytest.mark.parametrize("name", PLANTED)
def test_a_resumed_run_raises_the_same_alarms(name):
    points, straight = list(planted(name, 1)), raised(planted(name, 1))
    for stop in (3, PLANTED_AT + 2, straight[0][0] + 1):
        before, after = Alarms(AlarmsConfig()), Alarms(AlarmsConfig())
        found = [(i, alarm) for i in range(stop) for alarm in before.update(4 * i, points[i])]
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        found += [(i, alarm) for i in range(stop, POINTS) for alarm in after.update(4 * i, points[i])]
        assert found == straight


def test_bounds_that_nothing_could_meet_are_refused():
    for settings, message in (({"kl": 0.0}, "alarms.kl: 0.0"), ({"window": 1}, "alarms.window: 1 points are too few")):
        with pytest.raises(InputError, match=message):
            Alarms(AlarmsConfig(**settings))

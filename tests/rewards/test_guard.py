"""Rewards that fail in every way: named, counted, never a zero, never a hang."""

import _thread
import json
import math
import signal
import threading
import time

import numpy as np
import pytest
import torch

from limner.configs import build
from limner.configs.errors import InputError, Unavailable
from limner.models.documents.document import InterleavedDocument, TextSegment
from limner.rewards.base import FAILED, Completion, RewardOutput
from limner.rewards.build import RewardSettings, build_reward
from limner.rewards.guard import GuardedReward, RewardGuardConfig
from limner.rewards.hybrid import HybridReward

PROMPT = InterleavedDocument((TextSegment("Illustrate."),))
TWO = [
    Completion(PROMPT, InterleavedDocument((TextSegment("One.", True), TextSegment("Two.", True)))),
    Completion(PROMPT, InterleavedDocument((TextSegment("One.", True),))),
]
LOST = RewardOutput([FAILED, FAILED], [[FAILED, FAILED], [FAILED]])


class Judge:
    """Gives what it is told to, one answer a call, the last one for ever."""

    name = "judge"

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, completions):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer


def good(score=0.5):
    return RewardOutput([score, 1.0], [[score, None], [1.0]], {"part": [None, score]})


def test_a_good_reward_goes_through_unchanged():
    reward = GuardedReward(Judge(good()))
    assert reward.name == "judge" and reward(TWO) == good()
    assert reward.metrics() == {"reward_failures/judge": 0.0, "reward_failures/judge/scores": 0.0}


FAILURES = {
    "for one completion": (
        AttributeError("'list' object has no attribute 'answer'"),
        "raised AttributeError",
        "it is given the list of completions",
    ),
    "raises": (ValueError("no such\nmodel"), "raised ValueError", "it raised ValueError: no such model .*test_guard"),
    "returns nothing": (None, "no output", "it returned NoneType instead of a list of scores or"),
    "returns a list": ([0.5, 0.5], "no output", "it returned list"),
    "too few outcomes": (
        RewardOutput([1.0], good().segments),
        "wrong number of scores",
        "1 outcomes for 2 completions",
    ),
    "too few rows": (RewardOutput([1.0, 1.0], [[1.0, 1.0]]), "wrong number of scores", "2 segment scores for 3"),
    "ragged wrongly": (RewardOutput([1.0, 1.0], [[1.0], [1.0, 1.0]]), "wrong number of scores", "exactly one"),
    "part too short": (
        RewardOutput(*[good().outcome, good().segments], {"p": [1.0]}),
        "wrong number of scores",
        "1 of its part 'p' for 2",
    ),
    "no lists": (RewardOutput(None, 3), "wrong types", "no list of scores"),  # type: ignore[arg-type]
    "words": (RewardOutput(["good", 1.0], good().segments), "wrong types", "a score is a str"),  # type: ignore[list-item]
    "tensors": (RewardOutput([torch.ones(2), 1.0], good().segments), "wrong types", "Tensor"),  # type: ignore[list-item]
    "all NaN": (RewardOutput([math.nan, None], [[math.inf, None], [None]]), "no score", "2 NaN or infinite"),
    "all said to fail": (RewardOutput([None, None], [[None, None], [None]], {}, {"image": 3}), "no score", "3 image"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_call_is_failed_scores_counted_by_kind(name):
    answer, kind, reason = FAILURES[name]
    reward = GuardedReward(Judge(answer), timeout_s=60, calls=3)
    assert reward(TWO) == LOST and reward(TWO) == LOST
    assert dict(reward.failures) == {kind: 2} and reward.metrics()["reward_failures/judge"] == 2
    with pytest.raises(InputError, match=f"reward 'judge' failed 3 calls in a row, last: .*{reason}.*; repair it"):
        reward(TWO)


def test_one_answer_in_between_and_the_count_starts_again():
    reward = GuardedReward(Judge(KeyError("a"), OSError("b"), good(), None, None, good()), calls=3)
    assert [reward(TWO).outcome[1] for _ in range(6)] == [FAILED, FAILED, 1.0, FAILED, FAILED, 1.0]
    assert dict(reward.failures) == {"raised KeyError": 1, "raised OSError": 1, "no output": 2}


def test_single_scores_that_are_no_number_have_failed():
    reward = GuardedReward(Judge(RewardOutput([math.nan, 1.0], [[math.inf, None], [0.5]], {"p": [math.nan, 0.0]})))
    for calls in (1, 2, 3, 4):  # never a failed call
        assert reward(TWO) == RewardOutput(
            [FAILED, 1.0], [[FAILED, None], [0.5]], {"p": [FAILED, 0.0]}, {"NaN or infinite": 2}
        )
        assert reward.metrics() == {"reward_failures/judge": 0.0, "reward_failures/judge/scores": 2.0 * calls}


def test_numbers_of_numpy_are_numbers():
    reward = GuardedReward(Judge(RewardOutput([np.float32(0.5), 1], [[np.float64(0.5), None], [True]])))
    output = reward(TWO)
    assert output == RewardOutput([0.5, 1.0], [[0.5, None], [1.0]])
    assert all(type(score) is float for score in output.outcome)


def test_a_reward_that_hangs_is_left_behind():
    release, late = threading.Event(), good()

    def hang():
        release.wait(60)
        return late

    reward = GuardedReward(Judge(hang, good(0.25), hang), timeout_s=1.0, calls=2)
    start = time.monotonic()
    assert reward(TWO) == LOST
    assert reward(TWO) == good(0.25)  # a new thread answers while the first still waits
    assert reward(TWO) == LOST
    with pytest.raises(InputError, match="no answer within 1 s; repair it, or give it more time .reward_guard.time"):
        reward(TWO)
    assert time.monotonic() - start < 30 and dict(reward.failures) == {"timed out": 3}
    waiting = [thread for thread in threading.enumerate() if thread.name == "reward judge"]
    assert len(waiting) == 3 and all(thread.daemon for thread in waiting)
    release.set()
    for thread in waiting:
        thread.join(30)


def test_without_a_deadline_it_runs_in_the_callers_thread_and_is_still_contained():
    threads = []
    reward = GuardedReward(Judge(lambda: threads.append(threading.current_thread()) or good()), timeout_s=0)
    assert reward(TWO) == good() and threads == [threading.main_thread()]
    assert GuardedReward(Judge(ValueError("x")), timeout_s=0)(TWO) == LOST


@pytest.mark.parametrize("timeout", [0, 60])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), InputError("prompt 'rice' has no outline")])
def test_an_interrupt_and_a_fault_in_the_input_go_through(error, timeout):
    reward = GuardedReward(Judge(error), timeout_s=timeout)
    with pytest.raises(type(error)):
        reward(TWO)
    assert not reward.failures


def test_ctrl_c_ends_the_wait():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    release = threading.Event()

    def interrupted():
        _thread.interrupt_main()
        release.wait(60)

    try:
        with pytest.raises(KeyboardInterrupt):
            GuardedReward(Judge(interrupted), timeout_s=60)(TWO)
    finally:
        release.set()
        signal.signal(signal.SIGINT, before)


def test_gradients_are_off_inside():
    seen = []
    GuardedReward(Judge(lambda: seen.append(torch.is_grad_enabled()) or good()))(TWO)
    assert seen == [False] and torch.is_grad_enabled()


def test_a_hybrid_reward_has_no_mean_without_a_part():
    class Other(Judge):
        name = "other"

    hybrid = HybridReward([(GuardedReward(Judge(None)), 3.0), (Other(good()), 1.0)])
    output = hybrid(TWO)
    assert output.outcome == [None, None] and output.segments == [[None, None], [None]]
    assert output.breakdown == {"judge": [None, None], "other": [0.5, 1.0]}


def test_counts_survive_a_checkpoint():
    before = GuardedReward(Judge(good(math.nan), None), calls=2)
    before(TWO), before(TWO)
    after = GuardedReward(Judge(None), calls=2)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after.metrics() == before.metrics() == {"reward_failures/judge": 1.0, "reward_failures/judge/scores": 2.0}
    with pytest.raises(InputError, match="failed 2 calls in a row"):
        after(TWO)


def test_patience_is_a_matter_of_seconds():
    """Not of three timeouts: the second call that hangs is the last."""
    release = threading.Event()
    reward = GuardedReward(Judge(lambda: release.wait(60)), timeout_s=0.5, patience_s=0.8, calls=9)
    start = time.monotonic()
    assert reward(TWO) == LOST
    with pytest.raises(InputError, match="failed 2 calls in a row, last: no answer within 0.5 s"):
        reward(TWO)
    assert time.monotonic() - start < 10
    release.set()


def test_who_went_away_is_waited_for_and_asked_again():
    reward = GuardedReward(Judge(Unavailable("http://a: refused"), good()), patience_s=60)
    assert reward(TWO) == good() and not reward.failures and reward.last_reason == "http://a: refused"


def test_the_wait_for_who_went_away_has_an_end():
    reward = GuardedReward(Judge(Unavailable("http://a: refused")), patience_s=1.2)
    start = time.monotonic()
    with pytest.raises(
        InputError, match="^reward 'judge': no answer for 1.2 s .reward_guard.patience., last: http://a: r"
    ):
        reward(TWO)
    assert 1.2 <= time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("timeout", "patience", "name"),
    [(-1, 600, "timeout"), (math.inf, 600, "timeout"), (1, 0, "pat"), (300, 3, "pat"), (0, math.inf, "pat")],
)
def test_settings_out_of_range_are_refused(timeout, patience, name):
    section = {"reward_guard": {"timeout": timeout, "patience": patience}}
    with pytest.raises(InputError, match=f"my.yaml: reward_guard[.:] ?{name}"):
        build(RewardSettings, section, "my.yaml")
    with pytest.raises(InputError, match=name):
        RewardGuardConfig(timeout, patience)


def test_the_guard_of_a_configuration_is_that_of_its_parts():
    reward = build_reward(build(RewardSettings, {"reward_guard": {"timeout": 2, "patience": 5, "calls": 4}}, "my.yaml"))
    assert [(guard.name, guard.timeout_s, guard.patience_s, guard.calls) for guard in reward.guards] == [
        (*("format", 2.0, 5.0, 4),)
    ]

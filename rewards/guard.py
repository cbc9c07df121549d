"""A reward that fails: named and counted, never a zero, never a hang.

The rule. A call that raises, gives no answer in time, or returns something else than one score for every completion and
segment has failed: all its scores are `FAILED`, and what it was asked about takes no part in its group. After `calls`
failed calls in a row, or `patience` seconds of them, the run stops with an InputError, because a run whose reward is
dead learns nothing. A call that found nobody (`Unavailable`) is made again, as long as the patience lasts. A
single score that is NaN or infinite is `FAILED` alone. They are counted by kind where the reward says how many have
failed (`RewardOutput.failed`), and one by one where it does not; where no score is left, the call has failed. An
InputError of the reward itself (a prompt it cannot score, a setting) goes through at once, and so does Ctrl-C.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from threading import Event, Thread
from typing import Any

import torch

from ..configs.bounds import OneOrMore, Seconds
from ..configs.errors import InputError, Unavailable
from ..configs.schema import check_ranges
from .base import FAILED, Completion, Reward, RewardOutput, asked_by

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 30.0
"""Between two times that a part is asked which is not there."""
LONGEST_REASON = 300
"""Characters."""


@dataclass
class RewardGuardConfig:
    timeout: Seconds = 300.0
    """Seconds that a part may take for a batch; 0 sets no limit and calls it in the trainer's own thread."""
    patience: Seconds = 600.0
    """Seconds for which a part fails, or for which a server that went away is waited for, until the run stops."""
    calls: OneOrMore = 3
    """Failed calls of a part in a row that stop the run before."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.patience < max(self.timeout, 1):
            raise InputError(
                f"patience: {self.patience:g} seconds; a call may take {self.timeout:g} (timeout), give no less, and "
                "at least 1. How many calls may fail in a row is said by `calls`"
            )


class Failure(Exception):
    """A call that gave no scores: a short kind to count by, and the reason in words."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind
        self.reason = reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "..."


class GuardedReward:
    """Any reward, held to a deadline and to its contract.

    The call runs in a thread, not in a process: completions hold pictures and rewards hold models, GPU memory and
    connections, none of which survive a fork or are worth pickling, and a reward hangs where it waits (network, locks),
    which lets other threads run. Code that hangs without ever releasing the interpreter lock is not caught. A thread
    that never returns is left behind, its late answer is dropped, and the next call gets a new one; until it ends it
    may still use the reward's objects. It is a daemon, so it does not keep the process alive.

    `timeout_s` 0 sets no deadline and calls in the caller's own thread, which rewards that use `signal` need.
    """

    def __init__(self, reward: Reward, timeout_s: float = 300.0, patience_s: float = 600.0, calls: int = 3):
        self.reward, self.name = reward, reward.name
        self.timeout_s, self.patience_s, self.calls = timeout_s, patience_s, calls
        self.failures: Counter[str] = Counter()
        """Failed calls by kind."""
        self.dropped = 0
        """Single scorings that failed."""
        self.in_a_row = 0
        self.last_reason = ""
        self._failing_since = math.inf
        """When the first of the failed calls began."""

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        begun = time.monotonic()
        try:
            output = cleaned(self._waited_for(completions, begun + self.patience_s), completions)
        except Failure as failure:
            self._count(failure, begun)
            return RewardOutput([FAILED] * len(completions), [[FAILED] * len(c.answer.segments) for c in completions])
        self.in_a_row, self._failing_since = 0, math.inf
        if output.failed:
            self.dropped += sum(output.failed.values())
            self.last_reason = f"scores failed in one call: {_counted(output.failed)}"
            logger.warning("reward %r: %s; they take no part", self.name, self.last_reason)
        return output

    def metrics(self) -> dict[str, float]:
        """Failed calls and dropped scores since the run began; sums over ranks are sums."""
        name = f"reward_failures/{self.name}"
        return {name: float(sum(self.failures.values())), f"{name}/scores": float(self.dropped)}

    def state_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return {
            "failures": dict(self.failures),
            "dropped": self.dropped,
            "in_a_row": self.in_a_row,
            "last_reason": self.last_reason,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.failures = Counter(state["failures"])
        self.dropped, self.in_a_row, self.last_reason = state["dropped"], state["in_a_row"], state["last_reason"]

    def _count(self, failure: Failure, begun: float) -> None:
        """Raises InputError where this was the last failed call."""
        self.failures[failure.kind] += 1
        self.in_a_row += 1
        self.last_reason = failure.reason
        self._failing_since = min(self._failing_since, begun)
        lasted_s = time.monotonic() - self._failing_since
        if self.in_a_row >= self.calls or lasted_s >= self.patience_s:
            more_time = ", or give it more time (reward_guard.timeout)" if failure.kind == "timed out" else ""
            raise InputError(
                f"reward {self.name!r} failed {self.in_a_row} calls in a row, last: {failure.reason}; repair it"
                f"{more_time}, or leave it out by giving it weight 0"
            ) from failure
        logger.warning(
            "reward %r failed (%d in a row, the run stops at %d): %s; what it should have scored takes no part",
            *(self.name, self.in_a_row, self.calls, failure.reason),
        )

    def _waited_for(self, completions: Sequence[Completion], until: float) -> object:
        """The answer, asked for again as long as nobody is there. Raises InputError where that is too long."""
        for pause_s in (min(2.0**number, LONGEST_PAUSE_S) for number in itertools.count()):
            try:
                return self._answer(completions)
            except Unavailable as error:
                self.last_reason, left_s = str(error), until - time.monotonic()
                if left_s <= 0:
                    raise InputError(
                        f"reward {self.name!r}: no answer for {self.patience_s:g} s (reward_guard.patience), last: "
                        f"{error}"
                    ) from error
                logger.warning("reward %r: %s; waiting for it, at most %.0f s more", self.name, error, left_s)
                time.sleep(min(pause_s, left_s))
        raise AssertionError("pauses have no end")

    def _answer(self, completions: Sequence[Completion]) -> object:
        answer: list[object] = []
        raised: list[BaseException] = []
        done = Event()
        # Current device and gradient mode belong to a thread: without this a rank's reward would run on GPU 0.
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def work() -> None:
            try:
                if device is not None:
                    torch.cuda.set_device(device)
                with torch.no_grad():
                    answer.append(self.reward(completions))
            except BaseException as error:  # handed to the caller, whatever it is
                raised.append(error)
            done.set()

        if self.timeout_s:
            Thread(target=work, daemon=True, name=f"reward {self.name}").start()
            if not done.wait(self.timeout_s):
                asked = ", ".join(server.address for server in asked_by(self.reward))
                raise Failure("timed out", f"no answer within {self.timeout_s:g} s{asked and f' (it asks {asked})'}")
        else:
            work()
        if not raised:
            return answer[0]
        error = raised[0]
        if isinstance(error, InputError) or not isinstance(error, Exception):
            raise error
        words = " ".join(str(error).split())
        where = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"raised {type(error).__name__}"
        hint = "; it is given the list of completions, and returns a score for each" if "'list' object" in words else ""
        raise Failure(kind, f"it {kind}: {words} ({where.filename}:{where.lineno}){hint}") from error


def cleaned(output: object, completions: Sequence[Completion]) -> RewardOutput:
    """The output with each score a finite float, None or `FAILED`, and all that failed counted. Raises Failure."""
    if not isinstance(output, RewardOutput):
        raise Failure("no output", f"it returned {type(output).__name__} instead of a list of scores or a RewardOutput")
    try:
        outcome = _numbers(output.outcome)
        segments = [_numbers(row) for row in output.segments]
        breakdown = {name: _finite(_numbers(part)) for name, part in output.breakdown.items()}
        failed = {str(kind): int(count) for kind, count in output.failed.items()}
    except (TypeError, AttributeError, OverflowError, ValueError) as error:
        raise Failure("wrong types", f"its output holds something that is no list of scores: {error}") from None
    sizes, expected = [len(row) for row in segments], [len(c.answer.segments) for c in completions]
    wrong = []
    if len(outcome) != len(completions):
        wrong.append(f"{len(outcome)} outcomes for {len(completions)} completions")
    if sizes != expected:
        wrong.append(f"{sum(sizes)} segment scores for {sum(expected)} segments")
    parts = {name: len(part) for name, part in breakdown.items() if len(part) != len(outcome)}
    parts = {name: len(part) for name, part in breakdown.items() if len(part) != len(outcome)}
    wrong += [f"{count} of its part {name!r} for {len(outcome)}" for name, count in parts.items()]
    if wrong:
        rule = "each completion and segment has exactly one, None where it does not apply"
        raise Failure("wrong number of scores", f"it gave {' and '.join(wrong)}; {rule}")
    given = [score for row in (outcome, *segments) for score in row if score is not None]
    dropped = sum(not math.isfinite(score) for score in given)
    failed = failed or ({"NaN or infinite": dropped} if dropped else {})
    if failed and dropped == len(given):
        raise Failure("no score", f"not one score, {_counted(failed)}; what does not apply is None")
    return RewardOutput(_finite(outcome), [_finite(row) for row in segments], breakdown, failed)


def _numbers(scores: Sequence[object]) -> list[float | None]:
    """Raises TypeError for what is no number; numpy's scalars are numbers, tensors are not."""
    for score in scores:
        if score is not None and not isinstance(score, Real):
            raise TypeError(f"a score is a {type(score).__name__}, neither a float nor None")
    return [None if score is None else float(score) for score in scores]  # type: ignore[arg-type]


def _finite(scores: list[float | None]) -> list[float | None]:
    return [score if score is None or math.isfinite(score) else FAILED for score in scores]


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())

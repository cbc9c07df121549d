"""Alarms over a run's metrics: a state machine that turns curves into plain sentences. It reads numbers and no clock.

Each check measures how far a figure is from its bound (1 is at the bound). An alarm is raised once when the figure
reaches the bound, and can be raised again only after the figure has stayed below `CLEARS` of it for a window. NaN and
missing metrics are no figures. A check that compares curves says nothing until it has seen enough points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import pairwise
from statistics import fmean, median
from typing import Annotated, Any, NamedTuple

from ...configs.bounds import MILLION, Above0, Range
from ...configs.errors import InputError

MODALITIES = ("text", "image")
CLEARS = 0.8
TINY = 1e-12
"""Nats; logarithms start here."""
BEYOND_NOISE = 4.0
"""A rise counts from this many of its standard errors on, ..."""
BOTH_BEYOND_NOISE = 3.0
"""... and from this many where two curves must move at once."""
SERIES = (
    *("reward", "dead_groups", "completions/cut", "completions/images", "completions/text/repeated"),
    "pictures/near_duplicates/document",
    *(f"{name}/{modality}" for name in ("entropy", "kl", "signal", "replay_gap") for modality in MODALITIES),
)
"""Metrics that are remembered, beside the held-out score."""
DUPLICATES = "pictures/near_duplicates/document"
HELDOUT = "heldout/score"


@dataclass
class AlarmsConfig:
    """Bounds. A point is one set of metrics as logged; rewards and scores are taken to go from 0 to 1."""

    window: Annotated[int, Range(2, MILLION)] = 8
    """Last points that a figure is taken over (median or mean)."""
    baseline: Annotated[int, Range(2, MILLION)] = 4
    """First points, with which later ones are compared."""
    heldout_window: Annotated[int, Range(4, MILLION)] = 6
    """Last held-out scores that a trend is fitted to."""
    heldout_fall: Above0 = 0.05
    """Fall of the held-out score over them that counts, in its own unit."""
    reward_rise: Above0 = 0.02
    """Rise of the training reward over the same stretch that counts."""
    entropy_share: Above0 = 0.1
    """Share of its first value below which entropy has collapsed, ..."""
    solved: Above0 = 0.9
    """... unless the reward is above this: entropy may fall because the task is learned."""
    kl: Above0 = 0.5
    """Nats a token, to the reference."""
    kl_growth: Above0 = 1.25
    """KL of the last window over where a line through the two windows before it leads; linear growth is 1."""
    signal_share: Above0 = 0.01
    """Share of a modality in the gradient's L1 norm (with respect to log-probs) below which it has vanished."""
    dead_groups: Above0 = 0.95
    """Share of groups."""
    cut_rise: Above0 = 0.1
    """Rise of the share of completions that the length limit cuts."""
    pictures_fall: Above0 = 0.25
    """Share of the pictures of an answer, as at the start, by which their number falls."""
    pictures_rise: Above0 = 0.5
    """The same share by which their number rises."""
    repeated_rise: Above0 = 0.2
    """Rise of the share of an answer's text that repeats itself."""
    replay_gap_growth: Above0 = 5.0
    """Growth of the largest gap between sampled and scored log-prob over that of the first points; ..."""
    replay_gap_floor: Above0 = 1e-4
    """... gaps below this, in nats, are rounding (float32)."""
    near_duplicates_rise: Above0 = 0.2
    """Rise of the share of pairs of pictures of one answer that look alike."""

    def check(self) -> None:
        """Raises InputError for bounds that no figure could meet."""
        for item in fields(self):
            value = getattr(self, item.name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"alarms.{item.name}: {value} is not positive")
        for name, least in (("window", 2), ("baseline", 2), ("heldout_window", 4)):
            if getattr(self, name) < least:
                raise InputError(f"alarms.{name}: {getattr(self, name)} points are too few; give {least} or more")
        if self.baseline > 2 * self.window:
            raise InputError(f"alarms.baseline: {self.baseline} is more than two windows ({self.window} points each)")


class Alarm(NamedTuple):
    name: str
    """What is wrong and, where it applies, the modality: `entropy_collapse/image`."""
    text: str
    """One sentence: what is seen, with numbers, and what to try."""


class Finding(NamedTuple):
    excess: float
    """How far the figure is from its bound; 1 is at the bound."""
    text: str


class History:
    """What the checks look at: first and last points of each metric, and held-out scores beside the reward since."""

    def __init__(self, config: AlarmsConfig):
        self.config = config
        self.first: dict[str, list[float]] = {}
        self.last: dict[str, list[float]] = {}
        self.heldout: list[list[float | None]] = []
        """(score, mean reward since the score before) of the last measurements."""
        self.rewards: list[float] = [0.0, 0]
        """Total and number of the rewards since the last held-out score."""

    def add(self, metrics: Mapping[str, float]) -> None:
        for name in SERIES:
            if (value := _number(metrics.get(name))) is not None:
                first, last = self.first.setdefault(name, []), self.last.setdefault(name, [])
                if len(first) < self.config.baseline:
                    first.append(value)
                last.append(value)
                del last[: -3 * self.config.window]
                if name == "reward":
                    self.rewards = [self.rewards[0] + value, self.rewards[1] + 1]
        if (score := _number(metrics.get(HELDOUT))) is not None:
            total, count = self.rewards
            self.heldout.append([score, total / count if count else None])
            del self.heldout[: -self.config.heldout_window]
            self.rewards = [0.0, 0]

    def recent(self, name: str) -> list[float] | None:
        """The last window of a metric, None while it is not full."""
        values = self.last.get(name, [])
        return values[-self.config.window :] if len(values) >= self.config.window else None

    def rise(self, name: str) -> tuple[float, float, float] | None:
        """Mean of the first points, of the last window, and the difference in its standard errors."""
        first, recent = self.first.get(name, []), self.recent(name)
        if recent is None or len(self.last[name]) < self.config.baseline + self.config.window:
            return None
        before, now = fmean(first), fmean(recent)
        error = math.sqrt(_variance(first) / len(first) + _variance(recent) / len(recent))
        return before, now, _ratio(now - before, error)


class Alarms:
    """`modalities`: those that are trained; one that is frozen on purpose has no gradient to vanish."""

    def __init__(self, config: AlarmsConfig, modalities: Sequence[str] = MODALITIES):
        config.check()
        self.config, self.modalities = config, tuple(modalities)
        self.history = History(config)
        self.active: dict[str, int] = {}
        """Alarms that were raised and have not cleared, with the number of calm points since."""

    def update(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Takes in the metrics of one logged point; returns the alarms that they raise."""
        self.history.add(metrics)
        raised = []
        for name, finding in self._findings().items():
            if finding is None:
                continue
            if name in self.active:
                self.active[name] = self.active[name] + 1 if finding.excess < CLEARS else 0
                if self.active[name] >= self.config.window:
                    del self.active[name]
            elif finding.excess >= 1:
                self.active[name] = 0
                raised.append(Alarm(name, f"step {step}: {finding.text}"))
        return raised

    def _findings(self) -> dict[str, Finding | None]:
        history, config = self.history, self.config
        found = {
            "reward_hacking": reward_hacking(history, config),
            "dead_groups": dead_groups(history, config),
            "completions_cut": completions_cut(history, config),
            "fewer_pictures": fewer_pictures(history, config),
            "more_pictures": more_pictures(history, config),
            "repeated_text": repeated_text(history, config),
            "near_duplicates": near_duplicates(history, config),
        }
        for modality in MODALITIES:
            found[f"entropy_collapse/{modality}"] = entropy_collapse(history, config, modality)
            found[f"kl_runaway/{modality}"] = kl_runaway(history, config, modality)
            found[f"replay_gap/{modality}"] = replay_gap(history, config, modality)
        if set(self.modalities) == set(MODALITIES):
            for modality, other in (MODALITIES, MODALITIES[::-1]):
                found[f"vanishing_gradient/{modality}"] = vanishing_gradient(history, config, modality, other)
        return found

    def state_dict(self) -> dict[str, Any]:
        """A JSON value; an exactly resumed run raises the same alarms at the same steps."""
        history = self.history
        state = {"first": history.first, "last": history.last, "heldout": history.heldout, "rewards": history.rewards}
        return deepcopy({**state, "active": self.active})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state, history = deepcopy(dict(state)), self.history
        history.first, history.last = state["first"], state["last"]
        history.heldout, history.rewards = state["heldout"], state["rewards"]
        self.active = state["active"]


# ---- checks: history to a finding, or None where there is too little to say ----


def reward_hacking(history: History, config: AlarmsConfig) -> Finding | None:
    scores = [score for score, _ in history.heldout if score is not None]
    rewards = [reward for _, reward in history.heldout if reward is not None]
    if len(scores) < config.heldout_window or len(rewards) < config.heldout_window - 1:
        return None
    (score, score_change, score_errors), (reward, change, errors) = _trend(scores), _trend(rewards)
    held_out = min(-score_change / config.heldout_fall, -score_errors / BOTH_BEYOND_NOISE)
    training = min(change / config.reward_rise, errors / BOTH_BEYOND_NOISE)
    return Finding(
        min(held_out, training),
        f"the training reward rose from {reward:.3g} to {reward + change:.3g} while the held-out score fell from "
        f"{score:.3g} to {score + score_change:.3g} over the last {len(scores)} measurements, so the policy may be "
        "exploiting the reward: look at the best-rewarded rollouts and at each reward by name, add a reward for what "
        "they lack, raise algorithm.beta, or go back to the checkpoint with the best held-out score.",
    )


def entropy_collapse(history: History, config: AlarmsConfig, modality: str) -> Finding | None:
    values, rewards = history.recent(f"entropy/{modality}"), history.recent("reward")
    if values is None:
        return None
    first, now = history.first[f"entropy/{modality}"][0], median(values)
    reward = median(rewards) if rewards else None
    excess = _ratio(config.entropy_share * first, now) if first > 0 else 0.0
    if reward is not None:
        excess = min(excess, _ratio(config.solved, reward)) if reward > 0 else excess
    known = "" if reward is None else f" while the reward is {reward:.3g}"
    return Finding(
        excess,
        f"the entropy of {modality} tokens fell to {now:.3g} nats, from {first:.3g} at the start{known}, so little is "
        f"left to explore: raise algorithm.entropy_bonus.{modality}, algorithm.epsilon_high.{modality} or "
        f"algorithm.beta.{modality}, or lower learning_rate.",
    )


def kl_runaway(history: History, config: AlarmsConfig, modality: str) -> Finding | None:
    """Above the bound; or at a fifth of it, twice what it was, and above the line of its past by more than noise."""
    values = history.recent(f"kl/{modality}")
    if values is None:
        return None
    now = median(values)  # k3 has a heavy tail: single points are many times the median in healthy runs
    excess, seen = now / config.kl, f"is {now:.3g} nats a token (bound {config.kl:g})"
    if len(whole := history.last[f"kl/{modality}"]) == 3 * config.window:
        first, middle, last = (whole[start : start + config.window] for start in range(0, len(whole), config.window))
        a, b, c = median(first), median(middle), median(last)
        line = max(2 * b - a, b)
        steeper = min(_ratio(c, config.kl_growth * line), _log_excess(last, middle, line) / BEYOND_NOISE)
        growth = min(steeper, _ratio(c, 2 * a), 5 * c / config.kl)
        if growth > excess:
            excess, seen = growth, f"grows faster than linearly, {a:.3g}, {b:.3g}, {c:.3g} nats a token in turn"
    return Finding(
        excess,
        f"the KL of {modality} tokens to the reference {seen}, so the policy is running away from it: raise "
        f"algorithm.beta.{modality}, lower learning_rate or max_grad_norm, or take fewer updates a rollout batch.",
    )


def vanishing_gradient(history: History, config: AlarmsConfig, modality: str, other: str) -> Finding | None:
    values, others = (history.recent(f"signal/{name}") for name in (modality, other))
    if values is None or others is None or (alive := median(others)) <= 0:
        return None
    now = median(values)
    share = now / (now + alive)
    return Finding(
        _ratio(config.signal_share, share),
        f"{modality} tokens get {share:.2%} of the gradient, {other} tokens the rest, so {modality} is no longer "
        f"trained: see whether the rewards of {modality} segments still vary (segment_reward/{modality}, "
        f"clip_fraction/{modality}), and use algorithm.normalisation modality-balanced.",
    )


def dead_groups(history: History, config: AlarmsConfig) -> Finding | None:
    values, rewards = history.recent("dead_groups"), history.recent("reward")
    if values is None:
        return None
    known = f" at a reward of {fmean(rewards):.3g}" if rewards else ""
    return Finding(
        fmean(values) / config.dead_groups,
        f"{fmean(values):.0%} of the groups of the last {len(values)} points have no spread{known}, so nothing is "
        "learned: if the reward is at its top the prompts are solved, stop or give harder ones; if not, raise "
        "temperature or num_generations, or use a reward that tells these answers apart.",
    )


def completions_cut(history: History, config: AlarmsConfig) -> Finding | None:
    if (rise := history.rise("completions/cut")) is None:
        return None
    before, now, errors = rise
    return Finding(
        min((now - before) / config.cut_rise, errors / BEYOND_NOISE),
        f"the length limit cuts {now:.0%} of the completions, {before:.0%} at the start, so answers grow or no longer "
        "end: raise max_completion_length, lower algorithm.max_images, or raise the weight of rewards.format.",
    )


def fewer_pictures(history: History, config: AlarmsConfig) -> Finding | None:
    if (rise := history.rise("completions/images")) is None:
        return None
    before, now, errors = rise
    return Finding(
        min(_ratio(before - now, config.pictures_fall * before), -errors / BEYOND_NOISE),
        f"an answer has {now:.2f} pictures, {before:.2f} at the start, so the policy may be dropping what it is marked "
        "down for: look at the rollouts, give weight to structure with the number of steps that prompts want "
        "(--rewards '{structure: {weight: 1, least: 2}}', or in the prompts' meta), and leave no reward at absent: "
        "leave-out; where fewer pictures are right, ignore this.",
    )


def more_pictures(history: History, config: AlarmsConfig) -> Finding | None:
    if (rise := history.rise("completions/images")) is None:
        return None
    before, now, errors = rise
    return Finding(
        min(_ratio(now - before, config.pictures_rise * before), errors / BEYOND_NOISE),
        f"an answer has {now:.2f} pictures, {before:.2f} at the start, so the policy may be collecting reward by the "
        "picture: look at the rollouts, let a reward average over pictures and not add them up, give weight to "
        "structure, or lower algorithm.max_images; where more pictures are right, ignore this.",
    )


def repeated_text(history: History, config: AlarmsConfig) -> Finding | None:
    if (rise := history.rise("completions/text/repeated")) is None:
        return None
    before, now, errors = rise
    return Finding(
        min((now - before) / config.repeated_rise, errors / BEYOND_NOISE),
        f"{now:.0%} of an answer's text says again what it has said, {before:.0%} at the start, so the policy may be "
        "exploiting a reward that does not read: look at the rollouts, add a reward that reads the text, or raise "
        "algorithm.beta.text.",
    )


def replay_gap(history: History, config: AlarmsConfig, modality: str) -> Finding | None:
    values = history.recent(f"replay_gap/{modality}")
    if values is None:
        return None
    first, now = median(history.first[f"replay_gap/{modality}"]), median(values)
    return Finding(
        now / max(config.replay_gap_growth * first, config.replay_gap_floor),
        f"the log-probs of {modality} tokens as sampled and as scored differ by up to {now:.2g} nats, {first:.2g} at "
        "the start, so the sampled policy is no longer the scored one: run limner preflight on the last checkpoint, "
        "and see whether weights, dtype or temperature differ between sampler and trainer.",
    )


def near_duplicates(history: History, config: AlarmsConfig) -> Finding | None:
    if (rise := history.rise(DUPLICATES)) is None:
        return None
    before, now, errors = rise
    return Finding(
        min((now - before) / config.near_duplicates_rise, errors / BEYOND_NOISE),
        f"{now:.0%} of the pairs of pictures within an answer look alike, {before:.0%} at the start, so the policy "
        "repeats its pictures: look at the rollouts, give weight to a reward that holds each picture against its own "
        "text, or raise algorithm.beta.image.",
    )


# ---- numbers ----


def _number(value: Any) -> float | None:
    """A finite float, else None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _ratio(value: float, bound: float) -> float:
    if bound > 0:
        return value / bound
    return math.inf if value > 0 else 0.0


def _variance(values: Sequence[float]) -> float:
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _log_excess(now: Sequence[float], before: Sequence[float], line: float) -> float:
    """log(median of now / line) in its standard errors, for noise that is a factor; the line is 2 x before - more."""
    now, before, line = [max(value, TINY) for value in now], [max(value, TINY) for value in before], max(line, TINY)
    variances = [
        # From neighbours, so that a trend is no noise: half the mean square of their differences.
        fmean(math.log(later / earlier) ** 2 for earlier, later in pairwise(values)) / 2 / len(values)
        for values in (now, before)
    ]
    error = 1.25 * math.sqrt(variances[0] + variances[1] * (2 * median(before) / line) ** 2)
    return _ratio(math.log(median(now) / line), error)  # 1.25: a median's error over a mean's


def _trend(values: Sequence[float]) -> tuple[float, float, float]:
    """Least-squares line: its first value, its change over the values, and the change in its standard errors."""
    size, mean = len(values), fmean(values)
    offsets = [index - (size - 1) / 2 for index in range(size)]
    squares = sum(offset**2 for offset in offsets)
    slope = sum(offset * value for offset, value in zip(offsets, values, strict=True)) / squares
    residual = sum((value - mean - slope * offset) ** 2 for offset, value in zip(offsets, values, strict=True))
    error = math.sqrt(residual / (size - 2) / squares)
    errors = math.copysign(_ratio(abs(slope), error), slope)
    return mean + slope * offsets[0], slope * (size - 1), errors

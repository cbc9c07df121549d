"""How a warm-up goes on: reinforced, or with more of the same data; and the arms of the demo."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ..configs import parse
from ..data.mixture import SourceConfig
from ..models.checkpoints.folder import load
from ..models.policy import UnifiedPolicy
from ..train import grpo, warmup
from ..train.trainer import GRPOConfig
from .subjects import Subject

ARMS = ("warmup", "control", "rejection", "grpo_outcome", "grpo_process")
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo_process": {},
    "grpo_outcome": {"outcome_weight": 1.0, "process_weight": 0.0},
    "rejection": {"objective": "rejection"},
}
"""What the demo's reinforced arms change of the algorithm in `grpo/tiny`."""
TEMPERATURES = {"rejection": 1.0}
"""Of the rollouts of an arm for which another is better than that of `grpo/tiny` (study/estimators)."""


@dataclass
class Curve:
    """Held-out progress of one arm."""

    points: list[dict[str, float]]
    seconds: float
    """Seconds of training, the evaluations left out."""
    steps: int
    """Optimizer steps."""
    log: list[dict[str, float]]
    """What the trainer logged."""

    def figures(self) -> list[dict[str, float]]:
        """The log's lines that carry figures of a step."""
        lines = [line for line in self.log if "loss" in line]
        return [{key: value for key, value in line.items() if isinstance(value, int | float)} for line in lines]


Looked = Callable[[UnifiedPolicy, list[dict[str, float]]], None]
"""With the policy as it is, and the held-out curve so far."""


class Watch(TrainerCallback):
    """Scores fixed held-out prompts every so often, off the clock, and stops when the seconds are spent."""

    def __init__(
        self,
        subject: Subject,
        policy: UnifiedPolicy,
        items: Sequence[Any],
        every: int,
        unit: int,
        budget: float,
        seed: int,
        guidance: float = 1.0,
        looked: Looked = lambda policy, points: None,
    ):
        self.subject, self.policy, self.items = subject, policy, list(items)
        self.every, self.unit = every, unit
        self.budget, self.seed, self.guidance = budget, seed, guidance
        self.looked = looked
        self.points: list[dict[str, float]] = []
        self.started = self.paused = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started - self.paused

    def on_train_begin(self, args, state, control, **_):
        self.started = time.perf_counter()
        self._score(0)

    def on_step_end(self, args, state, control, **_):
        if state.global_step % (self.every * self.unit) == 0:
            self._score(state.global_step // self.unit)
        if self.seconds >= self.budget and state.global_step % self.unit == 0:
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **_):
        self.total = self.seconds

    def _score(self, step: int) -> None:
        before, start = self.seconds, time.perf_counter()
        scores = self.subject.score(self.policy, self.items, 1.0, self.seed, self.guidance)["story_exact"]
        value = sum(scores) / len(scores)
        self.points.append({"step": step, "seconds": round(before, 2), "sampled_story_exact": value})
        self.looked(self.policy, self.points)
        self.paused += time.perf_counter() - start


@dataclass(frozen=True)
class Setting:
    """What all arms of one seed share."""

    subject: Subject
    root: Path
    seed: int
    curve_items: list[Any]
    train_items: list[Any]
    iterations: int
    warmup_flags: list[str]
    grpo_flags: list[str]
    """Flags on top of the packaged settings of the subject."""
    looked: Looked = lambda policy, points: None
    """Is called off the clock at every point of the held-out curve."""


def sources(root: Path, weights: Mapping[str, float]) -> list[SourceConfig]:
    return [SourceConfig(str(root / "data" / kind), weight) for kind, weight in weights.items() if weight]


def run_warmup(
    setting: Setting, out: Path | None = None, weights: Mapping[str, float] | None = None
) -> tuple[UnifiedPolicy, Curve]:
    """Warms the new model up, into a fresh folder; `weights` of the mixture differ from the subject's."""
    out = out or setting.root / "warmup"
    shutil.rmtree(out, ignore_errors=True)
    policy = load(setting.root / "new_model")
    config, args = warmup_settings(setting.subject, setting.root, out, setting.seed, setting.warmup_flags, weights)
    watch = _watch(setting, policy, every=300, budget=math.inf)
    trainer = warmup.run(config, args, policy, [watch])
    return policy, Curve(watch.points, watch.total, trainer.state.global_step, trainer.state.log_history)


def run_arm(name: str, setting: Setting, budget: float, warmup_step: float) -> tuple[UnifiedPolicy, Curve]:
    """Trains one arm of the demo from the warm-up; `budget` seconds stop every arm but the one that sets it.

    warmup_step: seconds that a step of the warm-up took.
    """
    policy, out = load(setting.root / "warmup" / "model"), setting.root / "arms" / name
    if name == "control":
        return policy, continue_warmup(policy, setting, out, budget, warmup_step)
    flags = [f"--algorithm.{key}={value}" for key, value in ALGORITHMS[name].items()]
    if name in TEMPERATURES:
        flags += ["--temperature", str(TEMPERATURES[name])]
    return policy, reinforce(policy, setting, out, flags, budget)


def continue_warmup(policy: UnifiedPolicy, setting: Setting, out: Path, budget: float, warmup_step: float) -> Curve:
    """Continued warm-up at half the peak learning rate, decayed over the steps of `warmup_step` seconds in `budget`."""
    steps = max(1, int(budget / warmup_step))
    flags = ["--max_steps", str(steps), "--seed", str(setting.seed + 1)]
    config, args = warmup_settings(setting.subject, setting.root, out, setting.seed, [*setting.warmup_flags, *flags])
    args.learning_rate /= 2
    watch = _watch(setting, policy, every=max(1, steps // 8), budget=budget)
    trainer = warmup.run(config, args, policy, [watch])
    return Curve(watch.points, watch.total, trainer.state.global_step, trainer.state.log_history)


def reinforce(
    policy: UnifiedPolicy,
    setting: Setting,
    out: Path,
    flags: Sequence[str],
    budget: float = math.inf,
    guidance: float = 1.0,
) -> Curve:
    """GRPO for the rollout batches of the setting, over which the learning rate decays, or until `budget` seconds.

    guidance: classifier-free guidance with which the held-out curve is scored.
    """
    subject = setting.subject
    config, args = grpo_settings(subject, setting.root, out, setting.seed, [*setting.grpo_flags, *flags])
    unit = (args.steps_per_generation or 1) * args.num_iterations // args.gradient_accumulation_steps
    args.max_steps = unit * setting.iterations
    watch = Watch(subject, policy, setting.curve_items, 5, unit, budget, setting.seed, guidance, setting.looked)
    prompts = [subject.prompt(item, f"train-{i}") for i, item in enumerate(setting.train_items)]
    trainer = grpo.run(config, args, policy, prompts, [watch])
    return Curve(watch.points, watch.total, trainer.state.global_step, trainer.state.log_history)


def _watch(setting: Setting, policy: UnifiedPolicy, every: int, budget: float) -> Watch:
    """Of a warm-up, whose unit is a step."""
    return Watch(setting.subject, policy, setting.curve_items, every, 1, budget, setting.seed, looked=setting.looked)


def warmup_settings(
    subject: Subject,
    root: Path,
    out: Path,
    seed: int,
    flags: Sequence[str],
    weights: Mapping[str, float] | None = None,
) -> tuple[warmup.WarmupConfig, TrainingArguments]:
    """weights: of the mixture, where they differ from the subject's; 0 leaves a folder out."""
    argv = ["--config", subject.warmup, "--output_dir", str(out), "--seed", str(seed), "--disable_tqdm", "false"]
    config, args = parse((warmup.WarmupConfig, TrainingArguments), [*argv, *flags])
    config.sources = sources(root, {**subject.mixture, **(weights or {})})
    return config, args


def grpo_settings(
    subject: Subject, root: Path, out: Path, seed: int, flags: Sequence[str]
) -> tuple[grpo.RunConfig, GRPOConfig]:
    argv = ["--config", subject.grpo, "--output_dir", str(out), "--seed", str(seed), *flags]
    config, args = parse((grpo.RunConfig, GRPOConfig), argv)
    config.model = str(root / "warmup" / "model")
    if config.algorithm.replay:
        config.algorithm.replay.sources = sources(root, subject.replayed)
    for name, options in subject.rewards(root).items():
        config.rewards[name] = _with_options(config.rewards.get(name, 0), options)
    return config, args


def _with_options(reward: Any, options: Mapping[str, Any]) -> Any:
    """A reward of a configuration, `weight` or `{weight: .., option: ..}`, with more options; one without weight stays
    out."""
    given = reward if isinstance(reward, Mapping) else {"weight": reward}
    return {**given, **options} if given.get("weight") else 0

"""The arms of the demo: how the same warm-up goes on with the same seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ..configs import parse
from ..data.mixture import SourceConfig
from ..data.picture_stories import Outline, story_prompt
from ..eval.picture_stories import score_stories
from ..models.checkpoint import load
from ..models.policy import UnifiedPolicy
from ..train import grpo, warmup
from ..train.trainer import GRPOConfig

ARMS = ("warmup", "control", "rejection", "grpo_outcome", "grpo_process")


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


class Watch(TrainerCallback):
    """Scores fixed held-out prompts every so often, off the clock, and stops when the seconds are spent."""

    def __init__(
        self, policy: UnifiedPolicy, outlines: Sequence[Outline], every: int, unit: int, budget: float, seed: int
    ):
        self.policy, self.outlines, self.every, self.unit = policy, list(outlines), every, unit
        self.budget, self.seed = budget, seed
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
        scores = score_stories(self.policy, self.outlines, 1.0, self.seed).story_exact
        value = sum(scores) / len(scores)
        self.points.append({"step": step, "seconds": round(before, 2), "sampled_story_exact": value})
        self.paused += time.perf_counter() - start


@dataclass(frozen=True)
class Setting:
    """What all arms of one seed share."""

    root: Path
    curve_outlines: list[Outline]
    train_outlines: list[Outline]
    seed: int
    iterations: int
    seconds_per_warmup_step: float
    warmup_flags: list[str]
    grpo_flags: list[str]
    """Flags on top of `warmup/tiny` and `grpo/tiny`, for trying things."""


def sources(root: Path, weights: dict[str, float]) -> list[SourceConfig]:
    return [SourceConfig(str(root / "data" / kind), weight) for kind, weight in weights.items()]


MIXTURE = {"interleaved": 8.0, "understanding": 5.0, "text_to_image": 3.0}
CLEAN = {"understanding": 5.0, "text_to_image": 3.0}


def run_warmup(
    policy: UnifiedPolicy, root: Path, seed: int, outlines: Sequence[Outline], flags: Sequence[str]
) -> Curve:
    config, args = _warmup_settings(root, root / "warmup", seed, flags)
    watch = Watch(policy, outlines, every=300, unit=1, budget=math.inf, seed=seed)
    trainer = warmup.run(config, args, policy, [watch])
    return Curve(watch.points, watch.total, trainer.state.global_step, trainer.state.log_history)


def run_arm(name: str, setting: Setting, budget: float) -> tuple[UnifiedPolicy, Curve]:
    """Trains one arm from the warm-up's checkpoint; `budget` seconds stop every arm but the one that sets it."""
    policy = load(setting.root / "warmup" / "model")
    return policy, (_control if name == "control" else _reinforce(name))(
        policy, setting, setting.root / "arms" / name, budget
    )


def _control(policy: UnifiedPolicy, setting: Setting, out: Path, budget: float) -> Curve:
    """Continued warm-up at half the peak learning rate, decayed over the steps that the seconds allow."""
    steps = max(1, int(budget / setting.seconds_per_warmup_step))
    flags = ["--max_steps", str(steps), "--learning_rate", "1e-3", "--seed", str(setting.seed + 1)]
    config, args = _warmup_settings(setting.root, out, setting.seed, [*setting.warmup_flags, *flags])
    watch = Watch(policy, setting.curve_outlines, every=max(1, steps // 8), unit=1, budget=budget, seed=setting.seed)
    trainer = warmup.run(config, args, policy, [watch])
    return Curve(watch.points, watch.total, trainer.state.global_step, trainer.state.log_history)


def _reinforce(name: str) -> Callable[[UnifiedPolicy, Setting, Path, float], Curve]:
    algorithm: dict[str, dict[str, Any]] = {
        "grpo_process": {},
        "grpo_outcome": {"outcome_weight": 1.0, "process_weight": 0.0},
        "rejection": {"objective": "rejection", "beta.text": 0.0, "beta.image": 0.0},
    }

    def train(policy: UnifiedPolicy, setting: Setting, out: Path, budget: float) -> Curve:
        flags = [f"--algorithm.{key}={value}" for key, value in algorithm[name].items()]
        config, args = grpo_settings(setting.root, out, setting.seed, [*setting.grpo_flags, *flags])
        unit = args.steps_per_generation or 1
        args.max_steps = unit * (setting.iterations if math.isinf(budget) else 3 * setting.iterations)
        watch = Watch(policy, setting.curve_outlines, every=5, unit=unit, budget=budget, seed=setting.seed)
        prompts = [story_prompt(outline, f"train-{i}") for i, outline in enumerate(setting.train_outlines)]
        trainer = grpo.run(config, args, policy, prompts, [watch])
        return Curve(watch.points, watch.total, trainer.state.global_step, trainer.state.log_history)

    return train


def _warmup_settings(
    root: Path, out: Path, seed: int, flags: Sequence[str]
) -> tuple[warmup.WarmupConfig, TrainingArguments]:
    argv = ["--config", "warmup/tiny", "--output_dir", str(out), "--seed", str(seed), "--disable_tqdm", "false", *flags]
    config, args = parse((warmup.WarmupConfig, TrainingArguments), argv)
    config.sources = sources(root, MIXTURE)
    return config, args


def grpo_settings(root: Path, out: Path, seed: int, flags: Sequence[str]) -> tuple[grpo.RunConfig, GRPOConfig]:
    argv = ["--config", "grpo/tiny", "--output_dir", str(out), "--seed", str(seed), *flags]
    config, args = parse((grpo.RunConfig, GRPOConfig), argv)
    config.algorithm.replay.sources = sources(root, CLEAN)
    return config, args

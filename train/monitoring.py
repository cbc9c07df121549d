"""What is looked at while a run goes on: held-out score, alarms, saved trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from ..configs.bounds import OneOrMore
from ..configs.schema import check_ranges
from ..configs.terminal import say
from ..models.documents.document import InterleavedDocument
from ..rewards.hybrid import HybridReward
from .rollout import RolloutBatch
from .trainer import InterleavedGRPOTrainer
from .watch.alarms import Alarms
from .watch.diagnostics import HYBRID, component_scores, group_sums, means, merged
from .watch.trajectories import build, write_trajectories


@dataclass
class HeldOutConfig:
    prompts: str = ""
    """JSONL file of prompts that the run does not train on; none for no held-out score."""
    every: OneOrMore = 20
    """Optimizer steps between two scores."""
    limit: OneOrMore = 64
    """Prompts scored, the file's first."""

    def __post_init__(self) -> None:
        check_ranges(self, "heldout")


class HeldOut(TrainerCallback):
    """Scores held-out prompts by the run's own rewards, one sample each, always from the same uniforms.

    They are logged as `heldout/score` and `heldout/<reward>`, with the next line of the log.
    """

    def __init__(self, trainer: InterleavedGRPOTrainer, prompts: Sequence[InterleavedDocument], every: int):
        self.trainer, self.prompts, self.every = trainer, list(prompts), every

    def on_train_begin(self, args, state, control, **_: Any):
        if state.global_step == 0:
            self._score()

    def on_step_end(self, args, state, control, **_: Any):
        if state.global_step % self.every == 0:
            self._score()

    def _score(self) -> None:
        accelerator = self.trainer.accelerator
        share = -(-len(self.prompts) // accelerator.num_processes)
        start = accelerator.process_index * share
        # Every rank samples, for where the parameters are sharded all of them must; what is over is not counted.
        own = self.prompts[start : start + share]
        prompts = own or self.prompts[:1]
        rollouts = self.trainer.sample(prompts, self.trainer.args.seed, range(start, start + len(prompts)))
        output = self.trainer.reward([item.completion for item in rollouts])
        sums = group_sums(*component_scores(output), group_size=1) if own else {}
        scores = {name: value for name, value in sums.items() if name == HYBRID or name.count("/") == 1}
        for name, value in means(merged(gather_object([scores]))).items():
            if name == HYBRID:
                self.trainer.note("heldout/score", value)
            elif name.startswith("rewards/"):
                self.trainer.note(name.replace("rewards/", "heldout/"), value)


class AlarmBell(TrainerCallback):
    """Prints what the alarms say, once each, and keeps it in the log history (`trainer_state.json`)."""

    def __init__(self, alarms: Alarms):
        self.alarms = alarms

    def on_log(self, args, state, control, logs=None, **_: Any):
        if not logs or "loss" not in logs:
            return
        for alarm in self.alarms.update(state.global_step, {name: float(value) for name, value in logs.items()}):
            state.log_history.append({"step": state.global_step, "alarm": alarm.name, "text": alarm.text})
            if state.is_world_process_zero:
                say(f"ALARM {alarm.name}: {alarm.text}", flush=True)


def note_failures(trainer: InterleavedGRPOTrainer, reward: HybridReward) -> None:
    """Logs how often each reward has failed since the run began, over all ranks."""
    counts = reward.failures()
    if counts:
        totals = torch.tensor(list(counts.values()), device=trainer.accelerator.device)
        totals = trainer.accelerator.reduce(totals, "sum").tolist()
        for name, total in zip(counts, totals, strict=True):
            trainer.note(name, total)


class Trajectories:
    """A watcher that writes every so many rollout batches to a folder; `limner trajectories` shows them."""

    def __init__(self, folder: Path, every: int, trainer: InterleavedGRPOTrainer):
        self.folder, self.every, self.trainer = folder, every, trainer

    def __call__(self, batch: RolloutBatch) -> None:
        steps = self.trainer.args.steps_per_generation * self.trainer.num_iterations
        steps //= self.trainer.args.gradient_accumulation_steps
        if batch.step // steps % self.every == 0:
            rank = self.trainer.accelerator.process_index
            records = build(batch, self.trainer.num_generations, self.trainer.policy.processor)
            write_trajectories(self.folder, batch.step, rank, records)

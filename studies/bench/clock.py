"""What a training step spends its time and memory on: each moment of it is charged to one phase."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback

from ...train.rollout import RolloutBatch

PHASES = {
    "rollout": "rollout: sampling, painting",
    "scoring": "scoring: rewards, reference",
    "update": "update: forward, backward, optimizer",
    "rest": "none of these",
}
STEP_OF_BOTH = {"training_step": "update", "_clip_grad_norm": "update", "_prepare_inputs": "rest"}
LIMNER_PHASES = {
    **STEP_OF_BOTH,
    **{"sample": "rollout", "reward": "scoring", "batch_of": "scoring", "_reference_scores": "scoring"},
}
TRL_PHASES = {**STEP_OF_BOTH, "_generate_and_score_completions": "scoring", "_generate": "rollout"}
COUNTED = ("prompt_tokens", "completion_tokens")
WARM_UP = 1
"""Steps at the start of each run that are not counted: the optimizer's state and the caches are made there."""

Step = dict[str, float]
"""Seconds of each phase, their sum `total`, `cpu` seconds, `prompt_tokens`, `completion_tokens`."""


class Clock(TrainerCallback):
    """Charges each moment of training to one phase, the innermost that is open; `steps` has an entry a step."""

    def __init__(self, args: Mapping[str, Any]):
        self.updates: int = args["steps_per_generation"]
        self.steps: list[Step] = []
        self.tokens: tuple[int, ...] = (0, 0)

    def charge(self, owner: Any, phases: Mapping[str, str]) -> None:
        """Replaces the named functions of an object by timed ones."""
        for name, phase in phases.items():
            setattr(owner, name, self._phase(phase)(getattr(owner, name)))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._spend(name)
        try:
            yield
        finally:
            self._spend()

    def count(self, batch: RolloutBatch) -> None:
        sequences = [rollout.sequence for rollout in batch.rollouts]
        prompt = sum(sequence.prompt_length for sequence in sequences)
        self.tokens = prompt, sum(map(len, sequences)) - prompt

    def on_train_begin(self, args, state, control, **_):
        self._begin()

    def on_pre_optimizer_step(self, args, state, control, **_):
        self._spend("update")

    def on_optimizer_step(self, args, state, control, **_):
        self._spend()

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.updates == 0:
            self._spend()
            totals = {"total": sum(self._spent.values()), "cpu": time.process_time() - self._cpu}
            self.steps.append({**self._spent, **totals, **dict(zip(COUNTED, self.tokens, strict=True))})
            self._begin()

    def _begin(self) -> None:
        self._open, self._spent = ["rest"], dict.fromkeys(PHASES, 0.0)
        self._last, self._cpu = now(), time.process_time()

    def _spend(self, begins: str | None = None) -> None:
        """Charges the time since the last look to the innermost phase; another begins in it, or it ends."""
        moment = now()
        self._spent[self._open[-1]] += moment - self._last
        self._last = moment
        self._open = [*self._open, begins] if begins else self._open[:-1]


def measure(trainer: Trainer, clock: Clock) -> list[Step]:
    """Trains, and returns the steps after the warm-up."""
    trainer.train()
    return clock.steps[WARM_UP:]


def peak_bytes(work: Callable[[], Any]) -> int:
    """Largest sum of tensors alive at once, beyond those alive before, as PyTorch's allocators count them."""
    if device() == "cuda":
        return cuda_peak_bytes(work)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says on the terminal when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_bytes())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")


def cuda_peak_bytes(work: Callable[[], Any]) -> int:
    """The same on a GPU, whose allocator keeps the count."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def now() -> float:
    """Seconds; what the GPU was asked for is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

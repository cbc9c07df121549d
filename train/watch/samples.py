"""A table of what was sampled, beside the curves in wandb or trackio."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas
from transformers import TrainerCallback

from ...models.documents.document import InterleavedDocument, TextSegment
from .trajectories import Trajectory, build

if TYPE_CHECKING:
    from ..rollout import RolloutBatch
    from ..trainer import InterleavedGRPOTrainer

TABLED = ("wandb", "trackio")
"""Trackers that show tables, by the names of their packages; both have the same `Table`, `Image` and `log`."""
ROWS, TABLES = 8, 20
"""Rollouts of a table, and about how many tables a run has: they are not as light as numbers."""


class Samples(TrainerCallback):
    """A watcher that keeps the last rollouts of the first process, and sends them along with a line of the log.

    The tracker's run is the one that transformers' own callback has begun.
    """

    def __init__(self, trainer: InterleavedGRPOTrainer):
        self.trainer = trainer
        self.trackers = [name for name in TABLED if name in (trainer.args.report_to or ())]
        self._last: RolloutBatch | None = None
        self._from = 0

    def __call__(self, batch: RolloutBatch) -> None:
        self._last = replace(batch, rollouts=batch.rollouts[:ROWS])

    def on_log(self, args, state, control, logs=None, **_: Any):
        if not state.is_world_process_zero or self._last is None or "loss" not in (logs or {}):
            return
        if state.global_step < self._from:
            return
        self._from = state.global_step + max(1, state.max_steps // TABLES)
        trajectories = build(self._last, self.trainer.num_generations, self.trainer.policy.processor)
        for name in self.trackers:
            tracker: Any = importlib.import_module(name)
            if name != "wandb" or tracker.run is not None:  # WANDB_MODE=disabled begins none
                shown = tracker.Table(dataframe=table(trajectories, tracker.Image))
                tracker.log({"samples": shown, "train/global_step": state.global_step})


def table(trajectories: Sequence[Trajectory], picture: Any) -> pandas.DataFrame:
    """A row a rollout: what was asked and answered, its pictures, the reward and its parts.

    picture: makes a tracker's image from one of PIL."""
    return pandas.DataFrame([
        {
            "step": item.step,
            "prompt": _said(item.prompt),
            "answer": _said(item.answer),
            "pictures": [picture(segment.pixels()) for segment in item.answer.images if segment.image is not None],
            "reward": item.outcome,
            **{f"rewards/{name}": score for name, score in item.breakdown.items()},
            "ended": item.ended,
        }
        for item in trajectories
    ])  # fmt: skip


def _said(document: InterleavedDocument) -> str:
    parts = (segment.text if isinstance(segment, TextSegment) else " [picture] " for segment in document.segments)
    return "".join(parts).strip()

"""One line of progress on a terminal instead of a printed dictionary every few steps; where the figures go."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.utils.logging import disable_progress_bar

from ...configs.errors import InputError

TRACKERS = ("tensorboard", "wandb", "trackio")
"""Of `report_to`; each is also the name of the package that it needs."""
SHOWN = ("loss/text", "loss/image", "reward", "kl/text", "kl/image")


class Progress(TrainerCallback):
    """A bar with the figures worth watching; the rest is in the tensorboard log."""

    def __init__(self, title: str):
        self.title = title
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **_: Any):
        if state.is_world_process_zero and not args.disable_tqdm:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.title, mininterval=2)

    def on_step_end(self, args, state, control, **_: Any):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **_: Any):
        if self.bar is not None and logs:
            self.bar.set_postfix({key: f"{float(logs[key]):.3f}" for key in SHOWN if key in logs}, refresh=False)

    def on_train_end(self, args, state, control, **_: Any):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def show_progress(trainer: Trainer, title: str) -> None:
    """Puts the bar in the place of transformers' own; that of the files of a checkpoint has no other."""
    disable_progress_bar()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress(title))


def check_trackers(args: TrainingArguments) -> None:
    """Raises InputError for one that is not installed; transformers would when the model is loaded and prepared."""
    for name in {*(args.report_to or ())} & {*TRACKERS} - {*get_available_reporting_integrations()}:
        raise InputError(f"report_to: {name} is not installed: pip install {name}, or name another (--report_to none)")

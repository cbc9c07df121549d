"""Atomic checkpoints for both trainers: written beside, then named. A checkpoint folder that exists is complete."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate.utils import broadcast_object_list, gather_object
from transformers import PreTrainedModel

from ...configs.errors import InputError, reading, writing
from ...configs.whole import Staging, remove_folder, sweep
from ...models.checkpoints.folder import save_beside_model
from ...models.policy import UnifiedPolicy
from .run_folder import checkpoints, how_to_go_on

HIDDEN = "_"
"""What the names of folders in the making begin with: transformers pushes a run's folder to the Hub without those."""
STATES = {"optimizer": "optimizer*", "scheduler": "scheduler.pt", "random": "rng_state*.pth"}
"""What a checkpoint must hold to go on from, and its files."""
SEEN_WITHIN = 60.0
"""Seconds that a new file may take to be seen on other nodes: network file systems keep what they know of a folder."""


class WholeCheckpoints:
    """Mixin before a transformers Trainer; the trainer has the `policy` whose model it trains.

    The Trainer writes a checkpoint folder file by file, and takes the highest number for the last on resume: killed in
    the middle of a save, it would resume from half a checkpoint.
    """

    policy: UnifiedPolicy
    model: Any
    args: Any
    state: Any
    control: Any
    accelerator: Any
    _staging: str | None = None
    """Where checkpoints go that are being written."""

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Raises InputError where checkpoints could not be written whole: see `check_shared`. A fault in the middle of
        the run says what there is of it and how to go on."""
        check_shared(self.args, self.accelerator)
        if self.accelerator.is_main_process:
            sweep(Path(self.args.output_dir))
            if resume_from_checkpoint:  # killed between a save and this, the run has one too many, and may save no more
                self._remove_old()
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]
        except InputError as error:
            if not (step := self.state.global_step):
                raise
            raise InputError(f"{error}. Steps done: {step}; {how_to_go_on(self.args.output_dir)}") from error

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """A run that was killed behind its last step has none to go; transformers would take one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]
        else:
            self.control.should_training_stop = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with reading(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tied weight is stored once, under one of its names, and is not missing under the others."""
        weights = dict(self.model.named_parameters(remove_duplicate=False))
        loaded = {id(weight) for name, weight in weights.items() if name not in load_result.missing_keys}
        missing = [name for name in load_result.missing_keys if id(weights.get(name)) not in loaded]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Raises InputError where a state is missing, and transformers would start with a fresh one."""
        for name, pattern in STATES.items() if checkpoint else ():
            own = name != "random" and self.is_deepspeed_enabled  # type: ignore[attr-defined]  # it keeps them elsewhere
            if not own and not any(Path(checkpoint or "").glob(pattern)):
                raise InputError(
                    f"{checkpoint}: no {name} state to go on from (saved under DeepSpeed or save_only_model?); "
                    "launch the run as before, or start a new one with it as --model"
                )
        with reading(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output_dir, step = Path(self.args.output_dir), self.state.global_step
        main = self.accelerator.is_main_process
        with writing(output_dir):
            staging = Staging(output_dir / f"checkpoint-{step}", HIDDEN) if main else None
        try:
            places = [str(staging.written.parent) if staging else None]
            broadcast_object_list(places)
            self._staging = places[0]
            with writing(output_dir / f"checkpoint-{step}"):
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self._staging = None
            self.accelerator.wait_for_everyone()
            if staging:
                with writing(output_dir / f"checkpoint-{step}"):
                    staging.publish()
        finally:
            self._staging = None
            if staging:
                staging.close()
        if main:
            self._remove_old()
            if self.args.push_to_hub:
                self._push_from_checkpoint(str(output_dir / f"checkpoint-{step}"))
        self.accelerator.wait_for_everyone()

    def _remove_old(self) -> None:
        """Checkpoints beyond `save_total_limit`."""
        limit = self.args.save_total_limit
        for old in checkpoints(Path(self.args.output_dir))[:-limit] if limit else []:
            remove_folder(old, HIDDEN)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Waits for the folder's final place: a push goes on in a thread, and would lose files that are moved."""
        if not self._staging:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if self.args.should_save and isinstance(self.model, PreTrainedModel):  # an adapter alone is no model
            save_beside_model(self.policy, Path(output_dir or self.args.output_dir))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes a card of its own with every checkpoint; a checkpoint is not a release."""


def check_shared(args: Any, accelerator: Any) -> None:
    """Raises InputError, on every process, where one does not see what the first one writes to `output_dir`.

    Each process writes its own part of a checkpoint, and the first one makes them a checkpoint.
    """
    if args.save_on_each_node:
        raise InputError("save_on_each_node: not supported; nodes share one output_dir, and its checkpoints")
    if accelerator.num_processes == 1:
        return
    names = [f".seen-{uuid4().hex}"]
    broadcast_object_list(names)  # a name that nobody has looked up before
    probe = Path(args.output_dir) / names[0]
    if accelerator.is_main_process:
        with writing(args.output_dir):
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
    accelerator.wait_for_everyone()
    deadline = time.monotonic() + SEEN_WITHIN
    while not probe.exists() and time.monotonic() < deadline:
        time.sleep(1)
    seen = gather_object([probe.exists()])
    if accelerator.is_main_process:
        probe.unlink()
    if not all(seen):
        raise InputError(
            f"{args.output_dir}: {seen.count(False)} of {len(seen)} processes do not see what the first writes there; "
            "name a folder that all nodes share (--output_dir)"
        )

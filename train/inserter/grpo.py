"""GRPO of an inserter, on stock TRL: a language model learns to choose pictures and to place them, by rule from gold.

for tasks:
    G answers each                                    TRL: model.generate
    format, selection, order, position, ...           rewards.rules.placement, each logged under its name
    clipped loss over the group's advantages          TRL

limner grpo --config grpo/inserter-3b --model Qwen/Qwen2.5-VL-3B-Instruct --prompts runs/tasks/train.jsonl

Text-only causal models read captions, vision-language models the pictures as well; nothing of TRL's trainer is
replaced but the way in which checkpoints are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from datasets import Dataset
from transformers.trainer_utils import IntervalStrategy
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from ...configs.bounds import Range
from ...configs.errors import InputError
from ...configs.schema import check_ranges
from ...data.insertion.placements import InsertionTask
from ...data.insertion.tasks import read_tasks
from ...retrieval.strategies.inserter import IMAGE_SIDE, Prompter, load_model, save_inserter
from ...rewards.rules.placement import PlacementWeights, gold_columns, trl_rewards
from ..scale.checkpointing import WholeCheckpoints
from ..scale.lora import LoraConfig
from ..scale.sharding import is_sharded
from ..watch.progress import show_progress


@dataclass
class InsertionConfig:
    """Of a run with `task: insertion`."""

    rewards: PlacementWeights = field(default_factory=PlacementWeights)
    image_side: Annotated[int, Range(28, 16_384)] = IMAGE_SIDE
    """A vision-language model sees candidates with at most this many pixels on their longer side."""

    def __post_init__(self) -> None:
        check_ranges(self, "insertion")


class InserterTrainer(WholeCheckpoints, GRPOTrainer):
    """TRL's, but a checkpoint folder that exists is complete."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        GRPOTrainer._save(self, output_dir, state_dict)  # the mixin's would add what a unified model needs


def train_inserter(trainer: InserterTrainer, resume: str | None = None) -> None:
    """Trains and writes the model, an adapter merged into it, to `output_dir/model`: `load_inserter` reads it."""
    show_progress(trainer, "GRPO")
    trainer.train(resume_from_checkpoint=resume)
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        trained: Any = trainer.accelerator.unwrap_model(trainer.model)
        merged = trained.merge_and_unload() if hasattr(trained, "merge_and_unload") else trained
        save_inserter(merged, trainer.processing_class, Path(trainer.args.output_dir or "") / "model")
    trainer.accelerator.wait_for_everyone()


def make_trainer(
    config: InsertionConfig,
    args: GRPOConfig,
    model: str | tuple[Any, Prompter],
    tasks: str | Sequence[InsertionTask],
    lora: LoraConfig | None = None,
) -> InserterTrainer:
    """model, tasks: names of what to load, or the things themselves. Raises InputError for settings that cannot be."""
    check(args)
    if isinstance(tasks, str):
        tasks = read_tasks(Path(tasks), least=args.generation_batch_size // args.num_generations)  # type: ignore[operator]
    if isinstance(model, str):
        # Steps of 1e-6 are lost in bfloat16 weights; those of an adapter are kept in float32 anyway.
        loaded, prompter = load_model(model, "auto" if lora else "float32")
    else:
        loaded, prompter = model
    prompter = Prompter(prompter.processor, config.image_side)
    if lora:
        torch.manual_seed(args.seed)  # the adapter starts at random
    args = copy(args)
    rewards, args.reward_weights = trl_rewards(config.rewards)
    trainer = InserterTrainer(
        model=loaded,
        reward_funcs=rewards,  # type: ignore[arg-type]
        args=args,
        train_dataset=dataset(tasks, prompter),
        processing_class=prompter.processor,
        peft_config=lora.adapter(loaded) if lora else None,
    )
    if is_sharded(trainer.accelerator):
        raise InputError(
            "task insertion: ZeRO-3 and FSDP are not supported; launch with torchrun or configs/accelerate/zero2.yaml, "
            "and train an adapter where memory is short (--lora.rank 16)"
        )
    return trainer


def dataset(tasks: Sequence[InsertionTask], prompter: Prompter) -> Dataset:
    """Rows as TRL reads them, made when they are asked for: pictures stay encoded until then."""

    return Dataset.from_dict({"task": list(range(len(tasks)))}).with_transform(_Rows(tasks, prompter))


class _Rows:
    def __init__(self, tasks: Sequence[InsertionTask], prompter: Prompter):
        self.tasks, self.prompter = tasks, prompter

    def __deepcopy__(self, memo: dict[int, Any]) -> _Rows:
        return self  # datasets copies what it is given, and nothing changes a task

    def __getstate__(self) -> dict[str, Any]:
        return {"count": len(self.tasks)}  # datasets takes a hash of it, for which all pictures would be decoded

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        chosen = [self.tasks[number] for number in batch["task"]]
        columns: dict[str, list[Any]] = {"prompt": [self.prompter.messages(task) for task in chosen]}
        if self.prompter.pixels:
            columns["images"] = [self.prompter.pictures(task) for task in chosen]
        gold = [gold_columns(task) for task in chosen]
        return columns | {name: [row[name] for row in gold] for name in gold[0]}


def check(args: GRPOConfig) -> None:
    """Raises InputError for settings of TRL that this task sets itself, or that would make a resumed run another."""
    if args.reward_weights is not None:
        raise InputError("reward_weights: the weights of this task are those of insertion.rewards")
    if args.max_steps == 0:
        raise InputError("max_steps: 0, and a run takes one at least")
    period = (args.steps_per_generation or 1) * args.num_iterations
    each = args.gradient_accumulation_steps
    if args.save_strategy == IntervalStrategy.STEPS and (args.save_steps * each) % period:
        raise InputError(
            f"save_steps: {args.save_steps:g}; TRL loses the answers it has sampled ahead when it resumes, so save "
            f"every {period // each if period % each == 0 else period} steps or a multiple"
        )

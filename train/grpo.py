"""Stage II, extended GRPO: one trajectory of text and image tokens, hybrid rewards, process-level rewards.

for prompts:
    G completions each, with their log-probs         train.rollout, models.generation
    outcome and segment rewards                      rewards.hybrid
    advantages per token                             train.advantages
    clipped loss + KL per modality                   train.losses
    (+ cross-entropy on replayed warm-up rows)

limner grpo --config grpo/tiny
torchrun --nproc-per-node 2 -m limner.train.grpo --config grpo/tiny
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import TrainerCallback

from ..configs import parse, save_resolved
from ..data.prompts import pack_prompt, read_prompts
from ..models.checkpoint import load, save
from ..models.document import InterleavedDocument
from ..models.errors import InputError, run_or_exit
from ..models.policy import UnifiedPolicy
from ..rewards.build import RewardsConfig, build_reward
from .checkpointing import resume_point
from .progress import show_progress
from .trainer import AlgorithmConfig, GRPOConfig, InterleavedGRPOTrainer


@dataclass
class RunConfig:
    model: str = ""
    """Checkpoint to start from: the warm-up's."""
    prompts: str = ""
    """JSONL file of prompts; `docs/data.md` says its forms."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)


def run(
    config: RunConfig,
    args: GRPOConfig,
    policy: UnifiedPolicy | None = None,
    prompts: Sequence[InterleavedDocument] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> InterleavedGRPOTrainer:
    """Trains and writes the checkpoint to `output_dir/model`."""
    if policy is None:
        if not config.model:
            raise InputError("model: missing; name the checkpoint to start from (--model DIR)")
        policy = load(config.model)
    if prompts is None:
        if not config.prompts:
            raise InputError("prompts: missing; name the JSONL file of prompts (--prompts FILE)")
        prompts = read_prompts(Path(config.prompts))
    assert args.output_dir is not None
    resume = resume_point(Path(args.output_dir), args.resume_from_checkpoint)
    dataset = Dataset.from_dict({"prompt": [pack_prompt(prompt) for prompt in prompts]})
    trainer = InterleavedGRPOTrainer(
        policy, build_reward(config.rewards), config.algorithm, args, dataset, callbacks=list(callbacks)
    )
    show_progress(trainer, "GRPO")
    if trainer.accelerator.is_main_process:
        save_resolved(Path(args.output_dir) / "config.yaml", config, args)
    trainer.train(resume_from_checkpoint=resume)
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        save(policy, Path(args.output_dir) / "model")
    return trainer


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse((RunConfig, GRPOConfig), argv, prog="limner grpo")
    run(config, args)


if __name__ == "__main__":
    run_or_exit(main)

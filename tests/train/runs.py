"""What tests of the GRPO trainer share: an exact reward, settings of a tiny run, and what is read from one."""

from pathlib import Path

import torch
from datasets import Dataset

from limner.data.prompts import pack_prompt
from limner.models.documents.document import TextSegment
from limner.rewards.base import RewardOutput
from limner.train.objective.algorithm import AlgorithmConfig
from limner.train.trainer import GRPOConfig, InterleavedGRPOTrainer
from limner.worlds.picture_stories.scenes import SCENES, story_prompt

PROMPTS = [story_prompt(SCENES[i : i + 2], f"prompt-{i}") for i in range(0, 16, 4)]


class Illustrated:
    """An exact reward that varies among the answers of an untrained model: many pictures, short texts, even codes."""

    name = "illustrated"

    def __call__(self, completions):
        outcome = [min(1.0, len(completion.answer.images) / 3) for completion in completions]
        segments = [[self.of(segment) for segment in completion.answer.segments] for completion in completions]
        return RewardOutput(outcome, segments, {"pictures": outcome})

    @staticmethod
    def of(segment):
        if isinstance(segment, TextSegment):
            return 1 / (1 + len(segment.text) / 20)
        return float((segment.codes_N % 2 == 0).mean())


class Flat:
    """Every completion is as good as the other."""

    name = "flat"

    def __call__(self, completions):
        return RewardOutput([0.5] * len(completions), [[0.5] * len(c.answer.segments) for c in completions])


def brief(directory: Path, **changes) -> dict:
    """Settings of a run of a few steps on a CPU, of either trainer."""
    values = {
        "output_dir": str(directory),
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
    }
    return {**values, **changes}


def settings(directory: Path, **changes) -> GRPOConfig:
    values = {
        "max_steps": 1,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "steps_per_generation": 1,
        "max_completion_length": 48,
        "learning_rate": 1e-2,
    }
    return GRPOConfig(**brief(directory, **{**values, **changes}))


def dataset(prompts=PROMPTS) -> Dataset:
    return Dataset.from_dict({"prompt": [pack_prompt(prompt) for prompt in prompts]})


def trained(policy, args, reward=None, **algorithm) -> InterleavedGRPOTrainer:
    trainer = InterleavedGRPOTrainer(
        policy, reward or Illustrated(), AlgorithmConfig(**algorithm), args, dataset(), callbacks=[]
    )
    trainer.train()
    return trainer


def parameters(policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


def logs(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]

"""What processes do on any number of them, for `test_setups.py` and `two_ranks.py`, which are the programs."""

import os
import sys
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from limner.models.checkpoints.folder import load
from limner.models.documents.document import TextSegment
from limner.rewards.base import RewardOutput
from limner.train import warmup
from limner.train.scale.lora import LoraConfig
from limner.train.warmup import WarmupConfig
from limner.worlds.picture_stories.scenes import SCENES, story

from .runs import brief

LORA = LoraConfig(rank=4, alpha=8)
DOCUMENTS = [story(SCENES[i : i + 2]) for i in range(0, 16, 2)]


class Illustrated:
    """An exact reward that varies among the answers of an untrained model."""

    name = "illustrated"

    def __call__(self, completions):
        outcome = [min(1.0, len(completion.answer.images) / 3) for completion in completions]
        segments = [[self.of(segment) for segment in completion.answer.segments] for completion in completions]
        return RewardOutput(outcome, segments)

    @staticmethod
    def of(segment) -> float:
        return len(segment.text) % 5 / 4 if isinstance(segment, TextSegment) else float(segment.codes_N.sum() % 7) / 6


def common(directory: Path, processes: int) -> dict:
    return brief(
        directory,
        optim="sgd",
        learning_rate=0.1,
        use_cpu="ACCELERATE_USE_DEEPSPEED" not in os.environ and "ACCELERATE_USE_FSDP" not in os.environ,
        ddp_backend="gloo" if processes > 1 else None,
    )


def moved(root: Path, directory: str, start: str, adapted=False, **changes) -> torch.Tensor:
    """By how much a few steps of a usual size moved what the optimizer writes to; of an adapter its half B."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    values = {**common(root / directory, processes), "optim": "adamw_torch", "learning_rate": 1e-6, **changes}
    args = TrainingArguments(**values, max_steps=6, per_device_train_batch_size=len(DOCUMENTS) // processes)
    policy = load(root / start)
    before = {name: weight.detach().float().clone() for name, weight in policy.model.named_parameters()}
    lora = LORA if adapted else None
    trainer = warmup.run(
        WarmupConfig(data=str(root / "data"), pack_length=256, lora=lora, heldout_batches=0), args, policy
    )
    after = {name: numbers_of(weight).cpu() for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert trainer.state.global_step == 6 and all(("lora_" in name) == adapted for name in after)
    return torch.cat([
        (weight.double() - before.get(name, torch.zeros(()))).flatten()
        for name, weight in sorted(after.items())
        if "lora_A" not in name
    ])  # fmt: skip


@torch.no_grad()
def numbers_of(parameter: torch.Tensor) -> torch.Tensor:
    """The whole of what the optimizer writes to."""
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)
    return parameter.full_tensor() if isinstance(parameter, torch.distributed.tensor.DTensor) else parameter


def make_do_without_gpus() -> None:
    """What the libraries ask of a GPU machine, on this one."""
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        import deepspeed

        assert deepspeed.__version__
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # minutes of compiling
    if "ACCELERATE_USE_FSDP" in os.environ:  # accelerate leaves FSDP out on a CPU
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)

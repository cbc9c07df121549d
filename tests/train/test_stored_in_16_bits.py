"""A tiny Janus stored in bf16, warmed up and reinforced: as good as from fp32, within what another seed makes of it."""

from statistics import mean

import pytest
import torch
from transformers import TrainingArguments

from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import load, save
from limner.train import warmup
from limner.train.grpo import RunConfig, run
from limner.train.objective.algorithm import AlgorithmConfig, PerModality
from limner.train.warmup import WarmupConfig, heldout_loss
from limner.worlds.picture_stories.scenes import SCENES, story

from ..models.families.tiny import janus_new
from .runs import PROMPTS, Illustrated, logs, settings

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)


def course(root, kind, seed) -> dict[str, float]:
    """Held-out losses after a warm-up, and the reward at the end of GRPO from there."""
    bf16, folder = kind == "bf16", root / f"{kind}-{seed}"
    args = TrainingArguments(
        str(folder / "warmup"), max_steps=60, per_device_train_batch_size=4, learning_rate=3e-3, bf16=bf16, seed=seed,
        use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", lr_scheduler_type="constant",
    )  # fmt: skip
    config = WarmupConfig(model=str(root / kind), data=str(root / "data"), pack_length=256, heldout_batches=0)
    warmup.run(config, args)
    warm = load(folder / "warmup" / "model")
    losses = heldout_loss(warm, [str(root / "data")], 256, 100)
    algorithm = AlgorithmConfig(beta=PerModality(0.01, 0.01))
    config = RunConfig(model=str(folder / "warmup" / "model"), algorithm=algorithm, rewards={}, preflight=False)
    args = settings(
        folder / "grpo", max_steps=12, bf16=bf16, seed=seed, learning_rate=1e-3, max_completion_length=96,
        per_device_train_batch_size=16, num_generations=8,
    )  # fmt: skip
    trainer = run(config, args, prompts=PROMPTS, rewards={"illustrated": (Illustrated(), 1.0)})
    rewards = [line["reward"] for line in logs(trainer)]
    end = load(folder / "grpo" / "model").model
    assert {weight.dtype for weight in end.parameters()} == {torch.bfloat16 if bf16 else torch.float32}
    return {**losses, "first reward": mean(rewards[:3]), "reward": mean(rewards[-3:])}


def test_a_janus_in_bf16_becomes_as_good_as_one_in_fp32(tmp_path):
    policy = janus_new()
    policy.model.to(torch.bfloat16)
    save(policy, tmp_path / "bf16")
    policy.model.float()
    save(policy, tmp_path / "fp32")
    with ShardWriter(tmp_path / "data") as writer:
        for number in range(0, 24, 2):
            for split in ("train", "heldout"):
                writer.write(story(SCENES[number : number + 2]), split)
    found = {kind: [course(tmp_path, kind, seed) for seed in SEEDS] for kind in ("fp32", "bf16")}
    untrained = heldout_loss(load(tmp_path / "fp32"), [str(tmp_path / "data")], 256, 100)
    for name in ("text", "image", "reward"):
        fp32, bf16 = ([one[name] for one in found[kind]] for kind in ("fp32", "bf16"))
        spread = max(fp32) - min(fp32)
        print(f"{name}: fp32 {mean(fp32):.3f}, bf16 {mean(bf16):.3f}, spread of seeds {spread:.3f}")
        assert abs(mean(bf16) - mean(fp32)) <= spread, name
    for courses in found.values():  # both learn
        assert max(one["text"] for one in courses) < untrained["text"] / 2
        assert max(one["image"] for one in courses) < untrained["image"] - 1
        assert all(one["reward"] > one["first reward"] + 0.2 for one in courses)

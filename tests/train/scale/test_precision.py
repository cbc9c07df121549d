"""A checkpoint in bf16 trains as one in fp32, in one process; `test_setups.py` has it on several."""

from contextlib import nullcontext

import pytest
import torch
from transformers import TrainingArguments

from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import load, save
from limner.train import warmup
from limner.train.objective.algorithm import AlgorithmConfig, PerModality
from limner.train.scale.lora import LoraConfig
from limner.train.trainer import InterleavedGRPOTrainer
from limner.train.warmup import WarmupConfig
from limner.worlds.picture_stories.scenes import SCENES, story

from ..runs import PROMPTS, Illustrated, dataset, logs, settings

LR = 1e-6
DOCUMENTS = [story(SCENES[i : i + 2]) for i in range(0, 16, 2)]


def counted(function, shapes) -> tuple[list, int, int]:
    """What it returns, how many operations it takes, and how many of them cast a tensor of one of these shapes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        result = function()
    events = profile.key_averages(group_by_input_shape=True)
    casts = sum(e.count for e in events if e.key == "aten::_to_copy" and e.input_shapes[0] in shapes)
    return result, sum(e.count for e in events if e.key.startswith("aten::")), casts


def moved(policy, start, of=lambda name: True) -> torch.Tensor:
    """By how much training moved what it trains."""
    before = dict(start.model.named_parameters())
    named = [(name.replace(".base_layer", ""), weight) for name, weight in policy.model.named_parameters()]
    return torch.cat([(weight.double() - before[name].double()).flatten() for name, weight in named if name in before])


@pytest.fixture(scope="module")
def root(make_policy, tmp_path_factory):
    root = tmp_path_factory.mktemp("precision")
    policy = make_policy(0)
    policy.model.to(torch.bfloat16)
    save(policy, root / "bf16")
    policy.model.float()
    save(policy, root / "fp32")  # the same numbers
    with ShardWriter(root / "data") as writer:
        for document in DOCUMENTS:
            writer.write(document, "train")
            writer.write(document, "heldout")
    return root


def warmed_up(root, kind, directory, **changes):
    bf16 = kind == "bf16"
    values = {"max_steps": 20, "learning_rate": LR, "lr_scheduler_type": "constant", "save_strategy": "no", **changes}
    args = TrainingArguments(
        str(directory),
        bf16=bf16,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=4,
        **values,
    )
    config = WarmupConfig(data=str(root / "data"), pack_length=256)
    return warmup.run(config, args, load(root / kind), say=lambda _: None)


def test_a_warm_up_from_bf16_moves_as_one_from_fp32(root, tmp_path):
    start = load(root / "fp32")
    found, expected = (moved(warmed_up(root, kind, tmp_path / kind).policy, start) for kind in ("bf16", "fp32"))
    share, cosine = (found != 0).double().mean().item(), torch.cosine_similarity(found, expected, 0).item()
    print(f"share {share:.4f}, cosine {cosine:.3f}")
    assert share > 0.99 and cosine > 0.9
    assert {str(weight.dtype) for weight in load(tmp_path / "bf16" / "model").model.parameters()} == {"torch.bfloat16"}


def trained(root, kind, directory, adapter=None, frozen=(), **changes):
    policy = load(root / kind)
    policy.freeze(frozen)
    values = {"max_steps": 1, "learning_rate": LR, "max_completion_length": 64, "bf16": kind == "bf16", **changes}
    algorithm = AlgorithmConfig(process_weight=0.5, beta=PerModality(0.1, 0.1))
    args = settings(directory, **values)
    config = adapter.adapter(policy.model) if adapter else None
    trainer = InterleavedGRPOTrainer(policy, Illustrated(), algorithm, args, dataset(), peft_config=config)
    trainer.train()
    return trainer


@pytest.mark.parametrize("bf16", [True, False])
def test_grpo_trains_in_fp32_and_leaves_the_rest_as_it_was(bf16, root, tmp_path):
    """What is frozen and the reference are as stored, unless nothing casts them in the forward."""
    frozen = "model.layers.0"
    trainer = trained(root, "bf16", tmp_path, frozen=[frozen], max_steps=3, num_iterations=3, bf16=bf16)
    moves = moved(trainer.policy, load(root / "bf16"))
    kept = sum(weight.numel() for name, weight in trainer.policy.model.named_parameters() if frozen in name)
    assert (moves != 0).sum() > 0.98 * (len(moves) - kept)
    other = torch.bfloat16 if bf16 else torch.float32
    for name, weight in trainer.policy.model.named_parameters():
        assert weight.dtype == (other if frozen in name else torch.float32), name
    assert {weight.dtype for weight in trainer.reference.model.parameters()} == {other}
    for name in ("text", "image"):
        assert logs(trainer)[0][f"replay_gap/{name}"] < (0.1 if bf16 else 1e-4)
        assert abs(logs(trainer)[0][f"kl/{name}"]) < 1e-3
    trainer.save_policy(tmp_path / "model")
    written = load(tmp_path / "model")
    assert {weight.dtype for weight in written.model.parameters()} == {torch.bfloat16}
    for (name, weight), (_, own) in zip(
        written.model.named_parameters(), trainer.policy.model.named_parameters(), strict=True
    ):
        assert torch.equal(weight, own.to(torch.bfloat16)), name


def sampled(trainer, short=8, long=24):
    """Rollouts that the length limit cuts, and how many operations and casts of weights a token of theirs takes."""
    weight = trainer.policy.model.get_input_embeddings().weight
    with torch.no_grad():
        weight[trainer.policy.vocabulary.controls.eos, 0] = 50.0
    linear = [module for module in trainer.policy.model.get_decoder().modules() if isinstance(module, torch.nn.Linear)]
    shapes, counts = [list(module.weight.shape) for module in linear], []
    for length in (short, long):
        trainer.args.max_completion_length = length
        rollouts, *figures = counted(lambda: trainer.sample(PROMPTS[:1] * 4, seed=0, numbers=range(4)), shapes)
        assert {len(one.sequence.ids_T) - one.sequence.prompt_length for one in rollouts} == {length}
        counts.append(figures)
    operations, casts = ((more - few) / (long - short) for few, more in zip(*counts, strict=True))
    return rollouts, operations, casts


def same_parameters(trainer, parameters, before):
    """The very objects, with the very numbers."""
    after = dict(trainer.policy.model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is weight and torch.equal(weight, before[name]) for name, weight in parameters.items())


def test_weights_are_cast_once_for_a_batch_of_rollouts(root, tmp_path, monkeypatch):
    """Drawn is what plain autocast draws."""
    trainer = trained(root, "bf16", tmp_path)
    plain, _, every = sampled_plainly(trainer, monkeypatch)
    parameters = dict(trainer.policy.model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in parameters.items()}
    rollouts, _, casts = sampled(trainer)
    print(f"casts of weights a token: {casts:.2f}, plainly {every:.2f}")
    assert casts <= 1 < 14 <= every  # the rows of the head for codes look like a weight of the decoder
    same_parameters(trainer, parameters, before)
    for one, other in zip(rollouts, plain, strict=True):
        assert torch.equal(one.sequence.ids_T, other.sequence.ids_T) and torch.equal(one.logp_T, other.logp_T)


LORA = LoraConfig(rank=4, alpha=8)


def test_adapters_are_merged_for_a_batch_of_rollouts(root, tmp_path):
    plain = sampled(trained(root, "fp32", tmp_path))[1]
    trainer = trained(root, "fp32", tmp_path, LORA, max_steps=2, num_iterations=2, learning_rate=1e-2)
    parameters = dict(trainer.policy.model.named_parameters())
    sampled(trainer)
    before = {name: weight.detach().clone() for name, weight in parameters.items()}
    _, merged, _ = sampled(trainer)
    print(f"operations a token: {merged:.0f} with an adapter, {plain:.0f} without")
    assert merged <= 1.1 * plain
    same_parameters(trainer, parameters, before)


def sampled_plainly(trainer, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("limner.train.trainer.sampling_weights", lambda policy: nullcontext())
        return sampled(trainer)

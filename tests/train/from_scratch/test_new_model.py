"""New models of every family that makes them: from tokenizers to a step of GRPO, by their settings alone."""

from dataclasses import replace

import pytest
import torch
from transformers import TrainingArguments

from limner.configs import parse
from limner.configs.errors import InputError
from limner.configs.registry import entries
from limner.models.checkpoints.folder import load, save
from limner.models.policy import UnifiedPolicy, family
from limner.train.from_scratch.image_tokenizer import ImageTokenizerConfig
from limner.train.from_scratch.new_model import NewModelConfig, new_policy, new_processor
from limner.train.grpo import RunConfig, run
from limner.train.objective.algorithm import AlgorithmConfig, PerModality
from limner.train.trainer import GRPOConfig
from limner.train.warmup import WarmupConfig
from limner.worlds.picture_stories.scenes import SCENES, caption, draw_scene, story

from ..runs import PROMPTS, logs, settings

FAMILIES = [family(name) for name in entries("family")]
NEW = [family.family for family in FAMILIES if "create" in vars(family)]


def new_model(family: str) -> UnifiedPolicy:
    tokenizer = ImageTokenizerConfig(autoencoder_steps=2, quantised_steps=1, decoder_steps=1, channels=(16,), codes=32)
    config = NewModelConfig(family, 512, 32, 64, layers=1, heads=2, image_tokenizer=tokenizer)
    texts = [story(SCENES[i : i + 2]).text for i in range(0, 40, 2)]
    processor, _ = new_processor(texts, [draw_scene(scene) for scene in SCENES[:40]], config)
    policy = new_policy(processor, config)
    control = policy.vocabulary.controls
    with torch.no_grad():  # as in `conftest.make_policy`: about one token in eight opens an image
        weight = policy.model.get_input_embeddings().weight.normal_(std=0.3)
        weight[:, 0] = -0.5
        weight[control.boi, 0], weight[control.eos, 0] = -5.0, -4.5
    return policy


@pytest.mark.parametrize("family", NEW)
def test_a_new_model_learns_from_pictures_in_both_directions(family, tmp_path):
    save(new_model(family), tmp_path / "start")
    policy, start = load(tmp_path / "start"), dict(load(tmp_path / "start").model.named_parameters())
    assert policy.family == family
    frozen = next(name for name, _ in policy.model.named_modules() if name.endswith("layers.0"))
    algorithm = AlgorithmConfig(beta=PerModality(0.1, 0.1), entropy_bonus=PerModality(1.0, 1.0))
    config = RunConfig(algorithm=algorithm, preflight=False, freeze=[frozen])
    args = settings(tmp_path / "run", max_steps=2, activation_checkpointing=True)
    with_picture = replace(caption(SCENES[5]).prompt, meta=PROMPTS[0].meta)
    trainer = run(config, args, policy, [with_picture, *PROMPTS[:3]])
    for entry in logs(trainer):
        assert entry["replay_gap/text"] < 1e-4 and entry["replay_gap/image"] < 1e-4
    for name, parameter in policy.model.named_parameters():
        stays = name.startswith(f"{frozen}.") or not parameter.requires_grad
        assert torch.equal(parameter, start[name]) == stays, name


def test_the_families_that_make_new_models():
    assert {"shared_vocabulary", "janus", "vila_u"} <= set(NEW)
    others = [family.family for family in FAMILIES if family.family not in NEW]
    with pytest.raises(InputError, match="no base-model family is called 'telepathy'"):
        new_policy(new_model(NEW[0]).processor, NewModelConfig("telepathy"))
    assert others


def test_what_is_frozen_is_named():
    policy = new_model("janus")
    policy.freeze(["model.vision_model", "model.aligner"])
    trained = {name.split(".")[1] for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert not trained & {"vision_model", "aligner", "vqmodel"} and {"language_model", "generation_head"} <= trained
    with pytest.raises(InputError, match="freeze: the model has no submodule 'vision'; it has .*model.vision_model"):
        policy.freeze(["vision"])


@pytest.mark.parametrize("configs", [(RunConfig, GRPOConfig), (WarmupConfig, TrainingArguments)])
def test_the_setting_is_read_from_flags(configs):
    read, _ = parse(configs, ["--freeze", "model.vision_model", "lm_head", "--use_cpu", "--bf16", "false"])
    assert read.freeze == ["model.vision_model", "lm_head"]


def test_queries_and_keys_can_start_alike():
    """An identity on top of the same random weights, and nothing else changes."""
    tokenizer = ImageTokenizerConfig(autoencoder_steps=2, quantised_steps=1, decoder_steps=1, channels=(16,), codes=32)
    config = NewModelConfig(text_vocabulary=512, hidden_size=32, layers=2, heads=2, image_tokenizer=tokenizer)
    pictures = [draw_scene(scene) for scene in SCENES[:40]]
    processor, _ = new_processor([story(SCENES[i : i + 2]).text for i in range(0, 40, 2)], pictures, config)
    plain, alike = (
        dict(new_policy(processor, replace(config, attend_alike=x)).model.named_parameters()) for x in (0.0, 0.7)
    )
    changed = {name for name in plain if not torch.equal(plain[name], alike[name])}
    assert len(changed) == 4 and all(".q_proj." in name or ".k_proj." in name for name in changed)
    assert all(torch.allclose(alike[name] - plain[name], 0.7 * torch.eye(32), atol=1e-6) for name in changed)

"""LoRA in one process; `test_setups.py` has it on several."""

import builtins

import pytest
import torch
from transformers import TrainingArguments

from limner.configs import parse
from limner.configs.errors import InputError
from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import load, save
from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.train import warmup
from limner.train.grpo import RunConfig, make_trainer, run
from limner.train.objective.algorithm import AlgorithmConfig, PerModality
from limner.train.scale.lora import LoraConfig
from limner.train.trainer import BATCH_FIELDS, GRPOConfig, InterleavedGRPOTrainer
from limner.worlds.picture_stories.scenes import SCENES, story

from ...models.families.test_shared_vocabulary import llama, pictures
from ...models.families.tiny_vq import published_tokenizer
from ..runs import PROMPTS, Illustrated, dataset, logs, settings
from ..test_warmup import StopAfter

pytest.importorskip("peft", reason="pip install 'limner[peft]'")


def test_the_reference_is_the_model_without_its_adapter(make_policy, tmp_path):
    policy = make_policy(0)
    algorithm = AlgorithmConfig(process_weight=0.5, beta=PerModality(0.1, 0.1))
    adapter = LoraConfig(rank=4, targets=["q_proj", "down_proj"]).adapter(policy.model)
    args = settings(tmp_path, max_steps=3, learning_rate=0.1)
    trainer = InterleavedGRPOTrainer(policy, Illustrated(), algorithm, args, dataset(), peft_config=adapter)
    assert trainer.reference is None and trainer.is_adapted
    trainer.train()
    for name in ("text", "image"):
        assert abs(logs(trainer)[0][f"kl/{name}"]) < 1e-6 < 1e-5 < logs(trainer)[2][f"kl/{name}"]

    rows = trainer._buffered_inputs[0]
    start = make_policy(0)
    with torch.no_grad():
        expected, _ = trainer.log_probs(start.model, {name: rows[name] for name in BATCH_FIELDS}, start)
    assert torch.allclose(trainer._reference_scores(rows)["ref_logp_BT"], expected, atol=1e-5)
    before = dict(start.model.named_parameters())
    after = {name.replace(".base_layer", ""): weight for name, weight in policy.model.named_parameters()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    adapted = {name.split(".")[-4] for name in after if "lora_" in name}
    assert adapted == {"q_proj", "down_proj"}


def test_a_run_writes_the_merged_model(make_policy, tmp_path):
    save(make_policy(0), tmp_path / "start")
    algorithm = AlgorithmConfig(entropy_bonus=PerModality(1.0, 1.0))  # the rewards find no difference
    config = RunConfig(model=str(tmp_path / "start"), algorithm=algorithm, preflight=False, lora=LoraConfig(rank=4))
    args = settings(tmp_path / "run", save_strategy="steps", save_steps=1, learning_rate=0.1)
    trainer = run(config, args, prompts=PROMPTS)
    merged, start = load(tmp_path / "run" / "model"), load(tmp_path / "start")
    rows = {name: trainer._buffered_inputs[0][name] for name in BATCH_FIELDS}
    with torch.no_grad():
        found, expected, before = (
            trainer.log_probs(policy.model, rows, policy)[0] for policy in (merged, trainer.policy, start)
        )
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, before, atol=1e-2)
    checkpoint = {path.name for path in (tmp_path / "run" / "checkpoint-1").iterdir()}
    assert "adapter_model.safetensors" in checkpoint and not checkpoint & {"model.safetensors", "limner.json"}


@pytest.mark.parametrize("frozen", [[], ["model.embed_tokens"]])
def test_rows_that_were_never_trained_are_trained_first(frozen, tmp_path):
    """A language model extended by rows for pictures: refused with the remedy, and the remedies are some."""
    extended, config = extended_model(tmp_path, tied=False)
    lora = {} if frozen else {"lora": LoraConfig(rank=4)}
    setting = "freeze: .*, and text embedding, image embedding stay" if frozen else "lora: .*, and an adapter leaves"
    remedy = rf"{setting}.*beside an adapter \(limner warmup --lora.rank 16\).*: limner warmup --freeze model.layers$"
    if frozen:
        with pytest.raises(InputError, match=remedy):
            warmup.run(warmup.WarmupConfig(freeze=frozen, **config), warmup_settings(tmp_path / "run"))
    grpo = RunConfig(model=config["model"], freeze=frozen, rewards={"format": 1}, **lora)
    with pytest.raises(InputError, match=remedy):
        make_trainer(grpo, settings(tmp_path), prompts=PROMPTS)

    warmup.run(warmup.WarmupConfig(freeze=["model.layers"], **config), warmup_settings(tmp_path / "run"))
    trained = load(tmp_path / "run" / "model")
    for name, weight in trained.model.named_parameters():
        assert torch.equal(weight, extended.model.get_parameter(name)) == ("layers" in name), name
    then = warmup.WarmupConfig(**config | {"model": str(tmp_path / "run" / "model")}, lora=LoraConfig(rank=4))
    warmup.run(then, warmup_settings(tmp_path / "then"))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_new_rows_are_trained_beside_an_adapter_and_the_old_ones_stay(tied, tmp_path):
    extended, config = extended_model(tmp_path, tied)
    args = warmup_settings(tmp_path / "run", max_steps=2, weight_decay=0.1, learning_rate=0.01)
    warmup.run(warmup.WarmupConfig(**config, lora=LoraConfig(rank=4)), args)
    trained, rows = load(tmp_path / "run" / "model"), extended.new_rows
    assert rows > extended.vocabulary.image_codes and trained.new_rows == 0
    for part in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(policy.model, part)().weight for policy in (extended, trained))
        assert torch.equal(after[:-rows], before[:-rows])
        assert not torch.equal(after[-rows:], before[-rows:])
    layer = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(trained.model.get_parameter(layer), extended.model.get_parameter(layer))


def test_resuming_new_rows_beside_an_adapter_equals_never_having_stopped(tmp_path):
    _, config = extended_model(tmp_path, tied=True)
    lora = warmup.WarmupConfig(**config, lora=LoraConfig(rank=4))

    def four_steps(name, **changes):
        values = {"max_steps": 4, "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2}
        return warmup_settings(tmp_path / name, **{**values, **changes})

    warmup.run(lora, four_steps("straight"))
    warmup.run(lora, four_steps("halves"), callbacks=[StopAfter(2)])
    warmup.run(lora, four_steps("halves", resume_from_checkpoint="last"))
    straight, halves = (
        dict(load(tmp_path / name / "model").model.named_parameters()) for name in ("straight", "halves")
    )
    assert all(torch.equal(weight, halves[name]) for name, weight in straight.items())
    (tmp_path / "halves" / "checkpoint-4" / "new_rows.safetensors").unlink()
    with pytest.raises(InputError, match="new_rows.safetensors"):
        warmup.run(lora, four_steps("halves", resume_from_checkpoint="last", max_steps=6))


def extended_model(tmp_path, tied):
    """The model as converted, and what a warm-up of it takes."""
    tokenizer = published_tokenizer(("<pad>", "<s>", "</s>"), (), code_is_special=False)
    extended = SharedVocabularyPolicy.extend(llama(tokenizer, tied=tied), tokenizer, pictures())
    save(extended, tmp_path / "extended")
    with ShardWriter(tmp_path / "data") as writer:
        for number in range(4):
            writer.write(story(SCENES[number : number + 2]), "train")
    config = {"model": str(tmp_path / "extended"), "data": str(tmp_path / "data")}
    return load(tmp_path / "extended"), {**config, "pack_length": 400, "heldout_batches": 0}


def warmup_settings(directory, **changes):
    return TrainingArguments(
        str(directory),
        **{"max_steps": 1, "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", **changes},
    )


def test_the_section_is_read_from_flags():
    config, _ = parse((RunConfig, GRPOConfig), ["--lora.rank", "8", "--use_cpu", "--bf16", "false"])
    assert config.lora == LoraConfig(rank=8)
    config, _ = parse((RunConfig, GRPOConfig), ["--use_cpu", "--bf16", "false"])
    assert config.lora is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank: expected a number 1 to"),
        (
            {"targets": ["q_proj", "lm_head"]},
            "lora.targets: lm_head is no layer to adapt; there are down_proj, ",
        ),
        ({"targets": "self_attn"}, "lora.targets: self_attn is no layer"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message, make_policy):
    with pytest.raises(InputError, match=message):
        LoraConfig(**settings).adapter(make_policy(0).model)


def test_without_peft_the_extra_is_named(make_policy, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "peft":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'limner\[peft\]'"):
        LoraConfig().adapter(make_policy(0).model)

"""The warm-up trainer on a few documents of the embedded world."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from limner.configs.errors import InputError
from limner.data import mixture
from limner.data.mixture import PackedRows, SourceConfig
from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import load, save
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.tokens.sequence import collate
from limner.train import warmup
from limner.train.objective.losses import NORMALISATIONS
from limner.train.scale.lora import LoraConfig
from limner.train.warmup import WarmupConfig, WarmupTrainer, heldout_loss, run
from limner.worlds.picture_stories.scenes import CLEAN, SCENES, story, warmup_documents

from .runs import brief

KINDS = ("interleaved", "understanding", "text_to_image")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """A folder of shards: 36 documents to train on, 9 held out."""
    directory = tmp_path_factory.mktemp("warmup") / "data"
    with ShardWriter(directory) as writer:
        for kind in KINDS:
            for number, document in zip(range(15), warmup_documents(kind, 0, CLEAN, frozenset()), strict=False):
                writer.write(document, "heldout" if number < 3 else "train")
    return str(directory)


def settings(directory: Path, **changes) -> TrainingArguments:
    values = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
    return TrainingArguments(**brief(directory, **{**values, **changes}))


def config(folder: str, **changes) -> WarmupConfig:
    return WarmupConfig(**{"data": folder, "pack_length": 128, "heldout_batches": 0, **changes})


def parameters(policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


def test_two_steps_lower_the_loss_of_both_modalities(data, make_policy, tmp_path):
    policy, said = make_policy(0), []
    args = settings(tmp_path, max_steps=6, per_device_train_batch_size=8)
    trainer = run(config(data, heldout_batches=4), args, policy, say=said.append)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 6
    for name in ("text", "image"):
        assert logs[-1][f"loss/{name}"] < logs[0][f"loss/{name}"] and logs[0][f"tokens/{name}"] > 20
    first = logs[0]
    mean = sum(first[f"loss/{m}"] * first[f"tokens/{m}"] for m in ("text", "image"))
    assert first["loss"] == pytest.approx(mean / (first["tokens/text"] + first["tokens/image"]), rel=1e-3)
    assert len(said) == 2  # before and after, of both modalities
    for line, name in zip(said, ("text", "image"), strict=True):
        head, before, after = line.split(":")[0], *(float(word) for word in line.split() if word[0].isdigit())
        assert head == f"held-out loss, {name}" and after < before


def test_the_trained_model_is_written_and_loads(data, make_policy, tmp_path):
    policy = make_policy(0)
    before = parameters(policy)
    run(config(data), settings(tmp_path), policy)
    assert not torch.equal(parameters(policy), before)
    assert torch.equal(parameters(load(tmp_path / "model")), parameters(policy))
    assert (tmp_path / "config.yaml").read_text().count("pack_length: 128") == 1


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_accumulating_eight_rows_is_a_batch_of_eight(normalisation, data, make_policy, tmp_path):
    """Plain gradient descent, so that the parameters differ by no more than the gradients do."""

    def after_one_step(batch, accumulation):
        policy = make_policy(0)
        args = settings(
            tmp_path / str(batch),
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.5,
        )
        trainer = run(config(data, normalisation=normalisation), args, policy)
        return parameters(policy), trainer.state.log_history[0]

    whole, whole_log = after_one_step(8, 1)
    parts, parts_log = after_one_step(1, 8)
    assert (whole - parameters(make_policy(0))).abs().max() > 1e-3
    assert torch.allclose(whole, parts, atol=1e-6)
    for name in ("loss", "loss/text", "loss/image", "tokens/text", "tokens/image"):
        assert parts_log[name] == pytest.approx(whole_log[name], rel=1e-4)


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def test_resuming_equals_never_having_stopped(data, make_policy, tmp_path):
    def four_steps(directory, **changes):
        return settings(
            directory, max_steps=4, save_strategy="steps", save_steps=2, lr_scheduler_type="linear", **changes
        )

    straight = make_policy(0)
    run(config(data), four_steps(tmp_path / "straight", gradient_accumulation_steps=2), straight)
    stopped = make_policy(0)
    args = four_steps(tmp_path / "halves", gradient_accumulation_steps=2)
    run(config(data), args, stopped, callbacks=[StopAfter(2)])
    assert not torch.equal(parameters(stopped), parameters(straight))
    args = four_steps(tmp_path / "halves", gradient_accumulation_steps=2, resume_from_checkpoint="last")
    resumed = run(config(data), args)  # the policy comes from the checkpoint
    assert resumed.state.global_step == 4
    assert torch.equal(parameters(resumed.policy), parameters(straight))
    assert torch.equal(parameters(load(tmp_path / "halves" / "model")), parameters(straight))


def test_a_run_does_not_mix_with_an_earlier_one(data, make_policy, tmp_path):
    args = settings(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    run(config(data), args, make_policy(0))
    with pytest.raises(InputError, match="holds checkpoint-1 of an earlier run; give --resume_from_checkpoint last"):
        run(config(data), args, make_policy(0))


def test_rows_of_the_loader_are_the_streams_own(data, make_policy, processor, tmp_path):
    """The Trainer must not shard, shuffle or prefetch past our stream."""
    rows = PackedRows([SourceConfig(data)], processor, length=128, seed=42)
    trainer = WarmupTrainer(make_policy(0), config(data), settings(tmp_path), train_dataset=rows)
    batches = iter(trainer.get_train_dataloader())
    loaded = [next(batches)["token_batch"].ids_BT for _ in range(3)]
    stream = iter(PackedRows([SourceConfig(data)], processor, length=128, seed=42))
    for ids_BT in loaded:
        for ids_T in ids_BT:
            tokens = torch.cat([sequence.ids_T for sequence in next(stream)])
            assert torch.equal(ids_T[: len(tokens)], tokens)


def test_a_run_says_how_often_its_sources_were_read(data, make_policy, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(data, again)
    sources = [SourceConfig(data), SourceConfig(str(again), weight=3.0)]
    trainer = run(config("", data=None, sources=sources), settings(tmp_path / "run"), make_policy(0))
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    # One block of as many documents as there are, of 36 in each.
    assert entry["source/data/epochs"] == pytest.approx(18 / 36, abs=0.1)
    assert entry["source/again/epochs"] == pytest.approx(54 / 36, abs=0.1)
    assert 2 < entry["source/again/tokens"] / entry["source/data/tokens"] < 4


def test_resuming_reads_no_more_than_a_block(data, make_policy, tmp_path, monkeypatch):
    read = []
    original = mixture.Mixture.block

    def counting(self, number):
        read.append(number)
        return original(self, number)

    monkeypatch.setattr(mixture.Mixture, "block", counting)
    monkeypatch.setattr(mixture, "BLOCK", 16)
    args = settings(tmp_path, max_steps=12, save_strategy="steps", save_steps=12)
    run(config(data), args, make_policy(0))
    before = max(read)
    read.clear()
    args = settings(tmp_path, max_steps=13, resume_from_checkpoint="last")
    run(config(data), args, make_policy(0))
    assert before >= 2 and read and min(read) == before


def test_a_checkpoint_of_an_older_limner_goes_on_in_the_order_of_this_one(data, make_policy, tmp_path):
    args = settings(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    run(config(data), args, make_policy(0))
    (tmp_path / "checkpoint-2/data_place_0.json").rename(tmp_path / "place.json")
    said = []
    args = settings(tmp_path, max_steps=3, resume_from_checkpoint="last")
    trainer = run(config(data), args, make_policy(0), say=said.append)
    assert "of an older limner" in said[0] and trainer.rows.place.row == 6


def test_going_on_with_another_number_of_processes_is_refused(data, make_policy, tmp_path):
    args = settings(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    run(config(data), args, make_policy(0))
    (tmp_path / "checkpoint-2/data_place_1.json").write_text("{}")
    with pytest.raises(InputError, match="written by 2 processes; go on with as many, not 1"):
        run(config(data), settings(tmp_path, max_steps=3, resume_from_checkpoint="last"), make_policy(0))


def test_heldout_loss_reads_what_it_needs(data, make_policy, monkeypatch):
    read = []
    original = warmup.read_documents

    def counting(*words, **options):
        for document in original(*words, **options):
            read.append(document.id)
            yield document

    monkeypatch.setattr(warmup, "read_documents", counting)
    monkeypatch.setattr(warmup, "HELDOUT_CHUNK", 2)
    monkeypatch.setattr(warmup, "pack", lambda sequences, length: ([one] for one in sequences))
    heldout_loss(make_policy(0), [data, data], 128, 2)
    assert len(read) == 2 and len(set(read)) == 1, "one of each folder"


def test_heldout_loss_is_the_mean_over_heldout_tokens(data, make_policy):
    policy = make_policy(0)
    every, first = (heldout_loss(policy, [data], 128, rows) for rows in (1000, 1))
    assert every.keys() == {"text", "image"} and every != first
    # The image codes of an untrained model are near uniform over 32 kinds.
    assert every["image"] > torch.log(torch.tensor(32.0)) - 0.5


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {"normalisation": "tokens"},
            {},
            "normalisation: 'tokens' is none of token, sequence, segment, modality-balanced",
        ),
        ({"data": "/no/such/folder"}, {}, "/no/such/folder/index.json: no such file"),
        ({"data": ""}, {}, "data: missing; name a folder of shards"),
        ({}, {"max_steps": -1}, "max_steps: missing"),
        ({}, {"resume_from_checkpoint": "last"}, "no checkpoint to resume from"),
        ({}, {"resume_from_checkpoint": "/no/such/run"}, "--resume_from_checkpoint /no/such/run: no such checkpoint"),
        ({"pack_length": 20}, {}, "exceed `pack_length` = 20"),
    ],
)
def test_wrong_settings_are_named(changes, arguments, message, data, make_policy, tmp_path):
    with pytest.raises(InputError, match=message):
        run(config(data, **changes), settings(tmp_path, **arguments), make_policy(0))
    assert not (tmp_path / "model").exists()


def test_progress_is_in_the_checkpoint(data, make_policy, tmp_path):
    args = settings(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=2)
    run(config(data), args, make_policy(0))
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["checkpoint-2", "checkpoint-3", "config.yaml", "model"]
    assert json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())["global_step"] == 3


def lora_config(folder, start, **changes):
    pytest.importorskip("peft", reason="pip install 'limner[peft]'")
    return config(folder, model=str(start), lora=LoraConfig(rank=4), **changes)


def test_only_the_adapter_is_trained_and_the_merged_model_is_written(data, make_policy, tmp_path):
    save(make_policy(0), tmp_path / "start")
    args = settings(tmp_path / "run", max_steps=6, learning_rate=0.05, activation_checkpointing=True)
    said: list[str] = []
    trainer = run(lora_config(data, tmp_path / "start", heldout_batches=4), args, say=said.append)
    policy, start = trainer.policy, dict(make_policy(0).model.named_parameters())
    trained = [name for name, weight in policy.model.named_parameters() if weight.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    now = {name.replace(".base_layer", ""): weight for name, weight in policy.model.named_parameters()}
    assert all(torch.equal(now[name], weight) for name, weight in start.items())
    for line in said:  # both modalities are learned
        before, after = (float(word) for word in line.split() if word[0].isdigit())
        assert after < before

    merged = load(tmp_path / "run" / "model")
    assert {name for name, _ in merged.model.named_parameters()} == set(start)
    batch = collate([next(iter(trainer.train_dataset))], policy.vocabulary)
    with torch.no_grad():
        found, expected, before = (
            p.log_probs(p.model.eval(), batch)[0] for p in (merged, policy, load(tmp_path / "start"))
        )
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, before, atol=1e-2)


def test_resuming_an_adapter_equals_never_having_stopped(data, make_policy, tmp_path):
    save(make_policy(0), tmp_path / "start")

    def four_steps(directory, **changes):
        return settings(directory, max_steps=4, save_strategy="steps", save_steps=2, **changes)

    lora = lora_config(data, tmp_path / "start")
    straight = run(lora, four_steps(tmp_path / "straight"))
    stopped = run(lora, four_steps(tmp_path / "halves"), callbacks=[StopAfter(2)])
    assert not torch.equal(parameters(stopped.policy), parameters(straight.policy))
    resumed = run(lora, four_steps(tmp_path / "halves", resume_from_checkpoint="last"))
    assert torch.equal(parameters(resumed.policy), parameters(straight.policy))
    written = [parameters(load(tmp_path / name / "model")) for name in ("straight", "halves")]
    assert torch.equal(*written)


def test_an_adapter_needs_a_model(data, tmp_path):
    with pytest.raises(InputError, match=r"lora: an adapter needs a trained model under it; name it \(--model DIR\)"):
        run(config(data, lora=LoraConfig()), settings(tmp_path))


def test_a_run_that_sees_no_picture_says_so(make_policy, tmp_path, monkeypatch):
    """Words enough for many rows come before the one picture."""
    picture = next(s for s in story(SCENES[:2]).segments if isinstance(s, ImageSegment))
    with ShardWriter(tmp_path / "data") as writer:
        words = TextSegment("red circle " * 10_000, True)
        writer.write(InterleavedDocument((words, picture), "long", {"kind": "interleaved"}), "train")
    monkeypatch.setattr(warmup, "SAY_FROM", 4)
    said: list[str] = []
    trainer = run(
        config(str(tmp_path / "data")), settings(tmp_path / "run", max_steps=5), make_policy(0), say=said.append
    )
    assert trainer.rows_read() == (10, 0)
    assert said[:2] == ["no picture in the 4 rows so far", "no picture in the 8 rows so far"]
    assert len(said) == 3 and said[2].startswith("no picture was among the 10 rows")


def test_pictures_that_were_seen_are_counted(data, make_policy, tmp_path):
    said: list[str] = []
    trainer = run(config(data), settings(tmp_path), make_policy(0), say=said.append)
    rows, pictured = trainer.rows_read()
    assert (rows, said) == (4, []) and 0 < pictured <= 4


def test_the_command_ends_with_what_was_written_and_what_comes_next(data, make_policy, tmp_path, capsys):
    save(make_policy(0), tmp_path / "model")
    flags = {"model": tmp_path / "model", "data": data, "output_dir": tmp_path / "run", "max_steps": 1}
    flags |= {"heldout_batches": 0, "per_device_train_batch_size": 1, "save_strategy": "no", "report_to": "none"}
    warmup.main([word for name, value in flags.items() for word in (f"--{name}", str(value))] + ["--use_cpu"])
    written = tmp_path / "run" / "model"
    last = capsys.readouterr().out.splitlines()[-1]
    following = f"limner grpo --config grpo/default --model {written} --prompts FILE.jsonl"
    assert written.is_dir() and last == f"wrote {written} after 1 steps; next: {following}"

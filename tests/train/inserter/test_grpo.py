"""GRPO of an inserter by stock TRL on tiny models of the real classes: it steps, saves, resumes, and is loaded."""

import importlib.util
from pathlib import Path

import pytest
import torch

from limner.configs.errors import InputError
from limner.data.insertion.tasks import write_tasks
from limner.retrieval.strategies.inserter import PairScorer, load_inserter, save_inserter
from limner.train.grpo import GRPOConfig, RunConfig, make_trainer
from limner.train.grpo import main as grpo
from limner.train.inserter.grpo import InsertionConfig, dataset, train_inserter
from limner.train.inserter.grpo import make_trainer as make_inserter
from limner.train.inserter.pair_scoring import PairScoringConfig, fit_pairs, pair_loss, targets
from limner.train.scale.lora import LoraConfig
from limner.worlds.captions.scenes import make_world

_spec = importlib.util.spec_from_file_location("inserters", Path(__file__).parents[2] / "retrieval" / "inserters.py")
inserters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(inserters)
FLAGS = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def arguments(folder, **changes):
    return GRPOConfig(output_dir=str(folder), **{**FLAGS, "max_steps": 1, **changes})


def tasks(count=4):
    return make_world(0, count, inserters.SIZE, "train")


def uneven(weights):
    """A reward that answers of an untrained model differ in; by gold placements they all earn nothing."""

    def variety(completions, **_):
        return [float(len(set(str(completion)))) for completion in completions]

    return [variety], [1.0]


def test_a_reward_moves_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("limner.train.inserter.grpo.trl_rewards", uneven)
    model, prompter = inserters.text_model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    made = make_inserter(InsertionConfig(), arguments(tmp_path, save_strategy="no"), (model, prompter), tasks())
    made.train()
    assert made.state.log_history[0]["grad_norm"] > 0
    assert all(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_text_inserter_is_trained_by_the_command_resumed_and_loaded(tmp_path):
    model, prompter = inserters.text_model()
    save_inserter(model, prompter.processor, tmp_path / "start")
    write_tasks({"train": tasks()}, tmp_path / "tasks")
    flags = [f"--{name}={value}" for name, value in {**FLAGS, "weight_decay": 0.1}.items()]
    flags += ["--task=insertion", f"--model={tmp_path / 'start'}", f"--prompts={tmp_path / 'tasks' / 'train.jsonl'}"]
    flags += [f"--output_dir={tmp_path / 'run'}", "--save_steps=1", "--insertion.rewards.order=0"]
    grpo([*flags, "--max_steps=1"])
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").is_file()
    grpo([*flags, "--max_steps=2", "--resume_from_checkpoint=last"])
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    loaded = load_inserter(str(tmp_path / "run" / "model"), device="cpu")
    before = dict(model.named_parameters())  # it earns nothing: the decay alone moves it
    assert any(not torch.equal(weight, before[name]) for name, weight in loaded.model.named_parameters())
    assert all(placement.candidate <= 4 for placement in loaded.place(tasks()[0]))
    with pytest.raises(InputError, match="rewards"):
        grpo([*flags, "--max_steps=2", "--rewards.format=2"])


def test_each_reward_is_logged_under_its_name_and_an_adapter_is_merged(tmp_path):
    model, prompter = inserters.text_model()
    made = make_inserter(InsertionConfig(), arguments(tmp_path), (model, prompter), tasks(), LoraConfig(rank=2))
    train_inserter(made)
    logged = {name for row in made.state.log_history for name in row}
    for name in ("format", "selection", "order", "position", "abstention", "restraint"):
        assert f"rewards/{name}/mean" in logged
    assert "faults/no answer" in logged
    assert not list((tmp_path / "model").glob("adapter*")) and load_inserter(str(tmp_path / "model"), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_vision_language_inserter_takes_a_step(tmp_path, lora, monkeypatch):
    monkeypatch.setattr("limner.train.inserter.grpo.trl_rewards", uneven)
    model, prompter = inserters.vision_model()
    row = dataset(tasks(1), prompter)[0]
    parts = [part for message in row["prompt"] for part in message["content"]]
    assert len(row["images"]) == sum(part["type"] == "image" for part in parts) == 4
    made = make_inserter(InsertionConfig(), arguments(tmp_path, save_strategy="no"), (model, prompter), tasks(), lora)
    made.train()
    assert made.state.global_step == 1 and made.state.log_history[0]["grad_norm"] > 0


def test_pairs_are_learnt_from_gold():
    model, prompter = inserters.text_model()
    made = tasks(2)
    for task in made:
        assert [int(t) - 1 for t in targets(task)[[p.candidate - 1 for p in task.gold]]] == [p.after for p in task.gold]
        assert int((targets(task) > 0).sum()) == len(task.gold)
    scorer = PairScorer.create(model, prompter, 16)
    before = pair_loss(scorer, made).item()
    losses = fit_pairs(scorer, made, PairScoringConfig(steps=12, batch_size=2, learning_rate=1e-2))
    assert losses[-1] < 0.7 * before
    frozen = {name: weight.clone() for name, weight in scorer.model.named_parameters()}
    fit_pairs(scorer, made, PairScoringConfig(steps=2, frozen=True))
    assert all(torch.equal(weight, frozen[name]) for name, weight in scorer.model.named_parameters())


def test_settings_that_cannot_be_are_refused(tmp_path, monkeypatch):
    parts = inserters.text_model()
    with pytest.raises(InputError, match="reward_weights"):
        make_inserter(InsertionConfig(), arguments(tmp_path, reward_weights=[1.0]), parts, tasks())
    ahead = arguments(tmp_path, steps_per_generation=4, gradient_accumulation_steps=1, save_steps=3)
    with pytest.raises(InputError, match="save_steps"):
        make_inserter(InsertionConfig(), ahead, parts, tasks())
    with pytest.raises(InputError, match="max_steps: 0"):
        make_inserter(InsertionConfig(), arguments(tmp_path, max_steps=0), parts, tasks())
    monkeypatch.setattr("limner.train.inserter.grpo.is_sharded", lambda accelerator: True)
    with pytest.raises(InputError, match="ZeRO-3 and FSDP are not supported; launch .*zero2.yaml.*--lora.rank"):
        make_inserter(InsertionConfig(), arguments(tmp_path), parts, tasks())
    with pytest.raises(InputError, match="task"):
        make_trainer(RunConfig(task="insertion"), arguments(tmp_path))
    with pytest.raises(InputError, match="insertion"):
        make_trainer(RunConfig(insertion=InsertionConfig(image_side=100)), arguments(tmp_path))

"""Runs that are refused before they lose or mix checkpoints; saving and resuming are in `test_grpo.py`."""

import shutil
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import trainer as trainer_module

from limner.configs.errors import InputError
from limner.configs.whole import Staging
from limner.train.objective.algorithm import AlgorithmConfig
from limner.train.scale import checkpointing
from limner.train.scale.checkpointing import HIDDEN, check_shared
from limner.train.scale.run_folder import checkpoints, resume_point
from limner.train.trainer import InterleavedGRPOTrainer

from ..runs import Illustrated, dataset, settings, trained


def resuming_from(folder, make_policy):
    args = settings(folder, max_steps=2)
    trainer = InterleavedGRPOTrainer(make_policy(0), Illustrated(), AlgorithmConfig(), args, dataset())
    trainer.train(resume_from_checkpoint=resume_point(folder, "last"))


def test_a_run_does_not_go_on_with_a_fresh_optimizer(make_policy, tmp_path):
    """transformers would, without a word; so does a run under DDP from what ZeRO has saved."""
    trained(make_policy(0), settings(tmp_path, save_strategy="steps", save_steps=1, save_only_model=True))
    with pytest.raises(InputError, match="checkpoint-1: no optimizer state to go on from"):
        resuming_from(tmp_path, make_policy)


def test_a_tied_weight_is_not_said_to_be_missing(make_policy, tmp_path, monkeypatch):
    policy, said = make_policy(0), []
    assert policy.model.config.tie_word_embeddings
    monkeypatch.setattr(trainer_module.logger, "warning", said.append)
    trained(policy, settings(tmp_path, save_strategy="steps", save_steps=1))
    resuming_from(tmp_path, make_policy)
    assert not said
    file = tmp_path / "checkpoint-1" / "model.safetensors"
    weights = load_file(file)
    save_file({name: weight for name, weight in weights.items() if "q_proj" not in name}, file, {"format": "pt"})
    args = settings(tmp_path, max_steps=3)
    again = InterleavedGRPOTrainer(make_policy(0), Illustrated(), AlgorithmConfig(), args, dataset())
    again._load_from_checkpoint(str(tmp_path / "checkpoint-1"))
    assert len(said) == 1 and "q_proj" in said[0] and "lm_head" not in said[0], "what is missing is still said"


def test_a_run_killed_before_it_removed_an_old_checkpoint_does_so_when_it_goes_on(make_policy, tmp_path):
    """Also where no step is left, and so no save that would."""
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    trained(make_policy(0), settings(tmp_path, **saving))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    args = settings(tmp_path, **saving, save_total_limit=2)
    trainer = InterleavedGRPOTrainer(make_policy(0), Illustrated(), AlgorithmConfig(), args, dataset())
    trainer.train(resume_from_checkpoint=resume_point(tmp_path, "last"))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]


def test_half_a_checkpoint_is_named_and_nothing_goes_on_from_it(make_policy, tmp_path):
    """As a copy that was cut, or a clean-up, leaves it."""
    whole = tmp_path / "whole"
    trained(make_policy(0), settings(whole, save_strategy="steps", save_steps=1))
    missing = {
        "trainer_state.json": "its trainer_state.json is missing or damaged",
        "model.safetensors": "cannot be read: Can't find a valid checkpoint",
        "scheduler.pt": "no scheduler state",
        "rng_state.pth": "no random state",
        "rollouts_0.pth": "holds no rollouts",
    }
    damaged = dict.fromkeys(("model.safetensors", "optimizer.pt", "rng_state.pth", "rollouts_0.pth"), "cannot be read")
    damaged["trainer_state.json"] = missing["trainer_state.json"]
    for kept, faults in ((0, missing), (100, damaged)):
        for name, message in faults.items():
            copy = shutil.copytree(whole, tmp_path / f"{name}-{kept}")
            file = copy / "checkpoint-1" / name
            file.write_bytes(file.read_bytes()[:kept])
            if not kept:
                file.unlink()
            with pytest.raises(InputError, match=f"checkpoint-1.*: {message}"):
                resuming_from(copy, make_policy)


def test_a_folder_that_not_all_processes_see_is_refused(tmp_path, monkeypatch):
    """Each node's disk would get a part of a checkpoint."""
    monkeypatch.setattr(checkpointing, "SEEN_WITHIN", 0.0)
    args = SimpleNamespace(output_dir=str(tmp_path / "run"), save_on_each_node=False)
    first, other = (
        SimpleNamespace(num_processes=2, is_main_process=is_main, wait_for_everyone=lambda: None)
        for is_main in (True, False)
    )
    check_shared(args, first)
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(InputError, match="1 of 1 processes do not see what the first writes there"):
        check_shared(args, other)
    with pytest.raises(InputError, match="save_on_each_node: not supported"):
        check_shared(SimpleNamespace(save_on_each_node=True), first)


class Hub:
    """Stands in for the Hub: what is uploaded while the next save has begun, by folder."""

    def __init__(self, run: Path):
        self.run = run
        self.uploads: list[tuple[Path, set[str]]] = []

    def create_repo(self, name, **_):
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, folder_path, ignore_patterns=None, **_) -> Future:
        next_one = Staging(self.run / "checkpoint-9", HIDDEN)
        (next_one.written / "model.safetensors").touch()
        folder = Path(folder_path)
        paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        self.uploads.append((folder, {*filter_repo_objects(paths, ignore_patterns=ignore_patterns)}))
        next_one.close()
        done = Future()
        done.set_result(None)
        return done


def test_the_hub_gets_whole_checkpoints_and_nothing_that_is_being_written(make_policy, tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    pushing = {"push_to_hub": True, "hub_model_id": "me/run", "hub_strategy": "all_checkpoints"}
    trained(make_policy(0), settings(tmp_path, max_steps=2, save_strategy="steps", save_steps=1, **pushing))
    steps = [tmp_path / f"checkpoint-{step}" for step in (1, 2)]
    assert [folder for folder, _ in hub.uploads] == [tmp_path, steps[0], tmp_path, steps[1]]
    for folder, paths in hub.uploads:
        assert "model.safetensors" in paths and not any("checkpoint-" in path for path in paths)
        assert ("trainer_state.json" in paths and "limner.json" in paths) == (folder in steps)

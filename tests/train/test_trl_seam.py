"""The seam with TRL: the version it was written for, and the methods that it replaces, guarded by name."""

import inspect
from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement
from transformers import Trainer

from limner.train.scale.checkpointing import WholeCheckpoints
from limner.train.trainer import GRPOTrainer, InterleavedGRPOTrainer

SEAM = {
    # What we override, and the parameters that the library must still call it with.
    "_generate_and_score_completions": (GRPOTrainer, ["self", "inputs"]),
    "_compute_loss": (GRPOTrainer, ["self", "model", "inputs"]),
    "_prepare_inputs": (GRPOTrainer, ["self", "generation_batch"]),
    "_get_train_sampler": (GRPOTrainer, ["self", "dataset"]),
    "log": (GRPOTrainer, ["self", "logs", "start_time"]),
    "create_model_card": (GRPOTrainer, ["self", "model_name", "dataset_name", "tags"]),
    "_save_checkpoint": (GRPOTrainer, ["self", "model", "trial"]),
    "_load_from_checkpoint": (Trainer, ["self", "resume_from_checkpoint", "model"]),
    "_issue_warnings_after_load": (Trainer, ["self", "load_result"]),
    "_load_optimizer_and_scheduler": (GRPOTrainer, ["self", "checkpoint"]),
    "train": (Trainer, ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]),
    "_run_epoch": (
        Trainer,
        ["self", "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"]
        + ["ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"]
        + ["steps_trained_in_current_epoch"],
    ),
    "_save": (Trainer, ["self", "output_dir", "state_dict"]),
    "_get_output_dir": (Trainer, ["self", "trial"]),
    "_push_from_checkpoint": (Trainer, ["self", "checkpoint_folder"]),
    "_save_rng_state": (Trainer, ["self", "output_dir"]),
    "_load_rng_state": (Trainer, ["self", "checkpoint"]),
}


def test_trl_is_the_version_that_the_seam_was_written_for():
    (pinned,) = (r for r in map(Requirement, requires("limner") or []) if r.name == "trl")
    assert pinned.specifier.contains(version("trl")), f"trl {version('trl')} is outside {pinned}"


@pytest.mark.parametrize("name", SEAM)
def test_trl_still_has_the_method_that_we_override(name):
    owner, parameters = SEAM[name]
    method = getattr(owner, name, None)
    assert method is not None, f"{owner.__name__}.{name} is gone"
    found = list(inspect.signature(method).parameters)
    assert found == parameters, f"{owner.__name__}.{name} takes {found}, no longer {parameters}"


def test_every_overridden_method_is_guarded():
    ours = {name for cls in (InterleavedGRPOTrainer, WholeCheckpoints) for name in vars(cls) if name[:2] != "__"}
    overridden = {name for name in ours if callable(getattr(GRPOTrainer, name, None))}
    assert overridden == set(SEAM)

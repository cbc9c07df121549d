"""The folder of a run: what is refused there, where a run goes on, and what it says of its settings."""

from dataclasses import replace

import pytest
import yaml

from limner.configs.errors import InputError
from limner.train.grpo import RunConfig, place, run
from limner.train.objective.algorithm import AlgorithmConfig, PerModality
from limner.train.scale.run_folder import check_model, checkpoints, resume_point, save_settings
from limner.train.warmup import WarmupConfig

from ..runs import PROMPTS, settings


def make_checkpoints(folder, *steps):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(f'{{"global_step": {step}}}')


def test_the_last_checkpoint_is_the_last_by_number(tmp_path):
    make_checkpoints(tmp_path, 9, 10, 2, "final", "11.partial")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    assert resume_point(tmp_path, "last") == str(tmp_path / "checkpoint-10")
    with pytest.raises(InputError, match="no such checkpoint; give a checkpoint folder, or `last`"):
        resume_point(tmp_path, str(tmp_path / "checkpoint-12"))
    (tmp_path / "checkpoint-10" / "trainer_state.json").unlink()
    with pytest.raises(InputError, match="checkpoint-10: .* is missing or damaged, .* delete the folder"):
        resume_point(tmp_path, "last")


def test_a_run_that_goes_back_does_not_mix_with_what_came_later(tmp_path):
    """`last` would be one of the later ones, and save_total_limit would take the new ones for old."""
    make_checkpoints(tmp_path, 1, 2, 3)
    first, last = (str(tmp_path / f"checkpoint-{step}") for step in (1, 3))
    with pytest.raises(InputError, match="holds checkpoint-3 of an earlier run; move what comes after it away"):
        resume_point(tmp_path, first)
    assert resume_point(tmp_path, last) == last
    assert resume_point(tmp_path / "another", first) == first


@pytest.mark.parametrize("left", [["model"], ["trajectories"], ["model", "trajectories"]])
def test_a_new_run_neither_replaces_nor_mixes_with_one_without_checkpoints(left, tmp_path):
    (tmp_path / "runs").mkdir()
    assert resume_point(tmp_path, None) is None, "a run that was only begun is in nobody's way"
    for name in left:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"holds {' and '.join(left)} of an earlier run; give another --output_dir"):
        resume_point(tmp_path, None)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "notes").touch()
    for output in (tmp_path / "notes", tmp_path / "notes" / "run"):
        with pytest.raises(InputError, match="output_dir: .*notes is a file; name a folder"):
            resume_point(output, None)


def test_a_resumed_run_says_what_it_changes_and_keeps_what_it_began_with(tmp_path, capsys):
    config, args = RunConfig(model="start"), settings(tmp_path, max_steps=4)
    save_settings(tmp_path, None, config, args)
    make_checkpoints(tmp_path, 2)
    point = resume_point(tmp_path, "last")
    save_settings(tmp_path, point, config, settings(tmp_path, max_steps=4, resume_from_checkpoint="last"))
    assert capsys.readouterr().out == "" and not (tmp_path / "config.until-2.yaml").exists()

    other = replace(config, algorithm=AlgorithmConfig(beta=PerModality(0.1, 0.0)))
    save_settings(tmp_path, point, other, settings(tmp_path, max_steps=8))
    said = capsys.readouterr().out
    assert "algorithm.beta.text 0.0 -> 0.1, max_steps 4 -> 8" in said and "config.until-2.yaml" in said
    save_settings(tmp_path, point, config, settings(tmp_path, max_steps=6))  # the call before has failed
    save_settings(tmp_path, point, other, settings(tmp_path, max_steps=8))
    steps = [
        yaml.safe_load((tmp_path / name).read_text())["max_steps"] for name in ("config.until-2.yaml", "config.yaml")
    ]
    assert steps == [4, 8]


def test_a_run_goes_on_with_the_model_it_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_checkpoints(tmp_path / "run", 2)
    point = str(tmp_path / "run" / "checkpoint-2")
    check_model(point, "another")  # a run from Python may have left no settings
    save_settings(tmp_path / "run", None, RunConfig(model="models/start"), settings(tmp_path / "run"))
    for same in ("models/start", "./models/start", str(tmp_path / "models" / "start"), ""):
        check_model(point, same)
    check_model(None, "another")
    with pytest.raises(InputError, match="model: another, and the run in .*run began with models/start; go on with "):
        check_model(point, "another")
    save_settings(tmp_path / "run", None, WarmupConfig(), settings(tmp_path / "run"))
    check_model(point, "run/new_model")  # where the checkpoints hold shards and no model
    with pytest.raises(InputError, match="model: another, and the run in .* began with a new model; leave --model out"):
        check_model(point, "another")


@pytest.mark.parametrize("entry", [run, place])
def test_a_resume_with_another_model_is_refused_before_it_is_loaded(entry, tmp_path):
    task = "insertion" if entry is place else "documents"
    config = RunConfig(model="start", prompts="p.jsonl", task=task)
    make_checkpoints(tmp_path, 2)
    save_settings(tmp_path, None, config, settings(tmp_path))
    with pytest.raises(InputError, match="model: other, and the run in .* began with start"):
        entry(replace(config, model="other"), settings(tmp_path, resume_from_checkpoint="last"))


def test_a_second_run_in_a_folder_is_refused_before_anything_is_sampled(make_policy, tmp_path):
    config = RunConfig(algorithm=AlgorithmConfig(), preflight=False)
    run(config, settings(tmp_path), make_policy(0), PROMPTS)
    trained = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds model of an earlier run"):
        run(config, settings(tmp_path, learning_rate=0.5), make_policy(0), PROMPTS)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == trained

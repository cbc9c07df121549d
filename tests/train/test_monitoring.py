"""What watches a run: the held-out score, alarms and their exact resume, saved trajectories."""

import json

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.checkpoints.folder import save
from limner.train.grpo import RunConfig, make_trainer, run
from limner.train.monitoring import AlarmBell, HeldOut, HeldOutConfig, Trajectories
from limner.train.objective.algorithm import AlgorithmConfig
from limner.train.watch.alarms import Alarm, Alarms, AlarmsConfig
from limner.train.watch.trajectories import read_trajectories
from limner.worlds.picture_stories.prompts import write_outlines
from limner.worlds.picture_stories.scenes import SCENES

from .runs import PROMPTS, Illustrated, logs, settings, trained


def with_watchers(policy, directory, **changes):
    """A run of six steps, two a rollout batch, watched by everything."""
    args = settings(directory, max_steps=6, steps_per_generation=2, per_device_train_batch_size=4, **changes)
    trainer = make_trainer(RunConfig(preflight=False), args, policy, PROMPTS)
    trainer.reward = Illustrated()
    trainer.add_callback(HeldOut(trainer, PROMPTS[:3], every=2))
    trainer.watchers.append(Trajectories(directory / "trajectories", 2, trainer))
    return trainer


def test_a_watched_run_logs_saves_and_trains_as_an_unwatched_one(make_policy, tmp_path):
    policy = make_policy(0)
    trainer = with_watchers(policy, tmp_path)
    trainer.train()
    history = logs(trainer)
    assert [line["step"] for line in history if "heldout/score" in line] == [1, 2, 4, 6]
    assert all(0 <= line["heldout/score"] <= 1 for line in history if "heldout/score" in line)
    assert history[0]["heldout/pictures"] == pytest.approx(history[0]["heldout/score"])
    assert not [line for line in trainer.state.log_history if "alarm" in line]

    found = list(read_trajectories(tmp_path / "trajectories"))
    assert {item.step for item in found} == {0, 4}  # every other batch of rollouts
    assert len(found) == 16 and {(item.group, item.number) for item in found} == {
        (g, n) for g in (0, 1) for n in range(4)
    }

    alone = make_policy(0)
    args = settings(tmp_path / "alone", max_steps=6, steps_per_generation=2, per_device_train_batch_size=4)
    trained(alone, args)
    assert torch.equal(alone.model.lm_head.weight, policy.model.lm_head.weight)


def test_the_held_out_score_always_draws_the_same(make_policy, tmp_path):
    trainer = with_watchers(make_policy(0), tmp_path, learning_rate=0.0)
    trainer.train()
    assert len({line["heldout/score"] for line in logs(trainer) if "heldout/score" in line}) == 1


def test_alarms_ring_once_and_are_taken_up_on_resume(make_policy, tmp_path, capsys):
    class Loud(Alarms):
        def update(self, step, metrics):
            super().update(step, metrics)
            self.active.setdefault("test", 0)
            return [Alarm("test", f"step {step}: rings.")] if step == 2 else []

    def go(resume=None, steps=2):
        args = settings(tmp_path, max_steps=steps, save_strategy="steps", save_steps=2)
        trainer = make_trainer(RunConfig(preflight=False), args, make_policy(0), PROMPTS)
        trainer.reward = Illustrated()
        (bell,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, AlarmBell)]
        bell.alarms = trainer.stateful["alarms"] = Loud(AlarmsConfig())
        trainer.train(resume_from_checkpoint=resume)
        return bell.alarms, [line["alarm"] for line in trainer.state.log_history if "alarm" in line]

    first, rung = go()
    assert rung == ["test"]
    assert capsys.readouterr().out.count("ALARM test: step 2: rings.") == 1
    again, rung = go(str(tmp_path / "checkpoint-2"), steps=3)
    assert again.history.last["reward"][:2] == first.history.last["reward"] and len(again.history.last["reward"]) == 3


def test_a_run_reads_its_held_out_prompts_from_a_file(make_policy, tmp_path):
    save(make_policy(0), tmp_path / "start")
    write_outlines(tmp_path / "heldout.jsonl", [tuple(SCENES[i : i + 2]) for i in range(5)])
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"prompt": f"Draw {i}."}) + "\n" for i in range(4)))
    config = RunConfig(
        model=str(tmp_path / "start"),
        prompts=str(tmp_path / "train.jsonl"),
        heldout=HeldOutConfig(str(tmp_path / "heldout.jsonl"), every=3, limit=2),
    )
    trainer = make_trainer(config, settings(tmp_path / "run"))
    (heldout,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, HeldOut)]
    assert len(heldout.prompts) == 2 and heldout.every == 3


@pytest.mark.parametrize("name", ["every", "limit"])
def test_heldout_settings_below_one_are_refused(name):
    with pytest.raises(InputError, match=f"^heldout.{name}: expected a number 1 to"):
        HeldOutConfig("heldout.jsonl", **{name: 0})


def test_without_pictures_no_image_gradient_is_awaited(make_policy, tmp_path):
    save(make_policy(0), tmp_path / "start")
    config = RunConfig(model=str(tmp_path / "start"), algorithm=AlgorithmConfig(max_images=0))
    trainer = make_trainer(config, settings(tmp_path / "run"), prompts=PROMPTS)
    assert trainer.stateful["alarms"].modalities == ("text",)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(name, tmp_path, monkeypatch):
    monkeypatch.setattr("limner.train.watch.progress.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(InputError, match=f"report_to: {name} is not installed: pip install {name}"):
        run(RunConfig(), settings(tmp_path, report_to=[name]))

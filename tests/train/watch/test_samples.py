"""The table of samples in wandb and trackio, which stand-ins for the packages are sent."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from unittest.mock import ANY

import pytest
from transformers import TrainerState
from trl.extras import profiling

from limner.train.grpo import RunConfig, make_trainer
from limner.train.watch.samples import ROWS, TABLES, Samples

from ..runs import PROMPTS, Illustrated, settings


class Tracker(ModuleType):
    """What both packages have in common."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # transformers looks for it
        self.run, self.logged = object(), []

    def Table(self, *, dataframe):
        return dataframe

    def Image(self, picture):
        return picture.size

    def log(self, entry, step=None):
        self.logged.append(entry)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_sends_a_table_of_what_it_sampled(name, make_policy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, tracker := Tracker(name))
    monkeypatch.setattr(profiling, name, tracker, raising=False)  # which TRL has imported, were it installed
    args = settings(tmp_path, max_steps=2)
    args.report_to = [name]
    monkeypatch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda _: [])
    trainer = make_trainer(RunConfig(preflight=False), args, make_policy(0), PROMPTS)
    trainer.reward = Illustrated()
    trainer.train()
    sent = [entry for entry in tracker.logged if "samples" in entry]
    assert [entry["train/global_step"] for entry in sent] == [1, 2]
    table = sent[0]["samples"]
    parts = [f"rewards/{part}" for part in trainer.reward(()).breakdown]
    assert list(table) == ["step", "prompt", "answer", "pictures", "reward", *parts, "ended"] and len(table) == ROWS
    assert table["rewards/pictures"].equals(table["reward"]), "a part has its column, whatever its name"
    assert all(prompt.startswith("Illustrate: ") for prompt in table["prompt"])
    assert [answer.count("[picture]") for answer in table["answer"]] == [len(row) for row in table["pictures"]]
    assert any(table["pictures"]) and {size for row in table["pictures"] for size in row} == {(32, 32)}
    assert table["reward"].between(0, 1).all()


def test_tables_are_few_and_only_where_a_run_of_the_tracker_is_open(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", tracker := Tracker("wandb"))
    monkeypatch.setattr("limner.train.watch.samples.build", lambda *_: [])
    state = TrainerState(max_steps=10 * TABLES)
    trainer = SimpleNamespace(
        args=SimpleNamespace(report_to=["tensorboard", "wandb"]),
        num_generations=4,
        policy=SimpleNamespace(processor=None),
    )
    samples = Samples(trainer)
    assert samples.trackers == ["wandb"]

    def lines(count: int) -> int:
        for _ in range(count):
            state.global_step += 1
            samples.on_log(None, state, None, {"loss": 0.0})
        return len(tracker.logged)

    assert lines(5) == 0, "nothing was sampled yet"
    samples._last = ANY
    assert lines(25) == 3
    tracker.run = None
    assert lines(100) == 3

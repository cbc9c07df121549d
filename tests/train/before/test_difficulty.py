"""Prompts rated before a run: what is kept, and that a cut or another batch size changes nothing."""

import json

import pytest

from limner.configs.errors import InputError
from limner.data.prompts import read_prompts
from limner.rewards.base import RewardOutput
from limner.train.before.difficulty import KEPT, DifficultyConfig, Rating
from limner.train.before.preflight import PreflightDone
from limner.train.objective.algorithm import AlgorithmConfig
from limner.train.trainer import InterleavedGRPOTrainer

from ..runs import PROMPTS, Illustrated, dataset, settings

SCORES = {"prompt-0": 0.0, "prompt-4": 0.5, "prompt-8": 1.0, "prompt-12": None}


class ByPrompt:
    """A prompt's answers score what the table says."""

    name = "by_prompt"

    def __call__(self, completions):
        outcome = [SCORES[completion.prompt.id] for completion in completions]
        return RewardOutput(outcome, [[None] * len(c.answer.segments) for c in completions])


@pytest.fixture
def policy(make_policy):
    return make_policy(0)


def rate(policy, folder, reward, rows=8, seed=0, prompts=PROMPTS, **bounds):
    args = settings(folder / "run", per_device_train_batch_size=rows, max_completion_length=24, seed=seed)
    trainer = InterleavedGRPOTrainer(policy, reward, AlgorithmConfig(), args, dataset(prompts))
    rating = Rating(trainer, DifficultyConfig(str(folder), **bounds), {"seed": seed})
    trainer.callback_handler.callbacks = [rating]
    with pytest.raises(PreflightDone):
        trainer.train()


def ratings(folder):
    return sorted((folder / "ratings.0.jsonl").read_text().splitlines())


def test_what_teaches_is_kept_whole_and_the_rest_is_counted(policy, tmp_path, capsys):
    rate(policy, tmp_path, ByPrompt())
    assert read_prompts(tmp_path / KEPT) == [PROMPTS[1], PROMPTS[3]], "nothing is known of one that was not scored"
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("1 kept, 1 too hard, 1 too easy, 1 not scored of 4 prompts; wrote ")
    rate(policy, tmp_path, None, lowest=0, highest=1)  # the scores are there: the reward is not asked
    assert read_prompts(tmp_path / KEPT) == PROMPTS


def test_neither_a_cut_nor_the_batch_changes_a_score(policy, tmp_path):
    rate(policy, tmp_path / "whole", Illustrated(), lowest=0)
    rate(policy, tmp_path / "cut", Illustrated(), rows=4, lowest=0)
    lines = ratings(tmp_path / "whole")
    assert len({tuple(json.loads(line)["scores"]) for line in lines}) > 1 and ratings(tmp_path / "cut") == lines
    journal = tmp_path / "cut" / "ratings.0.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3])[:-5])  # in the middle of a line
    rate(policy, tmp_path / "cut", Illustrated(), lowest=0)
    assert ratings(tmp_path / "cut") == lines


def test_other_settings_and_no_prompt_left_are_refused(policy, tmp_path, monkeypatch):
    rate(policy, tmp_path, ByPrompt())
    with pytest.raises(InputError, match=r"other settings \(seed was 0, is 1\)"):
        rate(policy, tmp_path, ByPrompt(), seed=1)
    with pytest.raises(InputError, match=r"other settings \(prompts was"):
        rate(policy, tmp_path, ByPrompt(), prompts=PROMPTS[::-1])
    with pytest.raises(InputError, match="lowest, highest: 0.9 is above 0.1"):
        DifficultyConfig(lowest=0.9, highest=0.1)
    monkeypatch.setitem(SCORES, "prompt-12", 1.0)
    with pytest.raises(InputError, match=r"1 too hard, 3 too easy, and none is left"):
        rate(policy, tmp_path / "all", ByPrompt(), highest=0.4)

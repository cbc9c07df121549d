"""From scored rollouts to what is trained on: by part, and where the length limit cut."""

import pytest
import torch

from limner.configs.errors import InputError
from limner.rewards.base import RewardOutput
from limner.rewards.hybrid import HybridReward, PartRule
from limner.train.objective.advantages import outcome_advantages
from limner.train.objective.algorithm import AlgorithmConfig
from limner.train.trainer import InterleavedGRPOTrainer

from .runs import Illustrated, dataset, parameters, settings, trained


class Faint:
    """Even lengths are better, by a hundredth; texts are scored as well."""

    name = "faint"

    def __call__(self, completions):
        outcome = [0.5 + 0.01 * (len(completion.answer.segments) % 2) for completion in completions]
        return RewardOutput(
            outcome, [[score] * len(c.answer.segments) for c, score in zip(completions, outcome, strict=True)]
        )


def trainer_of(policy, directory, reward=None, length=48, **algorithm):
    args = settings(directory, max_completion_length=length)
    return InterleavedGRPOTrainer(policy, reward or Illustrated(), AlgorithmConfig(**algorithm), args, dataset())


def rolled(*given, **settings):
    trainer = trainer_of(*given, **settings)
    return trainer, trainer.roll_out(trainer.first_inputs())


def trained_on(trainer, batch):
    return trainer.tokens_of(trainer.rows_of(batch)).trained_BT.cpu()


def test_each_part_is_normalised_by_itself(make_policy, tmp_path):
    parts = [(Illustrated(), 1.0), (Faint(), 2.0)]
    trainer, batch = rolled(make_policy(0), tmp_path, HybridReward(parts), reward_aggregation="normalise-then-sum")
    wide, faint = (
        outcome_advantages(torch.tensor(batch.output.breakdown[name]), 4) for name in ("illustrated", "faint")
    )
    assert faint.abs().max() > 0.5
    torch.testing.assert_close(batch.advantages_RT[:, -1], (wide + 2 * faint) / 3)
    _, summed = rolled(make_policy(0), tmp_path, HybridReward(parts))
    torch.testing.assert_close(summed.advantages_RT[:, -1], outcome_advantages(torch.tensor(summed.output.outcome), 4))
    # A floor above the spread of the faint part keeps it faint.
    reward = HybridReward(parts, {"faint": PartRule(floor=0.5)})
    _, floored = rolled(make_policy(0), tmp_path, reward, reward_aggregation="normalise-then-sum")
    torch.testing.assert_close(floored.advantages_RT[:, -1], wide / 3, atol=0.03, rtol=0)


def test_segments_are_normalised_by_part_too(make_policy, tmp_path):
    parts = [(Illustrated(), 1.0), (Faint(), 1.0)]
    given = {"outcome_weight": 0.0, "process_weight": 1.0, "process_discount": 0.0}
    both = [
        rolled(make_policy(0), tmp_path, HybridReward(parts), reward_aggregation=way, **given)[1]
        for way in ("sum-then-normalise", "normalise-then-sum")
    ]
    assert not torch.allclose(both[0].advantages_RT, both[1].advantages_RT, atol=0.1)
    alone = HybridReward(parts[:1])
    one, other = (
        rolled(make_policy(0), tmp_path, alone, reward_aggregation=way, **given)[1].advantages_RT
        for way in ("sum-then-normalise", "normalise-then-sum")
    )
    assert torch.equal(one, other)


def test_a_picture_that_was_cut_is_not_trained_on(make_policy, tmp_path):
    trainer, batch = rolled(make_policy(0), tmp_path, length=24)
    cut = [row for row, item in enumerate(batch.rollouts) if item.cut_image]
    assert cut and len(cut) < len(batch.rollouts)
    left = trained_on(trainer, batch)
    for row, item in enumerate(batch.rollouts):
        chosen, unseen = item.sequence.trainable_T, item.sequence.segment_T >= len(item.completion.answer.segments)
        expected = chosen & ~unseen if item.cut_image else chosen
        assert torch.equal(left[row, : len(chosen)], expected)
        assert row not in cut or (chosen & unseen).sum() > 0


def test_unless_asked_for(make_policy, tmp_path):
    trainer, batch = rolled(make_policy(0), tmp_path, length=24, train_cut_pictures=True)
    left = trained_on(trainer, batch)
    for row, item in enumerate(batch.rollouts):
        assert torch.equal(left[row, : len(item.sequence)], item.sequence.trainable_T)


def test_cut_answers_are_masked_but_stay_in_their_group(make_policy, tmp_path):
    trainer, batch = rolled(make_policy(0), tmp_path, cut_answers="mask")
    _, as_before = rolled(make_policy(0), tmp_path)
    ended = torch.tensor([item.completion.ended for item in batch.rollouts])
    assert ended.any() and not ended.all()
    assert torch.equal(trained_on(trainer, batch).any(1), ended)
    assert torch.equal(batch.advantages_RT, as_before.advantages_RT)


def test_a_step_of_nothing_but_masked_answers_changes_nothing(make_policy, tmp_path):
    policy = make_policy(0)
    before = parameters(policy)
    trainer = trained(policy, settings(tmp_path, max_completion_length=2), cut_answers="mask")
    assert torch.equal(parameters(policy), before)
    assert all(value == value for entry in trainer.state.log_history for value in entry.values())


@pytest.mark.parametrize("way", ["sum-then-normalise", "normalise-then-sum"])
def test_length_is_punished(make_policy, tmp_path, way):
    class Same(Illustrated):
        def __call__(self, completions):
            return RewardOutput([0.5] * len(completions), [[None] * len(c.answer.segments) for c in completions])

    given = {"reward_aggregation": way, "cut_answers": "punish", "overlong_from": 0.5}
    _, batch = rolled(make_policy(0), tmp_path, HybridReward([(Same(), 1.0)]), **given)
    lengths = [len(item.sequence) - item.sequence.prompt_length for item in batch.rollouts]
    punished = torch.tensor([-min(max(length - 24, 0) / 24, 1) for length in lengths])
    assert punished.unique().numel() > 1 and batch.output.outcome == [0.5] * 8  # what is logged is the reward
    expected = outcome_advantages(punished, 4) / (2 if way == "normalise-then-sum" else 1)
    torch.testing.assert_close(batch.advantages_RT[:, -1], expected)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"cut_answers": "drop"}, "algorithm.cut_answers: 'drop' is none of train, mask, punish"),
        ({"reward_aggregation": "gdpo"}, "algorithm.reward_aggregation: 'gdpo' is none of sum-then-normalise, "),
        ({"overlong_from": 1.0}, "algorithm.overlong_from: 1.0; a share of max_completion_length below 1"),
    ],
)
def test_settings_that_are_none(make_policy, tmp_path, setting, words):
    with pytest.raises(InputError) as refused:
        trainer_of(make_policy(0), tmp_path, **setting)
    assert str(refused.value).startswith(words)

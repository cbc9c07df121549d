"""Advantages against published and hand-computed vectors, and their behaviour where something is missing."""

import pytest
import torch
from torch import Tensor, nan

from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.tokens.sequence import TokenSequence
from limner.train.objective.advantages import (
    best_of_group,
    dead_groups,
    outcome_advantages,
    process_advantages,
    segment_advantages,
)
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

ROOT2 = 2**0.5


def near(tensor: Tensor, expected: list) -> bool:
    return torch.allclose(tensor, torch.tensor(expected, dtype=tensor.dtype), atol=1e-5, equal_nan=True)


def test_the_pair_of_the_paper_gets_plus_and_minus_one():
    # U-GRPO, Figure 1: text + visual + format rewards of two responses, and the advantages printed beside them.
    rewards = torch.tensor([0.75 + 0.54 + 1.00, 0.95 + 0.76 + 0.00])
    assert near(outcome_advantages(rewards, 2), [1.0, -1.0])


def test_groups_are_normalised_apart():
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 10.0, 20.0, 20.0, 30.0])
    assert near(outcome_advantages(rewards, 4), [-1, 1, 1, -1, 0, 0, 0, 0, -ROOT2, 0, 0, ROOT2])


def test_a_missing_outcome_takes_part_in_no_mean():
    assert near(outcome_advantages(torch.tensor([0.0, nan, 1.0, nan, nan, nan]), 3), [-1, 0, 1, 0, 0, 0])


def test_leave_one_out_compares_with_the_others():
    rewards = torch.tensor([1.0, 0.0, 0.5, nan, 0.5, 0.5, 0.5, 0.5])
    expected = [1 - 0.25, 0 - 0.75, 0.5 - 0.5, 0, 0, 0, 0, 0]  # the mean of the others that have a reward
    assert near(outcome_advantages(rewards, 4, "leave-one-out", scale=False), expected)
    std = (1 / 6) ** 0.5
    assert near(outcome_advantages(rewards, 4, "leave-one-out"), [value / std for value in expected])
    assert near(outcome_advantages(torch.tensor([0.7]), 1, "leave-one-out"), [0])


def test_without_the_std_the_size_of_a_difference_counts():
    rewards = torch.tensor([0.0, 1.0, 0.4, 0.6])
    assert near(outcome_advantages(rewards, 2, scale=False), [-0.5, 0.5, -0.1, 0.1])
    assert near(segment_advantages(rewards[:, None], 2, scale=False), [[-0.5], [0.5], [-0.1], [0.1]])
    pair = torch.tensor([[1.0, nan], [0.0, 0.5]])
    assert near(segment_advantages(pair, 2, pooled=True, scale=False), [[0.5, nan], [-0.5, 0]])


def test_pooled_process_rewards():
    # Two rollouts of two steps, [1.0, 0.5] and [0.0, 0.5]: mean 0.5, population std 0.353553.
    pooled = segment_advantages(torch.tensor([[1.0, 0.5], [0.0, 0.5]]), 2, pooled=True)
    assert near(pooled, [[ROOT2, 0], [-ROOT2, 0]])
    tokens = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, 2]])
    assert near(process_advantages(pooled, tokens), [[ROOT2, ROOT2, 0, 0, 0], [-ROOT2, 0, 0, 0, 0]])


def test_rewards_normalised_by_segment_index():
    rewards = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.4, 0.0], [0.5, 0.6, 0.0]])
    by_index = segment_advantages(rewards, 3)
    # Column 0: mean 0.5, variance (0.25 + 0.25) / 3. Column 1: mean 0.4, variance 0.08 / 3. Column 2 does not vary.
    high = 0.5 / (0.5 / 3) ** 0.5
    assert near(by_index, [[high, -high, 0], [-high, 0, 0], [0, high, 0]])
    tokens = torch.arange(3).repeat(3, 1)
    assert near(process_advantages(by_index, tokens), [[0, -high, 0], [-high, 0, 0], [high, high, 0]])


def test_sum_mean_and_discount_over_the_remaining_segments():
    rewards, tokens = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0, 1, 2, 3]])
    assert near(process_advantages(rewards, tokens), [[10, 9, 7, 4]])
    assert near(process_advantages(rewards, tokens, mean=True), [[2.5, 3, 3.5, 4]])
    assert near(process_advantages(rewards, tokens, discount=0.5), [[3.25, 4.5, 5, 4]])
    assert near(process_advantages(rewards, tokens, discount=0.0), [[1, 2, 3, 4]])
    assert near(process_advantages(rewards, tokens, discount=0.0, mean=True), [[1, 2, 3, 4]])
    assert near(process_advantages(rewards, tokens, discount=0.5, mean=True), [[3.25 / 1.875, 4.5 / 1.75, 5 / 1.5, 4]])


def test_a_missing_segment_contributes_nothing():
    # The first rollout has no second score, the third no third segment: ragged rows end in NaN.
    rewards = torch.tensor([[1.0, nan, 0.0], [0.0, 1.0, 1.0], [0.5, 0.0, nan]])
    normalised = segment_advantages(rewards, 3)
    high = 0.5 / (0.5 / 3) ** 0.5
    assert near(normalised, [[high, nan, -1], [-high, 1, 1], [0, -1, nan]])
    tokens = torch.arange(3).repeat(3, 1)
    assert near(process_advantages(normalised, tokens), [[high - 1, -1, -1], [2 - high, 2, 1], [-1, -1, 0]])
    # The mean is over the scores that are there: neither the missing one nor the raggedness of the others counts.
    means = [[(high - 1) / 2, -1, -1], [(2 - high) / 3, 1, 1], [-0.5, -1, 0]]
    assert near(process_advantages(normalised, tokens, mean=True), means)


def test_pooling_counts_only_the_scores_that_are_there():
    pooled = segment_advantages(torch.tensor([[1.0, nan, nan], [0.0, 1.0, 0.0]]), 2, pooled=True)
    assert near(pooled, [[1, nan, nan], [-1, 1, -1]])


def test_a_segment_that_one_rollout_alone_has_is_compared_with_nothing():
    assert near(segment_advantages(torch.tensor([[1.0, 0.9], [0.0, nan]]), 2), [[1, 0], [-1, nan]])


@pytest.mark.parametrize("pooled", [False, True])
def test_groups_of_one_and_groups_that_agree_have_no_advantage(pooled):
    ones = torch.tensor([[0.3, 0.9], [0.8, 0.1]])
    assert near(outcome_advantages(ones[:, 0], 1), [0, 0])
    assert near(segment_advantages(ones, 1, pooled), [[0, 0], [0, 0]])
    assert near(outcome_advantages(torch.full((8,), 0.7), 8), [0.0] * 8)
    assert near(segment_advantages(torch.full((8, 2), 0.7), 8, pooled), [[0.0, 0.0]] * 8)


def test_dead_groups_are_counted():
    assert dead_groups(torch.tensor([0.1, 0.1, 0.0, 1.0, 0.7, 0.7, nan, 0.4]), 2) == 0.75
    assert dead_groups(torch.tensor([0.3, 0.9]), 1) == 1


def test_the_best_of_each_group():
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.7, nan, 0.7, 0.2, 0.2, 0.2, nan, 0.4, 0.6, -1.0, nan, -2.0])
    assert near(best_of_group(rewards, 3), [0, 1, 0] + [0, 0, 0] + [0, 0, 0] + [0, 0, 1] + [1, 0, 0])
    assert near(best_of_group(torch.tensor([0.5, 0.9, 0.9]), 3), [0, 1, 0])


def written(processor, *segments) -> tuple[TokenSequence, Tensor]:
    """A completion as the sampler would write it, and the segment of each of its tokens."""
    document = InterleavedDocument((TextSegment("Illustrate."), *segments))
    sequence = processor.encode(document)
    ids_C = sequence.ids_T[sequence.prompt_length :]
    reading = processor.read(ids_C.tolist())
    prompt = processor.encode(InterleavedDocument((TextSegment("Illustrate."),)))
    joined = processor.join(prompt, ids_C, reading)
    assert torch.equal(joined.ids_T, sequence.ids_T) and torch.equal(joined.trainable_T, sequence.trainable_T)
    return joined, joined.segment_T[None]


def test_tokens_of_a_document_answer_for_their_segments(processor):
    """Adjacent pictures, a text after the last one, and `<eos>`, which no process reward reaches."""
    sentence = TextSegment(SCENES[0].sentence, trainable=True)
    picture = ImageSegment(draw_scene(SCENES[0]), trainable=True, origin="generated")
    sequence, segment_1C = written(processor, sentence, picture, picture, sentence)
    # Later columns belong to a longer rollout of the batch.
    advantages = process_advantages(torch.tensor([[1.0, 2.0, 4.0, 8.0, nan, nan]]), segment_1C)[0]
    image_length = processor.vocabulary.image_length + 2
    words = len(processor.text_ids(sentence.text))
    completion = [15.0] * words + [14.0] * image_length + [12.0] * image_length + [8.0] * words + [0.0]
    assert advantages.tolist() == [0.0] * sequence.prompt_length + completion
    assert sequence.ids_T[-1] == processor.vocabulary.controls.eos


def test_a_cut_picture_answers_for_nothing_of_its_own(processor):
    control, size = processor.vocabulary.controls, processor.vocabulary.text_size
    ids = torch.tensor([*processor.text_ids("A"), control.boi, size + 1, size + 2])
    reading = processor.read(ids.tolist())
    assert reading.cut_image and not reading.ended
    prompt = processor.encode(InterleavedDocument((TextSegment("Illustrate."),)))
    segment_C = processor.join(prompt, ids, reading).segment_T[len(prompt) :]
    assert (
        process_advantages(torch.tensor([[0.5, nan]]), segment_C[None])[0].tolist() == [0.5] * (len(ids) - 3) + [0] * 3
    )

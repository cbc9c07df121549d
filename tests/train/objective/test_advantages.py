"""Advantages against published and hand-computed vectors, and their behaviour where something is missing."""

import pytest
import torch
from torch import Tensor, nan

from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.tokens.sequence import TokenSequence
from limner.train.objective.advantages import (
    best_of_group,
    best_segments,
    dead_groups,
    miscount_costs,
    miscounts,
    outcome_advantages,
    process_advantages,
    score_norms,
    segment_advantages,
    weigh_negative,
)
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

ROOT2 = 2**0.5


def by_text(rewards: Tensor, group_size: int, pooled: bool = False, **settings) -> Tensor:
    """Segment advantages of answers that are all texts."""
    return segment_advantages(rewards, torch.zeros_like(rewards, dtype=torch.long), group_size, pooled, **settings)


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
    assert near(by_text(rewards[:, None], 2, scale=False), [[-0.5], [0.5], [-0.1], [0.1]])
    pair = torch.tensor([[1.0, nan], [0.0, 0.5]])
    assert near(by_text(pair, 2, pooled=True, scale=False), [[0.5, nan], [-0.5, 0]])


def test_pooled_process_rewards():
    # Two rollouts of two steps, [1.0, 0.5] and [0.0, 0.5]: mean 0.5, population std 0.353553.
    pooled = by_text(torch.tensor([[1.0, 0.5], [0.0, 0.5]]), 2, pooled=True)
    assert near(pooled, [[ROOT2, 0], [-ROOT2, 0]])
    tokens = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, 2]])
    assert near(process_advantages(pooled, tokens), [[ROOT2, ROOT2, 0, 0, 0], [-ROOT2, 0, 0, 0, 0]])


def test_rewards_normalised_by_segment_index():
    rewards = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.4, 0.0], [0.5, 0.6, 0.0]])
    by_index = by_text(rewards, 3)
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
    normalised = by_text(rewards, 3)
    high = 0.5 / (0.5 / 3) ** 0.5
    assert near(normalised, [[high, nan, -1], [-high, 1, 1], [0, -1, nan]])
    tokens = torch.arange(3).repeat(3, 1)
    assert near(process_advantages(normalised, tokens), [[high - 1, -1, -1], [2 - high, 2, 1], [-1, -1, 0]])
    # The mean is over the scores that are there: neither the missing one nor the raggedness of the others counts.
    means = [[(high - 1) / 2, -1, -1], [(2 - high) / 3, 1, 1], [-0.5, -1, 0]]
    assert near(process_advantages(normalised, tokens, mean=True), means)


def test_pooling_counts_only_the_scores_that_are_there():
    pooled = by_text(torch.tensor([[1.0, nan, nan], [0.0, 1.0, 0.0]]), 2, pooled=True)
    assert near(pooled, [[1, nan, nan], [-1, 1, -1]])


def test_a_segment_that_one_rollout_alone_has_is_compared_with_nothing():
    assert near(by_text(torch.tensor([[1.0, 0.9], [0.0, nan]]), 2), [[1, 0], [-1, nan]])


@pytest.mark.parametrize("pooled", [False, True])
def test_groups_of_one_and_groups_that_agree_have_no_advantage(pooled):
    ones = torch.tensor([[0.3, 0.9], [0.8, 0.1]])
    assert near(outcome_advantages(ones[:, 0], 1), [0, 0])
    assert near(by_text(ones, 1, pooled), [[0, 0], [0, 0]])
    assert near(outcome_advantages(torch.full((8,), 0.7), 8), [0.0] * 8)
    assert near(by_text(torch.full((8, 2), 0.7), 8, pooled), [[0.0, 0.0]] * 8)


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


# ---- what is compared with what ----


def table(rows: list[list[float]], missing: float = nan) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [missing] * (width - len(row)) for row in rows])


def kinds(*answers: str) -> Tensor:
    """TITI: text, image, text, image."""
    return table([[float("TI".index(kind)) for kind in answer] for answer in answers], -1).long()


def test_an_answer_that_begins_with_a_picture_is_compared_with_pictures():
    rewards = torch.tensor([[0.9, 0.5], [0.9, 0.5], [0.9, 0.5], [0.5, 0.9]])
    assert near(segment_advantages(rewards, kinds("TI", "TI", "TI", "IT"), 4), [[0.0, 0.0]] * 4)
    better = torch.tensor([[0.8, 0.5], [0.5, 0.8]])  # the second's text and picture are the better ones
    assert near(segment_advantages(better, kinds("TI", "IT"), 2), [[0, 0], [0, 0]])
    assert near(segment_advantages(better, kinds("TI", "TI"), 2), [[1, -1], [-1, 1]])


def test_alternating_answers_are_compared_by_index_bit_for_bit():
    torch.manual_seed(0)
    rewards = torch.rand(24, 6)
    rewards[torch.rand(24, 6) < 0.1] = nan
    by_index = by_text(rewards, 8)
    found = segment_advantages(rewards, kinds(*["TITITI"] * 24), 8)
    assert torch.equal(found.nan_to_num(9), by_index.nan_to_num(9))


def test_noise_is_no_advantage():
    rewards = torch.tensor([0.8, 0.8, 0.8, 0.800003])
    assert outcome_advantages(rewards, 4).abs().max() < 0.01
    assert by_text(rewards[:, None], 4).abs().max() < 0.01
    judged = torch.tensor([0.80, 0.81, 0.80, 0.81])
    assert near(outcome_advantages(judged, 4), [-1, 1, -1, 1])
    assert near(outcome_advantages(judged, 4, floor=0.05), [-0.1, 0.1, -0.1, 0.1])
    assert dead_groups(judged, 4) == 0 and dead_groups(judged, 4, floor=0.05) == 1
    assert best_of_group(judged, 4, floor=0.05).sum() == 0


def tokens_of(*answers: str) -> Tensor:
    """Two tokens a segment, then `<eos>`, then padding."""
    rows = [[k for k in range(len(answer)) for _ in range(2)] + [len(answer)] for answer in answers]
    return table([[float(k) for k in row] for row in rows], -1).long()


def costs(outcome: list[float], *answers: str, discount: float = 0.0) -> list[list[float]]:
    """The part of the process advantage that is due to the number of segments, by token."""
    kind = kinds(*answers)
    miscounted = miscounts(kind, torch.tensor(outcome), len(answers))
    flat = torch.zeros(kind.shape)
    cost = miscount_costs(kind, *miscounted, cost=1.0)
    found = process_advantages(flat, tokens_of(*answers), discount, cost_RE=cost)
    return [[round(value, 4) + 0.0 for value in row] for row in found.tolist()]


def test_stopping_halfway_costs_the_token_that_ended_the_answer():
    answers = ["TITI", "TITI", "TITI", "TI"]
    *others, stopped = costs([0.8] * 4, *answers)
    assert others == [[0.0] * 9] * 3
    assert stopped == [0, 0, 0, 0, -2, 0, 0, 0, 0]  # a text and a picture are missing
    assert costs([0.8] * 4, *answers, discount=1.0)[3] == [-2] * 5 + [0] * 4
    assert costs([0.8] * 4, *answers, discount=0.5)[3] == [-0.5, -0.5, -1, -1, -2, 0, 0, 0, 0]


def test_writing_on_costs_the_first_token_of_what_is_too_much():
    *others, longer = costs([0.8] * 4, "TI", "TI", "TI", "TIII")
    assert others == [[0.0] * 9] * 3
    assert longer == [0, 0, 0, 0, -1, 0, -1, 0, 0]
    assert costs([0.8] * 4, "TI", "TI", "TI", "TIII", discount=1.0)[3] == [-2, -2, -2, -2, -2, -1, -1, 0, 0]


def test_the_best_answers_say_how_many_segments_belong():
    """Not the majority, which would hold a model to what it mostly does; the majority where outcomes do not differ."""
    missing, surplus = miscounts(kinds("TI", "TI", "TI", "TITI"), torch.tensor([0.5, 0.6, 0.5, 0.9]), 4)
    assert missing.tolist() == [2, 2, 2, 0] and not surplus.any()
    missing, surplus = miscounts(kinds("TI", "TI", "TI", "TITI"), torch.tensor([0.9, 0.9, 0.9, 0.9004]), 4)
    assert missing.tolist() == [0] * 4 and surplus[3].tolist() == [False, False, True, True]
    # Two against two: either number is right. Without an outcome an answer takes no part, unless none has one.
    missing, surplus = miscounts(kinds("T", "TT", "T", "TT"), torch.tensor([0.5] * 4), 4)
    assert not missing.any() and not surplus.any()
    missing, surplus = miscounts(kinds("T", "TT", "TT"), torch.tensor([nan, 0.4, 0.4]), 3)
    assert not missing.any() and not surplus.any()
    missing, _ = miscounts(kinds("T", "TT", "TT"), torch.tensor([nan] * 3), 3)
    assert missing.tolist() == [1, 0, 0]


def test_pooled_sums_pay_for_length_and_compared_ones_with_their_costs_do_not():
    rewards, answers = (
        table([[1.0] * 4, [1.0] * 2, [0.0] * 4, [0.0] * 2, [1.0] * 2]),
        ("TITI", "TI", "TITI", "TI", "TI"),
    )
    literal = process_advantages(
        segment_advantages(rewards[:3], kinds(*answers[:3]), 3, pooled=True), tokens_of(*answers[:3])
    )
    assert near(literal[:2, 0], [3.2660, 1.6330])
    kind = kinds(*answers)
    cost = miscount_costs(kind, *miscounts(kind, torch.tensor([0.8, 1.0, 0.1, 0.1, 1.0]), 5), cost=1.0)
    normalised = segment_advantages(rewards, kind, 5)
    long, short = process_advantages(normalised, tokens_of(*answers), cost_RE=cost)[:2, 0].tolist()
    assert long == pytest.approx(short)  # two good segments more, and two too many


# ---- baselines, negative advantages, what is imitated ----


def test_the_score_weighted_baselines_are_means_by_weight():
    rewards, norms = torch.tensor([1.0, 0.0, 0.5, nan]), torch.tensor([1.0, 3.0, 1.0, 9.0])

    def found(baseline, norms=norms, **settings):
        return outcome_advantages(rewards, 4, baseline, score_norm_R=norms, **settings)

    assert near(found("score-weighted", scale=False), [1 - 0.3, 0 - 0.3, 0.5 - 0.3, 0])
    expected = [1 - 0.5 / 4, 0 - 1.5 / 2, 0.5 - 1 / 4, 0]
    assert near(found("score-weighted-leave-one-out", scale=False), expected)
    for alike in (torch.full((4,), 2.0), torch.zeros(4)):
        assert torch.allclose(found("score-weighted", alike), found("mean"), atol=1e-5)
        assert torch.allclose(found("score-weighted-leave-one-out", alike), found("leave-one-out"), atol=1e-5)
    settings = {"baseline": "score-weighted-leave-one-out", "scale": False, "score_norm_RK": norms[:, None]}
    by_segment = by_text(rewards[:, None], 4, **settings)
    assert near(by_segment, [[expected[0]], [expected[1]], [expected[2]], [nan]])


def test_the_score_weighted_baselines_have_the_least_variance():
    """Of a policy of two choices, one of which fails; the less likely one has the larger score."""
    probability = torch.tensor([0.8, 0.2], dtype=torch.float64)
    scores = torch.eye(2, dtype=torch.float64) - probability
    draws = (torch.rand(4000, 64, generator=torch.Generator().manual_seed(0)) < 0.2).long()
    rewards, ones = 1.0 - draws.double(), torch.ones(draws.numel(), 1)
    norms, _ = score_norms(probability.log()[draws].view(-1, 1), ones, torch.zeros_like(ones).long(), 1)
    gradients = {
        baseline: (
            outcome_advantages(rewards.flatten(), 64, baseline, scale=False, score_norm_R=norms).view(-1, 64)
            * scores[draws][..., 0]
        ).mean(1)
        for baseline in ("leave-one-out", "score-weighted", "score-weighted-leave-one-out")
    }
    exact = 0.8 * 0.2  # d/d logit of the mean reward
    for baseline, gradient in gradients.items():
        assert gradient.mean().item() == pytest.approx(exact, rel=0.02), baseline
    plain = gradients.pop("leave-one-out").std()
    assert all(gradient.std() < plain / 5 for gradient in gradients.values())


def test_score_norms_are_squares_of_what_was_not_certain():
    logp = torch.log(torch.tensor([[1.0, 0.5, 0.75, 0.1]]))
    chosen, segments = torch.tensor([[True, True, True, False]]), torch.tensor([[-1, 0, 1, 1]])
    whole, by_segment = score_norms(logp, chosen, segments, 3)
    assert near(whole, [0.25 + 0.0625]) and near(by_segment, [[0.25, 0.0625, 0]])


def test_negative_advantages_have_a_weight_of_their_own():
    advantages = torch.tensor([[1.0, -2.0], [0.0, -0.5]])
    assert weigh_negative(advantages, 1.0).tolist() == advantages.tolist()
    assert weigh_negative(advantages, 0.25).tolist() == [[1.0, -0.5], [0.0, -0.125]]
    assert weigh_negative(advantages, 0.0).clamp(max=0).abs().max() == 0


def test_the_best_of_the_segments_that_are_compared():
    kind = kinds("TI", "IT", "TIT")
    rewards = torch.tensor([[0.5, 0.9, nan], [0.4, 0.7, nan], [0.6, 0.9, 1.0]])
    surplus = torch.zeros_like(kind, dtype=torch.bool)
    assert best_segments(rewards, kind, surplus, 3).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]  # texts .5 .7 .6
    surplus[1, 1] = True
    assert best_segments(rewards, kind, surplus, 3).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert best_segments(torch.full((3, 3), 0.5), kind, surplus, 3).sum() == 0

"""Means, their intervals, and paired differences."""

import numpy as np
import pytest

from limner.eval.statistics import estimate, nested_difference, nested_estimate, paired_difference


def test_the_value_is_the_mean_of_the_items():
    result = estimate([0.0, 1.0, 1.0, 0.5])
    assert result["value"] == 0.625 and result["n"] == 4
    assert 0 <= result["low"] < 0.625 < result["high"] <= 1


def test_the_interval_is_the_normal_one_where_items_are_many():
    scores = np.random.default_rng(0).normal(0.4, 0.2, 2000).tolist()
    result = estimate(scores)
    half = 1.96 * 0.2 / 2000**0.5
    assert result["high"] - result["value"] == pytest.approx(half, rel=0.1)
    assert result["value"] - result["low"] == pytest.approx(half, rel=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        result = estimate((rng.random(100) < 0.3).astype(float).tolist(), seed=trial)
        covered += result["low"] <= 0.3 <= result["high"]
    assert 180 <= covered <= 199  # 190 expected


def test_more_items_narrow_the_interval_and_a_seed_repeats_it():
    few, many = estimate([0.0, 1.0] * 10), estimate([0.0, 1.0] * 1000)
    assert many["high"] - many["low"] < (few["high"] - few["low"]) / 5
    assert few == estimate([0.0, 1.0] * 10) != estimate([0.0, 1.0] * 10, seed=1)


def test_items_that_agree_leave_no_doubt():
    assert estimate([0.25] * 8) == {"value": 0.25, "low": 0.25, "high": 0.25, "n": 8}
    assert estimate([1]) == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}


def test_no_scores_are_an_error():
    with pytest.raises(ValueError, match="no scores"):
        estimate([])


def test_pairing_sees_a_small_difference_between_items_that_vary_widely():
    rng = np.random.default_rng(0)
    before = rng.random(200)
    after = before + 0.02 + rng.normal(0, 0.02, 200)
    paired = paired_difference(after.tolist(), before.tolist())
    assert paired["value"] == pytest.approx(after.mean() - before.mean()) and paired["n"] == 200
    assert 0 < paired["low"] < paired["high"] < 0.04
    assert estimate(after.tolist())["low"] < estimate(before.tolist())["high"]  # unpaired, nothing would show


def test_the_sign_says_who_is_better():
    assert paired_difference([1, 1, 0], [0, 1, 0])["value"] == pytest.approx(1 / 3)
    assert paired_difference([0, 1, 0], [1, 1, 0])["value"] == pytest.approx(-1 / 3)


def test_a_difference_needs_the_same_items():
    with pytest.raises(ValueError, match="3 scores against 2"):
        paired_difference([1, 1, 0], [0, 1])


def test_seeds_weigh_alike_and_their_spread_is_told():
    result = nested_estimate([[1.0] * 10, [0.0] * 30])
    assert result["value"] == 0.5 and result["n"] == 40 and result["seeds"] == 2
    assert (result["lowest"], result["highest"]) == (0.0, 1.0)
    assert (result["low"], result["high"]) == (0.0, 1.0)  # both seeds alike in a quarter of the resamples each
    with pytest.raises(ValueError, match="no scores"):
        nested_estimate([[1.0], []])


def test_of_one_seed_the_interval_is_that_of_its_items():
    scores = (np.random.default_rng(0).random(400) < 0.3).tolist()
    one, plain = nested_estimate([scores]), estimate(scores)
    assert one["value"] == plain["value"] and one["lowest"] == one["highest"] == plain["value"]
    assert one["high"] - one["low"] == pytest.approx(plain["high"] - plain["low"], rel=0.15)


def test_the_nested_interval_has_both_kinds_of_spread():
    rng = np.random.default_rng(0)
    levels = rng.normal(0.5, 0.1, 12)
    scores = [level + rng.normal(0, 1, 200) for level in levels]
    result = nested_estimate(scores)
    between = np.var([row.mean() for row in scores]) / 12
    half = 1.96 * (between + 1 / 2400) ** 0.5  # what seeds differ by, and the items drawn within them
    assert (result["high"] - result["low"]) / 2 == pytest.approx(half, rel=0.08)
    assert 1.96 * between**0.5 < 0.9 * half  # so neither alone would do
    assert nested_difference(scores, scores)["high"] == 0.0
    assert nested_difference(scores, [row - 1 for row in scores])["low"] == pytest.approx(1)
    with pytest.raises(ValueError, match="same items of each seed"):
        nested_difference([[1.0, 0.0]], [[1.0]])

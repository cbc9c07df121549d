"""Means, their intervals, and paired differences."""

import numpy as np
import pytest

from limner.eval.statistics import estimate, paired_difference


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

"""Settings of the algorithm as they are read."""

import pytest

from limner.configs import parse
from limner.train.grpo import RunConfig
from limner.train.objective.algorithm import AlgorithmConfig, PerModality, Schedule
from limner.train.trainer import GRPOConfig


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], 1.0),
        (["--algorithm.negative_weight", "0.25"], 0.25),
        (["--algorithm.negative_weight", "{start: 1, end: 0, over: 0.5}"], Schedule(1.0, 0.0, 0.5)),
        (["--algorithm.negative_weight.start", "1", "--algorithm.negative_weight.end", "0.1"], Schedule(1.0, 0.1)),
    ],
)
def test_a_weight_is_a_number_or_a_line(flags, expected):
    config, args = parse(
        (RunConfig, GRPOConfig),
        ["--config", "grpo/default", "--use_cpu", "true", "--bf16", "false", *flags],
        section="grpo",
    )
    config.algorithm.check(args)
    assert config.algorithm.negative_weight == expected


def test_a_kl_and_an_entropy_target_ask_for_what_they_need():
    assert not AlgorithmConfig().has_reference and not AlgorithmConfig().pays_entropy
    assert AlgorithmConfig(beta=PerModality(0.0, 0.1), kl="full").has_reference
    assert not AlgorithmConfig(beta=PerModality(0.1, 0.1), objective="segment-rejection").has_reference
    assert AlgorithmConfig(entropy_target=PerModality(0.1, 0.1)).pays_entropy

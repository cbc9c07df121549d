"""What a run of GRPO says at its end."""

from limner.train.watch.summary import summary

HISTORY = [
    {"step": 1, "loss": 0.1, "reward": 0.25, "rewards/format": 1.0, "rewards/format/std": 0.1, "heldout/score": 0.2},
    {"step": 1, "alarm": "kl_growth/text", "text": "the KL grows"},
    {"step": 2, "loss": 0.1, "reward": None, "rewards/format": 0.5, "rewards/judge": 0.125, "heldout/format": 0.75},
    {"step": 3, "loss": 0.1, "reward": 0.5, "rewards/format": 0.75, "rewards/judge": 0.5, "rewards/never": None},
    {"step": 3, "train_runtime": 1.0},
]


def test_each_reward_from_its_first_line_to_its_last_and_the_alarms():
    assert summary(HISTORY).splitlines() == [
        "rewards, from the first of 3 lines of the log to the last:",
        "  all together            0.250 -> 0.500",
        "  format                  1.000 -> 0.750",
        "  judge                   0.125 -> 0.500",
        "  held out, all together  0.200 -> 0.200",
        "  held out, format        0.750 -> 0.750",
        "alarms:",
        "  kl_growth/text, step 1: the KL grows",
    ]


def test_what_trl_logs_of_an_inserter_and_a_run_without_a_line():
    line = {"loss": 0.0, "reward": 0.5, "reward_std": 0.1, "rewards/order/mean": 0.25, "rewards/order/std": 0.1}
    said = summary([line])
    assert "  order         0.250 -> 0.250" in said and "std" not in said and said.endswith("alarms: none")
    assert summary([]) == "no reward was logged\nalarms: none"


def test_a_run_too_short_for_alarms_says_so():
    line = {"loss": 0.0, "reward": 0.5}
    assert summary([line] * 11, 12).endswith("alarms: none (most compare 12 lines of the log or more)")
    assert summary([line] * 12, 12).endswith("alarms: none")

"""Parts that do not apply: getting rid of a part never pays, in the mean and in the shipped presets."""

import json
from pathlib import Path

import pytest

import limner
from limner.configs import packaged_names, parse, read_yaml
from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import FAILED, Completion, RewardOutput
from limner.rewards.build import RewardSettings, build_reward, reward_parts
from limner.rewards.hybrid import HybridReward
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

PROMPT, OTHER = (InterleavedDocument((TextSegment(f"Illustrate {word}."),), word) for word in ("this", "that"))
CONFIGS = Path(limner.__file__).parent / "configs"
PICTURE = draw_scene(SCENES[0])
PRESETS = [
    *(name for name in packaged_names() if name.startswith("model/")),
    *(f"grpo/{name}" for name in ("encoders", "judge", "references")),
]


def steps(count, prompt=PROMPT):
    pair = TextSegment("A step.", True), ImageSegment(PICTURE, True, "generated")
    return Completion(prompt, InterleavedDocument(pair * count))


class Good:
    """0.8 for everything."""

    def __init__(self, name):
        self.name = name

    def __call__(self, completions):
        return RewardOutput([0.8] * len(completions), [[0.8] * len(c.answer.segments) for c in completions])


class Pairs:
    """Pictures against each other, 0.5 where there are two; of one there is nothing to say."""

    def __init__(self, name="pairs", scores=None):
        self.name, self.scores = name, scores

    def __call__(self, completions):
        outcome = self.scores or [0.5 if len(c.answer.images) > 1 else None for c in completions]
        return RewardOutput(outcome, [[None] * len(c.answer.segments) for c in completions])


def test_a_second_picture_is_never_dropped_for_the_mean():
    """One good step earned 0.8 and two 0.757 where the mean went over what applies."""
    one, two = HybridReward([(Good("good"), 3.0), (Pairs(), 0.5)])([steps(1), steps(2)]).outcome
    assert two is not None and one == two == pytest.approx((3 * 0.8 + 0.5 * 0.5) / 3.5)


def test_a_part_counts_as_its_worst_score_among_the_answers_to_the_prompt():
    scores = [None, 0.9, 0.3, FAILED, None, 0.6]
    rows = [steps(1), steps(2), steps(2), steps(2), steps(1, OTHER), steps(2, OTHER)]
    output = HybridReward([(Pairs(scores=scores), 1.0)])(rows)
    assert output.outcome == [0.3, 0.9, 0.3, None, 0.6, 0.6]
    assert output.breakdown["pairs"] == [None, 0.9, 0.3, None, None, 0.6]  # for people: as it was scored


def test_a_part_that_applies_to_no_answer_of_a_group_is_left_out():
    good, pairs = Good("good"), Pairs(scores=[None, None, 0.2])
    assert HybridReward([(good, 1.0), (pairs, 1.0)])([steps(1), steps(1), steps(2, OTHER)]).outcome == [0.8, 0.8, 0.5]
    assert HybridReward([(Pairs(scores=[None, None]), 1.0)])([steps(1), steps(1)]).outcome == [None, None]


def test_a_group_may_straddle_processes():
    reward = HybridReward([(Pairs(scores=[None, 0.9]), 1.0)])
    elsewhere = [((PROMPT.id, PROMPT.text), 0.2), ((OTHER.id, OTHER.text), 0.1)]
    reward.over_ranks = lambda rows: [*rows, *(elsewhere if isinstance(rows[0], tuple) else [False])]
    assert reward([steps(1), steps(2)]).outcome == [0.2, 0.9]


@pytest.mark.parametrize(
    ("absent", "expected"), [("worst", 0.2), ("mean", 0.4), ("leave-out", None), (0, 0.0), (0.7, 0.7)]
)
def test_the_rule_is_a_setting_of_each_part(absent, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def pairs(rows):\n    return [None, 0.2, 0.6]\n")
    settings, *_ = parse(
        (RewardSettings,), ["--rewards", json.dumps({"format": 0, "mine.py:pairs": {"absent": absent}})]
    )
    outcome = build_reward(settings)([steps(1), steps(2), steps(2)]).outcome
    assert outcome == [expected if expected is None else pytest.approx(expected), 0.2, 0.6]


@pytest.mark.parametrize("absent", ["wurst", -0.1, 1.5, True, None])
def test_a_rule_that_is_none_is_one_line(absent):
    with pytest.raises(InputError, match="^rewards.format: absent: expected "):
        RewardSettings({"format": {"absent": absent}})


def test_segments_keep_the_mean_of_the_parts_that_score_them():
    class First:
        name = "first"

        def __call__(self, completions):
            rows = [[None] * len(c.answer.segments) for c in completions]
            rows[1][1] = 0.2
            return RewardOutput([0.5] * len(completions), rows)

    output = HybridReward([(Good("good"), 1.0), (First(), 1.0)])([steps(1), steps(1)])
    assert output.segments == [[0.8, 0.8], [0.8, 0.5]]


def test_parts_are_handed_on_as_they_entered_the_mean():
    output = HybridReward([(Good("good"), 3.0), (Pairs(scores=[None, 0.4, FAILED]), 1.0), (Good("off"), 0.0)])(
        [steps(1), steps(2), steps(2)]
    )
    assert [*output.parts] == ["good", "pairs"] and output.parts["good"].weight == 3.0
    assert output.parts["pairs"].outcome == [0.4, 0.4, None]
    assert output.parts["good"].outcome == [0.8, 0.8, None]  # what one part failed to score takes no part in the others
    assert output.parts["good"].segments[0] == [0.8, 0.8] and output.parts["pairs"].segments[0] == [None, None]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pay_for_a_second_step_that_is_as_good_as_the_first(name):
    file = read_yaml(CONFIGS / f"{name}.yaml")
    settings = (file.get("grpo") or file)["rewards"]
    rules = {part: value for part, value in settings.items() if part in ("format", "structure")}
    weights = {part: value["weight"] if isinstance(value, dict) else value for part, value in settings.items()}
    parts = [(part, weight) for part, weight in reward_parts(RewardSettings(rules))]
    parts += [(Pairs(p) if "consistency" in p else Good(p), weights[p]) for p in settings if p not in rules]
    for rows in ([steps(1), steps(2)], [steps(1)] * 3 + [steps(2)]):
        one, *_, two = HybridReward(parts)(rows).outcome
        assert one is not None and two is not None and two > one + 0.02, (one, two)
    (alone,) = HybridReward(parts)([steps(1)]).outcome  # a held-out answer has no group
    assert alone is not None and two > alone + 0.02, (alone, two)

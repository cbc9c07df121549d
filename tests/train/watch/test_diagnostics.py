"""Diagnostics: hand-counted rollouts, sums that add up however rows are divided, pictures told apart as people do."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nan

from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.sampler.generation import Sampling
from limner.models.tokens.sequence import TokenSequence
from limner.rewards.base import Completion, RewardOutput
from limner.train.objective.advantages import dead_groups
from limner.train.rollout import Rollout, rollout
from limner.train.watch.diagnostics import (
    advantage_sums,
    completion_sums,
    component_scores,
    group_sums,
    means,
    merged,
    near_duplicates,
    picture_sums,
    repeated_share,
    rollout_sums,
    segment_reward_sums,
    steps_of,
    thumbnails,
)
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story_prompt

V = 10
PROMPT = InterleavedDocument((TextSegment("Illustrate."),))
RED, BLUE, GREEN = (draw_scene(SCENES[i]) for i in (0, 50, 100))


def text(words="A picture."):
    return TextSegment(words, trainable=True)


def picture(image):
    return ImageSegment(image, trainable=True, origin="generated")


def made(*segments, ended=True, cut_image=False):
    """A rollout: two prompt tokens, two a text, `<boi>`, two codes and `<eoi>` an image, then `<eos>` if it ended."""
    ids, owner, trainable = [1, 2], [-1, -1], [False, False]
    for index, segment in enumerate(segments):
        new = [3, 4] if isinstance(segment, TextSegment) else [5, V, V + 1, 6]
        ids, owner, trainable = ids + new, owner + [index] * len(new), trainable + [token != 6 for token in new]
    if cut_image:
        ids, owner, trainable = [*ids, 5, V], [*owner, *[len(segments)] * 2], [*trainable, True, True]
    elif ended:
        ids, owner, trainable = [*ids, 7], [*owner, len(segments)], [*trainable, True]
    sequence = TokenSequence(torch.tensor(ids), torch.tensor(owner), torch.tensor(trainable), 2)
    answer = InterleavedDocument(segments)
    return Rollout(Completion(PROMPT, answer, ended and not cut_image), sequence, torch.zeros(len(ids)), cut_image)


STORY = (text(), picture(RED), text(), picture(BLUE))


def test_completions_by_hand():
    rollouts = [made(*STORY), made(text(), ended=False), made(text(), cut_image=True), made()]
    assert means(completion_sums(rollouts, V)) == {
        "completions/tokens": (2 * 2 + 2 * 3 + 1 + 2 + 2 + 2 + 1) / 4,
        "completions/tokens/text": (2 * 2 + 2 + 1 + 2 + 3 + 1) / 4,
        "completions/tokens/image": (4 + 1) / 4,
        "completions/images": 0.5,
        "completions/cut": 0.5,
        "completions/cut_image": 0.25,
        "completions/text/repeated": 0.0,
    }


@pytest.mark.parametrize(
    "text, share",
    [("a b", None), ("a b c", None), ("a b c d", 0.0), ("A b c a B c a b c", 4 / 7), ("go " * 10, 7 / 8)],
)
def test_text_said_again(text, share):
    """Nine words have seven runs of three, of which three differ."""
    assert repeated_share(text) == (share if share is None else pytest.approx(share))


def test_steps_are_texts_with_their_images():
    answer = InterleavedDocument((picture(RED), text(), picture(RED), picture(BLUE), text(), text()))
    assert steps_of(answer) == [0, 1, 1, 1, 2, 3]
    assert steps_of(InterleavedDocument(())) == []
    scores = [1.0, 0.5, 0.0, None, 0.25, 0.75]
    assert means(segment_reward_sums([answer], [scores])) == {
        "segment_reward/image": 0.5,
        "segment_reward/image/0": 1.0,
        "segment_reward/image/1": 0.0,
        "segment_reward/text": 0.5,
        "segment_reward/text/1": 0.5,
        "segment_reward/text/2": 0.25,
        "segment_reward/text/3": 0.75,
    }


def test_steps_from_the_ninth_on_are_one():
    answer = InterleavedDocument((text(),) * 11)
    found = segment_reward_sums([answer], [[float(k) for k in range(11)]])
    assert found["segment_reward/text/7"] == (7.0, 1) and found["segment_reward/text/8+"] == (27.0, 3)
    tokens = torch.arange(26.0)[None]  # two of the prompt, two a step, <eos>: it is of the last step
    found = advantage_sums([made(*answer.segments)], tokens, V)
    assert found["advantage/text/7"] == (16.0 + 17, 2) and found["advantage/text/8+"] == (sum(range(18, 25)), 7)


def test_advantages_by_modality_and_step():
    rollouts = [made(*STORY), made(text(), cut_image=True), made()]
    advantages = torch.full((3, 20), 100.0)  # what is not trained, and padding, must not be counted
    advantages[0, 2:8] = torch.tensor([1.0, -1.0, 2.0, -4.0, 4.0, 100.0])  # the last is <eoi>
    advantages[0, 8:15] = torch.tensor([0.5, 0.5, 0.5, 3.0, 3.0, 100.0, -0.5])  # <eoi>, <eos>
    advantages[1, 2:6] = torch.tensor([1.0, 1.0, 1.0, -8.0])  # two of text, a cut image
    advantages[2, 2] = 0.0  # <eos> alone
    assert advantage_sums(rollouts, advantages, V) == {
        "advantage/text/0": (1 + 1 + 2 + 3 + 0, 7),
        "advantage/text/1": (0.5 * 4, 4),
        "advantage/image/0": (4 + 4 + 8, 3),
        "advantage/image/1": (6, 2),
    }


def test_components_by_hand():
    output = RewardOutput(
        [0.0, 1.0, 0.5, 0.5, None, None],
        [[]] * 6,
        {"format": [1.0, 1.0, 0.0, None, None, None], "judge": [None, None, 0.2, 0.6, 0.3, 0.3]},
    )
    names, scores_RN = component_scores(output)
    assert names == ["reward", "format", "judge"] and scores_RN.shape == (6, 3)
    sums = group_sums(names, scores_RN, 2)
    assert means(sums) == pytest.approx(
        {
            "reward": 0.5,
            "reward_std": 0.25,
            "dead_groups": 2 / 3,  # the third group has no reward at all: it teaches nothing
            "rewards/format": 2 / 3,
            "rewards/format/std": 0.0,
            "rewards/format/dead_groups": 1.0,
            "rewards/judge": 0.35,
            "rewards/judge/std": 0.1,
            "rewards/judge/dead_groups": 0.5,
        },
        abs=1e-6,
    )
    assert means(sums)["dead_groups"] == pytest.approx(dead_groups(scores_RN[:, 0], 2).item())
    assert means(merged([sums, sums])) == means(sums)  # all ranks hold the same ones
    silent = group_sums(["reward", "judge"], torch.full((4, 2), nan), 2)
    assert means(silent) == {"dead_groups": 1.0}


def test_sums_add_up_however_the_rows_are_divided():
    answers = [STORY, STORY[:2], (picture(RED), text(), picture(RED)), (text(),), STORY, (), STORY[2:], STORY[:3]]
    rollouts = [made(*segments) for segments in answers]
    output = RewardOutput([0.5] * 8, [[k / 4 for k in range(len(segments))] for segments in answers])
    advantages = torch.randn(8, 30)

    def of(rows, first):
        part = RewardOutput(output.outcome[rows], output.segments[rows])
        return rollout_sums(rollouts[rows], part, V, 4, first, advantages[rows])

    whole = of(slice(0, 8), 0)
    halves = merged([of(slice(0, 4), 0), of(slice(4, 8), 4)])
    assert halves.keys() == whole.keys() and all(halves[name] == pytest.approx(whole[name]) for name in whole)
    # A group that straddles ranks is compared in its parts: fewer pairs, everything else the same.
    ragged = merged([of(slice(0, 2), 0), of(slice(2, 8), 2)])
    group = "pictures/near_duplicates/group"
    assert ragged[group][1] < whole[group][1]
    assert all(ragged[name] == pytest.approx(whole[name]) for name in whole if name != group)


def test_real_rollouts(make_policy):
    policy = make_policy(0)
    prompts = [story_prompt(SCENES[:2])] * 4
    rollouts = rollout(policy, prompts, Sampling(max_new_tokens=48, max_images=2))
    output = RewardOutput([1.0] * 4, [[1.0] * len(item.completion.answer.segments) for item in rollouts])
    width = max(len(item.sequence) for item in rollouts)
    found = means(rollout_sums(rollouts, output, policy.vocabulary.text_size, 4, 0, torch.ones(4, width)))
    assert found["completions/tokens"] == found["completions/tokens/text"] + found["completions/tokens/image"]
    assert found["completions/images"] > 0 and 0 <= found["pictures/saturation"] <= 1
    assert {name: value for name, value in found.items() if name.startswith(("advantage/", "segment_reward/"))} == {
        name: 1.0 for name in found if name.startswith(("advantage/", "segment_reward/"))
    }


# ---- pictures ----


def alike(*pictures):
    return near_duplicates(thumbnails(pictures))


def test_different_scenes_are_no_duplicates_and_a_blurred_one_is():
    pictures = [draw_scene(scene) for scene in SCENES]
    assert np.array_equal(alike(*pictures), np.eye(len(SCENES), dtype=bool))
    rng = np.random.default_rng(0)
    for image in pictures[::16]:
        noisy = np.asarray(image) + rng.normal(0, 6, (32, 32, 3))
        noisy = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5))
        assert alike(image, noisy)[0, 1]


def test_pictures_without_content():
    flat = [Image.new("RGB", (256, 256), colour) for colour in ("red", "blue", (254, 1, 0))]
    assert alike(*flat)[0].tolist() == [True, False, True]


def test_duplicates_within_a_group_and_within_a_document():
    answers = [
        InterleavedDocument((picture(RED), picture(RED), picture(BLUE))),  # one of three pairs
        InterleavedDocument((picture(RED), picture(GREEN))),  # none of one
        InterleavedDocument((picture(RED),)),
        InterleavedDocument((picture(GREEN), picture(BLUE), ImageSegment(RED, trainable=True, origin="given"))),
    ]
    found = picture_sums(answers, group_size=2)
    assert found["pictures/near_duplicates/document"] == (1.0, 3 + 1 + 1)
    # First group: the first pictures agree, the second ones do not. Second group: RED and GREEN do not.
    assert found["pictures/near_duplicates/group"] == (1.0, 2 + 1)
    assert picture_sums([InterleavedDocument((text(),))], 1) == {}


def test_saturation():
    colours = {"red": 1.0, "grey": 0.0, "black": 0.0, "white": 0.0}
    for colour, expected in colours.items():
        answer = InterleavedDocument((picture(Image.new("RGB", (8, 8), colour)),))
        assert picture_sums([answer], 1)["pictures/saturation"] == (pytest.approx(expected), 1.0)

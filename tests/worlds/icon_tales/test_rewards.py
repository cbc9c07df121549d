"""Rewards of icon tales: the tale asked for scores 1 everywhere, what lacks something loses just that."""

import pytest

from limner.configs.errors import InputError
from limner.models.checkpoints.folder import save
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.writing import Answer
from limner.rewards.base import Completion
from limner.rewards.build import RewardSettings, build_reward
from limner.worlds.icon_tales.figures import verify_tales
from limner.worlds.icon_tales.icons import Shown, open_icons
from limner.worlds.icon_tales.rewards import FluencyReward, PictureReward, SentenceReward
from limner.worlds.icon_tales.tales import REQUESTS, Request

ICONS = open_icons()
REQUEST = Request(("owl", "cake"), REQUESTS[0])
OWL, CAKE = Shown("owl", "snow"), Shown("cake", "night")
FOX = Shown("fox", "snow")


def says(text: str) -> TextSegment:
    return TextSegment(text, trainable=True)


def draws(shown: Shown, spot: int = 1) -> ImageSegment:
    return ImageSegment(ICONS.draw(shown, spot), trainable=True, origin="generated")


OWL_TEXT, CAKE_TEXT = says("An owl sat in the snow."), says("At night came a cake.")
GOLD = (OWL_TEXT, draws(OWL, 0), CAKE_TEXT, draws(CAKE, 2))
CASES = {
    # name: segments, ended, (text_plan, image_sentence), (story, sentence, image, structure)
    "gold": (GOLD, True, (1, 1), (1, 1, 1, 1)),
    "cut": (GOLD, False, (1, 1), (0, 1, 1, 0)),
    "no place": ((says("An owl sat."), *GOLD[1:]), True, (0.875, 0.75), (0, 0.5, 0.5, 1)),
    "wrong thing": ((says("A fox in the snow."), draws(OWL), *GOLD[2:]), True, (0.5, 0.75), (0, 0.5, 0.5, 1)),
    "faithful to a wrong sentence": (
        (says("A fox in the snow."), draws(FOX), *GOLD[2:]),
        True,
        (0.5, 1),
        (0, 0.5, 0.5, 1),
    ),
    "wrong picture": ((*GOLD[:3], draws(Shown("drum", "night"))), True, (1, 0.75), (0, 1, 0.5, 1)),
    "wrong place": ((*GOLD[:3], draws(Shown("cake", "snow"))), True, (1, 0.75), (0, 1, 0.5, 1)),
    "missing picture": (GOLD[:3], True, (1, 0.5), (0, 1, 0.5, 0)),
    "missing step": (GOLD[:2], True, (0.5, 0.5), (0, 0.5, 0.5, 0)),
    "step too many": ((*GOLD, says("A fox at night."), draws(FOX)), True, (2 / 3, 2 / 3), (0, 1, 1, 0)),
    "picture of nothing said": ((draws(OWL), *GOLD[:2]), True, (0.5, 0.5), (0, 0.5, 0, 0)),
    "other order": ((*GOLD[2:], *GOLD[:2]), True, (0, 1), (0, 0, 0, 1)),
    "nothing": ((), True, (0, 0), (0, 0, 0, 0)),
}


@pytest.mark.parametrize(("segments", "ended", "rewards", "figures"), CASES.values(), ids=CASES)
def test_rewards_and_figures(segments, ended, rewards, figures):
    document = InterleavedDocument(segments)
    completions = [Completion(REQUEST.prompt(), document, ended)]
    outputs = [reward(completions) for reward in (SentenceReward(), PictureReward())]
    assert [output.outcome[0] for output in outputs] == pytest.approx(rewards)
    for output, kind in zip(outputs, (TextSegment, ImageSegment), strict=True):
        assert [score is not None for score in output.segments[0]] == [isinstance(s, kind) for s in segments]
    scores = verify_tales([Answer(document, ended, cut_image=False)], [REQUEST], ICONS)
    names = ("story_exact", "sentence_exact", "image_exact", "structure")
    assert [scores[name][0] for name in names] == pytest.approx(figures)
    assert scores["story_exact_known"] == scores["story_exact"]


def test_a_prompt_of_another_world_is_named():
    completion = Completion(InterleavedDocument((says("Hello."),), "line 3"), InterleavedDocument(GOLD))
    for reward in (SentenceReward(), PictureReward()):
        with pytest.raises(InputError, match="prompt 'line 3' is no request for an icon tale"):
            reward([completion])


def test_fluency_is_bounded_and_wordless_answers_have_none(tmp_path, make_policy):
    save(make_policy(), tmp_path / "model")
    texts = ("An owl sat in the snow.", "", "owl owl owl owl")
    completions = [Completion(REQUEST.prompt(), InterleavedDocument((says(text),) * bool(text))) for text in texts]

    def scores(worst: float, best: float) -> list:
        return FluencyReward(str(tmp_path / "model"), worst, best, batch_size=1)(completions).outcome

    assert scores(-200, -100) == [1, 0, 1] and scores(-0.2, -0.1) == [0, 0, 0]
    one, none, other = scores(-30, 0)
    assert 0 < one < 1 and none == 0 and 0 < other < 1 and one != other


def test_they_are_found_by_name(tmp_path):
    weights = {"format": 1, "icon_tales/text_plan": 1, "icon_tales/image_sentence": 1}
    rewards = {**weights, "icon_tales/fluency": {"weight": 0.25, "model": str(tmp_path)}}
    assert len(build_reward(RewardSettings(rewards)).parts) == 4
    assert build_reward(RewardSettings(weights))([Completion(REQUEST.prompt(), InterleavedDocument(GOLD))]).outcome == [
        1
    ]
    with pytest.raises(InputError, match="icon_tales/fluency: model is missing"):
        build_reward(RewardSettings({"icon_tales/fluency": 1}))
    with pytest.raises(InputError, match="worst -1"):
        build_reward(RewardSettings({"icon_tales/fluency": {"weight": 1, "model": "x", "worst": -1, "best": -2}}))

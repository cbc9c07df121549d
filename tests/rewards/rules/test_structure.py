"""Structure: the nearest order that was asked for, and what a prompt may ask."""

import pytest
from PIL import Image

from limner.configs import build
from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import Completion
from limner.rewards.build import RewardSettings, build_reward
from limner.rewards.rules.structure import StructureReward, planned_pictures, structure_of
from limner.worlds.picture_stories.scenes import SCENES, story_prompt

PICTURE = ImageSegment(Image.new("RGB", (4, 4)), True, "generated")


def document(word, **meta):
    """`TtI`: a text, a blank text, a picture."""
    parts = {"T": TextSegment("Words.", True), "t": TextSegment(" </vis>\n", True), "I": PICTURE}
    return InterleavedDocument(tuple(parts[letter] for letter in word), "p1", meta)


@pytest.mark.parametrize(
    ("answer", "asked", "score"),
    [
        ("TITI", "TITI", 1),
        ("TTItTItt", "TITI", 1),  # neighbouring texts are one, blank ones none
        ("TIT", "TITI", 3 / 4),
        ("TIIT", "TITI", 2 / 4),
        ("T", "TITI", 1 / 4),
        ("", "TITI", 0),
        ("TITITITI", "TITI", 4 / 8),
        ("II", "T", 0),
        ("TI", ["TITITI", "T"], 1 / 2),  # the nearer of the two
    ],
)
def test_edits_to_the_nearest_structure(answer, asked, score):
    completion = Completion(document("", structure=asked), document(answer))
    output = StructureReward()([completion])
    assert output.outcome == [pytest.approx(score)] and output.segments == [[None] * len(answer)]


def test_without_wishes_the_setting_holds():
    reward = StructureReward(unit="IT", least=2, most=3)
    rows = [Completion(document(""), document(word)) for word in ("ITIT", "ITITIT", "IT", "ITITITIT")]
    assert reward(rows).outcome == pytest.approx([1, 1, 2 / 4, 6 / 8])
    outlined = Completion(story_prompt(SCENES[:4]), document("ITITITIT"))
    unended = Completion(document(""), document("ITIT"), ended=False)
    assert reward([outlined, unended]).outcome == [1, 0]


def test_the_pictures_that_a_prompt_asks_for():
    assert structure_of(document("TtTIIT")) == "TIIT"
    assert planned_pictures(document("T")) == 1
    assert planned_pictures(story_prompt(SCENES[:3])) == 3
    assert planned_pictures(document("T", structure="T")) == 0
    assert planned_pictures(document("T", structure=["TITI", "TITITI"])) == 2


@pytest.mark.parametrize("wish", ["TTI", "text", "", [], 3, ["TI", None]])
def test_a_malformed_wish_is_named(wish):
    with pytest.raises(InputError, match="prompt 'p1': meta \"structure\" is"):
        StructureReward()([Completion(document("", structure=wish), document("TI"))])


def test_settings():
    reward = build_reward(build(RewardSettings, {"rewards": {"structure": {"weight": 2}}}, "my.yaml"))
    assert reward([Completion(document(""), document("TIT"))]).breakdown == {"structure": [pytest.approx(3 / 4)]}
    for wrong in ({"unit": "TT"}, {"unit": "TIT"}, {"unit": ""}, {"least": 3, "most": 2}, {"least": 0}):
        with pytest.raises(InputError, match=f"^rewards.structure[.:].*{[*wrong][0]}"):
            build_reward(build(RewardSettings, {"rewards": {"structure": wrong}}, "my.yaml"))

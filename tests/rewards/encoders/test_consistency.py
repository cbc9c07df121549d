"""Pictures against each other: known vectors give known scores, and the real encoders load."""

import pytest
import torch
from PIL import Image

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import FAILED, Completion
from limner.rewards.build import RewardSettings, reward_parts
from limner.rewards.encoders.consistency import ConsistencyReward, ImageEncoder
from limner.rewards.encoders.pretrained import Encoder, EncoderConfig

from .. import tiny_models

# A picture's colour is its vector: red and green are at right angles, yellow is between them.
RED, GREEN, YELLOW = (ImageSegment(Image.new("RGB", (8, 8), colour), True) for colour in ("#f00", "#0f0", "#ff0"))
HALFWAY = 0.5**0.5


def colours(images):
    pixels = [torch.tensor(image.getpixel((0, 0)), dtype=torch.float) for image in images]
    return torch.nn.functional.normalize(torch.stack(pixels), dim=-1) if pixels else torch.zeros(0, 1)


def answer(*segments, given=()):
    made = tuple(TextSegment(segment, True) if isinstance(segment, str) else segment for segment in segments)
    return Completion(InterleavedDocument((*given, TextSegment("Illustrate."))), InterleavedDocument(made))


def test_known_vectors_give_known_scores():
    output = ConsistencyReward("colour", colours)(
        [
            answer("One.", RED, "Two.", YELLOW, "Three.", GREEN),
            answer("The same again.", RED, RED),
            answer("After the picture of the prompt.", GREEN, given=(RED, YELLOW)),
            answer("Alone.", RED),
            answer("None."),
        ]
    )
    assert output.segments[0] == [None, None, None, *(pytest.approx(x) if x else x for x in (HALFWAY, None, HALFWAY))]
    assert output.outcome[0] == pytest.approx((2 * HALFWAY + 0) / 3)  # red and green, too, are a pair
    assert output.segments[1][2] == pytest.approx(1) and output.outcome[1] == pytest.approx(1)
    assert output.segments[2] == [None, pytest.approx(HALFWAY)] and output.outcome[2] == pytest.approx(HALFWAY)
    assert output.segments[3:] == [[None, None], [None]] and output.outcome[3:] == [None, None]


@pytest.mark.parametrize(
    ("wanted", "shown", "given", "expected"),
    [
        (3, (RED, YELLOW, GREEN), (), 2 * HALFWAY / 3),
        (3, (RED, RED), (), 1 / 3),  # one pair of three
        (3, (RED,), (), 0.0),
        (3, (), (), 0.0),
        (1, (RED,), (), None),
        (2, (RED,), (RED,), 1 / 3),
        (1, (RED,), (RED,), 1.0),
        (1, (RED, RED, RED), (), 1.0),
    ],
)
def test_fewer_pictures_than_the_prompt_wants_are_no_way_out(wanted, shown, given, expected):
    prompt = InterleavedDocument((*given, TextSegment("Illustrate.")), meta={"structure": "TI" * wanted})
    (outcome,) = ConsistencyReward("colour", colours)([Completion(prompt, InterleavedDocument(shown))]).outcome
    assert outcome == (None if expected is None else pytest.approx(expected))


def test_a_picture_that_does_not_decode_is_counted():
    broken = ImageSegment(None, True, codes_N=torch.zeros(4, dtype=torch.long).numpy())
    output = ConsistencyReward("colour", colours)([answer(RED, broken, RED), answer(broken, RED)])
    assert output.segments == [[None, FAILED, pytest.approx(1)], [FAILED, None]]
    assert output.outcome == [pytest.approx(1), FAILED] and output.failed == {"image": 2}


@pytest.mark.parametrize(("name", "make"), [("dino", tiny_models.dino), ("clip", tiny_models.clip)])
def test_the_real_encoders_make_unit_vectors(name, make, tmp_path):
    parts = {f"consistency/{name}": {"weight": 1, "model": make(tmp_path)}}
    ((reward, weight),) = reward_parts(RewardSettings(parts, encoders={"default": EncoderConfig("cpu", batch_size=2)}))
    pictures = [Image.effect_noise((18 + 4 * i, 20), 30 + 40 * i).convert("RGB") for i in range(4)]
    encode = reward.score.encode
    assert encode.batch_size == 2
    vectors = encode(pictures)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(vectors, torch.cat([encode([picture]) for picture in pictures]))
    assert vectors.shape == (4, 8 if name == "clip" else 16) and len(encode([])) == 0
    scores = reward([answer(*(ImageSegment(pictures[i], True) for i in (0, 0, 1)))]).segments[0]
    assert reward.name == f"consistency_{name}" and weight == 1
    assert scores[1] == pytest.approx(1, abs=1e-5) and scores[2] == pytest.approx(
        max((vectors[0] @ vectors[1]).item(), 0)
    )


def test_models_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}: cannot be read: "):
        ImageEncoder.load("dino", Encoder(), str(tmp_path))
    with pytest.raises(InputError, match="^rewards.consistency/dinov3: preset: 'dinov3' is none of dino, clip$"):
        reward_parts(RewardSettings({"consistency/dinov3": 1}))

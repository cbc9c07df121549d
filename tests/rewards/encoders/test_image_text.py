"""Pictures against their texts: known embeddings give known scores, the real classes load, and the rules hold."""

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from limner.configs import build
from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import FAILED, Completion
from limner.rewards.build import RewardSettings, build_reward, reward_parts
from limner.rewards.encoders import pretrained
from limner.rewards.encoders.image_text import PRESETS, ClipScorer, PictureTextReward, cosine_scores
from limner.rewards.encoders.pretrained import Encoder, EncoderConfig
from limner.worlds.picture_stories.scenes import SCENES, story_prompt

from .. import tiny_models

PICTURES = [Image.effect_noise((20 + 4 * i, 24), 40 + 20 * i).convert("RGB") for i in range(5)]
TEXTS = ["a red circle", "a cat", "the big blue square at the top left", "a picture of a mat", "on " * 80]
PROMPT = InterleavedDocument((TextSegment("a cat on a mat"),))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    makers = {"clipscore": tiny_models.clip, "siglip2": tiny_models.siglip}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in makers.items()}


def answer(*segments, prompt=PROMPT, ended=True):
    made = [TextSegment(s, True) if isinstance(s, str) else s for s in segments]
    made = [ImageSegment(s, True, "generated") if isinstance(s, Image.Image) else s for s in made]
    return Completion(prompt, InterleavedDocument(tuple(made)), ended)


class Told:
    """A scorer that remembers what it was asked and gives a score to each width."""

    def __init__(self):
        self.asked = []

    def __call__(self, images, texts):
        self.asked += list(texts)
        return [image.width / 100 for image in images]


@pytest.mark.parametrize(
    ("name", "cosine", "score"),
    [
        ("clipscore", 0.3, 0.75),  # 2.5 * 0.3
        ("clipscore", 0.5, 1.0),
        ("clipscore", -0.2, 0.0),
        ("pickscore", 0.208, 0.8),  # 20.8 of PickScore's 26
        ("hpsv2", 0.27, 0.27),
    ],
)
def test_known_embeddings_give_known_scores(name, cosine, score):
    text = torch.tensor([[3.0, 0.0]])
    image = 5 * torch.tensor([[cosine, (1 - cosine**2) ** 0.5]])
    assert cosine_scores(image, text, PRESETS[name].cosines).item() == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("name", ["clipscore", "siglip2"])
def test_the_real_classes_score_a_pair_alone_and_in_a_batch_alike(name, places):
    scorer = ClipScorer.load(name, Encoder(EncoderConfig("cpu", batch_size=2)), places[name])
    assert scorer.batch_size == 2
    together = scorer(PICTURES, TEXTS)
    alone = [scorer([picture], [text])[0] for picture, text in zip(PICTURES, TEXTS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5) and len(set(together)) > 2
    assert all(0 <= score <= 1 for score in together)

    preset, model, processor = scorer.preset, scorer.model, scorer.processor
    inputs = processor(images=PICTURES[2:3], text=[preset.prefix + TEXTS[2]], return_tensors="pt", padding="max_length",
                       max_length=preset.tokens)  # fmt: skip
    with torch.no_grad():
        image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        cosine = torch.cosine_similarity(image, text)
        match = (
            torch.sigmoid(cosine * model.logit_scale.exp() + model.logit_bias) if name == "siglip2" else cosine / 0.4
        )
    assert together[2] == pytest.approx(match.clamp(0, 1).item(), abs=1e-5)


def test_half_precision_is_close(places):
    full, half = (
        ClipScorer.load("clipscore", Encoder(EncoderConfig("cpu", dtype)), places["clipscore"])(PICTURES, TEXTS)
        for dtype in ("float32", "bfloat16")
    )
    assert half == pytest.approx(full, abs=0.1)


def test_each_picture_is_held_against_its_own_text():
    scorer = Told()
    reward = PictureTextReward("told", scorer)
    output = reward(
        [
            answer("<think>One.</think> <vis>", PICTURES[0], "</vis> <think>Two.</think> <vis>", PICTURES[1], "</vis>"),
            answer(PICTURES[2], "After."),
            answer(PICTURES[3]),
        ]
    )
    assert scorer.asked == ["One.", "Two.", "After.", "a cat on a mat"]
    assert output.segments == [[None, 0.2, None, 0.24, None], [0.28, None], [0.32]]
    assert output.outcome == pytest.approx([0.22, 0.28, 0.32]) and not output.failed


def test_missing_pictures_count_as_zero_and_missing_scores_do_not():
    broken = ImageSegment(None, True, "generated", codes_N=torch.zeros(4, dtype=torch.long).numpy())
    outlined = story_prompt(SCENES[:3])
    text_only = InterleavedDocument((TextSegment("Explain."),), meta={"structure": "T"})
    cases = [
        (answer("No picture."), 0.0),
        (answer("One of three.", PICTURES[0], prompt=outlined), 0.2 / 3),
        (answer("One of three, unreadable.", broken, prompt=outlined), FAILED),
        (answer("A fine one", PICTURES[0], "and a broken one.", broken), 0.2),
        (answer("No picture was asked for.", prompt=text_only), None),
        (answer(PICTURES[0], prompt=InterleavedDocument(())), None),  # no text anywhere to hold it against
    ]
    output = PictureTextReward("told", Told())([case for case, _ in cases])
    assert output.outcome == [pytest.approx(score) if score and score < 1 else score for _, score in cases]
    assert output.failed == {"image": 2} and output.segments[3] == [None, pytest.approx(0.2), None, FAILED]


def test_yaml_weighs_them_beside_others(places):
    weights = {"clipscore": 2, "siglip2": 1}
    parts = {f"image/{name}": {"weight": weight, "model": places[name]} for name, weight in weights.items()}
    section = {"rewards": {**parts, "image/pickscore": 0}, "encoders": {"default": {"device": "cpu"}}}
    reward = build_reward(build(RewardSettings, section, "my.yaml"))
    output = reward([answer("a cat", PICTURES[0])])
    clip, siglip = (output.breakdown[name][0] for name in ("image_clipscore", "image_siglip2"))
    assert output.outcome[0] == pytest.approx((2 * clip + siglip) / 3)
    assert output.segments[0] == [None, pytest.approx(output.outcome[0])]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"rewards": {"image/clip": 1}}, "rewards.image/clip: preset: 'clip' is none of clipscore, siglip2, "),
        ({"rewards": {"image/clipscore": 0}}, "give at least one reward with a positive weight"),
        ({"rewards": {"image/clipscore": {"models": "x"}}}, "rewards.image/clipscore: models: unknown key; .* model"),
        ({"encoders": {"default": {"device": "gpu"}}}, "my.yaml: encoders.default: device: 'gpu'"),
        (
            {"encoders": {"default": {"batch_size": 0}}},
            "encoders.default.batch_size: expected a number 1 to 1,000,000, got 0",
        ),
        ({"encoders": {"default": {"dtype": "int8"}}}, "encoders.default.dtype: expected one of float32, "),
    ],
)
def test_settings_that_cannot_work_are_refused(section, message):
    with pytest.raises(InputError, match=message):
        build_reward(build(RewardSettings, section, "my.yaml"))


@pytest.mark.parametrize("name", ["clipscore", "image_reward"])
def test_a_model_that_is_not_there_is_one_line(name, tmp_path):
    with pytest.raises(InputError, match=f"^rewards.image/{name}: {tmp_path}: cannot be read: ") as caught:
        reward_parts(RewardSettings({f"image/{name}": {"model": str(tmp_path)}}))
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fill_the_model_are_refused(places, tmp_path, monkeypatch):
    """transformers warns and goes on with random numbers, which would be a reward of noise."""
    model = CLIPModel.from_pretrained(places["clipscore"])
    CLIPProcessor.from_pretrained(places["clipscore"]).save_pretrained(tmp_path)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "visual_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(InputError, match="its weights do not fill CLIPModel: visual_projection.weight"):
        ClipScorer.load("clipscore", Encoder(), str(tmp_path))
    monkeypatch.setattr(pretrained, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(InputError, match="under ZeRO-3 .*; use limner serve-rewards"):
        ClipScorer.load("clipscore", Encoder(), places["clipscore"])

"""ImageReward: the released layout, loaded into transformers' BLIP, computes what the release computes."""

import math

import pytest
import torch
from PIL import Image
from torch.nn.functional import gelu, layer_norm, softmax

from limner.configs.errors import InputError
from limner.rewards.encoders.imagereward import MEAN, STD, TOKENS, ImageRewardScorer, build_model
from limner.rewards.encoders.pretrained import Encoder, EncoderConfig

from .. import tiny_models

PICTURES = [Image.effect_noise((24, 18), 60).convert("RGB"), Image.new("RGB", (16, 30), "red")]
TEXTS = ["a red circle on the mat", "cat"]


def released(weights, pixels, ids, mask):
    """The release's formulas over its own tensors: a pre-norm picture encoder, a post-norm text encoder with
    cross-attention whose self-attention sees all tokens that are no padding, and five linear layers."""

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x, eps):
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def attend(q, k, v, heads, allowed=None):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if allowed is not None:
            logits = logits.masked_fill(~allowed[:, None, None], -math.inf)
        return (softmax(logits, -1) @ v).transpose(1, 2).flatten(2)

    place = "blip.visual_encoder"
    kernel, bias = weights[f"{place}.patch_embed.proj.weight"], weights[f"{place}.patch_embed.proj.bias"]
    x = torch.conv2d(pixels, kernel, bias, stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([weights[f"{place}.cls_token"].expand(len(x), -1, -1), x], 1) + weights[f"{place}.pos_embed"]
    for block in range(2):
        name = f"{place}.blocks.{block}"
        q, k, v = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(f"{name}.attn.proj", attend(q, k, v, heads=1))
        x = x + linear(f"{name}.mlp.fc2", gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x, 1e-6))))
    image = norm(f"{place}.norm", x, 1e-6)

    place = "blip.text_encoder.embeddings"
    x = weights[f"{place}.word_embeddings.weight"][ids] + weights[f"{place}.position_embeddings.weight"][: ids.shape[1]]
    x = norm(f"{place}.LayerNorm", x, 1e-12)
    for layer in range(2):
        name = f"blip.text_encoder.encoder.layer.{layer}"
        for attention, seen, allowed in (("attention", None, mask.bool()), ("crossattention", image, None)):
            part, seen = f"{name}.{attention}", x if seen is None else seen
            q, k, v = (
                linear(f"{part}.self.query", x),
                linear(f"{part}.self.key", seen),
                linear(f"{part}.self.value", seen),
            )
            attended = linear(f"{part}.output.dense", attend(q, k, v, heads=2, allowed=allowed))
            x = norm(f"{part}.output.LayerNorm", attended + x, 1e-12)
        inner = linear(f"{name}.output.dense", gelu(linear(f"{name}.intermediate.dense", x)))
        x = norm(f"{name}.output.LayerNorm", inner + x, 1e-12)
    score = x[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = linear(f"mlp.layers.{number}", score)
    return (score.squeeze(-1) - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tiny_models.image_reward(tmp_path_factory.mktemp("image_reward"))
    return ImageRewardScorer.load("image_reward", Encoder(EncoderConfig("cpu")), folder)


def test_the_released_layout_scores_as_released(scorer):
    text = scorer.tokenizer(TEXTS, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    pixels = scorer.pixels(images=PICTURES, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 3, 16, 16) and text.input_ids.shape == (2, 35)
    expected = released(tiny_models.image_reward_weights(), pixels, text.input_ids, text.attention_mask)
    with torch.no_grad():
        found = scorer.model(pixels, text.input_ids, text.attention_mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert abs(expected[0] - expected[1]) > 0.1
    assert scorer(PICTURES, TEXTS) == pytest.approx(expected.sigmoid().tolist(), abs=1e-5)


def test_batches_change_nothing_and_long_texts_are_cut(scorer):
    pictures, texts = PICTURES * 3, [*TEXTS, "on the mat", "a cat " * 50, "a cat " * 60, "."]
    whole = scorer(pictures, texts)
    scorer.batch_size = 4
    assert scorer(pictures, texts) == pytest.approx(whole, abs=1e-6)
    assert scorer(PICTURES[:1] * 2, texts[3:5])[0] == pytest.approx(scorer(PICTURES[:1] * 2, texts[3:5])[1], abs=1e-6)


def test_the_average_picture_scores_one_half():
    """A head whose last layer always says the mean of the release, then one that says a standard deviation more."""
    for offset, score in ((0.0, 0.5), (STD, 1 / (1 + math.exp(-1)))):
        weights = tiny_models.image_reward_weights()
        weights["mlp.layers.7.weight"].zero_()
        weights["mlp.layers.7.bias"].fill_(MEAN + offset)
        model = build_model(weights, tiny_models.IMAGE_REWARD_SETTINGS).eval()
        scorer = ImageRewardScorer(model, tiny_models.bert_tokenizer())
        assert scorer(PICTURES, TEXTS) == pytest.approx([score, score], abs=1e-5)


def test_a_file_that_is_not_the_release_is_refused(tmp_path):
    tiny_models.image_reward(tmp_path)
    encoder = Encoder(EncoderConfig("cpu"))

    def refused(weights) -> str:
        torch.save(weights, tmp_path / "ImageReward.pt")
        with pytest.raises(InputError, match="ImageReward.pt") as caught:
            ImageRewardScorer.load("image_reward", encoder, str(tmp_path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    whole = tiny_models.image_reward_weights()
    assert "no tensor mlp.layers." in refused({name: t for name, t in whole.items() if not name.startswith("mlp.")})
    refused({name: tensor for name, tensor in whole.items() if "crossattention" not in name})
    assert "eights" in refused({"blip": EncoderConfig()})  # an object in a pickle is not made

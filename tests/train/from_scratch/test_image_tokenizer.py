"""Training of the image tokenizer: what the codebook must keep apart."""

from limner.train.from_scratch.image_tokenizer import ImageTokenizerConfig, train_image_tokenizer
from limner.worlds.picture_stories.scenes import SCENES, draw_scene


def test_different_tiles_keep_different_codes():
    """The encoder moves after the first codebook; tiles whose codes ran together could never be told apart again."""
    config = ImageTokenizerConfig(channels=(32,), autoencoder_steps=120, quantised_steps=60, decoder_steps=1)
    _, figures = train_image_tokenizer([draw_scene(scene) for scene in SCENES], config)
    assert figures["codes_used"] == figures["examples"] <= config.codes

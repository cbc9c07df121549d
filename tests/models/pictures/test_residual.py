"""An image tokenizer of several codes a position, and where ids end."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument
from limner.models.pictures.contract import VQImageTokenizer, load_image_tokenizer
from limner.models.tokens.processing import Processor
from limner.models.tokens.template import ImageLayout, make_vocabulary
from limner.train.from_scratch.image_tokenizer import ImageTokenizerConfig
from limner.train.from_scratch.new_model import NewModelConfig, new_processor
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

DEPTH, CODES = 3, 16


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    made = VQImageTokenizer.create(32, 8, (16,), CODES, 8, depth=DEPTH).eval()
    with torch.no_grad():
        made.model.quantize.embedding.weight.normal_()
    return made


@torch.no_grad()
def test_each_code_is_the_nearest_entry_to_what_is_left(tokenizer):
    pictures = [draw_scene(scene) for scene in SCENES[:3]]
    found = np.stack(tokenizer.encode(pictures))
    assert found.shape == (3, 16, DEPTH) and tokenizer.codebook().shape == (DEPTH, CODES, 8)
    rest = tokenizer.latents(tokenizer.pixels(pictures)).movedim(1, -1).reshape(-1, 8)
    for depth, book in enumerate(tokenizer.codebook()):
        nearest = torch.cdist(rest, book).argmin(1)
        assert np.array_equal(found.reshape(-1, DEPTH)[:, depth], nearest.numpy())
        rest = rest - book[nearest]


def test_saved_and_opened_it_gives_the_same_codes_and_pictures(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "images")
    opened = load_image_tokenizer(tmp_path / "images")
    assert opened.depth == DEPTH and opened.fingerprint() == tokenizer.fingerprint()
    (codes,) = opened.encode([draw_scene(SCENES[3])])
    a, b = (np.asarray(one.decode(codes[None])[0]) for one in (opened, tokenizer))
    assert np.array_equal(a, b)


def test_codes_beyond_63_bits_are_refused(processor):
    layout = ImageLayout(16384, (27, 27), depth=4)
    assert make_vocabulary(processor.tokenizer, processor.template, layout).depth == 4
    with pytest.raises(InputError, match="16 codes of 16,384 a position"):
        make_vocabulary(processor.tokenizer, processor.template, replace(layout, depth=16))


def test_cached_codes_of_another_depth_are_refused(tokenizer, processor):
    deep = Processor(processor.tokenizer, tokenizer, processor.template)
    for wrong in (np.zeros(16, int), np.zeros((16, 2), int), np.full((16, DEPTH), CODES)):
        with pytest.raises(InputError, match="not this image tokenizer's"):
            deep.encode(InterleavedDocument((ImageSegment(None, codes_N=wrong),)))
    assert len(deep.encode(InterleavedDocument((ImageSegment(None, codes_N=np.zeros((16, DEPTH), int)),)))) > 16


def test_several_codes_in_a_family_that_draws_one_are_refused():
    config = NewModelConfig(image_tokenizer=ImageTokenizerConfig(depth=2))
    with pytest.raises(InputError, match=r"image_tokenizer.depth: 2"):
        new_processor([], [], config)

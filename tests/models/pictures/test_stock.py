"""The image tokenizer: pixels to codes and back, and which one made them."""

import json

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image

from limner.configs.errors import InputError
from limner.models.pictures.contract import VQImageTokenizer, load_image_tokenizer
from limner.worlds.picture_stories.scenes import SCENES, draw_scene


def create(seed=0, **settings):
    torch.manual_seed(seed)
    defaults = {"image_size": 32, "patch": 8, "channels": (16,), "codes": 32, "code_size": 8}
    tokenizer = VQImageTokenizer.create(**{**defaults, **settings}).eval()
    with torch.no_grad():  # codes that pictures really have
        latents = tokenizer.latents(tokenizer.pixels([draw_scene(scene) for scene in SCENES[::8]]))
        latents = torch.unique(latents.movedim(1, -1).reshape(-1, latents.shape[1]), dim=0)
        weight = tokenizer.model.quantize.embedding.weight
        weight.copy_(latents[torch.randperm(len(latents))[: len(weight)]])
    return tokenizer


SHAPES = [
    ({}, 4),
    ({"tiled": True}, 4),
    ({"patch": 1, "channels": (8, 8, 16)}, 8),
    ({"patch": 4, "channels": (8, 16), "tiled": True}, 4),
    ({"image_size": 48, "patch": 16}, 3),
]


@pytest.fixture(scope="module")
def pictures():
    return [draw_scene(scene) for scene in SCENES[:5]]


@pytest.mark.parametrize(("settings", "grid"), SHAPES)
def test_shapes(settings, grid, pictures):
    tokenizer = create(**settings)
    assert (tokenizer.shape, tokenizer.codes) == ((grid, grid), 32)
    codes = tokenizer.encode(pictures)
    assert len({tuple(code) for code in codes}) == 5
    assert [code.shape for code in codes] == [(grid**2,)] * 5
    assert all(np.issubdtype(code.dtype, np.integer) and code.min() >= 0 and code.max() < 32 for code in codes)
    decoded = tokenizer.decode(np.stack(codes))
    assert [(image.mode, image.size) for image in decoded] == [("RGB", (tokenizer.image_size,) * 2)] * 5
    assert tokenizer.codebook().shape == (32, 8)
    assert tokenizer.encode([]) == [] and tokenizer.decode(np.zeros((0, grid**2), np.int64)) == []


@pytest.mark.parametrize(("settings", "grid"), SHAPES)
def test_the_batch_does_not_matter(settings, grid, pictures):
    tokenizer = create(**settings)
    codes = tokenizer.encode(pictures, batch=2)
    assert np.array_equal(codes, [tokenizer.encode([picture])[0] for picture in pictures])
    together, alone = tokenizer.decode(np.stack(codes)), [tokenizer.decode(code[None])[0] for code in codes]
    difference = np.abs(np.asarray(together, dtype=int) - np.asarray(alone, dtype=int))
    assert difference.max() <= 1


def test_a_tiled_code_sees_its_own_part_only(pictures):
    changed = pictures[0].copy()
    changed.paste((0, 0, 0), (8, 16, 16, 24))  # column 1, row 2 of the 4 x 4 grid
    tokenizer = create(tiled=True)
    before, after = tokenizer.encode([pictures[0], changed])
    assert np.flatnonzero(before != after).tolist() == [2 * 4 + 1]
    latents = torch.zeros(2, 8, 4, 4)
    latents[1, :, 2, 1] = torch.randn(8)
    with torch.no_grad():
        first, second = tokenizer.reconstruct(latents)
    touched = (first - second).abs().sum(0) > 1e-5
    assert touched[16:24, 8:16].any()
    touched[16:24, 8:16] = False
    assert not touched.any()


def test_pictures_of_any_size_and_mode(pictures):
    tokenizer = create()
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste(pictures[0], (32, 0))
    assert np.array_equal(tokenizer.encode([wide])[0], tokenizer.encode([pictures[0]])[0]), "the centred square"
    white, clear = Image.new("RGB", (32, 32), "white"), Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    others = [white, clear, Image.new("L", (32, 32), 255), Image.new("1", (7, 50), 1)]
    assert len({tuple(codes) for codes in tokenizer.encode(others)}) == 1
    pixels = tokenizer.pixels([white, Image.new("RGB", (32, 32))])
    assert pixels.shape == (2, 3, 32, 32) and pixels[0].min() == 1 and pixels[1].max() == -1


def test_latents_and_reconstruction_fit_together(pictures):
    """Decoding codes is decoding their codebook entries."""
    for settings, _ in SHAPES:
        tokenizer = create(**settings)
        codes = np.stack(tokenizer.encode(pictures[:1]))
        latents = tokenizer.codebook()[torch.from_numpy(codes).long()].reshape(1, tokenizer.grid, tokenizer.grid, 8)
        with torch.no_grad():
            pixels = tokenizer.reconstruct(latents.permute(0, 3, 1, 2))
        expected = ((pixels[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0)
        decoded = torch.from_numpy(np.asarray(tokenizer.decode(codes)[0]).copy())
        assert (decoded - expected).abs().max() <= 0.51


def test_the_fingerprint_knows_weights_and_settings():
    tokenizer = create()
    before = tokenizer.fingerprint()
    assert before == create().fingerprint() and len(before) == 16
    same_weights = [((32, 8), True), ((64, 8), False), ((64, 16), False)]
    others = [VQImageTokenizer(tokenizer.model, *sizes, tiled=tiled) for sizes, tiled in same_weights]
    assert len({before, create(1).fingerprint(), *(other.fingerprint() for other in others)}) == 5
    with torch.no_grad():
        tokenizer.model.decoder.conv_out.bias[0] += 1e-3
    assert tokenizer.fingerprint() != before


def test_a_size_that_does_not_fit_is_refused():
    for settings in ({"image_size": 36}, {"patch": 16, "image_size": 40}, {"patch": 8, "channels": (8, 8, 8)}):
        with pytest.raises(InputError, match="image size .* is no multiple of its downsampling"):
            create(**{"image_size": 48, **settings})


@pytest.mark.parametrize(("settings", "grid"), SHAPES)
def test_save_and_load_are_exact(settings, grid, pictures, tmp_path):
    tokenizer = create(**settings)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_image_tokenizer(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint() and not loaded.training
    assert (loaded.grid, loaded.tiled, loaded.patch) == (grid, tokenizer.tiled, tokenizer.patch)
    assert np.array_equal(loaded.encode(pictures), tokenizer.encode(pictures))
    stock = VQModel.from_pretrained(tmp_path)
    assert torch.equal(stock.quantize.embedding.weight, tokenizer.codebook())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_what_is_no_image_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match="no image_tokenizer.json"):
        load_image_tokenizer(tmp_path)
    create().save_pretrained(tmp_path)
    for settings in ({"type": "VQGAN"}, {"type": "VQModel", "patch": 8}, {"type": "VQModel", "image_size": 33}, [], {}):
        (tmp_path / "image_tokenizer.json").write_text(json.dumps(settings))
        with pytest.raises(InputError) as error:
            load_image_tokenizer(tmp_path)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)

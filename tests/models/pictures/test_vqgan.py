"""Chameleon's VQGAN: our decoder against transformers' own of the same architecture, and the layouts of its weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import mse_loss
from transformers import ChameleonVQVAEConfig, JanusVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from limner.configs.errors import InputError
from limner.models.pictures.contract import centred_squares, load_image_tokenizer
from limner.models.pictures.vqgan import (
    ChameleonImageTokenizer,
    ChameleonVQGAN,
    VQGANDecoder,
    open_image_tokenizer,
    released_config,
)
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from ..families.tiny_vq import CODES, SIDE, VQ, released_vqgan, vqgan


@pytest.fixture(scope="module")
def pictures():
    return [draw_scene(scene) for scene in SCENES[:6]]


def block_names(place: str, changes_width: bool) -> set[str]:
    layers = ["norm1", "conv1", "norm2", "conv2", *(["nin_shortcut"] if changes_width else [])]
    return {f"{place}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_the_names_and_shapes_are_the_released_ones():
    """Of taming-transformers with Chameleon's settings: ch 128, ch_mult 1 1 2 2 4, two blocks, no attention but one."""
    with torch.device("meta"):
        model = ChameleonVQGAN(ChameleonVQVAEConfig())
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    expected = {f"{name}.{kind}" for name in ("conv_in", "norm_out", "conv_out") for kind in ("weight", "bias")}
    expected |= block_names("mid.block_1", False) | block_names("mid.block_2", False)
    parts = ("norm", "q", "k", "v", "proj_out")
    expected |= {f"mid.attn_1.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    for level in range(5):
        for block in range(3):
            expected |= block_names(f"up.{level}.block.{block}", block == 0 and level in (1, 3))
        if level:
            expected |= {f"up.{level}.upsample.conv.{kind}" for kind in ("weight", "bias")}
    assert {name.removeprefix("decoder.") for name in shapes if name.startswith("decoder.")} == expected
    others = {name for name in shapes if name.split(".")[0] in ("quantize", "quant_conv", "post_quant_conv")}
    assert others == {
        "quantize.embedding.weight",
        *(f"{name}.{kind}" for name in ("quant_conv", "post_quant_conv") for kind in ("weight", "bias")),
    }
    assert shapes["quantize.embedding.weight"] == (8192, 256)
    assert shapes["decoder.up.4.block.0.conv1.weight"] == (512, 512, 3, 3)
    assert shapes["decoder.up.3.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert shapes["decoder.conv_out.weight"] == (3, 128, 3, 3)


@pytest.mark.parametrize("attends_at_the_smallest_level", [False, True])
def test_the_decoder_is_transformers_own_of_the_same_architecture(attends_at_the_smallest_level):
    """Janus' decoder always attends at its smallest level: where Chameleon's does not, that attention adds nothing."""
    shape = {"base_channels": 32, "channel_multiplier": [1, 2, 2], "num_res_blocks": 2, "latent_channels": 16}
    torch.manual_seed(0)
    config = ChameleonVQVAEConfig(
        **shape, embed_dim=8, resolution=32, attn_resolutions=[8] if attends_at_the_smallest_level else []
    )
    ours, theirs = VQGANDecoder(config).eval(), JanusVQVAEDecoder(JanusVQVAEConfig(**shape, out_channels=3)).eval()
    renamed = {}
    for name, weight in ours.state_dict().items():
        if name.startswith("up."):  # theirs counts levels from the smallest
            level, _, rest = name.removeprefix("up.").partition(".")
            name = f"up.{2 - int(level)}.{rest}"
        renamed[name] = weight
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    assert not unexpected and all(".attn." in name for name in missing)
    assert bool(missing) is not attends_at_the_smallest_level
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if name in missing and ".proj_out." in name:
                weight.zero_()
        latents = torch.randn(2, 16, 8, 8)
        expected = theirs(latents)
        assert expected.shape == (2, 3, 32, 32)
        assert torch.allclose(ours(latents), expected, atol=1e-5)


def test_a_picture_survives_training(pictures):
    """Encoder, codebook and decoder learn together, with the stock straight-through gradient."""
    model = vqgan(0).train()
    pixels = centred_squares(pictures[:3], SIDE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        encoded = model.encode(pixels)
        loss = mse_loss(model.reconstruct(encoded.quantized_last_hidden_state), pixels) + encoded.embedding_loss
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_codes_are_the_stock_encoders_and_pixels_the_decoders(pictures, tmp_path):
    tokenizer = ChameleonImageTokenizer(vqgan(1))
    codes = np.stack(tokenizer.encode(pictures, batch=4))
    assert codes.shape == (6, 16) and len({tuple(row) for row in codes}) == 6
    tokenizer.save_pretrained(tmp_path)
    stock = ChameleonVQVAE.from_pretrained(tmp_path)
    pixels = centred_squares(pictures, SIDE)
    assert torch.equal(torch.from_numpy(codes), stock.encode(pixels).image_tokens.view(6, 16).int())
    with torch.no_grad():
        latents = tokenizer.model.encode(pixels).quantized_last_hidden_state
        expected = tokenizer.model.reconstruct(latents)
    decoded = tokenizer.decode(codes, batch=4)
    assert [(picture.mode, picture.size) for picture in decoded] == [("RGB", (SIDE, SIDE))] * 6
    array = np.stack([np.asarray(picture) for picture in decoded]).astype(float)
    found = ((expected + 1) / 2 * 255).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(array - found).max() <= 1.01, "cut off, not rounded"
    assert tokenizer.encode([]) == [] and tokenizer.decode(np.zeros((0, 16), np.int64)) == []


def test_what_is_saved_is_loaded(pictures, tmp_path):
    tokenizer = ChameleonImageTokenizer(vqgan(1))
    tokenizer.save_pretrained(tmp_path)
    loaded = load_image_tokenizer(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint() != ChameleonImageTokenizer(vqgan(2)).fingerprint()
    assert (loaded.shape, loaded.codes) == ((4, 4), CODES) and torch.equal(loaded.codebook(), tokenizer.codebook())
    codes = np.stack(tokenizer.encode(pictures))
    for ours, theirs in zip(tokenizer.decode(codes), loaded.decode(codes), strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_the_released_layouts_load(tmp_path):
    expected = ChameleonImageTokenizer(vqgan(0))
    path = released_vqgan(tmp_path)
    assert open_image_tokenizer(path).fingerprint() == open_image_tokenizer(tmp_path).fingerprint()
    assert open_image_tokenizer(path).fingerprint() == expected.fingerprint()
    assert (
        released_config(tmp_path / "vqgan.yaml").to_dict() == ChameleonVQVAEConfig(**VQ, attn_resolutions=[]).to_dict()
    )
    assert released_config(tmp_path / "none.yaml").to_dict() == ChameleonVQVAEConfig().to_dict()
    save_file(expected.model.state_dict(), tmp_path / "vqgan.safetensors")
    assert open_image_tokenizer(tmp_path / "vqgan.safetensors").fingerprint() == expected.fingerprint()


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


def test_other_weights_are_refused(tmp_path, capsys):
    path = released_vqgan(tmp_path)
    whole = torch.load(path, weights_only=True)["state_dict"]
    one = "decoder.up.1.block.0.conv1.weight"
    wrong = {
        "Missing": {name: weight for name, weight in whole.items() if name != one},
        "Unexpected": {**whole, "decoder.up.9.block.0.conv1.weight": whole[one]},
        "size mismatch": {**whole, one: whole[one][:, :8]},
    }
    for says, state in wrong.items():
        torch.save({"state_dict": state}, path)
        with pytest.raises(InputError, match=f"vqgan.ckpt: these are not the weights.*{says}") as error:
            open_image_tokenizer(path)
        assert "\n" not in str(error.value)
    torch.save({"state_dict": whole, "callback": Harmful()}, path)
    with pytest.raises(InputError, match="vqgan.ckpt: cannot be read: Weights only load failed"):
        open_image_tokenizer(path)
    assert "this ran" not in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no image tokenizer: neither image_tokenizer.json nor vqgan.ckpt"):
        open_image_tokenizer(tmp_path / "empty")
    with pytest.raises(InputError, match="image size 9 is no multiple of its downsampling 2"):
        ChameleonImageTokenizer(ChameleonVQGAN(ChameleonVQVAEConfig(**VQ)), image_size=9)

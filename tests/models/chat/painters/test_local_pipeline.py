"""A tiny Stable Diffusion of the stock classes: seeds, batches, what it cannot read, and what it does not take."""

import json
import shutil

import numpy as np
import pytest

from limner.configs.errors import InputError
from limner.models.chat.painters.local_pipeline import LocalPipeline, LocalPipelineConfig
from limner.models.chat.painters.painter import CUT, REFUSED, Wanted

from ....small_pipeline import save_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("painter") / "sd")


def painter(folder, **settings) -> LocalPipeline:
    return LocalPipeline(LocalPipelineConfig(folder, device="cpu", steps=2, **settings))


def pixels(painted) -> np.ndarray:
    return np.asarray(painted.image, dtype=int)


def test_a_picture_depends_on_its_words_and_seed_alone(folder):
    wanted = [Wanted("a red cat", 1), Wanted("a blue dog", 2), Wanted("a red cat", 3)]
    together = painter(folder, batch_size=2).paint(wanted)
    single = painter(folder).paint(wanted[::-1])[::-1]
    for one, other in zip(together, single, strict=True):
        assert one.image.size == (32, 32) and one.image.mode == "RGB"
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
    assert np.abs(pixels(together[0]) - pixels(together[2])).max() > 1


def test_what_the_text_encoder_cuts_off_and_what_a_checker_flags_are_counted(folder):
    model = painter(folder)
    (cut,) = model.paint([Wanted("x" * 60, 0)])
    assert cut.notes == (CUT,) and cut.image is not None and model.counts == {CUT: 1, "painted": 1}

    class Flagged:
        def __call__(self, **_):
            return type("Result", (), {"images": [cut.image], "nsfw_content_detected": [True]})

    model.pipeline, model._limits = Flagged(), []
    (refused,) = model.paint([Wanted("x", 0)])
    assert refused.image is None and refused.notes == (REFUSED,) and model.counts["painted"] == 1


def test_what_it_does_not_take_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="StableDiffusionPipeline takes no 'max_sequence_length'"):
        painter(folder, options={"max_sequence_length": 64})
    with pytest.raises(InputError, match="takes no 'num_images_per_prompt' here"):
        painter(folder, options={"num_images_per_prompt": 2})
    with pytest.raises(InputError, match="does not paint with these settings: .*timestep"):
        painter(folder, options={"timesteps": [1]}).paint([Wanted("a", 0)])
    with pytest.raises(InputError, match="no/where: cannot be read"):
        painter("no/where")
    broken = shutil.copytree(folder, tmp_path / "broken")
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps({**index, "_class_name": ["mine", "Own"]}))
    (broken / "mine.py").write_text("raise SystemExit('remote code has run')\n")
    with pytest.raises(InputError, match="broken"):
        painter(str(broken))


def test_weights_that_are_missing_are_named(folder, tmp_path):
    """diffusers and transformers would put random numbers in their place, and paint with them."""
    from safetensors.torch import load_file, save_file

    for part, file in (("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        broken = shutil.copytree(folder, tmp_path / part)
        weights = load_file(broken / part / file)
        lost = next(name for name in weights if name.endswith("weight"))
        save_file({name: value for name, value in weights.items() if name != lost}, broken / part / file)
        with pytest.raises(InputError, match=part):
            painter(str(broken))

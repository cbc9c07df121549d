"""Emu3: its own `generate` and `decode_image_tokens` give the same tokens and pixels."""

import numpy as np
import pytest
import torch

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument
from limner.models.families.emu3 import Emu3ImageTokenizer, Emu3Policy
from limner.models.pictures.contract import centred_squares
from limner.models.sampler.generation import Sampling, generate
from limner.models.tokens.sequence import collate
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story

from .tiny_vq import SIDE, greedy_text, own_ids, prompts, published_emu3, replay_gap, saved_and_loaded, tiny_emu3

GRID = SIDE // 2


@pytest.fixture(scope="module")
def policy():
    return tiny_emu3()


def named(policy, *tokens: str) -> list[int]:
    return policy.processor.tokenizer.convert_tokens_to_ids(list(tokens))


def test_an_image_is_laid_out_as_emu3_does_it(policy):
    picture = draw_scene(SCENES[3])
    sequence = policy.processor.encode(InterleavedDocument((ImageSegment(picture),)))
    ids = own_ids(policy, sequence.ids_T)[0].tolist()
    begin, wrapper = named(policy, "<|image start|>", "<|image token|>")
    start = ids.index(begin)
    size = policy.processor.text_ids(f"{GRID}*{GRID}")
    pixels = centred_squares([picture], SIDE)
    rows = policy.model.model.get_image_tokens(pixels, torch.tensor([[SIDE, SIDE]])).tolist()
    assert rows[GRID :: GRID + 1] == named(policy, "<|extra_200|>") * GRID
    image = [begin, *size, wrapper, *rows, *named(policy, "<|extra_201|>", "<|image end|>")]
    assert ids[start : start + len(image)] == image
    start, answer = "You are a helpful assistant. USER: ", " ASSISTANT:"
    text = policy.processor.tokenizer.decode(ids)
    assert text.startswith(f"<|extra_203|>{start}<|image start|>") and text.endswith(f"<|image end|>{answer}")


def constrained(policy, height: int, width: int):
    """The grammar that Emu3's documentation gives `generate`: rows of codes, their ends, that of the frame."""
    codes = list(policy.processor.code_ids)
    wrapper, eol, eof, eoi, eos, pad = named(
        policy, "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>", "<|extra_204|>", "<|endoftext|>"
    )

    def allowed(_, ids):
        offset = len(ids) - int((ids == wrapper).nonzero()[0, 0])
        behind = offset - (width + 1) * height
        if behind > 0:
            return [(eof, eoi, eos, pad)[min(behind, 4) - 1]]
        return [eol] if offset % (width + 1) == 0 else codes

    return allowed


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_images_are_the_stock_generate_and_its_pixels(policy, guidance):
    """Guided too: transformers takes log-softmax first, which moves all codes of a position alike."""
    vocabulary, (prompt, *_) = policy.vocabulary, prompts(policy)
    pattern = vocabulary.image
    sampling = Sampling(1 + len(pattern), temperature=0, begin_with_image=True, guidance=guidance)
    ours = generate(policy, [prompt], sampling)[0].ids_C
    header = pattern.index(-1)
    opening = torch.tensor([vocabulary.controls.boi, *pattern[:header]])
    ids = own_ids(policy, torch.cat([prompt.ids_T, opening]))
    options = {}
    if guidance != 1:
        without = torch.tensor([*vocabulary.start, *vocabulary.answer])
        options = {"guidance_scale": guidance, "negative_prompt_ids": own_ids(policy, torch.cat([without, opening]))}
    theirs = policy.model.generate(
        ids,
        max_new_tokens=len(pattern) - header + 1,
        do_sample=False,
        prefix_allowed_tokens_fn=constrained(policy, GRID, GRID),
        **options,
    )[:, ids.shape[1] :]
    assert theirs[0, :-1].tolist() == own_ids(policy, ours[1 + header :])[0].tolist()
    assert theirs[0, -1] == vocabulary.controls.eos

    pixels = policy.model.decode_image_tokens(image_tokens=theirs, height=GRID, width=GRID)
    (segment,) = policy.processor.read(ours.tolist()).document.images
    codes = torch.from_numpy(segment.codes_N).view(1, GRID, GRID)
    with torch.no_grad():
        assert torch.allclose(policy.processor.image_tokenizer.pixels_of(codes), pixels, atol=1e-6)
    decoded = np.asarray(policy.processor.image_tokenizer.decode(segment.codes_N[None])[0]).astype(float)
    expected = ((pixels[0] + 1) / 2 * 255).clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(decoded - expected).max() <= 1.01, "cut off, not rounded"


def test_greedy_text_is_the_stock_generate(policy):
    ours, theirs = greedy_text(policy)
    assert ours == theirs and len(set(ours)) > 3


def test_codes_are_the_stock_encoders(policy):
    pictures = [draw_scene(scene) for scene in SCENES[:5]]
    tokenizer = policy.processor.image_tokenizer
    codes = np.stack(tokenizer.encode(pictures, batch=2))
    sizes = torch.full((5, 2), SIDE)
    with torch.no_grad():
        stock = tokenizer.model.encode(centred_squares(pictures, SIDE), sizes).image_tokens
    assert np.array_equal(codes, torch.stack(stock).flatten(1).numpy()) and len({tuple(row) for row in codes}) == 5


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_replayed_log_probs_are_the_sampled_ones(policy, guidance):
    """In training mode: the configuration asks for attention dropout, and there is none."""
    assert policy.model.config.text_config.attention_dropout > 0
    gap, pictures = replay_gap(policy, guidance)
    assert gap < 1e-4 and pictures >= 4


def test_the_image_tokenizer_alone_is_frozen(policy):
    """What is trained has gradients, and only that: `conformance.check_gradients`."""
    weights = dict(policy.model.named_parameters())
    frozen = {name for name, weight in weights.items() if not weight.requires_grad}
    assert frozen and frozen == {name for name in weights if name.startswith("model.vqmodel.")}


def test_what_is_saved_is_loaded(policy, tmp_path):
    loaded = saved_and_loaded(policy, tmp_path / "model")
    assert type(loaded) is Emu3Policy and loaded.vocabulary == policy.vocabulary
    batch = collate([[policy.processor.encode(story(SCENES[:2]))]], policy.vocabulary)
    with torch.no_grad():
        assert torch.equal(*(p.log_probs(p.model, batch)[0] for p in (policy, loaded)))
    ours, theirs = policy.processor.image_tokenizer, loaded.processor.image_tokenizer
    assert theirs.fingerprint() == ours.fingerprint() and theirs.image_size == SIDE


def test_the_size_of_pictures_is_chosen_once(tmp_path):
    published_emu3(tmp_path)
    policy = Emu3Policy.from_upstream(tmp_path)
    assert policy.processor.image_tokenizer.shape == (360, 360), "720 pixels, two to a code"
    assert policy.processor.template.header == "360*360<|image token|>"
    small = Emu3ImageTokenizer(policy.processor.image_tokenizer.model, SIDE)
    (tmp_path / "small").mkdir()
    small.save_pretrained(tmp_path / "small")
    again = Emu3Policy.from_upstream(tmp_path, image_tokenizer=tmp_path / "small")
    assert again.processor.template.header == f"{GRID}*{GRID}<|image token|>"
    with pytest.raises(InputError, match="--image-size"):
        Emu3Policy.from_upstream(tmp_path, image_tokenizer=tmp_path / "small", image_size=SIDE)
    with pytest.raises(InputError, match="image size 7 is no multiple of its downsampling 2"):
        Emu3ImageTokenizer(policy.model.model.vqmodel, 7)

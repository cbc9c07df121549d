"""Chameleon: what transformers can do comes out the same; what its forward forbids, images, is done beside it."""

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.families.chameleon import TEMPLATE, ChameleonPolicy
from limner.models.sampler.generation import Sampling, generate
from limner.models.tokens.sequence import collate
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story

from .tiny_vq import (
    CODES,
    code_name,
    greedy_text,
    own_ids,
    prompts,
    published_chameleon,
    replay_gap,
    saved_and_loaded,
    tiny_chameleon,
)


@pytest.fixture(scope="module")
def policy():
    return tiny_chameleon()


def test_codes_are_the_ids_of_their_names(policy):
    """Which need not be in the order of codes."""
    known = policy.processor.tokenizer.get_vocab()
    assert list(policy.processor.code_ids) == [known[code_name(code)] for code in range(CODES)]
    assert list(policy.processor.code_ids) != sorted(policy.processor.code_ids)
    picture = draw_scene(SCENES[3])
    (codes,) = policy.processor.image_tokenizer.encode([picture])
    stock = policy.model.model.vocabulary_mapping.convert_img2bpe(torch.from_numpy(codes).long())
    joint = torch.from_numpy(codes) + policy.vocabulary.text_size
    assert own_ids(policy, joint.long())[0].tolist() == stock.tolist()


def test_no_text_spells_a_control_token_or_a_code(policy):
    own = {*policy.processor.code_ids, *policy.processor.tokenizer.convert_tokens_to_ids([TEMPLATE.boi, TEMPLATE.eoi])}
    for text in (code_name(17), "<racm3:break>", "a <eoss> b", "<reserved08706>", "<s>", "</s>"):
        ids = policy.processor.text_ids(text)
        assert policy.processor.tokenizer.decode(ids) == text and not own & {*ids}


def test_greedy_text_is_the_stock_generate(policy):
    ours, theirs = greedy_text(policy)
    assert ours == theirs and len(set(ours)) > 3


def test_greedy_images_are_those_of_the_stock_modules(policy):
    """The reference calls the decoder and the head: the stock forward gives every code the smallest number."""
    (prompt, *_), size = prompts(policy), policy.vocabulary.text_size
    image = [*policy.vocabulary.image]
    ours = generate(policy, [prompt], Sampling(1 + len(image), temperature=0, begin_with_image=True))[0].ids_C
    ids = own_ids(policy, torch.cat([prompt.ids_T, ours[:1]]))
    codes = torch.tensor(policy.processor.code_ids)
    found = []
    with torch.no_grad():
        forward = policy.model(input_ids=ids).logits[0, -1, codes]
        assert (forward == torch.finfo(forward.dtype).min).all(), "transformers scores images now: use its forward here"
        for _ in range(policy.vocabulary.image_length):
            hidden = policy.model.model(input_ids=ids).last_hidden_state[:, -1]
            code = policy.model.lm_head(hidden)[0, codes].argmax()
            found.append(int(code))
            ids = torch.cat([ids, codes[code].view(1, 1)], dim=1)
    assert (ours[1:-1] - size).tolist() == found and ours[-1] == policy.vocabulary.controls.eoi


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_replayed_log_probs_are_the_sampled_ones(policy, guidance):
    gap, pictures = replay_gap(policy, guidance)
    assert gap < 1e-4 and pictures >= 4


def test_the_image_tokenizer_alone_is_frozen(policy):
    """What is trained has gradients, and only that: `conformance.check_gradients`."""
    weights = dict(policy.model.named_parameters())
    frozen = {name for name, weight in weights.items() if not weight.requires_grad}
    assert frozen and frozen == {name for name in weights if name.startswith("model.vqmodel.")}


def test_what_is_saved_is_loaded(policy, tmp_path):
    loaded = saved_and_loaded(policy, tmp_path / "model")
    assert type(loaded) is ChameleonPolicy and loaded.vocabulary == policy.vocabulary
    batch = collate([[policy.processor.encode(story(SCENES[:2]))]], policy.vocabulary)
    with torch.no_grad():
        assert torch.equal(*(p.log_probs(p.model, batch)[0] for p in (policy, loaded)))
    assert loaded.processor.image_tokenizer.fingerprint() == policy.processor.image_tokenizer.fingerprint()


def test_a_checkpoint_without_the_decoder_says_what_it_needs(tmp_path):
    published_chameleon(tmp_path, decoder=False)
    with pytest.raises(InputError, match=r"has no decoder of pictures; name Chameleon's vqgan.ckpt"):
        ChameleonPolicy.from_upstream(tmp_path)

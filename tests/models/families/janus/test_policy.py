"""Janus: ours against transformers' own, on the real classes in small; what transformers 5.23 does wrong, by name."""

import shutil

import numpy as np
import pytest
import torch
from transformers import JanusForConditionalGeneration, JanusProcessor, LogitsProcessorList
from transformers.models.janus.modeling_janus import JanusVQVAE

from limner.configs.errors import InputError
from limner.models.checkpoints.folder import load, save
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.families.janus.policy import JanusPolicy
from limner.models.pictures.contract import centred_squares, load_image_tokenizer
from limner.models.sampler.generation import Sampling, generate
from limner.models.tokens.sequence import collate
from limner.train.scale.lora import LoraConfig
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from ..conformance import documents, of_row, sampled
from ..tiny import janus_new, janus_reencode, published_janus

WORDS = ("A red circle", "Fold the paper, and then wait.")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published") / "janus"
    published_janus(directory, 0.3)  # greedy choices of smaller weights are all the same
    return directory


@pytest.fixture(scope="module")
def policy(published):
    return JanusPolicy.from_upstream(published)


@pytest.fixture(scope="module")
def stock(published):
    return JanusForConditionalGeneration.from_pretrained(published).eval()


@pytest.fixture(scope="module")
def saved(policy, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "model"
    save(policy, directory)
    return directory


@pytest.fixture(scope="module")
def stock_processor(policy):
    """As published: `<bos>` in front by the tokenizer, `<begin_of_image>` behind by the mode."""
    processor = policy.processor
    return JanusProcessor(processor.vision.processor, processor.tokenizer, num_image_tokens=16)


def prompt(words, *scenes):
    pictures = [ImageSegment(draw_scene(SCENES[scene])) for scene in scenes]
    return InterleavedDocument((*pictures, TextSegment(words)))


def chat(words):
    return f"<|User|>: {words}\n\n<|Assistant|>:"


def drawn_by_stock(stock, ids, **inputs):
    return stock.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        guidance_scale=5,
        do_sample=False,
        **inputs,
    )


def drawn_by_us(policy, prompts, guidance=5.0):
    sampling = Sampling(1 + 16, temperature=0, guidance=guidance, begin_with_image=True)
    samples = generate(policy, policy.processor.encode_all(prompts), sampling)
    return torch.stack([sample.ids_C[1:] - policy.vocabulary.text_size for sample in samples])


def written_by_stock(stock, policy, ids, **inputs):
    vocabulary, rows = policy.vocabulary, stock.lm_head.out_features
    forbidden = [*vocabulary.never_sampled, vocabulary.controls.boi, *range(vocabulary.text_size, rows)]
    written = stock.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="text",
        do_sample=False,
        max_new_tokens=24,
        suppress_tokens=forbidden,
        **inputs,
    )
    return written[0, ids.shape[1] :].tolist()


def written_by_us(policy, document):
    (sample,) = generate(policy, [policy.processor.encode(document)], Sampling(24, temperature=0, max_images=0))
    return sample.ids_C.tolist()


# ---- parity ----


@pytest.mark.parametrize("words", WORDS)
def test_the_prompt_is_the_published_one(policy, stock_processor, words):
    ids = stock_processor(text=[chat(words)], generation_mode="image")["input_ids"][0].tolist()
    assert [*policy.processor.encode(prompt(words)).ids_T.tolist(), policy.vocabulary.controls.boi] == ids
    with_picture = stock_processor(text=[chat("<image_placeholder>" + words)], images=[draw_scene(SCENES[3])])
    sequence = policy.processor.encode(prompt(words, 3))
    assert sequence.ids_T.tolist() == with_picture["input_ids"][0].tolist()
    assert torch.equal(sequence.slots[0].pixels, with_picture["pixel_values"][0])


def test_greedy_pictures_are_those_of_transformers(policy, stock, stock_processor):
    ours = drawn_by_us(policy, [prompt(words) for words in WORDS])
    assert len(set(ours.flatten().tolist())) > 4 and ours[0].tolist() != ours[1].tolist()
    for words, codes in zip(WORDS, ours, strict=True):
        ids = stock_processor(text=[chat(words)], generation_mode="image")["input_ids"]
        theirs = drawn_by_stock(stock, ids)
        assert codes.tolist() == theirs[0].tolist()
        pixels = stock.decode_image_tokens(theirs).detach().movedim(-1, 1)  # see the bug of `postprocess` below
        expected = stock_processor.postprocess(list(pixels), return_tensors="PIL.Image.Image")
        (picture,) = policy.processor.image_tokenizer.decode(codes[None].numpy())
        assert np.array_equal(np.asarray(picture), np.asarray(expected["pixel_values"][0]))
        assert len(np.unique(np.asarray(picture))) > 30
    assert drawn_by_us(policy, [prompt(WORDS[0])], guidance=1.0).tolist() != ours[:1].tolist()


@pytest.mark.parametrize("scenes", [(), (3,)])
def test_greedy_text_is_that_of_transformers(policy, stock, stock_processor, scenes):
    for words in WORDS:
        pictures = {"images": [draw_scene(SCENES[scene]) for scene in scenes]} if scenes else {}
        inputs = stock_processor(text=[chat("<image_placeholder>" * len(scenes) + words)], **pictures)
        pixels = {"pixel_values": inputs["pixel_values"]} if scenes else {}
        theirs = written_by_stock(stock, policy, inputs["input_ids"], **pixels)
        ours = written_by_us(policy, prompt(words, *scenes))
        assert ours == theirs and len(set(ours)) > 4
    if scenes:
        assert written_by_us(policy, prompt(words, 40)) != ours


# ---- what transformers does wrong ----


def test_bug_image_mode_never_looks_at_pictures(policy, stock, stock_processor, monkeypatch):
    """transformers embeds the placeholders as if they were words; ours draws after a picture what the picture says."""
    text = [chat("<image_placeholder>" + WORDS[0])]
    theirs = []
    for scene in (3, 40):
        inputs = stock_processor(text=text, images=[draw_scene(SCENES[scene])], generation_mode="image")
        theirs.append(drawn_by_stock(stock, inputs["input_ids"], pixel_values=inputs["pixel_values"]).tolist())
    ours = [drawn_by_us(policy, [prompt(WORDS[0], scene)]).tolist() for scene in (3, 40)]
    assert theirs[0] == theirs[1] and ours[0] != ours[1]
    # Blind in the same way, ours is theirs.
    word = stock.get_input_embeddings().weight[policy.vocabulary.controls.image].detach()
    monkeypatch.setattr(policy, "image_features", lambda pixels: word.expand(len(pixels), 16, -1))
    assert drawn_by_us(policy, [prompt(WORDS[0], 3)]).tolist() == theirs[0]


def test_bug_no_picture_without_guidance(policy, stock, stock_processor):
    ids = stock_processor(text=[chat(WORDS[0])], generation_mode="image")["input_ids"]
    with pytest.raises(RuntimeError, match="expanded size"):
        stock.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image", guidance_scale=1)
    assert drawn_by_us(policy, [prompt(WORDS[0])], guidance=1.0).shape == (1, 16)


def test_bug_postprocess_does_not_take_what_decoding_gives(stock, stock_processor):
    """By the PIL backend: it is given channels last, and normalises along the first axis."""
    pixels = stock.decode_image_tokens(torch.zeros(1, 16, dtype=torch.long)).detach()
    assert pixels.shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match="mean must have 16 elements"):
        stock_processor.postprocess(list(pixels), return_tensors="PIL.Image.Image")


def test_bug_text_mode_drops_logits_processors(stock, stock_processor):
    ids, calls = stock_processor(text=[chat(WORDS[0])])["input_ids"], []
    spy = LogitsProcessorList([lambda ids, scores: calls.append(1) or scores])
    stock.generate(input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=spy, max_new_tokens=2)
    assert not calls


def test_bug_labels_train_the_text_head_only(policy, stock):
    """The image head gets a gradient from ours, and from transformers none at all."""
    sequence = policy.processor.encode(documents()[0])
    ids = sequence.ids_T[None]
    text = torch.where(ids < policy.vocabulary.text_size, ids, 0)
    stock.zero_grad()
    stock(input_ids=text, pixel_values=sequence.slots[0].pixels[None], labels=text).loss.backward()
    assert stock.lm_head.weight.grad.any()
    assert all(p.grad is None for p in stock.model.generation_head.parameters())
    stock.zero_grad(set_to_none=True)
    policy.log_probs(policy.model, collate([[sequence]], policy.vocabulary))[0].sum().backward()
    assert all(p.grad.any() for p in policy.model.model.generation_head.parameters())
    assert all(p.grad is None for p in policy.model.model.vqmodel.parameters())
    policy.model.zero_grad()


def test_bug_encoding_compares_lengths_where_decoding_compares_directions(saved):
    """Janus normalises latents and codes; transformers does so in decoding only, so its codes are not Janus' own."""
    ours, theirs = (
        load_image_tokenizer(saved / "image_tokenizer"),
        JanusVQVAE.from_pretrained(saved / "image_tokenizer"),
    )
    pictures = [draw_scene(scene) for scene in SCENES[:4]]
    pixels = centred_squares(pictures, ours.image_size)

    def stock_codes():
        with torch.no_grad():
            return theirs.encode(pixels).image_tokens.view(4, 16).tolist()

    mine, stock = np.stack(ours.encode(pictures)), stock_codes()
    assert mine.tolist() != stock
    with torch.no_grad():
        latents = theirs.quant_conv(theirs.encoder(pixels)).flatten(2).mT
        cosine = torch.nn.functional.cosine_similarity(latents[:, :, None], theirs.quantize.embedding.weight, dim=-1)
        assert mine.tolist() == cosine.argmax(-1).tolist()
        # A code's length says nothing to the decoder, and so it must not matter to the encoder.
        scale = torch.linspace(0.1, 3.0, theirs.config.num_embeddings)[:, None]
        before = theirs.decode(torch.as_tensor(mine).long())
        for model in (ours.model, theirs):
            model.quantize.embedding.weight.mul_(scale)
        assert torch.allclose(theirs.decode(torch.as_tensor(mine).long()), before, atol=1e-5)
    assert np.stack(ours.encode(pictures)).tolist() == mine.tolist() and stock_codes() != stock


# ---- ours ----


def test_a_picture_drawn_is_seen_again_where_it_stands():
    """With `reencode` the features of the picture's own pixels follow its codes, and later text depends on them."""
    policy = janus_reencode()
    vocabulary, processor = policy.vocabulary, policy.processor
    _, samples, sequences = sampled(policy, Sampling(90, seed=3))
    looked = 0
    for sample, sequence in zip(samples, sequences, strict=True):
        slots = [s for s in sequence.slots if s.role == "generated" and s.stop - s.start == len(vocabulary.image) - 1]
        if not slots or slots[0].stop + 3 > len(sequence):
            continue
        slot, looked = slots[0], looked + 1
        codes = sequence.ids_T[slot.start : slot.start + 16] - vocabulary.text_size
        again = sequence.ids_T[slot.start + 16 : slot.stop + 1].tolist()
        controls = vocabulary.controls
        assert again == [controls.eoi, controls.boi, *[controls.image] * 16, controls.eoi]
        assert not sequence.trainable_T[slot.start + 16 : slot.stop + 1].any()
        (picture,) = processor.image_tokenizer.decode(codes[None].numpy())
        assert torch.equal(slot.pixels, processor.vision([picture])[0])
        found, start = of_row(policy, sequence), sequence.prompt_length
        assert (found[start:] - sample.logp_C).abs().max() < 1e-4
        slot.pixels.copy_(-slot.pixels)  # another picture in its place
        other = of_row(policy, sequence)
        assert torch.allclose(other[: slot.stop + 1], found[: slot.stop + 1], atol=1e-6)
        assert (other - found)[slot.stop + 1 :].abs().max() > 1e-3
    assert looked > 1


def test_an_adapter_leaves_the_image_tokenizer_inside_alone(policy):
    """`proj_out` is a layer of the image head, and of the frozen tokenizer's attention as well."""
    from peft import get_peft_model

    fresh = janus_new()
    inside = {name for name, _ in fresh.model.named_modules() if name.endswith(".proj_out")}
    assert any("vqmodel" in name for name in inside)
    get_peft_model(fresh.model, LoraConfig(rank=2, targets=["proj_out"]).adapter(fresh.model))
    adapted = {name for name, _ in fresh.model.named_parameters() if "lora_A" in name}
    assert adapted == {"model.generation_head.proj_out.lora_A.default.weight"}
    with pytest.raises(InputError, match="conv_in is no layer to adapt"):
        LoraConfig(targets=["conv_in"]).adapter(policy.model)


def test_a_new_janus_keeps_the_tokenizers_codes():
    policy = janus_new()
    tower = policy.model.model
    assert policy.processor.image_tokenizer.encode([draw_scene(SCENES[0])])[0].shape == (16,)
    assert sum(p.numel() for p in tower.vision_model.parameters() if p.requires_grad) > 0
    assert not any(p.requires_grad for p in tower.vqmodel.parameters())
    weight = tower.generation_embeddings.weight
    assert weight.shape == policy.processor.image_tokenizer.codebook().shape
    assert torch.allclose(weight.norm(dim=-1), torch.ones(len(weight)), atol=1e-5)


@pytest.mark.parametrize("missing", ["preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_a_published_folder_that_lacks_a_part_is_named(tmp_path, missing):
    published_janus(tmp_path / "janus")
    (tmp_path / "janus" / missing).unlink()
    with pytest.raises(InputError, match="janus") as error:
        JanusPolicy.from_upstream(tmp_path / "janus")
    assert "\n" not in str(error.value)


def test_an_image_tokenizer_of_another_codebook_is_refused(saved, tmp_path):
    other = janus_new()
    directory = shutil.copytree(saved, tmp_path / "model", ignore=shutil.ignore_patterns("image_tokenizer"))
    with torch.no_grad():
        tokenizer = other.processor.image_tokenizer
        half = type(tokenizer).create(32, 8, (16,), 32, 8).eval()
    (directory / "image_tokenizer").mkdir()
    half.save_pretrained(directory / "image_tokenizer")
    with pytest.raises(InputError, match="embeds 64 image codes, its image tokenizer has 32"):
        load(directory)

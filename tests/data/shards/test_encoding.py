"""Codes of pictures in shards: none lost, none made twice, stale ones refused."""

import math
import shutil

import numpy as np
import pytest
import torch

from limner.configs.errors import InputError
from limner.data.shards import ShardWriter, encode_shards, encoding, read_documents, read_index
from limner.data.validate import validate
from limner.models.checkpoints.folder import save
from limner.models.documents.document import ImageSegment, TextSegment

from ..shard_files import article, picture, write

IMAGE = ImageSegment(picture("blue"), True, "generated", alt="a \u00e9 picture")


class Tokenizer:
    """Codes are the colour of a corner; `left` pictures later it is killed."""

    def __init__(self, name="tokenizer-1", left=math.inf):
        self.name, self.left, self.seen = name, left, 0

    def encode(self, images):
        self.left, self.seen = self.left - len(images), self.seen + len(images)
        if self.left < 0:
            raise KeyboardInterrupt
        return [np.array(image.getpixel((0, 0))) for image in images]

    def fingerprint(self):
        return self.name


def test_codes_are_added_and_stale_ones_refused(tmp_path):
    source = tmp_path / "d"
    with ShardWriter(source, report={"n": 1}) as writer:
        writer.write(article("a", TextSegment("t", True), IMAGE, ImageSegment(picture())))
        writer.write(article("b", TextSegment("no image", True)), "heldout")
        writer.write(article("c"))
    assert all(s.codes_N is None for d in read_documents(source, "train", shuffle_seed=0) for s in d.images)
    done = encode_shards(source, tmp_path / "coded", Tokenizer(), batch=2)
    assert (done.pictures, done.kept) == (3, 0) and sorted(p.name for p in tmp_path.iterdir()) == ["coded", "d"]
    index = read_index(tmp_path / "coded")
    assert index.fingerprint == "tokenizer-1" and index.report == {"n": 1}
    assert index.kinds == read_index(source).kinds
    documents = {d.id: d for d in read_documents(tmp_path / "coded", "train", shuffle_seed=None)}
    assert [s.codes_N.tolist() for s in documents["a"].images] == [[0, 0, 255], [255, 0, 0]]
    read_documents(source, "train", shuffle_seed=0, expected_fingerprint="tokenizer-2")
    read_documents(tmp_path / "coded", "train", shuffle_seed=0, expected_fingerprint="tokenizer-1")
    with pytest.raises(InputError, match="codes are stale .*tokenizer-1.*cache them again"):
        read_documents(tmp_path / "coded", "train", shuffle_seed=0, expected_fingerprint="tokenizer-2")
    with pytest.raises(InputError, match="codes of this image tokenizer already"):
        encode_shards(tmp_path / "coded", tmp_path / "again", Tokenizer())
    with pytest.raises(InputError, match="coded: exists already"):
        encode_shards(tmp_path / "coded", tmp_path / "coded", Tokenizer("tokenizer-2"))
    encode_shards(tmp_path / "coded", tmp_path / "coded", Tokenizer("tokenizer-2"), overwrite=True)
    assert read_index(tmp_path / "coded").fingerprint == "tokenizer-2"
    with pytest.raises(InputError, match="without the fingerprint"), ShardWriter(tmp_path / "x") as writer:
        writer.write(documents["a"])


def test_too_few_codes_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="0 codes for 3 pictures"):
        tokenizer = Tokenizer()
        tokenizer.encode = lambda images: []
        encode_shards(write(tmp_path / "d", 3), tmp_path / "e", tokenizer)
    assert not (tmp_path / "e").exists()


def test_a_killed_encoding_goes_on_where_it_was(tmp_path, monkeypatch):
    source = write(tmp_path / "d", 9, max_records=3)
    with pytest.raises(KeyboardInterrupt):
        encode_shards(source, tmp_path / "e", Tokenizer(left=7), batch=2)
    assert not (tmp_path / "e").exists()
    again = Tokenizer()
    done = encode_shards(source, tmp_path / "e", again, batch=2)
    assert (done.pictures, done.kept, again.seen) == (3, 2, 3)
    encode_shards(source, tmp_path / "whole", Tokenizer(), batch=4)
    files = ["index.json", *(f"train-{n:06d}.tar" for n in range(3))]
    assert [p.name for p in sorted((tmp_path / "e").iterdir())] == files
    assert all((tmp_path / "e" / f).read_bytes() == (tmp_path / "whole" / f).read_bytes() for f in files)
    for change in (lambda: Tokenizer("tokenizer-2"), lambda: monkeypatch.setattr(encoding, "ENCODING", 2)):
        with pytest.raises(KeyboardInterrupt):
            encode_shards(source, tmp_path / "f", Tokenizer(left=7), batch=2)
        assert encode_shards(source, tmp_path / "f", change() or Tokenizer(), batch=2).kept == 0
        shutil.rmtree(tmp_path / "f")


def test_the_command_makes_the_codes_that_training_would(limner, make_policy, tmp_path):
    policy = make_policy(0)
    save(policy, tmp_path / "model")
    source = write(tmp_path / "d", 5)
    words = ("data", "encode", source, "--model", tmp_path / "model", "--out")
    code, said, err = limner(*words, tmp_path / "coded")
    assert code == 0 and f"{tmp_path / 'coded'}: 5 pictures in " in said and "a second" in said, err
    assert validate(tmp_path / "coded") == []
    bare, coded = (next(read_documents(d, "train", shuffle_seed=None)) for d in (source, tmp_path / "coded"))
    assert coded.images[0].codes_N is not None
    assert torch.equal(policy.processor.encode(bare).ids_T, policy.processor.encode(coded).ids_T)
    code, _, err = limner(*words, tmp_path / "coded")
    assert code == 2 and "exists already" in err
    code, _, err = limner("data", "encode", tmp_path / "coded", "--model", tmp_path / "model", "--out", tmp_path / "e")
    assert code == 2 and "holds the codes of this image tokenizer already" in err
    code, _, err = limner("data", "encode", source, "--model", source, "--out", tmp_path / "e")
    assert code == 2 and "no checkpoint that limner wrote" in err

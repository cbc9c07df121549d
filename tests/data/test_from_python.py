"""Documents of a program to shards: all of them or none, so many held out."""

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.data.from_python import write_shards
from limner.data.shards import read_documents
from limner.models.documents.document import InterleavedDocument
from limner.models.documents.forms import document

RED = Image.new("RGB", (8, 8), "red")


def documents(count: int):
    for number in range(1, count + 1):
        yield document(f"Draw {number}.", answer=["Here: ", RED], id=f"d{number}" if number % 2 else "")


def test_a_generator_becomes_shards(tmp_path):
    index = write_shards(tmp_path / "shards", documents(25), heldout=0.2, kind="text_to_image")
    assert index.kinds == {"train": {"text_to_image": 20}, "heldout": {"text_to_image": 5}}
    heldout = list(read_documents(tmp_path / "shards", "heldout", shuffle_seed=None))
    assert [item.id for item in heldout] == ["d5", "10", "d15", "20", "d25"]
    assert heldout[0].segments[0] == document("Draw 5.").segments[0]
    assert heldout[0].images[0].pixels().tobytes() == RED.tobytes()


def test_a_documents_own_kind_stands(tmp_path):
    asked = [document("Colour?", RED, answer="Red.", meta={"kind": "understanding"}), *documents(1)]
    index = write_shards(tmp_path / "shards", asked, heldout=0)
    assert index.kinds == {"train": {"understanding": 1, "interleaved": 1}, "heldout": {}}
    with pytest.raises(InputError, match="exists already"):
        write_shards(tmp_path / "shards", asked)
    write_shards(tmp_path / "shards", documents(3), overwrite=True)
    assert len(list(read_documents(tmp_path / "shards", "train", shuffle_seed=None))) == 3


def test_a_fault_is_named_and_leaves_nothing(tmp_path):
    for given, words in (
        ([*documents(2), "text"], "document 3 is a str; `limner.document` makes one"),
        ([*documents(2), document("no answer")], "document '3': no segment is trainable"),
        ([document("x", answer="y", meta={"kind": "odd"})], "document '1': meta\\['kind'\\] is 'odd'"),
        ([], "no document to write"),
        (document("x", answer="y"), "a list or a generator of documents, not an InterleavedDocument"),
        (3, "not an int"),
    ):
        with pytest.raises(InputError, match=words):
            write_shards(tmp_path / "shards", given)
    for changes, words in (
        ({"heldout": 1}, "share from 0"),
        ({"heldout": "all"}, "share from 0"),
        ({"kind": "odd"}, "kind 'odd' is none of"),
    ):
        with pytest.raises(InputError, match=words):
            write_shards(tmp_path / "shards", documents(1), **changes)
    with pytest.raises(InputError, match="name a folder"):
        write_shards(3, documents(1))  # type: ignore[arg-type]

    def broken():
        yield InterleavedDocument(next(documents(1)).segments)
        raise KeyError("a fault of the program's own")

    with pytest.raises(KeyError):
        write_shards(tmp_path / "shards", broken())
    assert not list(tmp_path.iterdir())

"""Shards to shards: nothing lost but what a rule says, groups held out together, pictures and codes as they are."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.data.jobs.subsets import dedup, normal, sample, split, stats
from limner.data.shards import ShardWriter, read_documents, read_index
from limner.data.validate import validate
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment, open_image


def jpeg(number: int, quality=95) -> bytes:
    rng = np.random.default_rng(number)
    picture = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def document(number, name, text="Here.", data=None, codes=None):
    data = data or jpeg(number)
    picture = ImageSegment(open_image(data), True, "generated", codes_N=codes)
    segments = (TextSegment(f"Draw {text}"), TextSegment(text, True), picture)
    return InterleavedDocument(segments, name, {"kind": "interleaved", "group": f"g{number % 5}"}), data


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "d", fingerprint="f", report={"rules": {"kept": {"turned": 1}}}) as writer:
        for number in range(20):
            made, data = document(number, f"n{number}", codes=np.arange(3))
            writer.write(made, "heldout" if number % 5 == 0 else "train", [data])
    return tmp_path / "d"


def ids(directory, name):
    found = read_index(directory)
    return {d.id for d in read_documents(directory, name, shuffle_seed=None)} if found.of(name) else set()


def test_a_sample_and_another_split(folder, tmp_path):
    sample(folder, tmp_path / "s", 8, 0)
    assert len(ids(tmp_path / "s", "train")) == 8 and len(ids(tmp_path / "s", "heldout")) == 2
    assert ids(tmp_path / "s", "train") < ids(folder, "train") and validate(tmp_path / "s") == []
    sample(folder, tmp_path / "t", 8, 1)
    assert ids(tmp_path / "t", "train") != ids(tmp_path / "s", "train")
    first = next(read_documents(tmp_path / "s", "train", shuffle_seed=None))
    assert first.images[0].codes_N.tolist() == [0, 1, 2] and read_index(tmp_path / "s").fingerprint == "f"
    with pytest.raises(InputError, match="--count 17: .* has 16 documents"):
        sample(folder, tmp_path / "u", 17, 0)
    split(folder, tmp_path / "p", 0.5)
    groups = [
        {d.meta["group"] for d in read_documents(tmp_path / "p", name, shuffle_seed=None)}
        for name in ("train", "heldout")
    ]
    assert not groups[0] & groups[1] and groups[0] | groups[1] == {f"g{n}" for n in range(5)}


def test_what_is_there_twice_goes_and_is_counted(tmp_path):
    with ShardWriter(tmp_path / "d", report={"rules": {"left out": {"missing": 2}}}) as writer:
        for number, (picture, text, name) in enumerate(
            [
                (jpeg(1), "A boat.", "train"),
                (jpeg(1), "a  BOAT", "heldout"),
                (jpeg(2), "A boat.", "train"),
                (jpeg(2, 70), "A boat.", "train"),
                (jpeg(2, 70), "Another.", "train"),
            ]
        ):
            made, _ = document(number, f"n{number}", text, picture)
            writer.write(made, name, [picture])
    exact = dedup(tmp_path / "d", tmp_path / "e")
    assert ids(tmp_path / "e", "train") == {"n2", "n3", "n4"} and ids(tmp_path / "e", "heldout") == {"n1"}
    assert exact.report["rules"]["left out"] == {"missing": 2, "duplicate": 1}
    near = dedup(tmp_path / "d", tmp_path / "n", near=True)
    assert ids(tmp_path / "n", "train") == {"n2", "n4"}
    assert near.report["rules"]["left out"] == {"missing": 2, "duplicate": 1, "near duplicate": 1}
    assert normal("\ufb01sh, \u00c9TUDE!") == "fish \u00e9tude"


def test_the_commands(folder, tmp_path, limner):
    code, said, _ = limner("data", "stats", folder, "--json", tmp_path / "s.json")
    assert code == 0 and "train: interleaved 16; 4 groups" in said and "codes: of image tokenizer f" in said
    figures = json.loads((tmp_path / "s.json").read_text())
    assert figures["splits"]["train"]["shorter_side"]["p50"] == 96 and stats(folder)["splits"].keys() == {
        "train",
        "heldout",
    }
    for name, flags, said in (
        ("sample", ("--count", 4), "train 4, heldout 1 documents"),
        ("split", ("--heldout-share", 0), "train 20 documents"),
        ("dedup", ("--near",), "train 16, heldout 4 documents"),
    ):
        code, out, err = limner("data", name, folder, "--out", tmp_path / name, *flags)
        assert code == 0 and f" {said}\nnext: limner warmup --config warmup/documents --data " in out, err
        code, _, err = limner("data", name, folder, "--out", tmp_path / name, *flags)
        assert code == 2 and "exists already" in err

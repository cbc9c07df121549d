"""Every kind of damage is found, and is named by shard and record."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from limner.data.shards import ShardWriter
from limner.data.validate import ShardProblem, validate
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment


def article(name, **image):
    segments = (
        TextSegment("p"),
        TextSegment("a", True),
        ImageSegment(Image.new("RGB", (64, 64), "red"), True, **image),
    )
    return InterleavedDocument(segments, name, {"kind": "text_to_image"})


@pytest.fixture
def directory(tmp_path):
    with ShardWriter(tmp_path / "d", fingerprint="f", max_records=2) as writer:
        for i in range(4):
            writer.write(article(f"doc-{i}", codes_N=np.arange(3)))
    assert validate(tmp_path / "d") == []
    return tmp_path / "d"


def edit_index(directory, **changes):
    path = directory / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def only(problems):
    assert len(problems) == 1, problems
    return problems[0]


def test_an_index_that_is_none(tmp_path, directory):
    assert only(validate(tmp_path)).shard == "index.json"
    edit_index(directory, version=9)
    assert "no valid index" in only(validate(directory)).reason


def test_a_changed_byte(directory):
    path = directory / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[-1] = 1  # in the padding behind the last record
    path.write_bytes(data)
    problem = only(validate(directory))
    assert (problem.shard, problem.record) == ("train-000001.tar", "") and "sha256" in problem.reason


def test_a_truncated_shard_is_one_problem_and_the_rest_is_read(directory):
    path = directory / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:1000])
    assert "1000 bytes instead of" in only(validate(directory)).reason


def test_a_picture_that_breaks_off(tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    with ShardWriter(tmp_path / "d") as writer:
        writer.write(article("good"))
        writer.write(article("bad"), encoded=[buffer.getvalue()[:2000]])
    problem = only(validate(tmp_path / "d"))
    assert (problem.shard, problem.record) == ("train-000000.tar", "000000001")
    assert str(problem).startswith("train-000000.tar, record 000000001: image 0: image does not decode")


def test_codes_without_a_fingerprint(directory):
    edit_index(directory, fingerprint=None)
    assert [problem.record for problem in validate(directory)] == [f"{i:09d}" for i in range(4)]


def test_counts_that_differ(directory):
    edit_index(directory, kinds={"train": {"interleaved": 4}, "heldout": {}})
    assert "counts {'interleaved': 4} in split train" in only(validate(directory)).reason


def test_a_document_twice(tmp_path):
    with ShardWriter(tmp_path / "d") as writer:
        writer.write(article("a"))
        writer.write(article("a"), "heldout")
        writer.write(article(""))
        writer.write(article(""))
    problem = only(validate(tmp_path / "d"))
    assert "document id 'a' again; first in" in problem.reason


def test_a_shard_twice_under_two_names(directory):
    value = json.loads((directory / "index.json").read_text())
    (directory / "train-000001.tar").write_bytes((directory / "train-000000.tar").read_bytes())
    value["shards"][1] = value["shards"][0] | {"file": "train-000001.tar"}
    edit_index(directory, shards=value["shards"])
    assert "record key 000000000 again" in validate(directory)[0].reason


def test_a_shard_the_index_does_not_know(directory):
    (directory / "train-000009.tar").write_bytes(b"")
    assert only(validate(directory)) == ShardProblem("train-000009.tar", "", "not in the index")


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"meta": {"kind": "poem"}}, "'poem', none of"), ({"segments": (TextSegment("t"),)}, "no segment is trainable")],
)
def test_records_that_the_writer_would_refuse(tmp_path, monkeypatch, change, reason):
    monkeypatch.setattr("limner.data.records._check_document", lambda document: None)
    monkeypatch.setattr("limner.data.shards.index.KINDS", ("poem", "text_to_image"))
    with ShardWriter(tmp_path / "d") as writer:
        writer.write(replace(article("a"), **change))
        writer.write(article("b"))
    monkeypatch.undo()
    index = json.loads((tmp_path / "d/index.json").read_text())
    edit_index(tmp_path / "d", kinds={**index["kinds"], "train": {"text_to_image": 2}})
    problem = only(validate(tmp_path / "d"))
    assert problem.record == "000000000" and reason in problem.reason


def test_hostile_reasons_do_not_reach_the_terminal():
    assert str(ShardProblem("s", "r", "a\x1b[2J")) == "s, record r: a\\x1b[2J"

"""Records, the writer's promises, and who reads what."""

import gzip
import hashlib
import io
import json
import pickle
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from torch.utils.data import DataLoader, IterableDataset

from limner.configs.errors import InputError
from limner.data.records import decode_record, encode_record
from limner.data.shards import ShardWriter, read_documents, read_index
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment

from .shard_files import KIND, article, ids, picture, write

IMAGE = ImageSegment(picture("blue"), True, "generated", alt="a \u00e9 picture")
CODES = np.arange(5)


@pytest.mark.parametrize(
    "segments",
    [
        (TextSegment("Two."), IMAGE, replace(IMAGE, image=picture("green")), TextSegment("End.", True)),
        (IMAGE, TextSegment("Image first.", True)),
        (TextSegment("No image \U0001f373 <script>", True),),
        (TextSegment("p"), TextSegment("a", True), IMAGE, TextSegment("after the last image", True)),
        (TextSegment("a", True), ImageSegment(picture(), True, "inserted", 3), IMAGE),
        (TextSegment("a", True), ImageSegment(None, True, "generated", codes_N=CODES), replace(IMAGE, codes_N=CODES)),
        (TextSegment("a", True), replace(IMAGE, codes_N=np.arange(6).reshape(2, 3).T)),
    ],
    ids=["adjacent", "image-first", "no-image", "text-last", "inserted", "codes-only", "codes-of-depth"],
)
def test_a_record_comes_back_as_it_was(segments):
    document = InterleavedDocument(segments, "x", {**KIND, "n": [1, None]})
    assert decode_record(encode_record(document, "000000000")).to_json() == document.to_json()


def test_original_bytes_are_kept_and_others_become_png():
    jpeg, gif = io.BytesIO(), io.BytesIO()
    picture().save(jpeg, "JPEG")
    picture().save(gif, "GIF")
    document = article("x", TextSegment("t", True), IMAGE, IMAGE)
    record = encode_record(document, "000000007", [jpeg.getvalue(), gif.getvalue()])
    assert record["image0.jpg"] == jpeg.getvalue() and record["image1.png"].startswith(b"\x89PNG")
    assert [slot.get("image") for slot in json.loads(record["json"])["segments"]] == [
        None,
        "000000007.image0.jpg",
        "000000007.image1.png",
    ]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (InterleavedDocument((TextSegment("t", True),), "x", {"kind": "poem"}), "'poem', none of"),
        (InterleavedDocument((TextSegment("t"),), "x", KIND), "no segment is trainable"),
        (InterleavedDocument((TextSegment("\ud800", True),), "x", KIND), "surrogates not allowed"),
        (
            article("x", TextSegment("t", True), ImageSegment(None, codes_N=np.ones((2, 2, 2), int))),
            "expected integers",
        ),
        (article("x", TextSegment("t", True), ImageSegment(None, codes_N=np.array([2**31]))), "expected integers"),
        (article("x", TextSegment("t", True), pair=object()), "not JSON serializable"),
    ],
)
def test_a_document_that_nothing_could_train_on_is_refused(document, reason):
    with pytest.raises(InputError, match=f"document 'x': .*{reason}"):
        encode_record(document, "000000000")


def edited(**changes):
    record = encode_record(article("x", TextSegment("t", True), replace(IMAGE, codes_N=CODES)), "000000003")
    return {name: data for name, data in {**record, **changes}.items() if data is not None} | {"__url__": "t.tar"}


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"json": None}, ".json is missing"),
        ({"json": b"{"}, "Expecting"),
        ({"json": b"[" * 100_000}, "nested more than"),
        ({"json": b"[]"}, "expected an object"),
        ({"image0.png": None}, "is not in the record"),
        ({"image0.png": b"not a picture"}, "image does not open"),
        ({"image1.png": b""}, "belongs to no image"),
        ({"codes0.npy": npy(np.arange(5))}, "no npy file of int32"),
        ({"codes0.npy": npy(np.array([print], object))}, "no npy file of int32"),
        ({"codes0.npy": npy(np.zeros((2, 2, 2), "<i4"))}, "no npy file of int32"),
        ({"codes0.npy": npy(np.zeros(5, "<i4"))[:-1]}, "no npy file of int32"),
        ({"codes0.npy": pickle.dumps([1])}, "no npy file of int32"),
    ],
)
def test_a_malformed_record_is_named(changes, reason):
    with pytest.raises(InputError, match=f"t.tar, record 000000003: .*{reason}"):
        decode_record(edited(**changes))


def test_a_record_cannot_name_files_of_the_machine():
    record = edited()
    value = json.loads(record["json"])
    for name in ("/etc/passwd", "../../etc/passwd", "000000003.json", "000000004.image0.png", 5, ["x"]):
        value["segments"][1]["image"] = name
        with pytest.raises(InputError, match="is not in the record"):
            decode_record({**record, "json": json.dumps(value).encode()})


def test_shards_roll_and_the_index_describes_them(tmp_path):
    directory = write(tmp_path / "d", 5, max_records=2, report={"from": "here"})
    index = read_index(directory)
    assert [(shard.file, shard.records) for shard in index.shards] == [
        ("train-000000.tar", 2),
        ("train-000001.tar", 2),
        ("train-000002.tar", 1),
    ]
    for shard in index.shards:
        data = (directory / shard.file).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    assert index.kinds == {"train": {"interleaved": 5}, "heldout": {}}
    assert index.fingerprint is None and index.report == {"from": "here"}
    assert len(read_index(write(tmp_path / "bytes", 5, max_bytes=1)).shards) == 5
    assert ids(read_documents(directory, "train", shuffle_seed=None)) == [f"doc-{i}" for i in range(5)]


def test_the_same_documents_make_the_same_bytes(tmp_path):
    assert read_index(write(tmp_path / "a")).shards == read_index(write(tmp_path / "b")).shards


def test_a_failed_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "d") as writer:
        writer.write(article())
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="no document to write"), ShardWriter(tmp_path / "d"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_overwriting_is_asked_for_and_spares_what_is_no_shards(tmp_path):
    directory = write(tmp_path / "d", 3)
    with pytest.raises(InputError, match="exists already"):
        write(directory)
    assert len(ids(read_documents(write(directory, 4, overwrite=True), "train", shuffle_seed=None))) == 4
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "thesis" / "index.json").write_text("{}")
    with pytest.raises(InputError, match="holds 'chapter.tex', no shard, so it is not overwritten"):
        write(tmp_path / "thesis", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "thesis"]


def test_what_a_kill_between_two_renames_left_aside_is_read(tmp_path):
    directory = write(tmp_path / "d", 3)
    (tmp_path / ".limner-0123456789abcdef" / "old").mkdir(parents=True)
    directory.rename(tmp_path / ".limner-0123456789abcdef" / "old" / "d")
    assert read_index(directory).shards[0].records == 3


def test_a_living_writer_is_left_alone(tmp_path):
    with ShardWriter(tmp_path / "d", overwrite=True) as first:
        first.write(article("first"))
        write(tmp_path / "d", 1)
        first.write(article("second"))
    assert ids(read_documents(tmp_path / "d", "train", shuffle_seed=None)) == ["first", "second"]


KILLED = """
import itertools, sys
from limner.data.shards import ShardWriter
from limner.models.documents.document import InterleavedDocument, TextSegment
with ShardWriter(sys.argv[1], overwrite=True, max_records=3) as writer:
    for i in itertools.count():
        writer.write(InterleavedDocument((TextSegment("t", True),), str(i), {"kind": "interleaved"}))
        if i == 50:
            print("writing", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 3])
def test_a_kill_while_writing_changes_nothing(tmp_path, before):
    directory = tmp_path / "d"
    if before:
        write(directory, before)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.glob(".limner-*/new/d"))
    if before:
        assert len(ids(read_documents(directory, "train", shuffle_seed=None))) == before
    else:
        assert not directory.exists()
    write(directory, 2, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


class Reader(IterableDataset):
    def __init__(self, directory, **options):
        self.directory, self.options = directory, options

    def __iter__(self):
        return (document.id for document in read_documents(self.directory, "train", **self.options))


@pytest.mark.parametrize("per_shard", [2, 5, 100], ids=["shards", "stride", "one-shard"])
@pytest.mark.parametrize("seed", [None, 7])
def test_two_ranks_with_two_workers_see_every_record_once(tmp_path, per_shard, seed):
    directory = write(tmp_path / "d", 19, max_records=per_shard)
    seen = []
    for rank in range(2):
        reader = Reader(directory, rank=rank, world_size=2, shuffle_seed=seed)
        mine = list(DataLoader(reader, batch_size=None, num_workers=2))
        assert mine == list(DataLoader(reader, batch_size=None, num_workers=2))
        seen += mine
    assert sorted(seen) == sorted(f"doc-{i}" for i in range(19))


def test_epochs_and_seeds_differ_and_repeat(tmp_path):
    directory = write(tmp_path / "d", 40, max_records=4)
    orders = [
        tuple(ids(read_documents(directory, "train", shuffle_seed=seed, epoch=epoch, buffer=10)))
        for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]
    ]
    assert orders[0] == orders[3] and len(set(orders)) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


def damage(directory, data):
    """Puts `data` in place of the only shard, with an index that agrees."""
    (directory / "train-000000.tar").write_bytes(data)
    index = json.loads((directory / "index.json").read_text())
    index["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / "index.json").write_text(json.dumps(index))


def read_all(directory):
    return list(read_documents(directory, "train", shuffle_seed=None))


def test_a_damaged_shard_is_named(tmp_path):
    directory = write(tmp_path / "d")
    path = directory / "train-000000.tar"
    good = path.read_bytes()
    path.write_bytes(good[:5000])
    with pytest.raises(InputError, match="train-000000.tar: 5000 bytes instead of"):
        read_all(directory)
    damage(directory, good[:5000])
    with pytest.raises(InputError, match="train-000000.tar after record 00000000.*fetch or write"):
        read_all(directory)
    damage(directory, good[:5120] + b"\xff" * 512 + good[5632:])
    with pytest.raises(InputError, match="train-000000.tar"):
        read_all(directory)
    damage(directory, gzip.compress(good))
    with pytest.raises(InputError, match="train-000000.tar: .*not a tar file|header|ReadError"):
        read_all(directory)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="symbolic link"):
        read_all(directory)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        read_all(directory)


@pytest.mark.parametrize("name", ["../../x.json", "/etc/passwd", "000000000.exe", "000000000.json"])
def test_members_that_are_not_ours_are_refused(tmp_path, name):
    directory = write(tmp_path / "d", 1)
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member)
    damage(directory, buffer.getvalue())
    with pytest.raises(InputError, match="unexpected member"):
        read_all(directory)


def test_a_sparse_member_does_not_unfold(tmp_path):
    """A few bytes of GNU sparse header that claim 8 GB of zeros."""
    directory = write(tmp_path / "d", 1)
    member = tarfile.TarInfo("000000000.json")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    damage(directory, bytes(header) + bytes(1024))
    with pytest.raises(InputError, match="unexpected member"):
        read_all(directory)


def test_a_record_over_the_limit_is_refused_by_both_sides(tmp_path, monkeypatch):
    directory = write(tmp_path / "d", 1)
    monkeypatch.setattr("limner.data.shards.reading.MAX_RECORD_BYTES", 100)
    monkeypatch.setattr("limner.data.records.MAX_RECORD_BYTES", 100)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        read_all(directory)
    with pytest.raises(InputError, match="the limit is 100"):
        write(tmp_path / "e", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "other"},
        {"shards": []},
        {"shards": [{"file": "../x.tar"}]},
        {"kinds": {"train": {"interleaved": 2}, "heldout": {}}},
        {"kinds": []},
        {"fingerprint": 5},
        {"surprise": 1},
        {"directory": "/etc"},
    ],
)
def test_an_index_is_checked(tmp_path, change):
    path = write(tmp_path / "d", 1) / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="index.json: no valid index"):
        read_index(path.parent)


@pytest.mark.parametrize("file", ["../train-000000.tar", "/etc/passwd", "pipe:id", "heldout-000000.tar", 5])
def test_an_index_names_only_shards(tmp_path, file):
    path = write(tmp_path / "d", 1) / "index.json"
    value = json.loads(path.read_text())
    value["shards"][0]["file"] = file
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match="index.json: no valid index"):
        read_index(path.parent)


def test_a_missing_directory_or_split_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file; name a directory"):
        read_index(tmp_path / "nowhere")
    with pytest.raises(InputError, match="'test' is none of train, heldout"):
        read_documents(write(tmp_path / "d", 1), "test", shuffle_seed=None)

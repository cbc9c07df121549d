"""The index: what is found and why, updates, and that no kill and no second writer harms it."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lancedb
import numpy as np
import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.models.documents.document import InterleavedDocument, TextSegment, open_image
from limner.retrieval.index import store as index_module
from limner.retrieval.index.corpus import PIC
from limner.retrieval.index.encoders import Encoders
from limner.retrieval.index.lock import one_writer
from limner.retrieval.index.store import Index
from limner.retrieval.index.tables import FUSION_K, fuse

from ..small_encoders import Colours, Words, document, encoded

BOTH = Encoders(Words(), Colours())
PETS = document("pets.md", "The cat sleeps.", ("red", "a red cushion"), "It purrs.", title="Pets")
CARS = document("cars.md", "A car drives fast.", ("blue", "a blue sky"), title="Cars")
TREES = document("trees.md", "Oaks grow slowly.", ("green", ""), ("red", ""), title="Trees")


@pytest.fixture
def index(tmp_path):
    made = Index.create(tmp_path / "index", BOTH)
    made.add([PETS, CARS, TREES])
    return made


def names(hits):
    return [hit.chunk.document for hit in hits]


def counts(place):
    database = lancedb.connect(str(place))
    return {name: database.open_table(name).count_rows() for name in ("documents", "chunks", "pictures", "files")}


def test_all_chunks_of_a_document_are_read_in_its_order(tmp_path):
    index = Index.create(tmp_path / "index")
    long = InterleavedDocument((TextSegment("Rinse the leeks. " * 300),), "soup")
    index.add([long, InterleavedDocument((TextSegment("Beat the eggs."),), "cake")])
    chunks = index.chunks_of("soup")
    assert len(chunks) > 2 and [chunk.id for chunk in chunks] == [f"soup:{n}" for n in range(len(chunks))]
    assert [chunk.id for chunk in index.chunks_of("cake")] == ["cake:0"]
    with pytest.raises(InputError, match="no document 'pie'"):
        index.chunks_of("pie")


def test_a_hit_is_the_chunk_with_its_pictures(index):
    hit = index.search("purrs")[0]
    assert (hit.chunk.id, hit.chunk.title) == ("pets.md:0", "Pets")
    assert hit.chunk.text == f"The cat sleeps.\n{PIC}\nIt purrs."
    (picture,) = hit.chunk.pictures
    assert (picture.id, picture.caption, picture.data) == ("pets.md#1", "a red cushion", encoded("red"))
    assert open_image(picture.data).size == (8, 8)


def test_words_meaning_captions_and_pictures_each_find(index, tmp_path):
    found = {hit.chunk.document: hit.found_by for hit in index.search("sleeps")}
    assert "full text" in found["pets.md"] and "full text" not in found["cars.md"]
    assert "full text" in next(hit.found_by for hit in index.search("The cats?") if hit.chunk.document == "pets.md")
    assert all("full text" not in hit.found_by for hit in index.search("what is the"))
    assert names(index.search("feline"))[0] == "pets.md"  # no word of it stands there
    assert names(index.search("cushion"))[0] == "pets.md"  # of the caption alone
    without_texts = Index.create(tmp_path / "pictures", Encoders(None, Colours()))
    without_texts.add([PETS, CARS, TREES])
    green = without_texts.search("green")[0]  # no text says so: the picture does
    assert (green.chunk.document, green.found_by) == ("trees.md", ("image vector by text",))
    by_picture = index.search(None, Image.new("RGB", (5, 5), "blue"))
    assert names(by_picture)[0] == "cars.md" and by_picture[0].found_by == ("image vector",)
    both = index.search("oaks", Image.new("RGB", (5, 5), "red"))
    assert names(both)[0] == "trees.md"
    assert [hit.score for hit in both] == sorted((hit.score for hit in both), reverse=True)


def test_fusion_is_the_sum_of_reciprocal_ranks():
    found = fuse({"a": [(1, 0), (2, 0)], "b": [(2, 0)]})
    assert found[(2, 0)] == (1 / (FUSION_K + 2) + 1 / (FUSION_K + 1), ("a", "b"))
    assert found[(1, 0)] == (1 / (FUSION_K + 1), ("a",))


def test_updates_touch_only_what_changed(index, tmp_path):
    changed = document("pets.md", "The dog barks.", ("blue", "a blue sky"), title="Dogs")
    report = index.add([changed, CARS, document("new.md", "New.")])
    assert (report.added, report.updated, report.unchanged, report.deleted, report.pictures) == (1, 1, 1, 0, 1)
    assert "purrs" not in " ".join(hit.chunk.text for hit in index.search("purrs"))
    assert names(index.search("barks"))[0] == "pets.md" and index.search("barks")[0].chunk.title == "Dogs"
    again = index.add([changed, CARS, document("new.md", "New.")], whole=True)
    assert (again.unchanged, again.deleted) == (3, 1)
    assert "trees.md" not in index.documents
    # The red and the green file went with their last picture; the blue one is there once.
    assert counts(tmp_path / "index") == {"documents": 3, "chunks": 3, "pictures": 2, "files": 1}
    assert index.delete(["new.md", "nobody"]) == 1 and set(index.documents) == {"pets.md", "cars.md"}
    for given in ([], [document("other.md", "Of another folder.")]):  # what it has is not thrown away by mistake
        with pytest.raises(InputError, match="none of its documents"):
            index.add(given, whole=True)
        assert set(index.documents) == {"pets.md", "cars.md"} and counts(tmp_path / "index")["documents"] == 2


def test_a_reader_sees_what_a_writer_commits(index):
    reader = Index.open(index.place, BOTH)
    index.add([document("new.md", "Zebras run.")])
    assert names(reader.search("zebras"))[0] == "new.md"
    index.delete(["new.md"])
    assert "new.md" not in names(reader.search("zebras"))


@pytest.mark.parametrize("name", ["it's", "x') OR 1=1 --", 'a" OR "', "c;DROP TABLE chunks", "\u82f9\u679c"])
def test_filters_cannot_be_broken_out_of(index, name):
    index.add([document(name, "The cat sleeps too.", title=f"T {name}")])
    assert names(index.search("cat", documents=[name])) == [name]
    assert names(index.search("cat", titles=[f"t {name}".upper()])) == [name]
    assert set(names(index.search("cat", documents=[name, "pets.md"]))) == {name, "pets.md"}
    assert index.search(name) is not None and index.search("cat", titles=["' OR '1'='1"]) == []


def test_faulty_questions_are_refused(index, tmp_path):
    for ask, words in (
        (lambda: index.search("  "), "nothing to search for"),
        (lambda: index.search("cat", limit=0), "limit"),
        (lambda: index.search("cat", documents=["nobody"]), "'nobody'"),
        (lambda: Index.open(tmp_path / "nowhere"), "no index"),
        (lambda: Index.create(index.place), "holds an index already|is no part of"),
    ):
        with pytest.raises(InputError, match=words):
            ask()
    plain = Index.create(tmp_path / "plain", Encoders())
    plain.add([PETS])
    assert plain.search("purrs")[0].found_by == ("letters",) and plain.search("zzz") == []
    with pytest.raises(InputError, match="without a picture encoder"):
        plain.search(None, Image.new("RGB", (5, 5)))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/diary.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: cannot be written: File exists"):
        Index.create(tmp_path / "file")
    with pytest.raises(InputError, match=r"diary\.txt"):
        Index.create(tmp_path / "other")


def test_what_cannot_be_indexed_is_counted(tmp_path):
    index = Index.create(tmp_path / "index")
    broken = document("a", "One.", ("red", ""))
    broken.segments[1].image.fp = io.BytesIO(b"no picture")
    report = index.add([broken, document("a", "Two."), document("empty", " "), document("\ud800", "Three.")])
    assert [(p.place, p.kind) for p in report.problems] == [
        ("a#1", "picture"),
        ("a", "duplicate"),
        ("empty", "empty"),
    ]
    assert report.summary().endswith("0 pictures written; 3 problems (picture 1, duplicate 1, empty 1)")
    assert names(index.search("three")) == ["?"]


def test_many_vectors_get_an_index_and_are_found_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "VECTOR_INDEX_ROWS", 300)
    index = Index.create(tmp_path / "index", Encoders(Words()))
    index.add([document(f"d{number}", f"number{number} thing") for number in range(320)])
    kinds = {column: found.index_type for found in index._chunks.list_indices() for column in found.columns}
    assert "pq" in kinds["text_vector"].lower() and not index._pictures.count_rows()
    index.add([document("late", "Felines nap.")])
    assert names(index.search("number7"))[0] == "d7" and names(index.search("nap"))[0] == "late"


class Other(Words):
    """The same name and width, other vectors."""

    def passages(self, texts):
        return np.roll(super().passages(texts), 7, axis=1)

    queries = passages


class Wider(Words):
    width = 80


def test_an_index_of_another_encoder_is_refused(index):
    for encoders, words in (
        (Encoders(None, Colours()), "text encoder is words, not none"),
        (Encoders(Words(), None), "image encoder is colours, not none"),
        (Encoders(Wider(), Colours()), "another model"),
        (Encoders(Other(), Colours()), "another model"),
    ):
        with pytest.raises(InputError, match=words):
            Index.open(index.place, encoders)
    assert Index.open(index.place, BOTH).documents.keys() == index.documents.keys()


def test_another_format_and_an_unfinished_index_are_refused(index, tmp_path):
    manifest = lancedb.connect(index.place).open_table("manifest")
    value = manifest.to_arrow().to_pylist()[0]["json"]
    manifest.update(values={"json": json.dumps(json.loads(value) | {"version": 3})})
    with pytest.raises(InputError, match="format 3"):
        Index.open(index.place, BOTH)
    manifest.update(values={"json": "[]"})
    with pytest.raises(InputError, match="cannot be read"):
        Index.open(index.place, BOTH)
    lancedb.connect(index.place).drop_table("manifest")
    with pytest.raises(InputError, match="never finished"):
        Index.open(index.place, BOTH)
    (Path(index.place) / "manifest.lance" / "data").mkdir(parents=True)  # killed in the last of its steps
    assert not Index.exists(index.place)
    Index.create(index.place, BOTH)  # takes over what a killed one left


def test_a_file_that_a_killed_writer_left_is_gone_after_the_next(index):
    """LanceDB itself keeps such files for a week: they might be of a writer at work."""
    data = Path(index.place) / "chunks.lance" / "data"
    known = next(data.glob("*.lance"))
    left = known.with_name(known.name[:-10] + "0" * 4 + known.name[-6:])
    unnamed = [data / ".tmpIevUE6", data.parent / "_versions" / "18446744073709551606.manifest#1"]
    for path in (left, *unnamed):
        shutil.copy(known, path)
    index.add([document("new.md", "Something new.")])
    assert not any(path.exists() for path in (left, *unnamed)) and names(index.search("purrs"))[0] == "pets.md"


def test_one_writer_at_a_time(index):
    with one_writer(index.place), pytest.raises(InputError, match="another process is writing"):
        index.add([PETS])
    assert index.add([PETS]).unchanged == 1


def test_on_a_uri(tmp_path):
    place = f"file://{tmp_path}/index"
    Index.create(place, BOTH).add([PETS])
    assert names(Index.open(place, BOTH).search("purrs")) == ["pets.md"]


def test_many_rows_of_one_chunk_or_not_served_do_not_hide_others(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "DEPTH", 5)
    index = Index.create(tmp_path / "index", BOTH)
    index.add([document("album", "Pictures.", *[("red", "cat")] * 60), PETS])
    # As a writer killed before its commit leaves them.
    monkeypatch.setattr(type(index._documents), "merge_insert", killed)
    with pytest.raises(Killed):
        index.add([document(f"lost{number}", "The cat sleeps and purrs, cat.", ("red", "cat")) for number in range(60)])
    monkeypatch.undo()
    monkeypatch.setattr(index_module, "DEPTH", 5)
    reader = Index.open(index.place, BOTH)
    assert set(names(reader.search("cat", limit=1)) + names(reader.search("purrs", limit=2))) == {"album", "pets.md"}


class Killed(BaseException):
    pass


def killed(*_, **__):
    raise Killed


def served(place):
    """Every document with its text, as a new reader finds it."""
    index = Index.open(place, BOTH)
    found = index.search("cat", limit=1000) if index.documents else []
    assert {hit.chunk.document for hit in found} == set(index.documents)  # none in part, none missing
    return {hit.chunk.document: (hit.chunk.text, [p.data for p in hit.chunk.pictures]) for hit in found}


def test_killed_at_any_write_a_document_is_whole_old_or_new(tmp_path, monkeypatch):
    old = [document(f"d{number}", "The old cat.", ("red", f"old {number}")) for number in range(4)]
    new = [document(f"d{number}", "The new cat.", ("blue", "new"), ("green", "")) for number in range(1, 6)]
    monkeypatch.setattr(index_module, "BATCH_DOCUMENTS", 3)
    table = type(Index.create(tmp_path / "probe", BOTH)._chunks)
    operations = {name: getattr(table, name) for name in ("add", "delete")}
    first = Index.create(tmp_path / "first", BOTH)
    first.add(old)
    before = served(first.place)
    for stop in range(40):
        shutil.copytree(first.place, tmp_path / f"index{stop}")
        index = Index.open(tmp_path / f"index{stop}", BOTH)
        left = [stop]

        def counted(name, left=left):
            def call(self, *args, **options):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return operations[name](self, *args, **options)

            return call

        for name in operations:
            monkeypatch.setattr(table, name, counted(name))
        try:
            index.add(new, whole=True)
        except Killed:
            finished = False
        else:
            finished = True
        for name, operation in operations.items():
            monkeypatch.setattr(table, name, operation)
        after = served(index.place)
        whole = {
            name: (f"The new cat.\n{PIC}\n{PIC}", [encoded("blue"), encoded("green")])
            for name in map("d{}".format, range(1, 6))
        }
        assert all(value in (before.get(name), whole.get(name)) for name, value in after.items())
        assert {"d1", "d2", "d3"} <= set(after)  # were there and are to be: never gone in between
        Index.open(index.place, BOTH).add(new, whole=True)  # the next one puts all right
        assert served(index.place) == whole
        assert counts(index.place) == {"documents": 5, "chunks": 5, "pictures": 10, "files": 2}
        if finished:
            assert stop > 8
            return
    pytest.fail("it never finished")


WRITER = """
import itertools, sys
sys.path.insert(0, {folder!r})
from small_encoders import Colours, Words, document
from limner.retrieval.index import store as module
from limner.retrieval.index.encoders import Encoders
module.BATCH_DOCUMENTS = 2
index = module.Index.open({place!r}, Encoders(Words(), Colours()))
print("ready", flush=True)
for turn in itertools.count({turn}):
    index.add([document(f"d{{n}}", f"The cat {{turn}}.", ("red", f"of {{turn}}")) for n in range(6)], whole=True)
    print(turn, flush=True)
"""


@pytest.mark.slow
def test_killed_with_signal_9_while_it_writes(tmp_path):
    """Each process updates six documents over and over; what it said is committed, is there or was replaced since."""
    Index.create(tmp_path / "index", BOTH)
    turn = 0
    for delay in (0.0, 0.31, 0.57):
        code = WRITER.format(folder=str(Path(__file__).parents[1]), place=str(tmp_path / "index"), turn=turn)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout and process.stdout.readline() == "ready\n"
        said = int(process.stdout.readline())
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        said = max([said, *(int(line) for line in process.stdout.read().split("\n")[:-1])])
        process.wait()
        found = served(tmp_path / "index")
        assert set(found) == {f"d{number}" for number in range(6)}
        for text, pictures in found.values():
            assert said <= int(text.removeprefix("The cat ").partition(".")[0]) <= said + 1 and len(pictures) == 1
        turn = said + 10
    index = Index.open(tmp_path / "index", BOTH)
    index.add([PETS])
    assert index.delete([f"d{number}" for number in range(6)]) == 6
    assert counts(tmp_path / "index") == {"documents": 1, "chunks": 1, "pictures": 1, "files": 1}

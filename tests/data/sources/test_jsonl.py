"""The documented form of our own, and how `limner data sniff` tells the forms apart."""

import json
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.data.conversion import fitting, fitting_source
from limner.data.jobs.sniff import sniff

from ...data_files import converted, encoded, put, put_lines, put_parquet, put_tar, shape

WANTED = ["How?", "FOLD IT.", "32x32"]


@pytest.fixture
def folder(tmp_path):
    put(tmp_path / "boats/1.png", encoded())
    return tmp_path / "boats"


def test_both_forms_say_the_same(folder):
    segments = [
        {"type": "text", "text": "How?"},
        {"text": "Fold it.", "trainable": True},
        {"image": "1.png", "trainable": True, "alt": "a sheet"},
    ]
    path = put_lines(
        folder / "a.jsonl",
        {"id": "a", "segments": segments, "group": "g", "meta": {"author": "me"}},
        {"id": "b", "prompt": "How?", "answer": ["Fold it.", {"image": "1.png", "alt": "a sheet"}]},
        {"prompt": ["Look:", {"image": "1.png"}], "answer": "A boat.", "kind": "understanding"},
    )
    report, documents = converted("jsonl", path)
    assert [shape(d) for d in documents] == [WANTED, WANTED, ["Look:", "32*32", "A BOAT."]]
    assert [d.id for d in documents] == ["a.jsonl:a", "a.jsonl:b", "a.jsonl@3"]
    assert documents[0].meta == {"author": "me", "kind": "interleaved", "group": "g"}
    assert documents[0].images[0].alt == "a sheet" and documents[0].images[0].origin == "generated"
    assert documents[2].meta["kind"] == "understanding" and not report.problems


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"segments": []}, "no segments"),
        ({"id": "a"}, "no segments"),
        ({"prompt": "a", "anwser": ["b"]}, "segment: unknown field 'anwser'"),
        ({"prompt": "a", "answer": [{"img": "b"}]}, 'segment 2: expected a text, {"text": ..} or {"image": PATH}'),
        ({"prompt": "a", "answer": [{"text": "b", "image": "c"}]}, "segment: segment 2"),
        ({"prompt": "a", "answer": [{"text": "b", "trainable": 1}]}, "`trainable` is true or false"),
        ({"prompt": "a", "answer": [{"text": "b", "colour": 1}]}, "unknown field 'colour'"),
        ({"prompt": "a", "answer": ["\ud800"]}, "broken line"),
        ({"prompt": "a", "answer": ["b"], "kind": "poem"}, "kind 'poem' is none of interleaved"),
        ({"prompt": "a", "answer": ["b"], "meta": 3}, "`meta` is an object"),
        ({"prompt": "a", "answer": [{"image": "../a.png"}]}, "outside: segment 2: ../a.png"),
        (
            {"prompt": "a", "answer": [{"image": "1.png", "candidate": 2}]},
            "segment 2: a picture that is learnt is no candidate",
        ),
    ],
)
def test_what_is_no_document_is_named(folder, record, rule):
    good = {"prompt": "How?", "answer": ["Fold it."]}
    report, documents = converted("jsonl", put_lines(folder / "a.jsonl", record, good))
    assert len(documents) == 1 and rule in str(report.problems[0])


def test_a_table_of_documents(folder):
    part = {"text": "Fold it.", "image": None, "trainable": True}
    row = {"id": "a", "segments": [{"text": "How?", "image": None, "trainable": None}, part]}
    _, (document,) = converted("hf", put_parquet(folder / "a.parquet", row))
    assert shape(document) == WANTED[:2]


def test_what_fits_is_told_by_the_first_records(folder, tmp_path):
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A boat."}]
    chat = put_lines(folder / "mix.jsonl", {"image": "1.png", "conversations": talk})
    own = put_lines(folder / "own.jsonl", {"prompt": "How?", "answer": ["Fold it."]})
    tars = put_tar(tmp_path / "tars/0.tar", {"0.png": encoded(), "0.txt": b"a boat"}).parent
    pictures = put(tmp_path / "pictures/a.png", encoded()).parent
    put(pictures / "a.txt", "a boat")
    pages = put(tmp_path / "pages/a.md", "# A boat\n\nFold it.").parent
    table = put_parquet(tmp_path / "table/a.parquet", {"image": {"bytes": encoded(), "path": None}, "text": "a boat"})
    wanted = {chat: "chat", own: "jsonl", tars: "webdataset", pictures: "imagefolder", pages: "markdown", table: "hf"}
    for path, name in wanted.items():
        said = sniff(path).splitlines()
        assert said[-1] == f"limner data from {name} {path} --out shards/{path.name.partition('.')[0]}"
        assert "1 documents" in said[1] and len([line for line in said if not line.startswith(" ")]) <= 3


def test_records_among_pages_are_none_of_the_folders_kind(folder, tmp_path):
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A boat."}]
    put(folder / "1.txt", "a boat")
    put(folder / "metadata.csv", "file_name,text\n1.png,a boat\n")
    assert fitting(folder) == ["imagefolder"] and fitting_source(folder) == "imagefolder"
    put_lines(folder / "mix.jsonl", {"conversations": talk})
    put_parquet(folder / "table/a.parquet", {"question": "What?", "answer": "A boat."})
    with pytest.raises(InputError, match="could be imagefolder or webdataset; .*limner data from imagefolder"):
        put_tar(folder / "0.tar", {"0.png": encoded(), "0.txt": b"a boat"})
        fitting_source(folder)
    put(folder / "a.md", "# A boat\n\n![one](1.png)\n\nFold it.")
    assert {"imagefolder", "webdataset", "markdown"} <= {*fitting(folder)} and fitting_source(folder) == "markdown"
    assert fitting(Path("org/name")) == ["hf"]


def test_what_fits_none_is_said(tmp_path):
    lost = put_lines(tmp_path / "mix.jsonl", {"image": "/mnt/a.png", "query": "<image>What?", "response": "A boat."})
    assert "--images FOLDER_OF_PICTURES" in sniff(lost) and "outside" in sniff(lost)
    with pytest.raises(InputError, match="no source fits: a.jsonl has label, n"):
        sniff(put_lines(tmp_path / "a.jsonl", {"label": 1, "n": 2}))
    with pytest.raises(InputError, match="it holds files of .xyz"):
        sniff(put(tmp_path / "empty/a.xyz", "").parent)


def test_what_is_not_there_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put_lines(tmp_path / "mine/chats.jsonl", {"label": 1})
    for name in ("mine/chats.json", "mine/other", "theirs/data.parquet", "nowhere", str(tmp_path / "mine/chats.json")):
        with pytest.raises(InputError, match=f"^{name}: no such file or folder") as fault:
            sniff(Path(name))
        assert ("did you mean chats.jsonl?" in str(fault.value)) == name.endswith("chats.json")


def test_the_commands(limner, folder, tmp_path):
    put(tmp_path / "pictures/p/1.png", encoded())
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A boat."}]
    records = [{"image": "p/1.png", "conversations": talk}, {"image": "q.png", "conversations": talk}]
    path = put_lines(folder / "mix.jsonl", *records)
    images = ("--images", tmp_path / "pictures")
    code, said, _ = limner("data", "sniff", path, *images)
    assert code == 0 and said.splitlines()[-1].startswith(f"limner data from chat {path} --images {images[1]} --out")
    code, said, _ = limner("data", "from", "chat", path, *images, "--dry-run", 9)
    assert code == 0 and said.startswith("2 records: 1 documents, 1 images\n  left out  missing  ")
    code, said, _ = limner("data", "from", "chat", path, *images, "--out", tmp_path / "out")
    assert code == 0 and said.startswith("1 document, 1 image, 1 problem (missing 1)")
    code, said, _ = limner("data", "preview", tmp_path / "out")
    page = (tmp_path / "out-preview.html").read_text()
    assert code == 0 and "<tr><td>missing</td><td>left out</td><td>1</td></tr>" in page and "2 records gave" in page
    for words, message in {
        ("from", "chat", path): "--out",
        ("from", "chat", path, "--images", "nowhere", "--out", "o"): "nowhere: no such folder",
        ("from", "markdown", folder, "--images", folder, "--out", "o"): "images",
        ("from", "chat", path, "--dry-run", 0): "1 to 1,000,000",
        ("from", "chat", path, "--set", "turns=some", "--out", "o"): "turns",
    }.items():
        code, _, err = limner("data", *words)
        assert code == 2 and message in err and err.count("\n") == 1
    assert json.loads((tmp_path / "out/index.json").read_text())["report"]["rules"]["left out"] == {"missing": 1}

"""Pictures with captions: in folders, in tars, in tables."""

import json

import pytest
from PIL import Image

from limner.configs.errors import InputError

from ...data_files import converted, encoded, noisy, put, put_lines, put_parquet, put_tar, shape

KITE = ["Draw: a red kite", "32x32"]


def test_a_folder_with_metadata(tmp_path):
    root = tmp_path / "cats"
    for name in ("a.png", "sub/b.png", "sub/c.png", "extra.png"):
        put(root / name, encoded())
    put_lines(
        root / "metadata.jsonl", {"file_name": "a.png", "text": "a red kite"}, {"file_name": "no.png", "text": "x"}
    )
    put(root / "sub/metadata.csv", 'file_name,caption\nb.png,"a kite, blue"\nc.png,\nd.png\n')
    report, documents = converted("imagefolder", root)
    assert {d.id: shape(d) for d in documents} == {"a.png": KITE, "sub/b.png": ["Draw: a kite, blue", "32x32"]}
    assert report.problems.counts == {"missing": 1, "no text": 1, "broken line": 1, "not listed": 1}
    assert [p.file for p in report.problems if p.kind == "not listed"] == ["extra.png"]


def test_a_folder_with_words_beside_each_picture(tmp_path):
    root = tmp_path / "kites"
    for name in "abcde":
        put(root / f"{name}.jpg", encoded("JPEG"))
    put(root / "a.txt", "a red kite\n")
    put(root / "b.caption", " ")
    put(root / "c.json", json.dumps({"caption": "a blue kite"}))
    put(root / "e.json", "{")
    report, documents = converted("imagefolder", root, task="both")
    assert [d.id for d in documents] == [f"{n}.jpg#{t}" for n in "ac" for t in ("text_to_image", "understanding")]
    assert shape(documents[0]) == KITE and shape(documents[1]) == ["32*32", "Describe the picture.", "A RED KITE"]
    assert documents[0].meta["group"] == documents[1].meta["group"] != documents[2].meta["group"]
    assert {p.file: p.kind for p in report.problems} == {"b.jpg": "no text", "d.jpg": "no text", "e.jpg": "broken line"}


def sample(key, **members):
    return {f"{key}.{name}": data for name, data in members.items()}


def test_tars_as_img2dataset_writes_them(tmp_path):
    root = tmp_path / "pairs"
    told = json.dumps({"caption": "a red kite", "status": "success"}).encode()
    first = sample("000000000", jpg=encoded("JPEG"), txt=b"a red kite", json=told)
    first |= sample("000000001", png=encoded(), json=told) | sample("000000002", jpg=encoded("JPEG"), txt=b"")
    first |= sample("000000003", txt=b"alone") | sample("000000004", jpg=noisy()[:-20], txt=b"cut")
    put_tar(root / "00000.tar", first)
    put_tar(root / "00001.tar.gz", sample("x/000000000", webp=encoded("WEBP"), txt=b"a red kite"), "w:gz")
    put_parquet(root / "00000.parquet", {"key": "000000005", "status": "failed_to_download"})
    report, documents = converted("webdataset", root)
    assert [d.id for d in documents] == ["00000/000000000", "00000/000000001", "00001/x/000000000"]
    assert [shape(d) for d in documents] == [KITE] * 3 and len({d.meta["group"] for d in documents}) == 1
    assert report.problems.counts == {"no text": 1, "missing": 1, "corrupt": 1, "not fetched": 1}


def test_a_sixth_sample_without_words(tmp_path):
    members = {}
    for number in range(6):
        words = {"txt": b"a kite"} if number < 5 else {"cls": b"1"}
        members |= sample(f"{number:06d}", jpg=encoded("JPEG"), **words)
    report, documents = converted("webdataset", put_tar(tmp_path / "t/a.tar", members))
    assert len(documents) == 5 and report.problems.counts == {"no text": 1}


def test_what_is_wrong_with_a_tar_names_it(tmp_path):
    """Row 10: a sample whose members do not stand together would be learnt by halves."""
    split = {"0.jpg": encoded("JPEG"), "1.jpg": encoded("JPEG"), "0.txt": b"a", "1.txt": b"b"}
    with pytest.raises(InputError, match=r"a.tar: 0.txt: not grouped"):
        converted("webdataset", put_tar(tmp_path / "t/a.tar", split))
    whole = put_tar(tmp_path / "t/a.tar", sample("000001", txt=b"a kite", jpg=noisy(size=(200, 200)))).read_bytes()
    for end in (700, 1500, 3000):  # in a header, inside a member
        put(tmp_path / "t/a.tar", whole[:end])
        with pytest.raises(InputError, match="a.tar"):
            converted("webdataset", tmp_path / "t/a.tar")
    with pytest.raises(InputError, match="no tar"):
        converted("webdataset", put(tmp_path / "t/a.txt", "x"))


def test_rows_of_hugging_face(tmp_path):
    picture = {"bytes": encoded(), "path": None}
    pairs = put_parquet(tmp_path / "a/t.parquet", *[{"id": 1, "image": picture, "text": "a red kite"}] * 1)
    _, (document,) = converted("hf", pairs)
    assert shape(document) == KITE and document.id == "t.parquet:1"
    chats = put_parquet(
        tmp_path / "b/t.parquet",
        {"images": [picture], "texts": [{"user": "What?", "assistant": "A kite."}]},
        {"images": None, "texts": [{"user": "Who?", "assistant": "Me."}]},
    )
    report, documents = converted("hf", chats)
    assert [shape(d) for d in documents] == [["32*32", "What?", "A KITE."], ["Who?", "ME."]]
    assert report.kept == {"placed first": 1, "no picture": 1}
    with pytest.raises(InputError, match="its columns are label, n; expected messages"):
        converted("hf", put_parquet(tmp_path / "c/t.parquet", {"label": "x", "n": 1}))
    with pytest.raises(InputError, match="no column 'legend'; it has id, image, text"):
        converted("hf", pairs, caption="legend")


def test_a_data_set_on_disk(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [Image.new("RGB", (32, 32), "red")] * 2, "caption": ["a red kite", None]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(tmp_path / "one")
    report, (document,) = converted("hf", tmp_path / "one")
    assert shape(document) == KITE and report.problems.counts == {"no text": 1}
    datasets.DatasetDict(validation=made).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match="no split 'train'; it has validation"):
        converted("hf", tmp_path / "two")
    _, (document,) = converted("hf", tmp_path / "two", split="validation")
    assert shape(document) == KITE


def test_an_address_that_cannot_be_reached(tmp_path, monkeypatch):
    from limner.data.conversion import convert, open_source

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="neither a file or folder here nor ORG/NAME"):
        converted("hf", tmp_path / "no/where/at/all")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="nobody/no-such-data: cannot be loaded"):
        from pathlib import Path

        convert(open_source("hf"), Path("nobody/no-such-data"), tmp_path / "out")

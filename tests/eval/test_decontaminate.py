"""What a benchmark asks or shows goes from training data; what is worded alike stays."""

import json

import pytest

from limner.configs.errors import InputError
from limner.data.shards import ShardWriter, read_documents, read_index
from limner.eval.decontaminate import Known, decontaminate
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment, open_image

from ..data.jobs.test_subsets import jpeg

LONG = "The quick brown fox jumps over the lazy dog near a quiet river."


def write(folder, *pairs):
    with ShardWriter(folder, report={"documents": len(pairs)}) as writer:
        for number, (text, picture) in enumerate(pairs):
            segments = (TextSegment(f"Draw: {text}"), ImageSegment(open_image(picture), True, "generated"))
            writer.write(InterleavedDocument(segments, str(number), {"kind": "text_to_image"}), "train", [picture])
    return folder


def test_texts_and_pictures_of_a_benchmark_go(tmp_path):
    known = Known(template=True)
    known.add_text("A photo of two cups!", "geneval")
    known.add_text(LONG, "dpg")
    known.add_picture(open_image(jpeg(7)).convert("RGB"), "mmie")
    folder = write(
        tmp_path / "d",
        ("a photo of two cups", jpeg(1)),
        ("a photo of three cups", jpeg(2)),
        (f"See how {LONG[4:60]}", jpeg(3)),
        ("the quick brown fox", jpeg(4)),
        ("a boat", jpeg(7, 70)),
    )
    report = decontaminate(folder, tmp_path / "e", known).report
    assert [d.id for d in read_documents(tmp_path / "e", "train", shuffle_seed=None)] == ["1", "3"]
    found = report["decontamination"]
    assert found["left out"] == {
        "benchmark text (geneval)": 1,
        "benchmark text (dpg)": 1,
        "benchmark picture (mmie)": 1,
    }
    assert found["same template, kept"] == 1 and found["listed"][0] == "0: benchmark text (geneval)"
    assert report["documents"] == 5


def test_the_command(tmp_path, limner):
    folder = write(tmp_path / "d", ("a photo of a bench", jpeg(1)), ("a boat", jpeg(2)))
    one = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
    (tmp_path / "geneval.jsonl").write_text(json.dumps(one) + "\n")
    words = ("data", "decontaminate", folder, "--out", tmp_path / "e", "--against")
    code, said, err = limner(*words, f"geneval={tmp_path / 'geneval.jsonl'}")
    assert code == 0 and "1 documents; left out: benchmark text (geneval) 1" in said, err
    assert read_index(tmp_path / "e").kinds["train"] == {"text_to_image": 1}
    for against, message in {"geneval": "give NAME=FILE", "genevil=x": "did you mean"}.items():
        code, _, err = limner(*words, against)
        assert code == 2 and message in err


def test_a_benchmark_without_pictures_decodes_none():
    assert Known().picture(None) == ""  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no benchmark is called"):
        from limner.eval.decontaminate import known_of

        known_of(["nothing=x"])

"""MRAMG-Bench as it is released: ids of both kinds, and each of its defects seen, said and counted."""

import json
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.data.sources.mramg import read_corpus, read_questions
from limner.data.sources.report import Report
from limner.models.documents.document import ImageSegment

from ...mramg_files import RECIPES, collection, write_mramg, write_subset


def kinds(report: Report) -> dict[str, int]:
    return {kind: sum(p.kind == kind for p in report.problems) for kind in sorted({p.kind for p in report.problems})}


def test_documents_are_whole_and_ids_are_strings(tmp_path):
    report = Report()
    documents = {document.id: document for document in read_corpus(write_mramg(tmp_path), report=report)}
    assert list(documents) == ["web/7", "recipe/1", "recipe/2", "recipe/3"]
    strudel = documents["recipe/1"]
    assert strudel.meta["images"] == ["recipe/apples", "recipe/dough"]
    assert [type(segment) is ImageSegment for segment in strudel.segments] == [False, True, False, True]
    assert [image.alt for image in strudel.images] == ["The apples", "The dough"]
    assert documents["web/7"].meta["images"] == ["web/12"]  # a number among the documents, a text among the questions
    assert not report.problems and (report.documents, report.images) == (4, 4)


def test_questions_name_documents_and_pictures(tmp_path):
    questions = {question.id: question for question in read_questions(write_mramg(tmp_path))}
    assert questions["web/5"].provenance == ("web/7",) and questions["web/5"].images == ("web/12",)
    assert questions["recipe/q1"].images == ("recipe/apples", "recipe/dough")
    assert [question.subset for question in read_questions(tmp_path, ["recipe"])] == ["recipe"] * 3


def test_nested_pictures_are_found(tmp_path):
    report = Report()
    documents = list(read_corpus(write_mramg(tmp_path, nested=True), report=report))
    assert sum(len(document.images) for document in documents) == 4 and not report.problems


def test_pictures_that_are_not_taken_are_listed(tmp_path):
    """The text stays, and the picture is neither opened nor forgotten."""
    data = write_mramg(tmp_path / "data")
    (tmp_path / "secret.png").write_bytes((data / "IMAGE/images/RECIPE/pasta.png").read_bytes())
    (data / "IMAGE/images/RECIPE/dough.png").unlink()
    listed = json.loads(collection(data, "recipe").read_text())
    listed["pasta"]["image_path"] = "../../../../secret.png"
    del listed["apples"]
    collection(data, "recipe").write_text(json.dumps(listed))
    (data / "IMAGE/images/WEB/12.png").write_bytes(b"no picture")
    report = Report()
    documents = {document.id: document for document in read_corpus(data, report=report)}
    assert kinds(report) == {"missing": 2, "outside": 1, "unreadable": 1}
    assert {p.target for p in report.problems} == {"apples", "dough", "pasta", "12"}
    assert all(not document.images and not document.meta["images"] for document in documents.values())
    assert documents["recipe/2"].text == "Boil the pasta in salted water.  Drain it."


@pytest.mark.parametrize("target", ["/etc/hostname", "../../../../secret.png", "x" * 5000, "a\0b", "link.png"])
def test_no_path_leads_out_of_the_folder(tmp_path, target):
    data = write_mramg(tmp_path / "data")
    (tmp_path / "secret.png").write_bytes((data / "IMAGE/images/RECIPE/pasta.png").read_bytes())
    (data / "IMAGE/images/RECIPE/link.png").symlink_to(tmp_path / "secret.png")
    listed = json.loads(collection(data, "recipe").read_text())
    listed["pasta"]["image_path"] = target
    collection(data, "recipe").write_text(json.dumps(listed))
    report = Report()
    documents = {document.id: document for document in read_corpus(data, ["recipe"], report=report)}
    assert not documents["recipe/2"].images and [p.target for p in report.problems] == ["pasta"]


def test_pictures_and_placeholders_that_differ_in_number(tmp_path):
    """A picture too many stands at the end, a placeholder too many for nothing; both are said."""
    changed = {1: ("<PIC> One.", ["a", "b"]), 2: ("<PIC> Two <PIC> three.", ["c"])}
    write_subset(tmp_path, "recipe", changed, [("q", "Q?", [1], "<PIC><PIC>", ["a"])])
    report = Report()
    more, fewer = read_corpus(tmp_path, report=report)
    assert [type(segment) is ImageSegment for segment in more.segments] == [True, False, True]
    assert [type(segment) is ImageSegment for segment in fewer.segments] == [True, False]
    assert fewer.text == "Two  three." and kinds(report) == {"placeholders": 2}
    read_questions(tmp_path, report=report)
    assert kinds(report) == {"placeholders": 3}


def test_placeholders_in_questions_and_double_ids(tmp_path):
    row = ("q", "What is <PIC> this?", [1], "<PIC>", ["apples"])
    write_subset(tmp_path, "recipe", RECIPES, [row, row])
    (tmp_path / "doc_recipe.jsonl").write_text(2 * (tmp_path / "doc_recipe.jsonl").read_text())
    report = Report()
    (question,) = read_questions(tmp_path, report=report)
    assert question.question == "What is this?" and kinds(report) == {"duplicate": 1, "question": 2}
    assert len(list(read_corpus(tmp_path, report=report))) == 3 and kinds(report)["duplicate"] == 4


def test_debris_is_kept_unless_cleaned(tmp_path):
    write_subset(tmp_path, "arxiv", {1: ("A model_x0002_ of\x03 x_1.", [])}, [("q", "Q?", [1], "A.", [])])
    for clean, text in ((False, "A model_x0002_ of\x03 x_1."), (True, "A model of x_1.")):
        report = Report()
        (document,) = read_corpus(tmp_path, clean=clean, report=report)
        assert document.text == text and kinds(report) == {"debris": 1}


def test_line_separators_of_texts_do_not_end_a_line(tmp_path):
    write_subset(tmp_path, "recipe", {1: ("x", [])}, [("q", "Q?", [1], "A.", [])])
    (tmp_path / "doc_recipe.jsonl").write_text('[1, "one\u2028two\x85three", []]\n', encoding="utf-8")
    (document,) = read_corpus(tmp_path)
    assert document.text == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("doc_recipe.jsonl", '{"id": 1}', "array of id, text"),
        ("doc_recipe.jsonl", "[1, 2", "not JSON"),
        ("doc_recipe.jsonl", '[true, "x", []]', "an id is"),
        ("recipe_mqa.jsonl", '{"id": 1, "question": "Q"}', "`ground_truth`"),
        ("recipe_mqa.jsonl", '{"id": 1, "question": "Q", "ground_truth": "A", "images_list": "a"}', "`images_list`"),
    ],
)
def test_other_forms_are_named_with_their_line(tmp_path, file, line, words):
    write_mramg(tmp_path)
    with (tmp_path / file).open("a") as text:
        text.write(line + "\n")
    with pytest.raises(InputError, match=words) as fault:
        list(read_corpus(tmp_path, ["recipe"])), read_questions(tmp_path, ["recipe"])
    assert f"{file}:4" in str(fault.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="doc_SUBSET.jsonl"):
        list(read_corpus(tmp_path))
    with pytest.raises(InputError, match="'cooking' is none of wit"):
        read_questions(tmp_path, ["cooking"])
    write_mramg(tmp_path)
    collection(tmp_path, "web").unlink()
    with pytest.raises(InputError, match="web_imgs_collection.json"):
        list(read_corpus(tmp_path))


def test_real_records(real_data):
    folder: Path = real_data / "mramg_schema"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    report = Report()
    documents = {document.id: document for document in read_corpus(folder, report=report)}
    questions = read_questions(folder, report=report)
    assert (len(documents), len(questions), report.images, report.problems) == (31, 22, 39, [])
    for question in questions:
        shown = {image for document in question.provenance for image in documents[document].meta["images"]}
        assert set(question.images) <= shown
    assert all(image.pixels().mode == "RGB" for image in documents["recipe/19"].images)

"""Nothing lost in silence: in every style, the pictures that are written are those that are kept and the problems."""

import io
import re
from collections import Counter
from urllib.parse import unquote

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.data.sources.markdown import read_markdown
from limner.data.sources.report import Report

from .styles import STYLES

NAME = re.compile(r"pic\d{3}")


def written():
    """Style by style: file name, how many pictures are to be kept, text."""
    numbers = iter(range(1, 1000))
    for part in STYLES.split("\n## ")[1:]:
        head, text = part.split("\n", 1)
        name, extension, kept = head.split()
        prose = "" if name == "pictures_alone" else "\n\nA sentence.\n"
        yield f"{name}.{extension}", int(kept), re.sub("PIC", lambda _: f"pic{next(numbers):03}", text) + prose


def picture(extension):
    image, buffer = Image.new("RGB", (8, 8), "red"), io.BytesIO()
    image.paste("blue", (0, 0, 4, 4))
    if extension == "svg":
        return b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    if extension == "pdf":
        return b"%PDF-1.4"
    more = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]} if extension == "gif" else {}
    image.save(buffer, extension.upper(), **more)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Its folder, the report, and the documents by file."""
    folder = tmp_path_factory.mktemp("styles")
    (folder / "img").mkdir()
    made = {extension: picture(extension) for extension in ("png", "webp", "svg", "tiff", "avif", "gif", "pdf")}
    for name, _, text in written():
        (folder / name).write_text(text)
        for file, extension in re.findall(r"((?:my )?(?:pic\d{3}|linked|example)(?: \(1\))?)\.(\w+)", unquote(text)):
            if extension in made:
                (folder / "img" / f"{file}.{extension}").write_bytes(made[extension])
    report = Report()
    documents = {document.id: document for document, _ in read_markdown(folder, report)}
    report.images = sum(len(document.images) for document in documents.values())
    return folder, report, documents


@pytest.mark.parametrize(("name", "kept", "text"), written(), ids=[name for name, _, _ in written()])
def test_written_are_kept_and_problems(corpus, name, kept, text):
    _, report, documents = corpus
    problems = [problem for problem in report.problems if problem.file == name]
    left = documents[name].completion.text if name in documents else ""
    said = "\n".join(map(str, problems))
    count = len(set(NAME.findall(text)))  # by the names alone: whoever counts like this knows no Markdown
    assert len(documents[name].images if name in documents else ()) == kept, f"{said}\n{left}"
    assert kept + sum(problem.pictures for problem in problems) == count, f"{said}\n{left}"
    if name != "rmarkdown_code.Rmd":  # code that shows a picture is code all the same
        assert set(NAME.findall(left)) <= set(NAME.findall(said)), left  # what is left in a text has been said


def test_the_sum_is_said(corpus):
    folder, report, _ = corpus
    styles = list(written())
    assert len(styles) >= 70
    count = len({name for file in folder.iterdir() if file.is_file() for name in NAME.findall(file.read_text())})
    lost = sum(problem.pictures for problem in report.problems)
    assert report.written == count == report.images + lost
    assert f"pictures written: {count} = {report.images} kept + {lost} not" in report.summary().splitlines()


def test_no_markup_of_a_picture_is_left(corpus):
    _, report, documents = corpus
    said = {problem.file for problem in report.problems if problem.kind in ("unread", "in code")}
    for name, document in documents.items():
        text = re.sub(
            r".*example.*|<!--.*|\\.*|\$\{\{.*|`.*|  include.*", "", document.completion.text
        )  # code, and comments
        found = re.findall(r"!\[|<img|</?picture|</?video|<source|\{%|\{\{|\{ ?:|width=|:width:|^import", text, re.M)
        assert not found or name in said, (name, text)
    assert report.removed == {"template tag": 21, "definition": 4, "import": 1, "shell tag": 15}
    assert Counter(note.kind for note in report.notes) == {"animated": 1}


def test_a_folder_without_words_is_an_error(tmp_path):
    (tmp_path / "a.md").write_text("![x](gone.png)")
    report = Report()
    with pytest.raises(InputError, match="no document to convert .a.md:1: missing: gone.png"):
        list(read_markdown(tmp_path, report))
    assert report.written == sum(problem.pictures for problem in report.problems) == 1

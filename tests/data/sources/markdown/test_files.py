"""Which files are read, where a picture lies, and that what is said of it is so."""

import base64
import io
import os

import pytest
from PIL import Image, ImageDraw

from limner.data.conversion import convert
from limner.data.sources.markdown import Markdown, read_markdown
from limner.data.sources.markdown.files import locate, scan
from limner.data.sources.markdown.front_matter import MAX_FRONT_MATTER, front_matter
from limner.data.sources.markdown.pictures import decoded
from limner.data.sources.markdown.shown import Shown
from limner.data.sources.report import Refused, Report
from limner.retrieval.index.corpus import read_source


def encoded(form="PNG", size=(8, 8), flat=False, **options):
    buffer, image = io.BytesIO(), Image.new("RGB", size, "red")
    if not flat:
        ImageDraw.Draw(image).point((0, 0), "blue")
    image.save(buffer, form, **options)
    return buffer.getvalue()


def reading(folder):
    """Report and documents, by id."""
    report = Report()
    documents = {document.id: document for document, _ in read_markdown(folder, report)}
    return report, documents


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"<?xml version='1.0'?>\n<svg/>", "format not supported", "SVG"),
        (b"II*\0rest", "format not supported", "TIFF"),
        (b"\0\0\0\x20ftypheic", "format not supported", "HEIC"),
        (b"\0\0\0\x20ftypisom", "format not supported", "video"),
        (b"%PDF-1.7", "format not supported", "PDF"),
        (b"<!DOCTYPE html><html>", "corrupt", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not downloaded", "git lfs pull"),
        (b"hello", "corrupt", "not an image"),
        (b"", "corrupt", "not an image"),
        (encoded(size=(64, 64))[:90], "corrupt", "decode"),
        (encoded(flat=True), "one colour", "it is of one colour"),
        (encoded(size=(300, 2)), "too small", "300 x 2"),
        (
            encoded("GIF", flat=True, save_all=True, append_images=[Image.new("RGB", (8, 8))]),
            "one colour",
            "first of 2",
        ),
    ],
)
def test_what_is_said_of_a_picture_is_so(data, kind, says):
    with pytest.raises(Refused) as refused:
        decoded(data)
    assert refused.value.rule == kind and says in refused.value.reason


def test_the_first_frame_of_an_animation_is_kept_and_avif_is_read():
    moving = encoded("GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), color) for color in ("red", "blue")])
    assert decoded(moving).frames == "3" and decoded(encoded()).frames == ""
    assert decoded(encoded("AVIF")).image.format == "AVIF"


@pytest.mark.parametrize(
    ("text", "title", "body"),
    [
        ("---\ntitle: a\n---\nx", "a", "x"),
        ("+++\ntitle = 'a'\ndate = 2024-05-01\n+++\nx", "a", "x"),
        ('{\n "title": "a"\n}\nx', "a", "x"),
        ("+++\na = \n+++\nx", "", "+++\na = \n+++\nx"),
        ("{ a }\nx", "", "{ a }\nx"),
        ('{"a": ' * 5000, "", '{"a": ' * 5000),
        (f"+++\na = {'1' * 5000}\n+++\nx", "", f"+++\na = {'1' * 5000}\n+++\nx"),
        (f"+++\n{'#' * MAX_FRONT_MATTER}\n+++\nx", "", f"+++\n{'#' * MAX_FRONT_MATTER}\n+++\nx"),
    ],
)
def test_front_matter(text, title, body):
    found = front_matter(text)
    assert (found.title, text[found.end :]) == (title, body)
    assert bool(found.fault) == (not found.end and text.startswith("+++"))


def test_a_cover_is_noted(tmp_path):
    (tmp_path / "a.md").write_text("---\ncover: {image: img/a.png}\n---\nWords.")
    report, _ = reading(tmp_path)
    assert [(note.kind, note.target) for note in report.notes] == [("front matter", "img/a.png")]


def test_extensions_vendored_folders_and_kinds_that_are_not_read(tmp_path, monkeypatch):
    names = (
        "a.MD",
        "b.markdown",
        "c.mdx",
        "d.qmd",
        "e.mdown",
        "f.Rmd",
        "g.myst",
        "x.rst",
        "y.rst",
        "z.ipynb",
        "LICENSE",
    )
    for name in (*names, "node_modules/m/a.md", ".obsidian/a.md", "env/pyvenv.cfg", "env/a.md", "shut/a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("Words.")
    (tmp_path / "linked").symlink_to(tmp_path)
    (tmp_path / "no.png").write_bytes(encoded())
    listed, status = os.scandir, os.stat

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    def stat(path, **options):
        if os.path.dirname(path).endswith("shut"):  # what stands in a folder without `x` has no status
            raise PermissionError(13, "Permission denied", str(path))
        return status(path, **options)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "stat", stat)
    report, documents = reading(tmp_path)
    assert sorted(documents) == sorted(names[:7])
    assert [(p.file, p.kind) for p in report.problems] == [("shut", "unreadable")]
    assert report.sums() == [
        "files not read: .rst 2, .ipynb 1, no extension 1, pictures that no page shows 1",
        "folders left out: .obsidian, env, linked, node_modules",
    ]


def test_missing_is_not_outside(tmp_path):
    folder = tmp_path / "site"
    (folder / "posts").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(encoded())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    found = scan(folder)
    kinds = {}
    for target in ("../img/gone.png", "/img/gone.png", "gone.png", "../../secret.png", "../link.png", "/../secret.png"):
        with pytest.raises(Refused) as refused:
            locate(Shown(target), folder / "posts/a.md", found)
        kinds[target] = refused.value.rule
    assert list(kinds.values()) == ["missing"] * 3 + ["outside"] * 3
    (folder / "Lamp.png").write_bytes(encoded())
    with pytest.raises(Refused) as refused:
        locate(Shown("lamp.PNG"), folder / "posts/a.md", scan(folder))
    assert refused.value.reason == "no such file; there is Lamp.png"


def test_a_name_alone_finds_the_nearest_picture(tmp_path):
    for name in ("files/a.png", "x/y/a.png", "b/a.png", "b/note/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded())
    found = scan(tmp_path)

    def at(page, target, by_name=True):
        return locate(Shown(target, by_name=by_name), tmp_path / page, found).relative_to(tmp_path).as_posix()

    assert (
        at("n.md", "A.PNG") == "b/a.png"
        and at("x/n.md", "a.png") == "x/y/a.png"
        and at("n.md", "y/a.png") == "x/y/a.png"
    )
    assert at("b/note.md", "a.png") == "b/a.png"
    with pytest.raises(Refused, match="missing"):
        at("n.md", "a.png", by_name=False)


def test_pictures_written_into_a_page(tmp_path):
    data = base64.b64encode(encoded()).decode()
    wrapped = "\n".join(base64.b64encode(encoded("BMP", (40, 40))).decode()[i : i + 76] for i in range(0, 6484, 76))
    (tmp_path / "a.md").write_text(
        f"# A\n\nOne ![][image1] two ![x](data:image/png;base64,{data[:-9]}!).\n\n"
        f"<img src='data:image/bmp;base64,{wrapped}'>\n\n![x](data:image/svg+xml;utf8,<svg/>)\n\n"
        f"```css\nurl(data:image/png;base64,{data})\n```\n\n"
        f"[link](data:image/png;base64,{data})\n\n[image1]: <data:image/png;base64,{data}>\n"
    )
    report, documents = reading(tmp_path)
    assert len(documents["a.md"].images) == 2 and data[:40] not in documents["a.md"].text
    assert "embedded" not in documents["a.md"].text and wrapped[:40] not in documents["a.md"].text
    assert sorted(p.kind for p in report.problems) == ["corrupt", "format not supported", "unread"]
    assert report.written == 2 + sum(p.pictures for p in report.problems) == 5


def test_an_index_says_what_shards_say(tmp_path):
    source = tmp_path / "site"
    source.mkdir()
    (source / "a.png").write_bytes(encoded())
    (source / "a.mdx").write_text("Words {{ x }}.\n\n![[a.png]]\n\n![gone](gone.png)\n\n<img a.png")
    (source / "b.rst").write_text("Words.")
    shards, index, problems = convert(Markdown(), source, tmp_path / "out"), Report(), []
    list(read_source(source, problems, index))
    assert (
        index.sums()
        == shards.sums()
        == [
            "pictures written: 3 = 1 kept + 2 not",
            "taken out of the texts: template tag 1",
            "files not read: .rst 1",
        ]
    )
    assert [problem.kind for problem in problems] == ["missing", "unread"]


def test_a_sum_that_does_not_hold_says_so():
    assert "the sum is out by 1" in Report(written=1).summary()

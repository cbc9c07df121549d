"""Markdown to documents: what is a picture, what is refused, and that every reference is accounted for."""

import io
import os
import re
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from limner.configs.errors import InputError
from limner.data import conversion
from limner.data.preview import write_preview
from limner.data.shards import read_documents, read_index
from limner.data.sources.markdown import Markdown, pictures
from limner.data.sources.markdown.documents import MAX_FILE_BYTES
from limner.data.sources.markdown.front_matter import MAX_FRONT_MATTER
from limner.data.sources.report import Problem, Report
from limner.data.validate import validate
from limner.models.documents.document import ImageSegment, TextSegment

SHARED = Path(os.environ.get("LIMNER_TEST_DATA") or Path(__file__).parents[4].parent / "shared/data")


def encoded(form="PNG", color="red", size=(8, 6), **options):
    """A square on white; a picture of one colour is none."""
    buffer, image = io.BytesIO(), Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2, size[1] // 2), fill=color)
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "site"
    (source / "static/pix").mkdir(parents=True)
    (source / "content").mkdir()
    for name in ("a.png", "b.png", "c d.png"):
        (source / "static/pix" / name).write_bytes(encoded())
    return source


def convert(source, target, **options):
    return conversion.convert(Markdown(), source, target, **options)


def converted(source, text=None, **options):
    """Report and documents, by id; `text` becomes the only file."""
    if text is not None:
        (source / "content/page.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    report = convert(source, source.parent / "out", overwrite=True, **options)
    assert validate(source.parent / "out") == []
    return report, {
        d.id: d for s in ("train", "heldout") for d in read_documents(source.parent / "out", s, shuffle_seed=0)
    }


def shape(document):
    return [
        segment.text if isinstance(segment, TextSegment) else f"<{segment.alt}>" for segment in document.segments[1:]
    ]


def problems(report):
    return [(problem.line, problem.kind) for problem in report.problems]


def test_prompt_completion_and_front_matter(folder):
    text = "---\ntitle: 'R\u00f6sti'\ndate: 2021-99-99\n---\n\n![x](/pix/a.png)\nUse *two*.\n\n## Steps\n\n1. Cut\n"
    report, documents = converted(folder, text)
    document = documents["content/page.md"]
    assert [segment.trainable for segment in document.segments] == [False, True, True]
    assert document.prompt.text == "Write an illustrated article: R\u00f6sti"
    assert shape(document) == ["<x>", "Use *two*.\n\n## Steps\n\n1. Cut"]
    assert document.meta == {"kind": "interleaved", "file": "content/page.md", "title": "R\u00f6sti"}
    assert report.summary() == (
        "1 document, 1 image, 0 problems\n"
        "pictures written: 1 = 1 kept + 0 not\n"
        "files not read: pictures that no page shows 2"
    )


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# A *big* `cake`\n\ntext", "A big cake"),
        ("text", "page"),
        ("---\ntags: [x]\n---\ntext", "page"),
        ("---\ntitle: 5\n---\n# Other", "5"),
        ("---\ntitle: [a]\n---\nBig\ncake\n===", "Big cake"),
        ("\ufeff---\r\ntitle: cr\r\n---\r\ntext", "cr"),
    ],
)
def test_title(folder, text, title):
    assert converted(folder, text)[1]["content/page.md"].meta["title"] == title


def test_what_is_no_front_matter_stays_text(folder):
    report, documents = converted(folder, "---\nprose\n---\nmore")
    assert shape(documents["content/page.md"]) == ["---\nprose\n---\nmore"] and not report.problems
    report, documents = converted(folder, f"---\na: {'b' * MAX_FRONT_MATTER}\n---\nmore")
    assert report.problems[0].reason.startswith("longer than") and shape(documents["content/page.md"])[0][:3] == "---"
    report, documents = converted(folder, "---\na: [b\n---\nmore")
    assert shape(documents["content/page.md"])[0].startswith("---\na: [b") and problems(report) == [(1, "front matter")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one ![a](/pix/a.png 'title') two", ["one", "<a>", "two"]),
        ("one [![a](/pix/a.png)](http://x/y) two", ["one", "<a>", "two"]),
        ("one [more ![a](/pix/a.png)](y) two", ["one [more", "<a>", "](y) two"]),
        ("- one\n- ![a](/pix/a.png)\n- ![b](/pix/b.png)\n- two", ["- one\n-", "<a>", "<b>", "- two"]),
        ("1. one\n\n    ![a](/pix/a.png)\n2. two", ["1. one", "<a>", "2. two"]),
        ("> one\n> ![a *b*\n> c](</pix/c d.png>)\ntwo", ["> one\n>", "<a b c>", "two"]),
        ("one ![a](/pix/c%20d.png)", ["one", "<a>"]),
        ("one ![a][r]\n\n[r]: /pix/a.png", ["one", "<a>"]),
        ("one [![a][r]][s] two\n\n[r]: /pix/a.png\n[s]: x.html", ["one", "<a>", "two\n\n[s]: x.html"]),
        ('<p align="x">\n<img\n src="/pix/a.png" alt="a">\n</p>\n\none', ['<p align="x">', "<a>", "</p>\n\none"]),
        ("one <IMG SRC='/pix/a.png' alt=a /> two", ["one", "<a>", "two"]),
        ("one `![a](/pix/a.png)` ![a](/pix/a.png)", ["one `![a](/pix/a.png)`", "<a>"]),
        ("one\n\n```\n![a](/pix/a.png)\n```", ["one\n\n```\n![a](/pix/a.png)\n```"]),
        ("one <!-- <img src=/pix/a.png> --> two", ["one <!-- <img src=/pix/a.png> --> two"]),
        ("# one ![a](/pix/a.png) #\n\ntwo", ["# one", "<a>", "#\n\ntwo"]),
        ("![a](../static/pix/a.png) ![b](static/pix/b.png) ![c](pix/c%20d.png) x", ["<a>", "<b>", "<c>", "x"]),
        ("one ![](/pix/a.png?raw=true)", ["one", "<>"]),
        ("<script>alert(1)</script> ![a](/pix/a.png)", ["<script>alert(1)</script> ![a](/pix/a.png)"]),
    ],
)
def test_pictures_are_found_where_commonmark_shows_them(folder, text, expected):
    report, documents = converted(folder, text)
    assert shape(documents["content/page.md"]) == expected and not report.problems
    assert report.images == len([piece for piece in expected if re.fullmatch("<[a-z ]*>", piece)])


def bomb():
    """A valid PNG header of 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_hostile_and_broken_references_are_reported_by_line(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_IMAGE_BYTES", 50_000)
    pix = folder / "static/pix"
    (tmp_path / "secret.png").write_bytes(encoded())
    (pix / "link.png").symlink_to(tmp_path / "secret.png")
    (pix / "loop.png").symlink_to(pix / "loop.png")
    (pix / "inner.png").symlink_to(pix / "a.png")
    os.mkfifo(pix / "pipe.png")
    (pix / "bomb.png").write_bytes(bomb())
    (pix / "fat.png").write_bytes(bytes(50_001))
    (pix / "text.png").write_text("hello")
    (pix / "cut.png").write_bytes(encoded(size=(64, 64), color="blue")[:90])
    references = {
        "../../etc/passwd": "outside",
        "/../../secret.png": "outside",
        "../../secret.png": "outside",
        "%2e%2e/%2e%2e/secret.png": "outside",
        "/pix/link.png": "outside",
        "/pix/loop.png": "missing",
        "/pix/pipe.png": "missing",
        "/pix/none.png": "missing",
        "/pix/a%00.png": "missing",
        "/pix/" + "x" * 5000: "missing",
        "": "missing",
        "/pix": "missing",
        "http://host/a.png": "remote",
        "//host/a.png": "remote",
        "data:image/png;base64," + "A" * 5000: "corrupt",
        "file:///etc/passwd": "remote",
        "javascript:alert(1)": "remote",
        "/pix/bomb.png": "too large",
        "/pix/fat.png": "too large",
        "/pix/text.png": "corrupt",
        "/pix/cut.png": "corrupt",
        "/pix/a.png": None,
        "/static/pix/a.png": "duplicate",
        "/pix/inner.png": "duplicate",
    }
    lines = [f"![{i}]({target})" for i, target in enumerate(references)]
    text = "---\ntitle: x\n---\ntext\n" + "\n".join(lines) + "\n\n<img alt=x>\n"
    report, documents = converted(folder, text)
    expected = [(5 + i, kind) for i, kind in enumerate(references.values()) if kind]
    assert problems(report) == [*expected, (5 + len(references) + 1, "missing")]
    assert report.images == 1 and shape(documents["content/page.md"]) == ["text", "<21>"]
    assert max(len(str(problem)) for problem in report.problems) < 500
    assert read_index(tmp_path / "out").report["problems"][0]["target"] == "../../etc/passwd"
    first = report.summary().splitlines()[0]
    assert first.startswith("1 document, 1 image, 24 problems (missing 8, outside 5, remote 4,")


def test_unreadable_files_are_reported_and_the_rest_converted(folder, tmp_path):
    (tmp_path / "outside.md").write_text("secret")
    (folder / "link.md").symlink_to(tmp_path / "outside.md")
    (folder / "loop.md").symlink_to(folder / "loop.md")
    (folder / "latin.md").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "empty.md").write_text("---\ntitle: x\n---\n")
    (folder / "only.md").write_text("- ![a](/pix/a.png)")
    (folder / "big.md").write_text("x" * (MAX_FILE_BYTES + 1))
    (folder / "deep.md").write_text("> " * 5000 + "[" * 5000 + "![" * 5000)
    (folder / "caf\u00e9 \U0001f373.md").write_text("fine")
    os.mkfifo(folder / "pipe.md")
    (folder / "folder.md").mkdir()
    report, documents = converted(folder, "good")
    assert {problem.file: problem.kind for problem in report.problems} == {
        "big.md": "unreadable",
        "empty.md": "no text",
        "latin.md": "unreadable",
        "link.md": "unreadable",
        "loop.md": "unreadable",
        "only.md": "no text",
        "pipe.md": "unreadable",
    }
    assert set(documents) == {"content/page.md", "caf\u00e9 \U0001f373.md", "deep.md"}


def test_control_characters_do_not_reach_the_terminal():
    problem = Problem("a\x1b[2J.md", 1, "missing", "x\ny", "no")
    assert Report(problems=[problem]).summary().splitlines()[1] == "a\\x1b[2J.md:1: missing: x y: no"


def test_turned_photographs_stand_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "static/pix/a.jpg").write_bytes(encoded("JPEG", size=(8, 6), exif=exif))
    (folder / "static/pix/b.jpg").write_bytes(encoded("JPEG", size=(8, 6)))
    _, documents = converted(folder, "one ![](/pix/a.jpg) ![](/pix/b.jpg)")
    assert [segment.pixels().size for segment in documents["content/page.md"].images] == [(6, 8), (8, 6)]
    assert [segment.image.format for segment in documents["content/page.md"].images] == ["PNG", "JPEG"]


def test_held_out_documents_stay_held_out(folder, tmp_path):
    def heldout(count, share=0.3):
        for i in range(count):
            (folder / f"{i}.md").write_text(f"text {i}")
        convert(folder, tmp_path / "out", heldout_share=share, overwrite=True)
        if share == 0:
            return set()
        return {document.id for document in read_documents(tmp_path / "out", "heldout", shuffle_seed=None)}

    assert heldout(1) == set()
    assert len(heldout(2, 1e-9)) == 1 and len(heldout(2, 0.999)) == 1
    few, many = heldout(20), heldout(60)
    assert few == {name for name in many if int(name[:-3]) < 20} and 8 < len(many) < 30
    assert heldout(60, 0) == set() and read_index(tmp_path / "out").kinds["heldout"] == {}


def test_folders_without_documents_are_errors(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        convert(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no document to convert .no \\*.md file"):
        convert(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="held-out share"):
        convert(tmp_path / "empty", tmp_path / "out", heldout_share=1)
    assert not (tmp_path / "out").exists()


def test_preview_escapes_and_fits_a_phone(folder, tmp_path):
    (folder / "static/pix/a.png").write_bytes(encoded(size=(900, 300)))
    text = (
        "---\ntitle: <script>alert(0)</script>\n---\n<script>alert(1)</script>\n\n"
        + '![<b>"](/pix/a.png) ![x](<b>.png)'
    )
    converted(folder, text)
    assert write_preview(tmp_path / "out", tmp_path / "page.html") == 1
    page = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script" not in page and "<b>" not in page
    assert page.count("data:image/png;base64,") == 1 and 'width="256"' in page and "width=device-width" in page
    with pytest.raises(InputError, match="no records in split 'heldout'"):
        write_preview(tmp_path / "out", tmp_path / "page.html", split="heldout")


def test_real_recipes(tmp_path):
    source = SHARED / "cooking"
    if not source.is_dir():
        pytest.skip("no real Markdown folder: set LIMNER_TEST_DATA to a folder that holds cooking/")
    report = convert(source, tmp_path / "out")
    references = sum(len(re.findall(r"!\[[^]]*]\(|<img\b", path.read_text())) for path in source.rglob("*.md"))
    assert report.summary().startswith("29 documents, ")
    assert report.images + len(report.problems) == references
    assert validate(tmp_path / "out") == []
    for split in ("train", "heldout"):
        for document in read_documents(tmp_path / "out", split, shuffle_seed=0):
            assert "![" not in document.text and "---\ntitle" not in document.text
            assert all(isinstance(s, ImageSegment) or s.text == s.text.strip() for s in document.segments)


def test_pictures_of_a_page_without_words_have_their_own_kinds(folder):
    text = "![a](/pix/a.png)\n\n![x](gone.png)\n\n![y](http://host/y.png)\n\n![a](/pix/a.png)\n"
    (folder / "content/only.md").write_text(text)
    report, documents = converted(folder, "words ![b](/pix/b.png)")
    kinds = [problem.kind for problem in report.problems if problem.file == "content/only.md"]
    assert sorted(kinds) == ["duplicate", "missing", "no text", "remote"] and len(documents) == 1
    assert report.written == 1 + sum(problem.pictures for problem in report.problems)

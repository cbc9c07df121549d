import json
import os
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from limner.configs.errors import InputError
from limner.models.documents import rendering
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment, data_uri
from limner.models.documents.rendering import (
    beginning,
    caption_of,
    document_html,
    markdown_html,
    save,
    texts_html,
    to_html,
    to_markdown,
)

HOSTILE = "<script>alert(1)</script> & \"><img src=x onerror=alert(1)> '--> <img3> </main>"


class Reader(HTMLParser):
    """What a browser would make of a page: its tags, its images, its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict] = []
        self.links: list[dict] = []
        self.seen = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "a":
            self.links.append(dict(attrs))

    def handle_data(self, data):
        self.seen += data


def picture(side: int = 32) -> Image.Image:
    return Image.new("RGB", (side, side), (214, 40, 40))


def story() -> InterleavedDocument:
    return InterleavedDocument(
        (
            TextSegment("Illustrate: a circle."),
            TextSegment("A circle.", trainable=True),
            ImageSegment(picture(), trainable=True, origin="generated"),
            TextSegment("A photograph.", trainable=True),
            ImageSegment(picture(100), trainable=True, origin="inserted", candidate=3, alt="a red wall"),
        ),
        id="story",
    )


def test_html_shows_steps_pictures_and_their_origin():
    page = Reader(to_html(story(), "A <story>"))
    assert "A <story>" in page.seen and "Illustrate: a circle." in page.seen
    assert "generated" in page.seen and "inserted, candidate 3" in page.seen
    small, large = page.images
    assert small["width"] == "128" and small["class"] == "pixelated" and small["alt"] == "Picture 1, generated"
    assert large["width"] == "100" and "class" not in large and large["alt"] == "a red wall"
    fragment = document_html(story(), image_scale=2, notes={2: "<b>0.5</b>"})
    assert fragment.count('class="step prompt"') == 1 and fragment.count('class="step"') == 2
    assert 'width="64"' in fragment
    assert re.search(r"<figcaption>.*?</figcaption><b>0.5</b></figure>", fragment), "the note stands with its segment"


def test_hostile_text_stays_text_in_html():
    document = InterleavedDocument((TextSegment(HOSTILE), ImageSegment(picture(), alt=HOSTILE)), id=HOSTILE)
    page = Reader(to_html(document, HOSTILE))
    assert "script" not in page.tags and len(page.images) == 1 and set(page.images[0]) == {
        "src", "alt", "width", "height", "class"
    }  # fmt: skip
    assert page.images[0]["alt"] == HOSTILE and page.seen.count(HOSTILE) == 4, "title, heading, text and caption"


def test_html_shows_the_markdown_of_texts():
    shown = markdown_html("\n# Steps\nMix *well*\nand **rest**.\n\n2. Bake\n3. Eat\n\n[more](https://e.org/a?b=1&c=2)")
    assert shown.startswith('<h3>Steps</h3><p>Mix <em>well</em><br />\nand <strong>rest</strong>.</p>\n<ol start="2">')
    assert '<a href="https://e.org/a?b=1&amp;c=2" rel="nofollow noopener">more</a>' in shown
    # Of one list that pictures cut, each part is one: no item of it belongs to another.
    assert markdown_html("\n    - salt\n    - oil").count("<ul>") == 1
    cut = InterleavedDocument(
        (TextSegment("1. Mix.\n2. Roll"), ImageSegment(picture()), TextSegment(" it out.\n\n3. Eat."))
    )
    order = [document_html(cut).index(part) for part in ("Roll</li>", "<img", "<p>it out.", '<ol start="3">')]
    assert order == sorted(order)


def test_indented_code_keeps_its_lines_and_spaces():
    code = "def f(x):\n    if x < 1:\n        return '<b>'\n\n    return x"
    typed = "\n".join(f"    {line}" if line else "" for line in code.split("\n"))
    for text in (f"Use this:\n\n{typed}\n\nDone.", f"\n{typed}\n", f"\n \n{typed}\n\n1. Run it."):
        shown = markdown_html(text)
        assert Reader(shown).seen.count(f"{code}\n") == 1, shown
        assert shown.count("<pre><code>") == 1 and "<b>" not in shown
    assert "<pre><code>\tx\n</code></pre>" in markdown_html("\t\tx")
    page = to_markdown(InterleavedDocument((TextSegment(f"Use <this>:\n\n{typed}"),)))
    assert typed in page and "Use &lt;this>" in page


@pytest.mark.parametrize("space", ["   ", "    ", "\t"])
def test_the_rest_of_a_list_that_pictures_cut_is_no_code(space):
    texts = [
        "1.  Mix.",
        f"{space}Then stir.",
        f"{space}And rest.\n\n2.  Bake.",
        "",
        f"{space}Eat.\n\nEnd.",
        "    x = 1",
    ]
    shown = list(texts_html(texts))
    assert (
        not any("<pre>" in one for one in shown[:5])
        and shown[3] == ""
        and shown[5] == "<pre><code>x = 1\n</code></pre>"
    )
    assert shown[1] == "<p>Then stir.</p>" and '<ol start="2">' in shown[2]
    document = InterleavedDocument(tuple(s for t in texts for s in (TextSegment(t), ImageSegment(picture()))))
    assert document_html(document).count("<pre>") == 1


@pytest.mark.parametrize(
    "text",
    [
        "[a](javascript:alert(1)) [b](JaVa&#83;cript:x) <vbscript:x> [c](data:text/html,x) [d](/rel) [e]\n\n[e]: file:///x",
        '[a](https://e.org/"onclick="alert(1) "t\\"onclick=alert(1)") ![x](http://t/x.png) [![y](z.png)](javascript:1)',
        "<a href='javascript:alert(1)'>x</a>\n\n<script>\nalert(1)\n</script>\n\n```html\n<img src=x onerror=alert(1)>",
        "| <b onclick=x> | b |\n|---|---|\n| `<i>` | \\<u> |\n\n&lt;s&gt; \ud800 \0 " + "[" * 500 + "> " * 500,
    ],
)
def test_hostile_markdown_loads_and_runs_nothing(text):
    shown = Reader(markdown_html(text))
    assert set(shown.tags) <= {"p", "a", "br", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "blockquote"}
    assert all(set(one) == {"href", "rel"} and one["href"].startswith("https://e.org/") for one in shown.links)


def test_a_file_name_is_no_caption():
    for name in (
        "IMG_1234",
        "DSC00012.JPG",
        "20230405_1203",
        "a3f9b2c4d5e6.png",
        "550e8400-e29b-41d4-a716-446655440000",
    ):
        assert caption_of(name) == ""
        document = InterleavedDocument((ImageSegment(picture(), alt=name),))
        assert name not in to_html(document) and name not in to_markdown(document)
    for words in ("apple-strudel-1", "Option A", "B2", "the pot", "IMG_1 of the pot", "\u6c64"):
        assert caption_of(words) == words


def test_a_page_without_a_name_has_the_beginning_of_the_prompt(tmp_path: Path):
    asked = "Illustrate: <b>a circle</b> " + "and a square " * 20
    document = InterleavedDocument((TextSegment(asked), TextSegment("A circle.", trainable=True)))
    save(document, tmp_path / "a.html")
    title = (tmp_path / "a.html").read_text().partition("<title>")[2].partition("</title>")[0]
    assert title.startswith("Illustrate: &lt;b&gt;a circle&lt;/b&gt; and a square") and title.endswith(" square ...")
    save(replace(document, segments=document.completion.segments), tmp_path / "a.html")
    assert "<title>a</title>" in (tmp_path / "a.html").read_text()
    assert len(beginning("y" * 200)) == 70 and beginning(" short\n text ") == "short text"


def test_a_page_refers_to_nothing_outside_itself():
    page = to_html(story())
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert not re.search(r"https?://|@import|url\(|<script|<link", page)


def test_hostile_text_stays_text_in_markdown():
    document = InterleavedDocument((TextSegment(HOSTILE + "\n\n*kept*"), ImageSegment(picture(), alt="](x) <b>![")))
    page = Reader(MarkdownIt("commonmark").render(to_markdown(document)))
    assert HOSTILE in page.seen and page.tags == ["p", "p", "em", "p", "img"]
    assert page.images[0]["alt"] == "](x) <b>![" and page.images[0]["src"].startswith("data:image/png;base64,")


def test_pictures_that_cannot_be_shown_say_why(tmp_path: Path):
    whole = rendering.encode_png(picture(200))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    document = InterleavedDocument(
        (ImageSegment(None, codes_N=np.arange(16)), ImageSegment(Image.open(tmp_path / "cut.png")))
    )
    for rendered in (to_html(document), to_markdown(document)):
        assert "16 image codes, not decoded" in rendered and "does not decode" in rendered
        assert "data:image" not in rendered


@pytest.mark.parametrize("suffix", [".html", ".md", ".json"])
def test_save_picks_the_form_and_leaves_nothing_beside(tmp_path: Path, suffix: str):
    path = tmp_path / "new" / f"my answer{suffix}"
    save(story(), path)
    expected = {path.name, "my answer_images"} if suffix == ".md" else {path.name}
    assert {p.name for p in path.parent.iterdir()} == expected


def test_saved_markdown_finds_its_pictures(tmp_path: Path):
    save(story(), tmp_path / "a b.md")
    text = (tmp_path / "a b.md").read_text()
    assert re.findall(r"\]\((.*?)\)", text) == ["a%20b_images/1.png", "a%20b_images/2.png"]
    assert Image.open(tmp_path / "a b_images" / "2.png").size == (100, 100)


def test_saved_json_is_the_document(tmp_path: Path):
    save(story(), tmp_path / "a.json")
    document = InterleavedDocument.from_json(json.loads((tmp_path / "a.json").read_text()))
    assert document.text == story().text and data_uri(document.images[0].pixels()) == data_uri(picture())


def test_an_unknown_suffix_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"\.html, \.md or \.json"):
        save(story(), tmp_path / "answer.pdf")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.html"
    path.write_text("old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="a.html: cannot be written: no space"):
        save(story(), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_lone_surrogate_can_be_written(tmp_path: Path):
    save(InterleavedDocument((TextSegment("a \ud800 b"),)), tmp_path / "a.html")
    assert "a ? b" in (tmp_path / "a.html").read_text()


def test_code_stays_as_it_is_in_markdown():
    code = "```html\n<form a>\n  <b>\n```"
    listed = "- Run\n  ~~~\n  <i>\n  ~~~"
    text = f"A <u> and `a <b`, \\`<s>\\`, ``<p> ` <q>``.\n\n{code}\n\n{listed}\n<u>"
    page = to_markdown(InterleavedDocument((TextSegment(text), ImageSegment(Image.new("RGB", (2, 2))))))
    assert code in page and listed in page and "`a <b`" in page and "``<p> ` <q>``" in page
    assert "&lt;u>" in page and "\\`&lt;s>\\`" in page and page.count("<u>") == 0


def test_no_page_of_texts_has_html_whatever_opens_or_closes_code():
    """A fence that one text opens is closed by another; a backtick in a link's address is no code."""
    rng, read = random.Random(0), MarkdownIt("commonmark")
    atoms = [
        "```",
        "~~~",
        "````",
        "<script>x</script>",
        "<b>",
        "`",
        "``",
        "\\`",
        "\\",
        "- ",
        "> ",
        "    ",
        "\n",
        "\n\n",
    ]
    atoms += ["a", "[a](<b", "[a](x`", ")", "|", "<!--", "-->", "1. ", "\t", "\r", "<https://a`b>", "<a href='`'>"]
    kept = 0
    for _ in range(1000):
        texts = ["".join(rng.choices(atoms, k=rng.randrange(1, 14))) for _ in range(rng.randrange(1, 4))]
        between = [ImageSegment(Image.new("RGB", (2, 2)))] * rng.randrange(2)
        segments = [segment for text in texts for segment in (TextSegment(text), *between)]
        page = to_markdown(InterleavedDocument(tuple(segments)))
        tokens = read.parse(page)
        assert not [t for token in tokens for t in (token, *(token.children or ())) if "html" in t.type], texts
        kept += "<script>" in page or "<b>" in page
    assert kept > 50


def references(path: Path) -> dict[str, bool]:
    """Every picture that a saved Markdown file names, and whether it is there and decodes."""
    names = [unquote(name) for name in re.findall(r"\]\((.*?)\)", path.read_text())]
    return {name: bool(Image.open(path.parent / name).convert("RGB")) for name in names}


def test_markdown_written_again_has_its_own_pictures_and_leaves_none_of_the_other(tmp_path: Path):
    path = tmp_path / "a b.md"
    for folder in ("a b_images", "a b_images-2", "a b_images"):
        save(story(), path)
        assert [*references(path)] == [f"{folder}/1.png", f"{folder}/2.png"]
        assert {p.name for p in tmp_path.iterdir()} == {"a b.md", folder}
    save(InterleavedDocument((TextSegment("no picture"),)), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a b.md"]


def test_pictures_of_others_beside_a_markdown_file_stay(tmp_path: Path):
    path = tmp_path / "a.md"
    path.write_text("![mine](a_images/beach.png)")
    (tmp_path / "a_images").mkdir()
    for name in ("1.png", "beach.png"):
        (tmp_path / "a_images" / name).write_text("mine")
    for _ in range(2):
        save(story(), path)
        assert all(references(path).values()) and {p.name for p in (tmp_path / "a_images").iterdir()} == {
            "1.png",
            "beach.png",
        }
        assert len([*tmp_path.iterdir()]) == 3


def test_the_pictures_of_a_file_of_limner_0_1_go_with_it(tmp_path: Path):
    path = tmp_path / "a.md"
    path.write_text(to_markdown(story(), tmp_path / "a_images"))
    save(story(), path)
    assert [*references(path)] == ["a_images-2/1.png", "a_images-2/2.png"]
    assert {p.name for p in tmp_path.iterdir()} == {"a.md", "a_images-2"}


@pytest.mark.parametrize("said, times", [("Tell of a crane.", 1), ("Tell of a crane. " * 9, 9)])
def test_a_page_says_its_prompt_once(said, times):
    document = InterleavedDocument((TextSegment(said), TextSegment("A crane stood.", trainable=True)))
    body = to_html(document, beginning(said)).partition("<body>")[2]
    assert body.count("Tell of a crane.") == times and body.count("A crane stood.") == 1
    titled = to_html(document, "Another title").partition("<body>")[2]
    assert "<h1>Another title</h1>" in titled and titled.count("Tell of a crane.") == times


def test_entities_of_an_alt_text_are_escaped_once():
    assert markdown_html("![R&amp;D & **more** <b>](x.png)") == "<p>R&amp;D &amp; more &lt;b&gt;</p>"

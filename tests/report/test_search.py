"""The page of a search: whatever stands in documents and queries stays text, and pictures are where they stood."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

from PIL import Image

from limner.report.search import MOST_PICTURES, SIDE, marked, search_page, wanted
from limner.retrieval.index.command import Found, listing
from limner.retrieval.index.corpus import PIC, Chunk, Hit, Picture
from limner.retrieval.index.matching import Fit

HOSTILE = '"><script>alert(1)</script><img src=http://x onerror=alert(1)>\x1b[2J</style>'


def png(size=(600, 300), mode="RGB"):
    buffer, image = io.BytesIO(), Image.new(mode, size, "red")
    image.paste("white", (0, 0, 9, 9))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def found(text="soup", pictures=2, hostile="the pot", image=None):
    shown = tuple(Picture(f"a#{i}", png(mode="RGBA"), hostile, hostile) for i in range(pictures))
    chunk = Chunk(
        "a.md:0", "a.md", f"Soup {hostile}", f"Boil. {hostile}\n{PIC}\nEat.\n{PIC}" + f"\n{PIC}" * (pictures - 2), shown
    )
    return Found("index", text, image, [Hit(chunk, 0.0325, ("full text", "text vector"))], 29)


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_hostile_texts_and_captions_stay_text():
    page = search_page(found(HOSTILE, hostile=HOSTILE))
    tags = Tags(page)
    assert not [tag for tag, _ in tags.found if tag in ("script", "iframe", "link", "object")]
    images = [attributes for tag, attributes in tags.found if tag == "img"]
    assert len(images) == 2 and all(set(one) == {"src", "alt", "width", "height"} for one in images)
    assert all(one["src"].startswith("data:image/jpeg;base64,") and one["alt"] == HOSTILE for one in images)
    assert "default-src 'none'" in page.replace("&#x27;", "'") and tags.text.count("<script>alert(1)</script>") >= 4
    assert "\x1b" not in listing(found(HOSTILE, hostile=HOSTILE))


def test_pictures_are_small_and_where_they_stood():
    page = search_page(found(image=Image.new("RGB", (900, 900), "blue")))
    order = [page.index(part) for part in ("Boil.", "the pot</figcaption>", "Eat.")]
    assert order == sorted(order) and page.rindex("<img") > order[2]
    data = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in data]
    assert sizes == [(SIDE, SIDE), (SIDE, SIDE // 2), (SIDE, SIDE // 2)]
    many = search_page(found(pictures=MOST_PICTURES + 3))
    assert many.count("<img") == MOST_PICTURES and "and 3 more pictures" in many


def test_texts_show_their_markdown_and_a_file_name_is_no_caption():
    page = search_page(found(hostile="**IMG** [x](javascript:1)"))
    assert "<strong>IMG</strong> x" in page and "href" not in page
    assert "<figcaption>" not in search_page(found(hostile="IMG_1234"))


def test_the_listing_says_title_score_text_and_pictures():
    lines = listing(found()).split("\n")
    assert lines[0] == "1. Soup the pot  [a.md:0]  found by full text, text vector"
    assert lines[1:] == ["   Boil. the pot", "   2 pictures: the pot; the pot", "1 part of 29 documents"]


def test_a_score_says_what_it_is_and_from_where_on_it_answers():
    for margin, words in ((1.2, "fit 0.62 by vectors (enough: 0.50)"), (0.5, "fit 0.62 by vectors (too little: 0.50)")):
        told = replace(found(), fits=[Fit(margin, 0.62, 0.5, "vectors")])
        assert words in listing(told) and words in search_page(told)
    assert "0.0325" not in search_page(found()) + listing(found()), "ranks that are fused say nothing to people"


def test_words_asked_for_are_marked_in_texts_and_never_in_tags():
    pattern = wanted("How do I boil the LEEKS, a & b?")
    page = marked('<a href="http://x/leek">Boils leek &amp; Leeks</a><p class="boil">thinly</p>', pattern)
    marks = "<mark>Boils</mark> <mark>leek</mark> &amp; <mark>Leeks</mark>"
    assert page == f'<a href="http://x/leek">{marks}</a><p class="boil">thinly</p>'
    assert marked("&lt;img src=x&gt; boil", pattern) == "&lt;img src=x&gt; <mark>boil</mark>"
    assert marked("\u4f60\u597d\u5417", wanted("\u597d\u5417")) == "\u4f60<mark>\u597d\u5417</mark>"
    assert wanted("how is it?") is None and marked("<b>x</b>", None) == "<b>x</b>"
    assert "<mark>Soup</mark>" in search_page(found()) and "<script>" not in search_page(
        found("script", hostile=HOSTILE)
    )


def test_index_and_search_from_the_command_line(limner, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "pot.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (site / "soup.md").write_text("# Soup\n\nBoil the <b>pot</b> of leeks.\n\n![pot](pot.png) ![](../secret.png)\n")
    (site / "cake.md").write_text("# Cake\n\nBeat the eggs.\n")
    index, page = tmp_path / "index", tmp_path / "page.html"
    code, out, _ = limner("index", site, "--out", index, "--text-encoder", "none")
    assert code == 0 and "markdown; text encoder none, image encoder none" in out
    assert "documents: 2 added, 0 updated, 0 unchanged, 0 deleted; 1 picture written; 1 problem (outside 1)" in out
    assert "soup.md:5: outside: ../secret.png" in out
    assert out.endswith(f"next: limner answer {index} QUESTION --out answer.html\n")
    (site / "cake.md").unlink()
    assert "0 added, 0 updated, 1 unchanged, 1 deleted" in limner("index", site, "--out", index)[1]
    code, out, _ = limner("search", index, "leeks", "--out", page)
    assert code == 0 and out.startswith("1. Soup  [soup.md:0]  fit ")
    assert out.endswith(f"1 part of 1 document\nwrote {page}\nnext: open {page} in a browser\n")
    assert "&lt;b&gt;pot&lt;/b&gt;" in page.read_text() and "http://" not in page.read_text()
    faults = [
        (("search", index), "give a query"),
        (("search", tmp_path, "x"), "no index"),
        (("search", index, "x", "--image", site / "soup.md"), "soup.md"),
        (("search", index, "x", "--image", site / "pot.png"), "picture encoder"),
        (("search", index, "x", "--document", "no.md"), "no.md"),
        (("search", index, "x", "--out", "page.txt"), ".html"),
        (("index", site, "--out", index, "--text-encoder", "minilm"), "text encoder is none, not minilm"),
        (("index", site, "--out", site), "no part of an index"),
        (("index", tmp_path / "nowhere", "--out", index), "no such folder"),
    ]
    for arguments, words in faults:
        code, _, err = limner(*arguments)
        assert code == 2 and words in err and err.count("\n") == 1, err

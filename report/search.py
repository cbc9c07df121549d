"""`limner search`: the hits in the terminal, and as one HTML page with the pictures where they stand."""

from __future__ import annotations

import base64
import html
import io
import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

from PIL import Image

from ..configs.errors import InputError
from ..configs.terminal import say, say_next
from ..configs.whole import write_atomically
from ..models.documents.document import open_image, to_rgb
from ..models.documents.rendering import beginning, caption_of, texts_html
from ..retrieval.index.command import Found, find, listing, said_of, search_parser
from ..retrieval.index.corpus import PIC, Picture, some
from ..retrieval.index.letters import RUN
from ..retrieval.index.tables import ASKING
from .page import Html, element, escape, note, page

SIDE = 256
"""Pictures are shown at most this many pixels wide and high."""
JPEG_QUALITY = 85
MOST_PICTURES = 12
"""Of a hit; of the others the page says how many there are."""
STYLE = """<style>
.hit { margin-top: 2rem; padding-top: 0.8rem; }
.hit h2 { font-size: 1.2rem; overflow-wrap: anywhere; }
mark { background: var(--fair-tint); color: inherit; border-radius: 2px; }
.preview { display: inline-block; vertical-align: top; margin: 0.4rem 1rem 0.4rem 0; max-width: 256px; }
.preview img { display: block; max-width: 100%; height: auto; border-radius: 4px; outline: 1px solid var(--line); }
</style>"""


def main(argv: Sequence[str]) -> None:
    arguments = search_parser().parse_args(argv)
    if arguments.out and arguments.out.suffix != ".html":
        raise InputError(f"--out {arguments.out}: end the name in .html")
    found = find(arguments)
    say(listing(found))
    if arguments.out:
        write_atomically(arguments.out, search_page(found))
        say(f"wrote {arguments.out}")
        say_next(page=arguments.out)


def search_page(found: Found) -> str:
    """A whole page; texts show their Markdown, queries, titles and captions are shown letter by letter."""
    asked = [element("p", found.text, style="lead")] if found.text.strip() else []
    asked += [_figure(found.image, "The picture that was asked for")] if found.image else []
    hits = [_hit(found, place) for place in range(len(found.hits))] or [element("p", "Nothing was found.")]
    told = [note(f"{some(len(found.hits), 'part')} of {some(found.documents, 'document')} in {found.place}")]
    if found.fits:
        means = (
            "A fit by vectors is a cosine, by letters the share of what was asked that is there; each is measured on "
        )
        told.append(
            note(means + "this index: what has nothing to do with a question stays below the number in brackets.")
        )
    title = beginning(found.text) or "Search by picture"
    return page(title, Html(STYLE), element("h1", "Search"), element("div", *asked, style="asked"), *told, *hits)


def _hit(found: Found, place: int) -> Html:
    chunk, words, number = found.hits[place].chunk, wanted(found.text), place + 1
    facts = f"{chunk.id}; {said_of(found, place)}"
    parts = []
    for place, (text, picture) in enumerate(zip_longest(texts_html(chunk.text.split(PIC)), chunk.pictures)):
        if text:
            parts.append(element("div", marked(text, words), style="text"))
        if picture and place < MOST_PICTURES:
            parts.append(_picture(picture))
    if (more := len(chunk.pictures) - MOST_PICTURES) > 0:
        parts.append(note(f"and {more} more pictures"))
    heading = marked(escape(f"{number}. {chunk.title}"), words)
    return element("section", element("h2", heading), note(facts), *parts, style="hit")


def wanted(query: str) -> re.Pattern[str] | None:
    """The words of a query and their nearest forms, without those of the asking; of ideographs each two."""
    found = []
    for match in RUN.finditer(unicodedata.normalize("NFKC", query).casefold()):
        word = match.group()
        if match["ideographs"] or match["unspaced"]:
            length = 2 if match["ideographs"] else 3
            found += [re.escape(word[at : at + length]) for at in range(max(1, len(word) - length + 1))]
        elif word not in ASKING:
            stem, ending = (word, "s?") if len(word) <= 4 else (word[:-1] if len(word) == 5 else word[:-2], r"\w{0,4}")
            found.append(rf"\b{re.escape(stem)}{ending}\b")
    return re.compile("|".join(found), re.IGNORECASE) if found else None


def marked(markup: str, words: re.Pattern[str] | None) -> Html:
    """The same HTML with these words in <mark>: in its text, never in its tags, which hold no `>` but their end."""
    if not words:
        return Html(markup)
    parts = re.split(r"(<[^<>]*>)", markup)
    return Html("".join(part if part.startswith("<") else _marked(html.unescape(part), words) for part in parts))


def _marked(text: str, words: re.Pattern[str]) -> str:
    done, at = "", 0
    for match in words.finditer(text):
        done += f"{html.escape(text[at : match.start()])}<mark>{html.escape(match.group())}</mark>"
        at = match.end()
    return done + html.escape(text[at:])


def _picture(picture: Picture) -> Html:
    return _figure(to_rgb(open_image(picture.data)), caption_of(picture.caption))


def _figure(image: Image.Image, caption: str) -> Html:
    small = to_rgb(image).copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = small.size
    alt = escape(caption or "Picture")
    shown = Html(f'<img src="data:image/jpeg;base64,{data}" alt="{alt}" width="{width}" height="{height}">')
    said = element("figcaption", caption) if caption else ""
    return Html(f'<figure class="preview">{shown}{said}</figure>')

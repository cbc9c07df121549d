"""The page of `limner check`: what held, what did not and what to do, the pictures, and what the model was run on."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..models.documents.document import to_rgb
from .page import Html, element, escape, facts, join, note, page, section

MARKS = {"ok": ("good", "&#10003; ok"), "failed": ("poor", "&#10007; failed"), "skipped": ("none", "&ndash; skipped")}
SIDE = 256
"""Pixels of a side that pictures are shown with; small ones are enlarged without being blurred."""
STYLE = """<style>
.seen { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.seen figure { margin: 0; }
.seen img { display: block; border-radius: 4px; outline: 1px solid var(--line); }
</style>"""


def check_page(figures: Mapping[str, Any], pictures: Mapping[str, Image.Image], text: str) -> str:
    """figures: what the JSON of `limner check` holds; pictures by what they are; text: the sampled one."""
    title = figures["model"] or figures["sizes"].get("class") or "A model"
    counts = ", ".join(f"{number} {state}" for state, number in figures["counts"].items() if number)
    seen = [element("div", *(_figure(picture, name) for name, picture in pictures.items()), style="seen")]
    seen += [element("h3", "A text, sampled"), element("pre", text)] if text else []
    return page(
        f"Check: {title}",
        Html(STYLE),
        element("p", "limner check", style="kicker"),
        element("h1", title),
        element("p", _headline(figures, counts), style="lead"),
        section("checks", "Checks", _verdicts(figures["checks"])),
        section("seen", "Seen and sampled", *seen) if pictures or text else "",
        section("sizes", "The model", facts(_filled(figures["sizes"]))) if figures["sizes"] else "",
        section("machine", "Run on", facts(_filled({**figures["device"], **figures["versions"]}))),
        section("configuration", "Configuration", facts({"config.json": figures["configuration"]})),
    )


def _headline(figures: Mapping[str, Any], counts: str) -> str:
    if not figures["checks"]:
        return "The model is being read."
    return f"Everything holds: {counts}." if figures["holds"] else f"{counts}. See the remedies."


def _verdicts(checks: Sequence[Mapping[str, Any]]) -> Html:
    if not checks:
        return note("None was made so far.")
    items = []
    for check in checks:
        style, mark = MARKS[check["state"]]
        remedy = [element("small", f"What to do: {check['remedy']}")] if check["remedy"] else []
        said = element("small", f"{check['text']} ({check['seconds']:.1f} s)")
        words = element("div", element("b", check["name"]), said, *remedy)
        items.append(element("li", element("span", Html(mark), style=f"mark {style}"), words))
    return element("ul", join(items), style="verdicts")


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _figure(image: Image.Image, caption: str) -> Html:
    small = to_rgb(image).copy()
    if max(small.size) > SIDE:
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    else:
        times = SIDE // max(small.size)
        small = small.resize((small.width * times, small.height * times), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    shown = Html(f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}" width="{small.width}">')
    return element("figure", shown, element("figcaption", caption))

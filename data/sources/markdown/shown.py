"""Which pictures a piece of markup shows: an HTML or JSX tag, a template tag, the options of a directive.

One reading of attributes serves all of them: no parser of HTML knows `src={lamp}` or `{{< figure src="lamp.png" >}}`.
Every pattern here is linear in the length of what it is given.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

EMBEDDED = "data:embedded-"
"""Stands, with a number, for a picture that was written into the page itself as base64."""
_ENDINGS = "apng avif bmp gif heic heif ico jfif jp2 jpe jpeg jpg jxl png psd svg svgz tif tiff webp"
EXTENSIONS = frozenset(_ENDINGS.split())
"""Of files that are pictures, whether or not they can be read."""
NO_PICTURE = ("no picture", "it names no picture file; what it stands for is left out")
DRAWING = ("format not supported", "a drawing (SVG) that is written into the page; show a PNG of it")
VERSION = ("version", "another version of a picture that stands here")
SHOWING = ("src", "data-src", "data-original", "srcset", "data-srcset", "poster", "data", "image", "sources")
"""Attributes whose value is shown, if it is a picture."""
LINKING = ("a", "area", "link", "meta", "script", "base")
"""Tags that name files without showing them."""
PICTURE_TAGS = ("asset_img", "figure", "image", "img", "photo", "picture")
"""Template tags that show a picture even where its name has no extension."""
KEYS = ("src", "url", "path", "file", "image", "image_path")
"""Of such a tag's picture."""

ATTRIBUTE = re.compile(
    r"""([^\s"'<>/={}]+)(?:\s*=\s*("[^"]*"|'[^']*'|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|[^\s"'=<>`]+))?"""
)
ARGUMENT = re.compile(r"""(?:([\w.-]+)\s*[=:](?!//)\s*)?("[^"]*"|'[^']*'|`[^`]*`|[^\s"'`]+)""")
LITERAL = re.compile(r"""(["'`])([^"'`\n]*)\1""")
TEMPLATE = re.compile(r"\{\{[<%]?([^{}]*)\}\}|\{%([^{}]*)%\}")
CSS_URL = re.compile(r"""url\(\s*["']?([^"')\s]+)""")
TAG_NAME = re.compile(r"<([A-Za-z][\w.:-]*)")


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture that a piece of markup names."""

    target: str
    alt: str = ""
    by_name: bool = False
    """To be looked for in the whole folder by its file name: so wiki embeds and template tags are written."""
    fault: tuple[str, str] | None = None
    """Kind and reason, where it is known already that it gives no picture."""


def is_picture(target: str) -> bool:
    """Whether a name, a path or an address ends as picture files do, or is a picture written into the page."""
    path = re.split(r"[?#|]", without_tags(target) if "{" in target else target, maxsplit=1)[0].strip()
    return target.startswith((EMBEDDED, "data:image/")) or _ends_well(path)


def without_tags(target: str) -> str:
    """`{{ site.baseurl }}/img/lamp.png`: /img/lamp.png, and `{{ "lamp.png" | relative_url }}`: lamp.png."""
    return TEMPLATE.sub(lambda match: next((shown.target for shown in in_template(match[1] or match[2])), ""), target)


def in_html(tag: str, imports: Mapping[str, str]) -> list[Shown]:
    """Of an opening HTML or JSX tag; an `<img>` always has one. imports: what an MDX page calls its picture files."""
    named = TAG_NAME.match(tag)
    if named is None or (name := named[1].lower()) in LINKING:
        return []
    values: dict[str, str] = {}
    for match in ATTRIBUTE.finditer(tag, named.end()):
        values.setdefault(match[1].lower(), match[2] or "")  # of an attribute given twice, HTML takes the first
    alt = _text(values.get("alt", ""))
    targets = [target for key in SHOWING for target in _targets(key, values.get(key, ""), imports)]
    if name in ("image", "use"):
        targets += [target for key in ("href", "xlink:href") for target in _targets(key, values.get(key, ""), imports)]
    targets += CSS_URL.findall(_text(values.get("style", "")))
    found = [Shown(target, alt) for target in dict.fromkeys(targets) if is_picture(target)]
    if name == "img":
        lazy = found and found[0].target.startswith(EMBEDDED) and len(found) > 1  # a blank one, until a script has run
        return found[1:2] if lazy else found[:1] or [Shown(next(iter(targets), ""), alt)]
    if name == "source" or "sources" in values:
        return [*found[:1], *(Shown(shown.target, alt, fault=VERSION) for shown in found[1:])]
    return found


def in_template(inside: str) -> list[Shown]:
    """Of what stands between the braces of a Hugo, Jekyll, Hexo or other template tag."""
    arguments = [(key.lower(), _text(value)) for key, value in ARGUMENT.findall(inside)]
    if not arguments or inside.lstrip().startswith("/"):
        return []
    keyed = dict(reversed(arguments))
    alt = next((keyed[key] for key in ("alt", "caption", "title") if keyed.get(key)), "")
    targets = [value for key, value in arguments if is_picture(value) and key not in ("link", "href", "target")]
    if not targets and arguments[0][1].lower() in PICTURE_TAGS:
        unnamed = [value for key, value in arguments[1:] if not key and arguments[0][1] != "figure"]
        targets = [keyed[key] for key in KEYS if keyed.get(key)][:1] or unnamed[:1]
    return [Shown(target, alt, by_name=True) for target in targets]


def in_options(argument: str, options: Mapping[str, str]) -> list[Shown]:
    """Of a directive: its argument, and options such as `img-top`."""
    alt = options.get("alt") or options.get("caption", "")
    return [Shown(target, alt) for target in (argument, *options.values()) if is_picture(target)]


def literals(code: str) -> Iterable[str]:
    """The strings that are written out in a piece of code."""
    return (match[2] for match in LITERAL.finditer(code))


def _ends_well(path: str) -> bool:
    stem, _, extension = path.rpartition(".")
    return bool(stem) and extension.lower() in EXTENSIONS


def _targets(key: str, value: str, imports: Mapping[str, str]) -> list[str]:
    """What an attribute names: itself, the first of a srcset, the strings of an expression, an imported file."""
    if value.startswith("{"):
        inside = value[1:-1].strip()
        return [imports[inside]] if inside in imports else list(literals(inside))
    text = _text(value)
    if key.endswith("srcset"):
        return text.split(",")[0].split()[:1]
    return [text] if text else []


def _text(value: str) -> str:
    """An attribute's value without its quotes."""
    if value[:1] in "\"'`" and value[-1:] == value[:1]:
        value = value[1:-1]
    return html.unescape(value).strip()

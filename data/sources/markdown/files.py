"""The files of a folder of pages: which are read, which are left out, and where a picture that a page names lies.

Nothing outside the folder is looked at. A file that is no plain file, a pipe or a device for instance, is not opened.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..report import Refused
from .shown import DRAWING, EXTENSIONS, Shown, without_tags

PAGES = (".md", ".markdown", ".mdown", ".mkd", ".mkdn", ".mdx", ".qmd", ".rmd", ".myst")
"""Extensions of Markdown, in any case."""
VENDORED = ("node_modules", "bower_components", "site-packages", "__pycache__", "__MACOSX")
"""Folders whose pages are others' work, or none. Those that begin with a dot, and virtual environments, as well."""
ALIASES = re.compile(r"^(?:\{(?:static|filename|attach)\}|\|(?:static|filename|attach)\||~?@(?:site)?/|~/|\$lib/)")
"""Begin a path in Pelican, Docusaurus, VuePress, Svelte: the root of the site."""


@dataclass(slots=True)
class Folder:
    """What lies in a folder."""

    root: Path
    """Resolved."""
    pages: list[Path] = field(default_factory=list)
    """Sorted by path."""
    pictures: dict[str, list[Path]] = field(default_factory=dict)
    """By file name in lower case."""
    unread: Counter[str] = field(default_factory=Counter)
    """How many files there are of a kind that is not read, by extension."""
    left_out: list[str] = field(default_factory=list)
    """Folders that are not entered."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Folders that cannot be listed, and why."""


def scan(source: Path) -> Folder:
    """Lists a folder. Linked folders are not entered: they may leave the folder or lead back into it."""
    folder = Folder(source.resolve())

    def fault(error: OSError) -> None:
        folder.faults.append((name_of(Path(error.filename), folder.root), error.strerror or str(error)))

    for place, folders, names in os.walk(folder.root, onerror=fault):
        entered = [name for name in folders if not _left_out(Path(place, name))]
        folder.left_out += [name_of(Path(place, name), folder.root) for name in sorted(set(folders) - set(entered))]
        folders[:] = entered
        for name in names:
            extension = os.path.splitext(name)[1].lower()
            if extension in PAGES:
                folder.pages.append(Path(place, name))
            elif extension[1:] in EXTENSIONS:
                folder.pictures.setdefault(name.lower(), []).append(Path(place, name))
            else:
                folder.unread[extension or "no extension"] += 1
    folder.pages.sort()
    folder.left_out.sort()
    return folder


def name_of(path: Path, root: Path) -> str:
    """The path inside the folder as valid text (file names are bytes)."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")


def inside(path: Path, root: Path) -> bool:
    """Whether this is a plain file whose real place is inside the folder."""
    try:
        return path.resolve().is_relative_to(root) and path.is_file()
    except (OSError, RuntimeError):  # a loop of links
        return False


def locate(shown: Shown, page: Path, folder: Folder) -> Path:
    """The file of a picture: relative to the page, to the folder, or to `static/` in it. Raises Refused.

    A wiki embed or a template tag may also name a picture anywhere in the folder: the one in the page's own folder
    comes first, then the one that lies least deep.
    """
    root, target = folder.root, shown.target
    try:
        parts = urlsplit(without_tags(target))
    except ValueError as error:
        raise Refused("missing", str(error)) from None
    if parts.scheme == "data":
        svg = parts.path.lower().startswith("image/svg")
        raise Refused(*DRAWING if svg else ("corrupt", "the picture that is written into the page is no base64"))
    if len(parts.scheme) == 1:  # a drive
        raise Refused("outside", "not inside the folder, and nothing else is looked at; copy it there")
    if parts.scheme or parts.netloc:
        raise Refused("remote", "only files of the folder are read; download it there")
    seen = unquote(parts.path)
    names = dict.fromkeys((seen, seen.replace("\\", "/"), without_tags(target)))
    places = [place for name in names for place in _places(ALIASES.sub("/", name), page, root)]
    links = False
    for path in places:
        try:
            real = path.resolve()
            if real.is_relative_to(root) and real.is_file():
                return real
            links = links or (not real.is_relative_to(root) and Path(os.path.normpath(path)).is_relative_to(root))
        except (OSError, ValueError, RuntimeError):  # a name too long, a NUL in it, a loop of links
            continue
    found = _by_name(seen, page, folder)
    if shown.by_name and found:
        return found
    if links or not _lexically_inside((root if seen.startswith("/") else page.parent) / seen.lstrip("/"), root):
        raise Refused("outside", "not inside the folder, and nothing else is looked at; copy it there")
    there = f"; there is {name_of(found, root)}" if found else ""
    raise Refused("missing", f"no such file{there}" if parts.path else "no file named")


def _left_out(path: Path) -> bool:
    return path.name.startswith(".") or path.name in VENDORED or path.is_symlink() or _is_environment(path)


def _is_environment(path: Path) -> bool:
    # `os.path.isfile`: no error where the folder may not be looked into, which its listing then says.
    return os.path.isfile(path / "pyvenv.cfg")


def _places(name: str, page: Path, root: Path) -> Iterator[Path]:
    own = (page.parent / page.stem,) if not name.startswith("/") else ()  # Hexo's folder of a post
    bases = [root / "static", root] if name.startswith("/") else [page.parent, root, root / "static", *own]
    return (base / name.lstrip("/") for base in bases)


def _by_name(name: str, page: Path, folder: Folder) -> Path | None:
    tail = "/" + name.strip("/").lower()
    found = [
        path for path in folder.pictures.get(tail.rpartition("/")[2], []) if path.as_posix().lower().endswith(tail)
    ]
    found = [path for path in found if inside(path, folder.root)]
    return min(found, key=lambda path: (not path.is_relative_to(page.parent), len(path.parts), path), default=None)


def _lexically_inside(path: Path, root: Path) -> bool:
    return Path(os.path.normpath(path)).is_relative_to(root)

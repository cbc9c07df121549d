"""What README and docs point at is there: files, headings, tests and commands."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from limner.configs.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower().strip()).replace(" ", "-") for title in titles}


def broken(page: Path, text: str) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            yield target
    for name in re.findall(r"\btests/[\w/]+\.py", text):
        if not (ROOT / name).is_file():
            yield name
    for first, second in re.findall(r"^(?:    |\$ )limner ([a-z][\w-]*)(?: ([a-z][\w-]*))?", text, re.MULTILINE):
        if first not in COMMANDS and f"{first} {second}" not in COMMANDS:
            yield f"limner {first} {second}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_points_at_what_is_there(page):
    assert list(broken(page, page.read_text())) == []


def test_what_is_not_there_is_found():
    page = ROOT / "docs" / "data.md"
    text = "[a](../nowhere.py) [b](data.md#no-such) [c](data.md) `tests/test_nothing.py`\n    limner paint --out x\n"
    assert list(broken(page, text)) == ["../nowhere.py", "data.md#no-such", "tests/test_nothing.py", "limner paint "]

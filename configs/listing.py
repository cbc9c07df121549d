"""`limner list KIND`: what there is of a kind, by name, with its options.

limner list reward
limner list benchmark --json
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from .errors import ArgumentParser, InputError
from .on_demand import on_demand
from .options import described
from .registry import NOUNS, PACKAGE, Entry, entries, imported
from .terminal import say

FILLED = {
    "reward": ("completions",),
    "benchmark": ("items", "data", "answers"),
    "strategy": ("means", "question", "hits"),
    "prompt": ("value", "identifier", "folder"),
    "family": ("model", "processor"),
}
"""What is no option, since limner gives it."""
SHARED = {"ChatModel": "name in endpoints:", "Encoder": "name in encoders:", "Template": "name or file"}
"""Types of options that are given by name."""
WIDTH = 110


def main(argv: Sequence[str]) -> None:
    parser = ArgumentParser(prog="limner list", description="What there is of a kind, with its options.")
    parser.add_argument("kind", choices=[*NOUNS], metavar="KIND", help=", ".join(NOUNS))
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    arguments = parser.parse_args(argv)
    rows = [row_of(entry) for entry in entries(arguments.kind).values()]
    if arguments.json:
        say(json.dumps(rows, indent=1))
    else:
        say("\n".join(line for row in rows for line in lines_of(row)))


def row_of(entry: Entry) -> dict[str, Any]:
    """A JSON value. An entry that cannot be imported says why, and does not stop the list."""
    row: dict[str, Any] = {"name": entry.name, "does": entry.doc, "where": entry.where, "options": []}
    try:
        row["options"] = described(_thing(entry), FILLED.get(entry.kind, ()))
    except InputError as error:
        row["error"] = str(error)
    return row


def lines_of(row: dict[str, Any]) -> list[str]:
    """A row for people: the name and what it does, below it an option a line."""
    lines = [f"{row['name']:<34} {row['does']}".rstrip()]
    for option in row["options"]:
        default = "needed" if option["required"] else f"default {json.dumps(option['default'])}"
        kind = next((shown for name, shown in SHARED.items() if name in option["type"]), option["type"])
        said = ", ".join(part for part in (kind, option["range"], default) if part)
        text = f"{option['name']} ({said})" + (f": {option['help']}" if option["help"] else "")
        lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="        ")
    if "error" in row:
        lines.append(f"    cannot be used: {row['error']}")
    return lines


def _thing(entry: Entry) -> Any:
    """The class or function; of our own without torch, since only its options are asked for."""
    if entry.module.partition(".")[0] == PACKAGE and entry.module not in sys.modules:
        return getattr(on_demand(entry.module), entry.attribute)
    return imported(entry)

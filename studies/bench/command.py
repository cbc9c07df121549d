"""What every `limner bench NAME` does: read its settings, measure, print the table, write the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...configs import parse, terminal
from ...configs.whole import write_atomically
from ..seed import say

Figures = dict[str, Any]


def bench(
    settings: type,
    argv: Sequence[str] | None,
    name: str,
    run: Callable[[Any], Figures],
    table: Callable[[Figures], str],
) -> None:
    """settings: a dataclass that has `json`, the file for the figures, or None."""
    (config,) = parse((settings,), argv, prog=f"limner bench {name}")
    figures = run(config)
    terminal.say(table(figures))
    if config.json:
        write_atomically(Path(config.json), json.dumps(figures, indent=1) + "\n")
        say(f"wrote {config.json}; next: the same command with another --json, and the two beside each other")
    else:
        say("next: the same command with --json FILE, which keeps the figures")

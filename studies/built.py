"""Which limner this is: its version, and of a checkout its commit."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def built(root: Path = ROOT) -> str:
    """`0.2.0`, and of a checkout `0.2.0, commit c751076` or, where tracked files differ from it, `... and changes`.

    root: the folder of the package.
    """
    try:
        number = version("limner")
    except PackageNotFoundError:
        number = "not installed"
    return ", ".join(filter(None, (number, _commit(root))))


def _commit(root: Path) -> str:
    if not (root / ".git").exists():  # else git would look further up, for somebody else's
        return ""
    told = ["git", "-C", str(root), "describe", "--always", "--dirty= and changes", "--exclude=*", "--abbrev=10"]
    try:
        done = subprocess.run(told, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else ""

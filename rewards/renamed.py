"""Keys of the rewards section as limner 0.1 had them: what to write now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOVED = {
    "timeout": "reward_guard: {{timeout: {value}}}",
    "patience": "reward_guard: {{calls: {value}}}",
    "format_pattern": "rewards: {{format: {{weight: 1, pattern: {value}}}}}",
}
STORIES = ("text_plan", "image_plan", "image_sentence")
"""Parts of one room, the only ones that had words of their own."""
SHARED = {
    "endpoint": "`endpoints: {NAME: {base_url: URL, model: MODEL, ...}}`, and each part names it by `endpoint: NAME`",
    "local": "`endpoints: {NAME: {local: {model: DIR}}}`, and each part names it by `endpoint: NAME`",
    "viewer": "`endpoints: {NAME: {base_url: URL, model: MODEL, ...}}`, and the part names it by `viewer: NAME`",
    "device": "`encoders: {default: {device: .., dtype: .., batch_size: ..}}`",
    "dtype": "`encoders: {default: {device: .., dtype: .., batch_size: ..}}`",
    "batch_size": "`encoders: {default: {device: .., dtype: .., batch_size: ..}}`",
    "models": "each part names its weights by `model: PLACE`",
    "url": "each part names it by `url: URL`",
}
"""Where settings of a section went that its parts share."""


def new_form(key: str, value: Any, names: Sequence[str]) -> str:
    """The error for a key of before, with the form of now; empty for a key that never was.

    names: all registered ones.
    """
    if key in MOVED:
        return f"rewards.{key}: moved; write `{MOVED[key].format(value=value)}`"
    if key == "questions" or "/" in key:
        return ""
    section = [name for name in names if name.startswith(f"{key}/")]
    if value is None and section:
        return f"rewards.{key}: parts have names of their own now, one left out needs no line; delete this line"
    if isinstance(value, Mapping) and section:
        weights = value.get("weights", {k: v for k, v in value.items() if f"{key}/{k}" in names}) or {"NAME": 1}
        parts = ", ".join(f"{key}/{name}: {weight}" for name, weight in dict(weights).items())
        shared = dict.fromkeys(where for name, where in SHARED.items() if name in value)
        rest = "; what they share is written once: " + "; ".join(shared) if shared else ""
        return f"rewards.{key}: each part has a name of its own now; write `rewards: {{{parts}}}`{rest}"
    rooms = {name.rpartition("/")[0] for name in names} if key in STORIES else {}
    for room in (room for room in rooms if all(f"{room}/{word}" in names for word in STORIES)):
        written = value if isinstance(value, int | float) else 1
        left_out = " (0 by default: it can go)" if written == 0 else ""
        return f"rewards.{key}: is called {room}/{key} now; write `rewards: {{{room}/{key}: {written}}}`{left_out}"
    return ""

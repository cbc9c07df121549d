"""A model's configuration, held to its weight files before anything is built from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..configs.errors import InputError, plain_file, reading
from ..configs.json_text import parse_json

REPEATED = re.compile(r"layers|blocks?$|depth")
"""What is built so many times, each time with a weight of its own."""
WIDTH = re.compile(r"size$|dim$|channels|width|heads|experts|embeddings$|codes$|rank$")
NO_WEIGHT = re.compile(r"position|image_size|window|batch|chunk|max_")
"""Of those, what has none: a limit, or the side of a picture."""
NAMED = re.compile(r"map$|2[a-z]+$")
"""Tables whose keys are words of the model's own, such as Chameleon's `vocabulary_map` of all its tokens."""
LONGEST_LIST = 1000
FEW, NARROW = 1000, 2**19
"""Layers, and numbers in a row, that are built soon whatever the files hold: transformers writes down defaults of parts
that a model does not have (`max_window_layers` of a Qwen 2 without windows)."""


def check_sizes(directory: Path) -> None:
    """Holds `config.json` to the safetensors files beside it; where there are none, nothing is checked.

    Nothing is built more often than there are weights, and no side of a weight is longer than all of them (at four
    bits a number, the least that is stored). Raises InputError that names the setting.
    """
    path, files = directory / "config.json", sorted(directory.glob("*.safetensors"))
    if not path.is_file() or not files:
        return
    with reading(directory):
        config, weights, numbers = parse_json(path.read_bytes()), 0, 0
        for file in files:
            numbers += 2 * file.stat().st_size
            with safe_open(plain_file(file, None), framework="pt") as opened:
                weights += len(opened.keys())
    for name, value in _settings(config, ""):
        key = name.rpartition(".")[2]
        if isinstance(value, list):
            most, what = max(weights, LONGEST_LIST), f"a list of {len(value):,}"
        elif REPEATED.search(key):
            most, what = max(weights, FEW), f"{value:,}"
        elif WIDTH.search(key) and not NO_WEIGHT.search(key):
            most, what = max(numbers, NARROW), f"{value:,}"
        else:
            continue
        if (len(value) if isinstance(value, list) else value) > most:
            held = f"{weights:,} weights, {numbers // 2:,} bytes"
            raise InputError(f"{path}: {name}: {what}, and the weight files beside it hold {held}; take a sound copy")


def _settings(value: Any, name: str) -> Iterator[tuple[str, int | list[Any]]]:
    """Whole numbers and lists at any depth, by dotted name; `parse_json` bounds the depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not (isinstance(inner, dict) and NAMED.search(key)):
                yield from _settings(inner, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, list):
        yield name, value
        for inner in value[:LONGEST_LIST]:
            yield from _settings(inner, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value

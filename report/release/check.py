"""Is a release sound: every file what its name says, the metadata readable, the model the one that was meant?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from safetensors import safe_open

from ...configs.errors import InputError, reading
from ...configs.json_text import parse_json
from ...models.checkpoints.hub import load_model
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling

REQUIRED = ("pipeline_tag", "library_name", "tags")
LINK = re.compile(r"\]\(((?:samples|training)/(?:[^)\]]|\](?!\())++)\)")


def check_release(directory: Path, weights: str, sampling: Sampling) -> None:
    """Opens every file, reads the card, and loads the model back.

    weights: `digest` of the model that was written. Raises InputError naming the file at fault.
    """
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        if path.suffix not in OPENS:
            raise InputError(f"{path}: a release holds no {path.suffix or 'such'} files, only {', '.join(OPENS)}")
        with reading(path):
            OPENS[path.suffix](path)
    _check_card(directory)
    model = load_model(directory, "cpu")
    if digest(model.policy) != weights:
        raise InputError(f"{directory}: loads back with other weights than were written")
    if model.sampling != sampling:
        raise InputError(f"{directory / 'generation_config.json'}: reads back as {model.sampling}, not as {sampling}")


def digest(policy: UnifiedPolicy) -> str:
    """Hash of all weights of the language model and of the image tokenizer, bit by bit."""
    result = hashlib.sha256(policy.processor.image_tokenizer.fingerprint().encode())
    for name, tensor in sorted(policy.model.state_dict().items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def _check_card(directory: Path) -> None:
    path = directory / "README.md"
    with reading(path):
        card = ModelCard.load(path)
    if missing := [name for name in REQUIRED if not card.data.get(name)]:
        raise InputError(f"{path}: the metadata have no {missing[0]}")
    for target in LINK.findall(card.text):
        if not (directory / target).is_file():
            raise InputError(f"{path}: links {target}, which is not there")
    for results in sorted(directory.glob(".eval_results/*.yaml")):
        with reading(results):
            parse_eval_result_entries(yaml.safe_load(results.read_text(encoding="utf-8")))


def _open_json(path: Path) -> None:
    parse_json(path.read_text(encoding="utf-8"))


def _open_yaml(path: Path) -> None:
    yaml.safe_load(path.read_text(encoding="utf-8"))


def _open_text(path: Path) -> None:
    if "\0" in path.read_text(encoding="utf-8"):
        raise ValueError("holds a NUL; that is no text")


def _open_weights(path: Path) -> None:
    with safe_open(path, "pt") as file:
        if not file.keys():
            raise ValueError("holds no tensor")


def _open_png(path: Path) -> None:
    with Image.open(path, formats=["PNG"]) as image:
        image.verify()


OPENS: dict[str, Callable[[Path], None]] = {
    ".safetensors": _open_weights,
    ".json": _open_json,
    ".yaml": _open_yaml,
    ".md": _open_text,
    ".txt": _open_text,
    ".jinja": _open_text,
    ".png": _open_png,
}
"""The types of files that a release may hold, and how to see that a file is of its type. A pickle is of none."""

"""A model by name: a checkpoint folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from ...configs.errors import InputError
from ..writing import Model
from .folder import SETTINGS_FILE, load

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
"""ORG/NAME; the Hub's own rules are stricter, and its client checks them."""
FILES = ("*.safetensors", "*.json", "*.txt")
"""What is fetched of a repository: weights, settings, vocabularies; never a pickle or code."""


def load_model(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    revision: str | None = None,
    compile: bool = False,
) -> Model:
    """A model that writes: `load_model("ORG/NAME").write("How do I fold a crane?").save("crane.html")`.

    name_or_path: a checkpoint folder, or a repository of the Hub; a folder that exists wins.
    device: by default the GPU, where there is one.
    revision: branch, tag or commit of the repository.
    compile: torch.compile the decoder; the first answer then takes minutes.

    Raises InputError where there is neither, or no checkpoint of limner in it.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    policy = load(find_checkpoint(name_or_path, revision), device)
    if compile:
        policy.compile()
    return Model(policy)


def check_repository(name: str) -> None:
    """Raises InputError for what is no folder and cannot be the name of a repository: the Hub is not asked for it."""
    if not Path(name).is_dir() and not REPOSITORY.fullmatch(name):
        raise InputError(f"{name}: no such folder, and not the name of a repository (ORG/NAME)")


def find_checkpoint(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded to the Hub's cache if need be. Raises InputError."""
    path, name = Path(name_or_path).expanduser(), str(name_or_path)
    if path.is_dir():
        if revision is not None:
            raise InputError(f"{name}: a folder has no revision {revision!r}")
        return path
    check_repository(name)
    with asking_hub(name, "neither a folder here nor a repository that the Hub lets you read"):
        # The settings first, before gigabytes of a model that is not ours. Without a network `snapshot_download` takes
        # what is cached, or fails at once; other calls try again and again.
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[SETTINGS_FILE]))
        if not (folder / SETTINGS_FILE).is_file():
            raise InputError(f"{name}: no {SETTINGS_FILE} in this repository; it is no checkpoint of limner")
        return Path(snapshot_download(name, revision=folder.name, allow_patterns=list(FILES)))


@contextmanager
def asking_hub(repository: str, failure: str) -> Iterator[None]:
    """Whatever the Hub's client raises becomes one InputError: `<repository>: <failure> (<reason>)`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{repository}: {failure} ({reason})") from error

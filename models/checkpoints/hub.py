"""A model by name: a checkpoint folder, `demo`, which comes with limner, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from ...configs.errors import InputError
from ...configs.whole import take_back
from ..documents.forms import kind_of
from ..sampler.steps import compile_decoder
from ..writing import Model, default_sampling, set_default_sampling
from .folder import SETTINGS_FILE, about, load, save

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
"""ORG/NAME; the Hub's own rules are stricter, and its client checks them."""
PACKAGED = Path(__file__).parent / "packaged"
UNREADABLE = "neither a folder here nor a repository that the Hub lets you read"
"""Checkpoints that come with limner, by the names of their folders."""
FILES = ("*.safetensors", "*.json", "*.txt")
"""What is fetched of a repository: weights, settings, vocabularies; never a pickle or code."""


DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def load_model(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    compile: bool = False,
) -> Model:
    """A model that writes: `load_model("ORG/NAME").write("How do I fold a crane?").save("crane.html")`.

    name_or_path: a checkpoint folder, a repository of the Hub, or `demo`; a folder that exists wins.
    device: by default the GPU, where there is one.
    dtype: of the language model, "float32", "bfloat16" or "float16"; "auto" is the one it was saved in.
    revision: branch, tag or commit of the repository.
    compile: torch.compile the decoder; the first answer then takes minutes.

    Raises InputError where there is neither, or no checkpoint of limner in it, and for a device that is not here.
    """
    if not isinstance(name_or_path, str | Path):
        raise InputError(
            f"load: name a checkpoint folder, or a repository of the Hub (ORG/NAME), not {kind_of(name_or_path)}"
        )
    place, precision = usable_device(device), _dtype(dtype)
    folder = find_checkpoint(name_or_path, revision)
    said, policy = about(folder), load(folder, place, precision)
    if compile:
        compile_decoder(policy)
    return Model(policy, said)


def save_model(model: Model, directory: str | Path) -> None:
    """Writes a checkpoint folder, whole or not at all; one that stands there is replaced.

    Raises InputError where the folder holds something else than a checkpoint.
    """
    if not isinstance(model, Model) or not isinstance(directory, str | Path):
        raise InputError(f"save: give a model and the name of a folder, not {kind_of(model)} and {kind_of(directory)}")
    folder = Path(directory).expanduser()
    if (
        folder.exists()
        and not (folder / SETTINGS_FILE).is_file()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise InputError(f"{folder}: holds something else than a checkpoint; name another folder")
    if model.sampling != default_sampling(model.policy):
        set_default_sampling(model.policy, model.sampling)
    save(model.policy, folder, model.about)


def usable_device(device: str | torch.device | None) -> torch.device:
    """Raises InputError for what is no device, or none of this machine."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except Exception as error:  # torch raises what it likes here
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"device: {device!r} cannot be used here ({reason}); cpu always can") from None
    return chosen


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    known = {"auto": "auto", **DTYPES}
    if isinstance(dtype, str) and dtype in known:
        return known[dtype]
    if dtype in DTYPES.values():
        return dtype
    raise InputError(f"dtype: {dtype!r} is none of {', '.join(known)}")


def check_repository(name: str) -> None:
    """Raises InputError for what is no folder and cannot be the name of a repository: the Hub is not asked for it."""
    if not (take_back(Path(name)).is_dir() or name in packaged() or REPOSITORY.fullmatch(name)):
        near = get_close_matches(name, packaged(), 1)
        ours = f"; did you mean {near[0]}?" if near else "".join(f", nor {one}" for one in packaged())
        raise InputError(f"{name}: no such folder, and not the name of a repository (ORG/NAME){ours}")


def packaged() -> list[str]:
    """Names of the checkpoints that come with limner."""
    return sorted(path.parent.name for path in PACKAGED.glob(f"*/{SETTINGS_FILE}"))


def find_checkpoint(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded to the Hub's cache if need be. Raises InputError."""
    path, name = take_back(Path(name_or_path).expanduser()), str(name_or_path)
    if path.is_dir():
        if revision is not None:
            raise InputError(f"{name}: a folder has no revision {revision!r}")
        return path
    check_repository(name)
    if name in packaged():
        return PACKAGED / name
    with asking_hub(name, UNREADABLE):
        # The settings first, before gigabytes of a model that is not ours. Without a network `snapshot_download` takes
        # what is cached, or fails at once; other calls try again and again.
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[SETTINGS_FILE]))
        if not (folder / SETTINGS_FILE).is_file():
            raise InputError(f"{name}: no {SETTINGS_FILE} in this repository; it is no checkpoint of limner")
        return Path(snapshot_download(name, revision=folder.name, allow_patterns=list(FILES)))


def find_model(name_or_path: str | Path, check: Callable[[Path], object]) -> Path:
    """As `find_checkpoint`, but of any model, an original one as well.

    check: raises InputError for settings of a model that will not do, before its gigabytes are fetched.
    """
    name, folder, here = _find_settings(name_or_path)
    try:
        check(folder)
    except InputError as error:
        raise error if here else InputError(str(error).replace(str(folder), name)) from error
    if here:
        return folder
    with asking_hub(name, UNREADABLE):
        return Path(snapshot_download(name, revision=folder.name, allow_patterns=list(FILES)))


def find_settings(name_or_path: str | Path) -> Path:
    """The folder of a model's settings; of one on the Hub nothing else is fetched. Raises InputError."""
    return _find_settings(name_or_path)[1]


def _find_settings(name_or_path: str | Path) -> tuple[str, Path, bool]:
    """(name, folder, whether all of the model is there)."""
    path, name = take_back(Path(name_or_path).expanduser()), str(name_or_path)
    if path.is_dir():
        return name, path, True
    check_repository(name)
    if name in packaged():
        return name, PACKAGED / name, True
    with asking_hub(name, UNREADABLE):
        patterns = [SETTINGS_FILE, "config.json", "*/config.json"]
        return name, Path(snapshot_download(name, allow_patterns=patterns)), False


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

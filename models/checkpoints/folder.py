"""Checkpoints of standard parts: a stock transformers model, its tokenizer, an image tokenizer, one JSON of ours.

    DIR/config.json, model.safetensors, tokenizer.json, ...   what transformers wrote
    DIR/image_tokenizer/                                      what diffusers wrote
    DIR/limner.json                                           the family and the versions

Nothing is unpickled and no remote code runs: weights are safetensors, classes those of the installed libraries.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.integrations import deepspeed
from transformers.utils.logging import EmptyTqdm, set_tqdm_hook

from ...configs.errors import InputError, reading, writing
from ...configs.json_text import parse_json
from ..pictures.contract import complete, load_image_tokenizer
from ..policy import UnifiedPolicy, family
from ..tokens.processing import Processor
from ..tokens.template import Template

SETTINGS_FILE = "limner.json"
IMAGE_TOKENIZER = "image_tokenizer"
FORMAT = 1
SYNCS_AT_A_TIME = 16
"""A journal writes those that wait together at once: 500 small files take a tenth of a second instead of two."""


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A staging folder: becomes `directory` at the end, replacing what stood there, or vanishes if anything fails.

    Raises InputError where the disk is full or the place may not be written."""
    directory = directory.absolute()
    staging = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
            old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
            put_in_place(staging, directory, old)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def put_in_place(written: Path, directory: Path, aside: Path) -> None:
    """Gives a folder that is written its name; what had the name is moved to `aside`.

    All of it is on the disk before it has the name: after a power cut too, a folder of that name is whole.
    """
    _open_to_umask(written)
    with ThreadPoolExecutor(SYNCS_AT_A_TIME) as pool:
        list(pool.map(_sync, [*written.rglob("*"), written]))
    replaced = directory.exists()
    if replaced:
        directory.rename(aside)
    try:
        written.rename(directory)
    except OSError:
        if replaced:
            aside.rename(directory)
        raise
    _sync(directory.parent)


def _sync(path: Path) -> None:
    """Waits until the disk holds a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows nothing of it
            raise
    finally:
        os.close(descriptor)


def _open_to_umask(directory: Path) -> None:
    """Files that only their owner may read get the mode of the folder, which is the umask's.

    safetensors writes through temporary files, and those are made for their owner alone.
    """
    mode = stat.S_IMODE(directory.stat().st_mode) & 0o666
    for path in directory.rglob("*"):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) == 0o600 != mode:
            path.chmod(mode)


def save(policy: UnifiedPolicy, directory: Path) -> None:
    """Writes the checkpoint whole or not at all."""
    with whole_directory(Path(directory)) as staging, without_bars():
        policy.model.save_pretrained(staging, safe_serialization=True)
        policy.processor.tokenizer.save_pretrained(staging)
        save_beside_model(policy, staging)


def save_beside_model(policy: UnifiedPolicy, directory: Path) -> None:
    """What makes a saved language model and tokenizer a checkpoint of ours."""
    policy.processor.image_tokenizer.save_pretrained(directory / IMAGE_TOKENIZER)
    versions = {name: version(name) for name in ("torch", "transformers", "diffusers")}
    if policy.processor.vision is not None:
        policy.processor.vision.save_pretrained(directory)
    template = asdict(policy.processor.template)
    settings = {"format": FORMAT, "family": policy.family, "template": template, "versions": versions}
    settings |= {"new_rows": True} if policy.new_rows else {}
    (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws no progress bars over weights on this disk; those of downloads stay as the user has them."""
    previous = set_tqdm_hook(lambda factory, args, kwargs: EmptyTqdm(*args, **kwargs))
    try:
        yield
    finally:
        set_tqdm_hook(previous)


@contextmanager
def _loading_whole() -> Iterator[None]:
    """Under ZeRO-3 transformers partitions a model while it loads; a KL reference must be copied from it before."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def load(directory: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype = "auto") -> UnifiedPolicy:
    """The policy in evaluation mode. Raises InputError where the folder is no checkpoint of a known family.

    dtype: of the language model, by default that of the file. The image tokenizer keeps its own, float32: rounded to
    less it gives a picture other codes.
    """
    directory = Path(directory)
    path = directory / SETTINGS_FILE
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; name a checkpoint folder, the one that holds {SETTINGS_FILE}")
    if not path.is_file():
        upstream = (directory / "config.json").is_file()
        remedy = f"; `limner convert {directory} --out DIR` makes one of a base model" if upstream else ""
        raise InputError(f"{directory}: no {SETTINGS_FILE}; this is no checkpoint that limner wrote{remedy}")
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
        kind, written = settings["family"], settings["format"]
        template = Template.from_json(settings.get("template", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a checkpoint description ({error})") from None
    if written != FORMAT:
        raise InputError(f"{path}: format {written!r}; this limner reads {FORMAT}")
    policy_class = family(str(kind), str(path))
    with reading(directory), _loading_whole(), without_bars():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        loaded: Any = policy_class.model_class.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model = complete(directory, loaded)
        vision, code_ids = policy_class.vision(directory, config), policy_class.code_ids(config)
    image_tokenizer = load_image_tokenizer(directory / IMAGE_TOKENIZER).to(torch.device(device))
    policy = policy_class(model.to(device), Processor(tokenizer, image_tokenizer, template, vision, code_ids))
    policy.new_rows = settings.get("new_rows") is True
    policy.model.eval()
    return policy

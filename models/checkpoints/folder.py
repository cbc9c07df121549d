"""Checkpoints of standard parts: a stock transformers model, its tokenizer, an image tokenizer, one JSON of ours.

    DIR/config.json, model.safetensors, tokenizer.json, ...   what transformers wrote
    DIR/image_tokenizer/                                      what diffusers wrote
    DIR/limner.json                                           family, versions, and what it says of itself

Nothing is unpickled and no remote code runs: weights are safetensors, classes those of the installed libraries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.integrations import deepspeed
from transformers.utils.logging import EmptyTqdm, set_tqdm_hook

from ...configs.errors import InputError, reading
from ...configs.json_text import parse_json
from ...configs.whole import take_back, whole_directory
from ..pictures.contract import ImageTokenizer, complete, load_image_tokenizer
from ..policy import UnifiedPolicy, family
from ..sizes import check_sizes
from ..tokens.processing import Processor
from ..tokens.template import Template
from ..writing import SILENT, About

SETTINGS_FILE = "limner.json"
IMAGE_TOKENIZER = "image_tokenizer"
FORMAT = 1


def save(policy: UnifiedPolicy, directory: Path, about: About = SILENT) -> None:
    """Writes the checkpoint whole or not at all."""
    with whole_directory(Path(directory)) as staging:
        write(policy, staging, about)


def write(policy: UnifiedPolicy, directory: Path, about: About = SILENT) -> None:
    """Writes the checkpoint into a folder in the making: file by file."""
    with without_bars():
        policy.model.save_pretrained(directory, safe_serialization=True)
        policy.processor.tokenizer.save_pretrained(directory)
    save_beside_model(policy, directory, about)


def save_beside_model(policy: UnifiedPolicy, directory: Path, about: About = SILENT) -> None:
    """What makes a saved language model and tokenizer a checkpoint of ours."""
    policy.processor.image_tokenizer.save_pretrained(directory / IMAGE_TOKENIZER)
    versions = {name: version(name) for name in ("torch", "transformers", "diffusers")}
    if policy.processor.vision is not None:
        policy.processor.vision.save_pretrained(directory)
    template = asdict(policy.processor.template)
    settings = {"format": FORMAT, "family": policy.family, "template": template, "versions": versions}
    settings |= {"new_rows": policy.new_rows} if policy.new_rows else {}
    settings |= {"about": asdict(about)} if about != SILENT else {}
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


def load_tokenizer(directory: Path, device: str | torch.device = "cpu") -> ImageTokenizer:
    """The image tokenizer of a checkpoint, without its language model. Raises InputError like `load`."""
    _described(directory)  # the family's room knows its image tokenizer
    return load_image_tokenizer(directory / IMAGE_TOKENIZER).to(torch.device(device))


def about(directory: str | Path) -> About:
    """What the checkpoint says of itself; most say nothing. Raises InputError like `load`, and for what is no text."""
    said = _described(Path(directory))[2].get("about", {})
    known = said if isinstance(said, dict) else {"": said}
    knows, examples = known.get("knows", ""), known.get("examples", [])
    listed = isinstance(examples, list) and all(isinstance(text, str) for text in examples)
    if known.keys() - {"knows", "examples"} or not isinstance(knows, str) or not listed:
        form = '{"knows": "a sentence", "examples": ["a prompt", ...]}'
        raise InputError(f"{Path(directory) / SETTINGS_FILE}: about: give {form}, or leave it out")
    return About(knows, tuple(examples))


def _described(directory: Path) -> tuple[type[UnifiedPolicy], Template, dict[str, Any]]:
    """Family, template and all else that a checkpoint's settings file says. Raises InputError."""
    path = take_back(directory) / SETTINGS_FILE
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; name a checkpoint folder, the one that holds {SETTINGS_FILE}")
    if not path.is_file():
        if (directory / "model" / SETTINGS_FILE).is_file():
            raise InputError(f"{directory}: the folder of a run; its model is {directory / 'model'}")
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
    return family(str(kind), str(path)), template, settings


def _new_rows(said: Any, policy: UnifiedPolicy) -> int:
    """A checkpoint of limner 0.4 or before says that there are some: those of the codes, at least."""
    return policy.vocabulary.image_codes if said is True else said if isinstance(said, int) else 0


def load(directory: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype = "auto") -> UnifiedPolicy:
    """The policy in evaluation mode. Raises InputError where the folder is no checkpoint of a known family.

    dtype: of the language model, by default that of the file. The image tokenizer keeps its own, float32: rounded to
    less it gives a picture other codes.
    """
    directory = Path(directory)
    policy_class, template, settings = _described(directory)
    with reading(directory), _loading_whole(), without_bars():
        check_sizes(directory)
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
    with reading(directory):  # its parts may be those of different models
        policy = policy_class(model.to(device), Processor(tokenizer, image_tokenizer, template, vision, code_ids))
    policy.new_rows = _new_rows(settings.get("new_rows"), policy)
    policy.model.eval()
    return policy

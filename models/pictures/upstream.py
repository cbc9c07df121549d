"""diffusers, in its one home: the parts of it that are used, and how they are read. Nothing is unpickled or run."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from transformers import PreTrainedModel

from ...configs.errors import InputError, reading
from ...configs.json_text import parse_json

__all__ = ["VQModel", "complete", "text_to_image"]
LIBRARIES = ("diffusers", "transformers")
"""Whose models are read here; a pipeline's own checker of pictures is left to it."""


def text_to_image(name: str, dtype: Any, **source: Any) -> Any:
    """A text-to-image pipeline of a folder or the Hub: stock classes, safetensors, no remote code.

    source: `revision`, `variant`. Raises InputError where it cannot be read, where weights are missing, and where what
    it makes is not pictures from words.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline  # takes seconds, and few have need of it
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    safe = {"use_safetensors": True, "trust_remote_code": False}
    with reading(Path(name)):
        there = Path(name).is_dir()
        folder = Path(name) if there else Path(DiffusionPipeline.download(name, **source, **safe))
        variant = {"variant": source["variant"]} if "variant" in source else {}
        models = dict(_models(folder, dtype=dtype, **variant))
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype, **variant, **safe, **models)
    if "prompt" not in call_parameters(pipeline):
        raise InputError(f"{name}: {type(pipeline).__name__} paints no prompts; take a text-to-image pipeline")
    return pipeline


def _models(folder: Path, **settings: Any) -> Iterator[tuple[str, Any]]:
    """Its parts that have weights, each read whole: the pipeline itself would paint with random numbers for missing
    ones."""
    index = parse_json((folder / "model_index.json").read_text(encoding="utf-8"))
    for part, value in index.items():
        library, class_name = value if isinstance(value, list) and len(value) == 2 else (None, None)
        kind = getattr(import_module(library), str(class_name), None) if library in LIBRARIES else None
        if isinstance(kind, type) and issubclass(kind, (ModelMixin, PreTrainedModel)):
            loaded: Any = kind.from_pretrained(
                folder / part, use_safetensors=True, output_loading_info=True, **settings
            )
            yield part, complete(folder / part, loaded)


def complete(directory: Path, loaded: tuple[Any, dict[str, Any]]) -> Any:
    """The model of a `from_pretrained` with its report. Raises InputError where weights are missing."""
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        others = ", ..." if len(missing) > 3 else ""
        raise InputError(f"{directory}: {len(missing)} weights are missing: {', '.join(missing[:3])}{others}")
    return model


def call_parameters(pipeline: Any) -> dict[str, Any]:
    """Names that calling the pipeline takes, with their defaults."""
    return {name: parameter.default for name, parameter in signature(type(pipeline).__call__).parameters.items()}

"""A text-to-image pipeline of diffusers in this process: Stable Diffusion, SDXL, FLUX and whatever takes a `prompt`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

import torch

from ....configs.bounds import Guidance, OneOrMore
from ....configs.errors import InputError
from ....configs.schema import check_ranges
from ...documents.document import to_rgb
from ...pictures.upstream import call_parameters, text_to_image
from ..requests import Failure
from .painter import CUT, REFUSED, Painted, Wanted

LARGEST_LIMIT = 100_000
"""Tokens; a tokenizer without a limit of its own says something astronomical."""

OURS = ("self", "prompt", "generator", "num_images_per_prompt", "output_type", "return_dict")
"""Arguments of a pipeline that no setting changes."""


@dataclass
class LocalPipelineConfig:
    model: str = ""
    """Folder, or name on the Hub: `stabilityai/stable-diffusion-xl-base-1.0`, `black-forest-labs/FLUX.1-schnell`."""
    revision: str = "main"
    """Branch, tag or commit on the Hub."""
    variant: str = ""
    """Of the files: `fp16`."""
    device: str = ""
    """`cuda:1`, `cpu`; empty takes the GPU where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    offload: bool = False
    """Each part is on the GPU only while it works: for pipelines that do not fit as a whole."""
    batch_size: OneOrMore = 1
    """Pictures painted at a time."""
    steps: OneOrMore | None = None
    """Denoising steps; null is the pipeline's own number, and so below."""
    guidance: Guidance | None = None
    width: OneOrMore | None = None
    """Pixels."""
    height: OneOrMore | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the pipeline's call: `{negative_prompt: blurry, max_sequence_length: 256}`."""

    def __post_init__(self) -> None:
        check_ranges(self)


class LocalPipeline:
    """A `Painter`. `counts`: `painted`, `refused by the painter`, `description cut by the painter`.

    Raises InputError for a pipeline that cannot be read, and for arguments that it does not take.
    """

    def __init__(self, config: LocalPipelineConfig):
        if not config.model:
            raise InputError("model: missing; name a folder or a model on the Hub")
        self.config = config
        self.counts: Counter[str] = Counter()
        self._lock = Lock()
        files = {"variant": config.variant} if config.variant else {}
        self.pipeline = text_to_image(config.model, getattr(torch, config.dtype), revision=config.revision, **files)
        takes = call_parameters(self.pipeline)
        names = {"steps": "num_inference_steps", "guidance": "guidance_scale", "width": "width", "height": "height"}
        given = {name: value for ours, name in names.items() if (value := getattr(config, ours)) is not None}
        self._arguments = {**given, **config.options}
        if strange := [name for name in self._arguments if name not in takes or name in OURS]:
            raise InputError(f"options: {type(self.pipeline).__name__} takes no {strange[0]!r} here")
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if config.offload:
            self.pipeline.enable_model_cpu_offload(device=device)
        else:
            self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self._limits = token_limits(self.pipeline, self._arguments.get("max_sequence_length"))

    def paint(self, wanted: Sequence[Wanted]) -> list[Painted | Failure]:
        """A picture's noise is that of its own seed: it depends on no other but for rounding."""
        painted: list[Painted | Failure] = []
        for start in range(0, len(wanted), self.config.batch_size):
            painted += self._painted(wanted[start : start + self.config.batch_size])
        return painted

    def close(self) -> None:
        pass

    @torch.inference_mode()
    def _painted(self, batch: Sequence[Wanted]) -> list[Painted | Failure]:
        with self._lock:
            try:
                result = self.pipeline(
                    prompt=[wanted.words for wanted in batch],
                    generator=[torch.Generator("cpu").manual_seed(wanted.seed) for wanted in batch],
                    **self._arguments,
                )
            except (TypeError, ValueError) as error:
                raise InputError(f"{self.config.model}: does not paint with these settings: {error}") from error
            cut = [self._cut(wanted.words) for wanted in batch]
        flagged = getattr(result, "nsfw_content_detected", None) or [False] * len(batch)
        painted: list[Painted | Failure] = []
        for image, refused, short in zip(result.images, flagged, cut, strict=True):  # a flagged picture is all black
            notes = (*[REFUSED] * bool(refused), *[CUT] * short)
            self.counts.update(notes)
            self.counts["painted"] += not refused
            painted.append(Painted(None if refused else to_rgb(image), notes))
        return painted

    def _cut(self, words: str) -> bool:
        """Does every text encoder read less than all of it?"""
        lengths = [len(tokenizer(words, truncation=False)["input_ids"]) for tokenizer, _ in self._limits]
        return bool(lengths) and all(length > limit for length, (_, limit) in zip(lengths, self._limits, strict=True))


def token_limits(pipeline: Any, longest: int | None) -> list[tuple[Any, int]]:
    """The pipeline's tokenizers, each with the tokens that are read of it; none where one is read without a limit."""
    default = call_parameters(pipeline).get("max_sequence_length")
    longest = longest or (default if isinstance(default, int) else LARGEST_LIMIT)
    tokenizers = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part]
    found = [(tokenizer, min(tokenizer.model_max_length, longest)) for tokenizer in tokenizers]
    return found if all(limit < LARGEST_LIMIT for _, limit in found) else []


def settings_of(config: LocalPipelineConfig) -> dict[str, Any]:
    """What a picture depends on beside its words and seed."""
    operation = ("device", "offload", "batch_size")
    kept = {name: value for name, value in vars(config).items() if name not in operation}
    return {"backend": "diffusers", **kept}

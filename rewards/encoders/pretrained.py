"""Rewards by pretrained encoders: settings, and loading by name. Weights come from the Hub at run time, or a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from transformers import AutoModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.hub import cached_file

from ...configs.bounds import OneOrMore
from ...configs.errors import InputError, reading
from ...models.sizes import check_sizes

T = TypeVar("T")
P = TypeVar("P")


@dataclass
class EncoderConfig:
    device: str = ""
    """`cuda:1`, `cpu`; empty takes the GPU where there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: OneOrMore = 32
    """Pictures or texts encoded at a time."""

    def __post_init__(self) -> None:
        try:
            torch.device(self.device or "cpu")
        except RuntimeError:
            raise InputError(f"device: {self.device!r}; give cpu, cuda or cuda:1") from None

    def place(self, model: Any) -> Any:
        """The model on the device, of the dtype, in evaluation mode."""
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            return model.to(device, getattr(torch, self.dtype)).eval().requires_grad_(False)
        except (RuntimeError, AssertionError) as error:  # no such GPU, no CUDA, or no memory left
            reason = str(error).partition("\n")[0]
            raise InputError(f"device: {device}: {reason}") from None


class Encoder:
    """Pretrained models on one device: rewards that name the same weights share one instance."""

    def __init__(self, config: EncoderConfig | None = None, name: str = "default"):
        self.config, self.name = config or EncoderConfig(), name
        self._models: dict[tuple[str, tuple[str, ...]], Any] = {}

    def __str__(self) -> str:
        return self.name

    @property
    def batch_size(self) -> int:
        return self.config.batch_size

    def model(self, place: str, unused: tuple[str, ...] = ()) -> Any:
        """As `load_model`, placed, and made once."""
        if (place, unused) not in self._models:
            self._models[place, unused] = self.config.place(load_model(place, unused))
        return self._models[place, unused]


def preset_of(presets: Mapping[str, P], name: str) -> P:
    """Raises InputError for a name that there is not."""
    if name not in presets:
        raise InputError(f"preset: {name!r} is none of {', '.join(presets)}")
    return presets[name]


def load_model(place: str, unused: tuple[str, ...] = ()) -> Any:
    """A model of a stock class by folder, ORG/NAME or ORG/NAME@REVISION; no remote code, no pickle's objects.

    unused: prefixes of parameters that nobody needs. Raises InputError naming the place, also where the weights lack a
    needed parameter or have it in another shape: transformers would go on with random numbers there.
    """
    name, revision = split_revision(place)
    if is_deepspeed_zero3_enabled():
        raise InputError(f"{name}: under ZeRO-3 transformers would shard it as it loads; use limner serve-rewards")
    check_sizes(Path(name))
    with reading(Path(name)):
        model, report = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True)
    lacking = {*report["missing_keys"], *(str(key) for key, *_ in report["mismatched_keys"])}
    if needed := sorted(key for key in lacking if not key.startswith(unused)):
        raise InputError(f"{name}: its weights do not fill {type(model).__name__}: {needed[0]} is missing or misshapen")
    return model


def load_pretrained(auto_class: Any, place: str) -> Any:
    """A processor or tokenizer of a place as in `load_model`. Raises InputError naming the place."""
    name, revision = split_revision(place)
    with reading(Path(name)):
        return auto_class.from_pretrained(name, revision=revision)


def find_file(place: str, file: str) -> Path:
    """A file of a folder or of a repository. Raises InputError naming the place."""
    name, revision = split_revision(place)
    with reading(Path(name)):
        return Path(str(cached_file(name, file, revision=revision)))


def split_revision(place: str) -> tuple[str, str]:
    """A folder that exists has no revision, whatever its name."""
    name, _, revision = (place, "", "") if Path(place).is_dir() else place.partition("@")
    return name, revision or "main"


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))

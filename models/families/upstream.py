"""Reading original checkpoints as their authors published them. Nothing is unpickled, and no remote code runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ...configs.errors import InputError, reading
from ..pictures.contract import complete
from ..sizes import check_sizes


def read_model(model_class: Any, directory: Path) -> PreTrainedModel:
    """Raises InputError where weights are missing or only pickled ones are there."""
    with reading(directory):
        check_sizes(directory)
        loaded: Any = model_class.from_pretrained(
            directory, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        return complete(directory, loaded).eval()


def read_tokenizer(directory: Path, controls: Sequence[str] = (), codes: Sequence[int] = ()) -> PreTrainedTokenizerFast:
    """A text tokenizer in which no text can spell the control tokens, nor the ids that are image codes.

    Raises InputError where it lacks one of the tokens.
    """
    if not (directory / "tokenizer.json").is_file():
        raise InputError(f"{directory}: no tokenizer.json; save the tokenizer there as a fast one of transformers")
    with reading(directory):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    known = tokenizer.get_vocab()
    for token in controls:
        if token not in known:
            raise InputError(f"{directory}: the tokenizer has no token {token}; it is another model's")
    names: Any = tokenizer.convert_ids_to_tokens(list(codes))
    spelled = tokenizer(names, add_special_tokens=False, split_special_tokens=True)["input_ids"] if names else []
    loose = [name for name, code, ids in zip(names, codes, spelled, strict=True) if code in ids]  # type: ignore[operator]
    tokenizer.add_special_tokens({"extra_special_tokens": [*controls, *loose]}, replace_extra_special_tokens=False)
    return tokenizer

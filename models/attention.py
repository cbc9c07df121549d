"""What a token may attend, layer by layer: the windows of a model upon the mask of a batch.

transformers makes these masks itself from a padding mask alone (`masking_utils`, by the `layer_types` of a
configuration), and takes any other mask as it is. Rows here are packed, and guidance takes prompts away, so the same
masks are made here. Layers of other types are refused by name.
"""

from __future__ import annotations

import math
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..configs.errors import InputError

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
WINDOWS = ("sliding_window", "window_size")
"""Names under which configurations have the tokens that a layer sees; GPT-Neo, of the second, masks by itself."""

SDPA, EITHER = "sdpa", "sdpa_or_flex"
"""Names of attention for transformers: torch's, and that or flex attention, whichever the mask is of."""

_CONFIGS: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()
"""The text configuration of a decoder, which is long to find, and every step of the sampler asks for it."""


def layer_types(config: Any) -> list[str]:
    """Of the layers of a text configuration, each once, as transformers' `create_masks_for_generate` reads it."""
    if types := getattr(config, "layer_types", None):
        return sorted(set(types))
    if getattr(config, "sliding_window", None) is not None:
        return [SLIDING]
    return [CHUNKED if getattr(config, "attention_chunk_size", None) is not None else FULL]


def check_layers(model: PreTrainedModel) -> None:
    """Raises InputError for a model whose tokens see others than a causal mask, with a window or without, says."""
    reason = ""
    if others := [name for name in layer_types(model.config.get_text_config()) if name not in (FULL, SLIDING)]:
        reason = f"layers of type {others[0]!r}; it knows {FULL!r} and {SLIDING!r}"
    else:
        taken = signature(model.get_decoder().forward).parameters  # type: ignore[operator]
        if missing := [name for name in ("attention_mask", "position_ids") if name not in taken]:
            reason = f"a decoder that takes no {missing[0]}: its rows could not be packed"
    if reason:
        raise InputError(f"{type(model).__name__}: limner cannot train {reason}")


def sees_all_before(config: Any) -> bool:
    """All layers of a text configuration let a token see all before it."""
    return layer_types(config) == [FULL]


def causal_mask(rows: int, tokens: int, module: PreTrainedModel) -> Tensor | None:
    """Of rows that begin together and have no cache, for `attention_mask`; what is padded stands behind.

    None where the kernel's own causal mask will do: it skips half of the products, and reads no mask.
    """
    if sees_all_before(module.config.get_text_config()):
        return None
    order = torch.arange(tokens, device=module.device)
    return (order <= order[:, None])[None, None].expand(rows, -1, -1, -1)


def attend_either_way(model: PreTrainedModel) -> None:
    """From now on the decoder takes a mask of blocks as well, by flex attention (Dong et al., arXiv 2412.05496).

    Raises InputError where it could not be trained so.
    """
    name, decoder = type(model).__name__, model.get_decoder()
    if not torch.cuda.is_available():
        raise InputError("flex_attention: torch trains by it on a GPU alone, and there is none; leave it out")
    if not sees_all_before(model.config.get_text_config()):
        raise InputError(f"flex_attention: {name} has layers with a window; leave it out")
    if not getattr(decoder, "_supports_flex_attn", False):
        raise InputError(f"flex_attention: transformers has none for {name}; leave it out")
    decoder.set_attn_implementation(EITHER)  # type: ignore[operator]


def _sdpa_or_flex(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    by: Any = flex_attention_forward if isinstance(mask, BlockMask) else sdpa_attention_forward
    return by(module, query, key, value, mask, **options)


AttentionInterface.register(EITHER, _sdpa_or_flex)
AttentionMaskInterface.register(EITHER, sdpa_mask)


def block_mask(sequence_BT: Tensor) -> BlockMask:
    """A token sees those of its own sequence up to itself; blocks in which none is seen are skipped."""

    def sees(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (sequence_BT[row, query] == sequence_BT[row, key])

    rows, tokens = sequence_BT.shape
    return create_block_mask(sees, rows, None, tokens, tokens, device=sequence_BT.device)  # type: ignore[arg-type]


def attention_mask(
    mask: Tensor | BlockMask | None, module: PreTrainedModel
) -> Tensor | dict[str, Tensor] | BlockMask | None:
    """A boolean mask [B, 1, T, cached + T] as the attention of this module takes it; by layer type where two.

    None stays None: transformers makes it the causal one. One of blocks stays, too.
    """
    if mask is None or isinstance(mask, BlockMask):
        return mask
    if (config := _CONFIGS.get(module)) is None:
        config = _CONFIGS[module] = module.config.get_text_config()
    masks = {}
    for layer_type in layer_types(config):
        seen = mask if layer_type == FULL else _in_window(mask, config.sliding_window)
        masks[layer_type] = _as_taken(seen, module)
    return masks if len(masks) > 1 else masks.popitem()[1]


def decoded(
    decoder: PreTrainedModel,
    positions_BT: Tensor,
    mask: Tensor | BlockMask | None,
    cache: Cache | None,
    **inputs: Tensor,
) -> Tensor:
    """Hidden states of a stock decoder over its `input_ids` or `inputs_embeds`, [B, T, H]."""
    return decoder(
        **inputs,
        position_ids=positions_BT,
        attention_mask=attention_mask(mask, decoder),
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state


def _in_window(mask: Tensor, window: int) -> Tensor:
    """A token sees so many of those that it may attend, itself among them.

    In a batch the tokens of a sequence stand in a row without a gap, so how far back one is, is a difference of
    columns. Of a single query, whose column is not known, those that it may attend are counted.
    """
    queries, keys = mask.shape[-2:]
    if keys <= window:
        return mask
    if queries == 1:
        return mask & (mask.flip(-1).cumsum(-1, dtype=torch.int32).flip(-1) <= window)
    column = torch.arange(keys, device=mask.device)
    return mask & (column[keys - queries :, None] - column < window)


def _as_taken(mask: Tensor, module: PreTrainedModel) -> Tensor:
    """sdpa takes it as it is, for others it is added to the scores.

    For one query sdpa gets numbers, too: of a boolean mask it would make them anew in every layer. For many queries
    they would be large.
    """
    takes_boolean = module.config._attn_implementation in (SDPA, EITHER)
    if takes_boolean and mask.shape[2] > 1:
        return mask
    forbidden = -math.inf if takes_boolean else torch.finfo(module.dtype).min
    numbers: Any = module.get_input_embeddings().weight  # `module.dtype` walks through the parameters
    return torch.full(mask.shape, forbidden, dtype=numbers.dtype, device=mask.device).masked_fill_(mask, 0)


def widest_window(config: Any) -> int:
    """The most tokens that a window of a text configuration holds; 0 where each sees all before it."""
    return max((size for name in WINDOWS if isinstance(size := getattr(config, name, None), int)), default=0)


def rope_switch(config: Any) -> int | None:
    """Tokens up to which the rotations of a text configuration are those of a short sequence; None where of any.

    Longrope (Ding et al., arXiv 2402.13753) and dynamic NTK rotate all tokens of a longer one otherwise: a token that
    was sampled before the switch is another one behind it.
    """
    given: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [ropes for ropes in given.values() if isinstance(ropes, dict)]
    switches = []
    for rope in nested or [given]:
        if rope.get("rope_type") == "longrope":
            switches.append(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        elif "dynamic" in rope.get("rope_type", "default"):
            switches.append(config.max_position_embeddings)
    return min(switches, default=None)

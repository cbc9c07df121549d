"""Numbers of training: fp32 where an optimizer writes, as stored where nothing changes, 16 bits in matrix products.

A bfloat16 number w has its neighbours at w * 2^-8 to w * 2^-7, and an update of less than half of that is lost when it
is added. Adam's updates are about as large as the learning rate, so full training at 1e-6 would stand still: hence a
master copy in fp32 (Micikevicius et al., arXiv 1710.03740, section 3.1). DeepSpeed keeps one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...models.checkpoints.folder import save
from ...models.policy import UnifiedPolicy
from .lora import adapter_layers, merged_weight, taken_as_merged
from .sharding import gathered_copy, is_sharded, merged_copy

LOOKED_AT = 100_000
"""Numbers of a parameter whose rounding is looked at."""
Exchange = tuple[nn.Module, str, Tensor]
"""A module, the name of a parameter of its own, and the numbers to stand in for it."""


def stored_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of every parameter as the checkpoint has it; ask before the model is prepared for training."""
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def train_in_fp32(model: nn.Module, accelerator: Accelerator, adapted: bool) -> None:
    """Casts to fp32 what is trained, and where nothing casts it in the forward the rest of the model as well.

    Call it before the model is wrapped. An adapter is in fp32 already (peft), and the model under it stays as it is.
    """
    if adapted or has_own_masters(accelerator):
        return
    mixed = accelerator.mixed_precision != "no"
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter.requires_grad or not mixed):
            parameter.data = parameter.data.float()


def lost_updates(numbers: Tensor, dtype: torch.dtype, size: float) -> Tensor:
    """How many of these numbers, kept in a dtype, an update of this size would leave as they are.

    A number in [2^(e-1), 2^e) has neighbours eps * 2^(e-1) apart, and rounding loses less than half of that (Goldberg
    1991, "What Every Computer Scientist Should Know About Floating-Point Arithmetic", section 1.2). 0 loses nothing.
    """
    exponents = torch.frexp(numbers.float()).exponent
    steps = torch.ldexp(torch.full_like(exponents, torch.finfo(dtype).eps, dtype=torch.float32), exponents - 1)
    return ((steps / 2 > size) & (numbers != 0)).sum()


def some_numbers(parameter: Tensor) -> Tensor:
    """At most `LOOKED_AT` numbers of what this process holds of a parameter, evenly spread."""
    local: Any = parameter.to_local() if isinstance(parameter, DTensor) else getattr(parameter, "ds_tensor", parameter)
    flat = local.detach().flatten()
    return flat[:: -(-len(flat) // LOOKED_AT) or 1]


def has_own_masters(accelerator: Accelerator) -> bool:
    """DeepSpeed in 16 bits: its optimizer keeps fp32 copies of what it trains."""
    return accelerator.mixed_precision != "no" and accelerator.distributed_type == DistributedType.DEEPSPEED


def save_whole(
    policy: UnifiedPolicy,
    accelerator: Accelerator,
    adapter: Any,
    stored: Mapping[str, torch.dtype],
    directory: Path,
) -> None:
    """One ordinary checkpoint in these dtypes, the adapter merged, by the main process. Every rank must call it."""
    if is_sharded(accelerator):
        policy = gathered_copy(policy, accelerator, adapter, as_trained=True)
    if accelerator.is_main_process:
        policy = policy if adapter is None else merged_copy(policy, adapter)
        with exchanged(_other_dtypes(policy.model, stored)):
            save(policy, directory)


def _other_dtypes(model: nn.Module, stored: Mapping[str, torch.dtype]) -> list[Exchange]:
    return [
        (module, leaf, parameter.detach().to(stored[f"{name}.{leaf}" if name else leaf]))
        for name, module in model.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.dtype != stored.get(f"{name}.{leaf}" if name else leaf, parameter.dtype)
    ]


@contextmanager
def exchanged(exchanges: Sequence[Exchange]) -> Iterator[None]:
    """Other numbers in the place of parameters. Afterwards the very same parameters stand there again.

    The parameters change places, not their data: what hangs on one (DDP's hooks, an optimizer's state) stays with it.
    """
    own = [(module, name, module._parameters[name]) for module, name, _ in exchanges]
    try:
        for module, name, numbers in exchanges:
            module._parameters[name] = nn.Parameter(numbers, requires_grad=False)
        yield
    finally:
        for module, name, parameter in own:
            module._parameters[name] = parameter


@contextmanager
def sampling_weights(policy: UnifiedPolicy) -> Iterator[None]:
    """Around a batch of rollouts, in which no weight changes: what every token would compute anew is computed once.

    Adapters are merged into the weights under them, and the decoder's weights are cast as autocast casts them: the
    same numbers as without. The heads stay as they are.
    """
    device = next(policy.model.parameters()).device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    layers = adapter_layers(policy.model)
    decoder = set(policy.model.get_decoder().modules())  # type: ignore[operator]
    own = {linear for layer in layers.values() for linear in (*layer.lora_A.values(), *layer.lora_B.values())}
    exchanges: list[Exchange] = []
    with torch.no_grad(), torch.autocast(device, enabled=False):
        for module in policy.model.modules():
            if not isinstance(module, nn.Linear) or module in own:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                cast = module in decoder and parameter.dtype == torch.float32
                to = dtype if dtype is not None and cast else parameter.dtype
                if name == "weight" and module in layers:
                    exchanges.append((module, name, merged_weight(layers[module], to)))
                elif to != parameter.dtype:
                    exchanges.append((module, name, parameter.to(to)))
    with exchanged(exchanges), taken_as_merged(layers.values()):
        yield

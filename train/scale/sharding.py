"""DeepSpeed and FSDP2: what differs where a process holds only a part of the model.

Sampling reads every parameter for every token. Under ZeRO-3 and FSDP2 they are therefore gathered once for a batch of
rollouts, one after the other, into a copy of the model that is freed when the batch is done. It costs the memory of one
whole model, in the dtype of the forward, on every process while it samples. The copy has no hooks: nothing is
communicated while it samples, and ranks may sample unequally long.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, is_torch_version, parse_flag_from_env
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ...configs.errors import InputError
from ...models.policy import UnifiedPolicy


def is_sharded(accelerator: Accelerator) -> bool:
    """Each process holds a part of the parameters only."""
    return accelerator.distributed_type == DistributedType.FSDP or _is_zero3(accelerator)


def _is_zero3(accelerator: Accelerator) -> bool:
    plugin = accelerator.state.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def use_all_weights(args: Any) -> None:
    """Tells DDP not to look for weights that a forward leaves out: every family has all of them in the graph of any
    batch, which its conformance suite checks. transformers would have it search, and torch warn that it was in vain."""
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False


def check_setup(accelerator: Accelerator) -> None:
    """Raises InputError for a set-up that would train wrongly or save too little. Keeps log-probs out of 16 bits."""
    plugin: Any
    if _is_zero3(accelerator):
        plugin = accelerator.state.deepspeed_plugin
        if not plugin.deepspeed_config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"):
            raise InputError(
                "ZeRO-3 without stage3_gather_16bit_weights_on_model_save writes checkpoints that hold no model; "
                "set it to true (zero3_save_16bit_model: true in a file of accelerate)"
            )
    if accelerator.distributed_type != DistributedType.FSDP and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise InputError(
            "FSDP was asked for, but accelerate has it on several GPUs only; here every process would hold the whole "
            "model: launch with configs/accelerate/zero3.yaml, or by torchrun alone"
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise InputError("fsdp_version: 1 is not supported; set it to 2")
        if is_torch_version("<", "2.13"):
            raise InputError(f"FSDP2 needs torch 2.13 or later (this is {torch.__version__}); update it, or use ZeRO-3")
        if plugin.cpu_ram_efficient_loading:
            raise InputError(
                "fsdp_cpu_ram_efficient_loading: true loads the model on the first process only, and the reference "
                "of the others would be empty; set it to false"
            )
        if plugin.mixed_precision_policy is not None:
            # accelerate casts outputs to the dtype of the forward; ours are log-probs, and float32.
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def add_gradient(accelerator: Accelerator, loss: Tensor) -> None:
    """The backward pass of a loss that is not the last of its micro-batch; call it inside `accelerator.no_sync`."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        accelerator.backward(loss)
        return
    # At the last micro-batch of a step accelerate's backward also makes DeepSpeed's step.
    is_last = accelerator.sync_gradients
    accelerator.gradient_state._set_sync_gradients(False)
    try:
        accelerator.backward(loss, scale_wrt_gas=False)
    finally:
        accelerator.gradient_state._set_sync_gradients(is_last)


@torch.no_grad()
def gathered_copy(
    policy: UnifiedPolicy, accelerator: Accelerator, adapter: Any = None, as_trained: bool = False
) -> UnifiedPolicy:
    """A copy of a sharded policy with whole parameters. Every rank must call it.

    `adapter` is the configuration of the adapter (peft) in the policy's model. The copy is in the dtype of the forward,
    or `as_trained`: in that of the shards, which is fp32 for what FSDP2 trains.
    """
    for module in policy.model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # some stay whole after a forward that no backward followed
    weights = {name: _whole(parameter, accelerator, as_trained) for name, parameter in policy.model.named_parameters()}
    return type(policy)(_module_with(weights, policy.model, adapter)[0], policy.processor)


@torch.no_grad()
def merged_copy(policy: UnifiedPolicy, adapter: Any) -> UnifiedPolicy:
    """A copy of a whole policy, in host memory, with its adapter added to the weights."""
    weights = {name: parameter.detach().to("cpu", copy=True) for name, parameter in policy.model.named_parameters()}
    adapted: Any = _module_with(weights, policy.model, adapter)[1]
    return type(policy)(adapted.merge_and_unload(), policy.processor)


def _whole(parameter: Tensor, accelerator: Accelerator, as_trained: bool) -> Tensor:
    if isinstance(parameter, DTensor):
        mixed: Any = accelerator.state.fsdp_plugin.mixed_precision_policy  # type: ignore[union-attr]
        dtype = mixed.param_dtype if mixed and not as_trained else parameter.dtype
        return parameter.full_tensor().to(accelerator.device, dtype)
    if _is_zero3(accelerator):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().to(accelerator.device, copy=True)
    return parameter.detach().to(accelerator.device, copy=True)


def _module_with(weights: Mapping[str, Tensor], source: Any, adapter: Any) -> tuple[Any, Any]:
    """A module like `source` that holds these tensors, and the same inside its adapter's (None without)."""
    adapted = None
    with torch.device("meta"):
        module = type(source)(source.config)
        if adapter is not None:
            from peft import get_peft_model

            adapted = get_peft_model(module, deepcopy(adapter))
    module.load_state_dict(weights, strict=False, assign=True)
    module.tie_weights()
    device = next(iter(weights.values())).device
    for name, buffer in source.named_buffers():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, buffer.to(device))
    if missing := [name for name, parameter in module.named_parameters() if parameter.is_meta]:
        raise RuntimeError(f"{missing[0]} has no weights to copy")
    module.generation_config = source.generation_config
    return module.requires_grad_(False), adapted

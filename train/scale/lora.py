"""LoRA (Hu et al., arXiv 2106.09685) by peft: only an adapter is trained; the KL reference is the model without it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...configs.bounds import OneOrMore, Weight
from ...configs.errors import InputError
from ...configs.schema import check_ranges
from ...models.policy import UnifiedPolicy


@dataclass
class LoraConfig:
    """There is no dropout: the sampled policy would not be the scored one."""

    rank: OneOrMore = 16
    alpha: Weight = 32.0
    """The adapter's output is scaled by alpha / rank."""
    targets: str | list[str] = "all-linear"
    """Names of modules to adapt; `all-linear` is every linear layer but the output head."""

    def __post_init__(self) -> None:
        check_ranges(self, "lora")

    def adapter(self, model: PreTrainedModel) -> Any:
        """The `peft_config` of a trainer of this model. Raises InputError that names the wrong setting."""
        try:
            import peft
        except ImportError:
            raise InputError("lora: needs peft, which is not installed: pip install 'limner[peft]'") from None
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=0.0,
            target_modules=list(linear_layers(model, self.targets)),
            task_type="CAUSAL_LM",
        )


def linear_layers(model: PreTrainedModel, targets: str | list[str] = "all-linear") -> dict[str, nn.Linear]:
    """The layers that an adapter goes on, by full name. Raises InputError for a target that is none of them.

    The head is read as a plain weight, and what is frozen, such as an image tokenizer inside, is left alone.
    """
    frozen, head = _frozen(model), model.get_output_embeddings()
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and not re.fullmatch(frozen, name)
    }
    if targets in ("all-linear", ["all-linear"]):
        return layers
    known = {name.rpartition(".")[2] for name in layers}
    wanted = [targets] if isinstance(targets, str) else targets
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"lora.targets: {unknown[0]} is no layer to adapt; there are {', '.join(sorted(known))}")
    return {name: module for name, module in layers.items() if name.rpartition(".")[2] in wanted}


def adapted(model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    """The model inside a peft model of which only the adapter is trained. The model itself is changed."""
    peft_config = config.adapter(model)
    from peft import get_peft_model

    torch.manual_seed(seed)  # the adapter starts at random
    return get_peft_model(model, peft_config)


def check_rows(policy: UnifiedPolicy, adapted: bool = False) -> int:
    """How many rows this run trains that no training has reached yet. Raises InputError where they would stay so.

    adapted: an adapter alone is trained.
    """
    if not policy.new_rows:
        return 0
    frozen = [name for name, (weight, _) in policy.parts().items() if not weight.requires_grad]
    if adapted or frozen:
        modules: Any = policy.model.named_modules()
        decoder = next(name for name, module in modules if module is policy.model.get_decoder())  # type: ignore[operator]
        setting, left = ("lora", "an adapter leaves them") if adapted else ("freeze", f"{', '.join(frozen)} stay")
        raise InputError(
            f"{setting}: limner convert gave this model rows for pictures that were never trained, and {left} as they "
            f"are; first warm it up in full, beside an adapter (limner warmup --lora.rank 16), or without its layers: "
            f"limner warmup --freeze {decoder}.layers"
        )
    count, policy.new_rows = policy.new_rows, 0
    return count


def train_rows(model: PreTrainedModel, count: int) -> dict[str, nn.Parameter]:
    """Trains the last rows of embedding and head beside an adapter; the others get no gradient. Returns both weights by
    name, one where they are tied.

    Weight decay must leave them alone: it would shrink the others.
    """

    def of_rows(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[-count:] = gradient[-count:]
        return kept

    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    weights = {"embedding": embedding.weight}
    weights |= {} if head.weight is embedding.weight else {"head": head.weight}
    for weight in weights.values():
        weight.requires_grad_(True).register_hook(of_rows)
    return weights


def adapter_layers(model: nn.Module) -> dict[nn.Module, Any]:
    """The layers of an adapter (peft) by the linear layer under each; none where nothing is adapted."""
    return {layer.get_base_layer(): layer for layer in model.modules() if hasattr(layer, "lora_A")}  # type: ignore[operator]


def merged_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """Weight + scale * B A (Hu et al., section 4.1), added up in fp32 and rounded once."""
    weight = layer.get_base_layer().weight.float()
    for name in layer.active_adapters:
        weight = weight + layer.get_delta_weight(name).float()
    return weight.to(dtype)


@contextmanager
def taken_as_merged(layers: Iterable[Any]) -> Iterator[None]:
    """The layers add nothing to the weights under them, which have it in already."""
    layers = list(layers)
    for layer in layers:
        layer.merged_adapters.extend(layer.active_adapters)
    try:
        yield
    finally:
        for layer in layers:
            layer.merged_adapters.clear()


def _frozen(model: nn.Module) -> str:
    """Expression of the names of all submodules of which nothing is trained; empty where there are none."""
    parameters = {name: list(module.parameters()) for name, module in model.named_modules()}
    names = {name for name, own in parameters.items() if own and not any(weight.requires_grad for weight in own)}
    tops = sorted(name for name in names if name.rpartition(".")[0] not in names)
    return "|".join(rf"{re.escape(name)}(\..*)?" for name in tops)

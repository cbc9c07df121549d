"""LoRA (Hu et al., arXiv 2106.09685) by peft: only an adapter is trained; the KL reference is the model without it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.errors import InputError


@dataclass
class LoraConfig:
    """There is no dropout: the sampled policy would not be the scored one."""

    rank: int = 16
    alpha: float = 32.0
    """The adapter's output is scaled by alpha / rank."""
    targets: str | list[str] = "all-linear"
    """Names of modules to adapt; `all-linear` is every linear layer but the output head."""

    def adapter(self, model: PreTrainedModel) -> Any:
        """The `peft_config` of a trainer of this model. Raises InputError that names the wrong setting."""
        try:
            import peft
        except ImportError:
            raise InputError("lora: needs peft, which is not installed: pip install 'limner[peft]'") from None
        if self.rank < 1:
            raise InputError(f"lora.rank: {self.rank}; at least 1")
        targets = [self.targets] if isinstance(self.targets, str) else self.targets
        # What the model itself keeps as it is, such as an image tokenizer inside it, gets no adapter either.
        fixed = _frozen(model)
        if targets != ["all-linear"]:
            plain = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
            modules = [(name, module) for name, module in model.named_modules() if not re.fullmatch(fixed, name)]
            known = {name.rpartition(".")[2] for name, module in modules if id(module) not in plain}
            if unknown := [name for name in targets if name not in known]:
                # The embeddings and the head are read as plain weights.
                raise InputError(f"lora.targets: {unknown[0]} is no module that can be adapted")
        return peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=0.0,
            target_modules="all-linear" if targets == ["all-linear"] else list(targets),
            exclude_modules=fixed or None,
            task_type="CAUSAL_LM",
        )


def adapted(model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    """The model inside a peft model of which only the adapter is trained. The model itself is changed."""
    peft_config = config.adapter(model)
    from peft import get_peft_model

    torch.manual_seed(seed)  # the adapter starts at random
    return get_peft_model(model, peft_config)


def _frozen(model: nn.Module) -> str:
    """Expression of the names of all submodules of which nothing is trained; empty where there are none."""
    parameters = {name: list(module.parameters()) for name, module in model.named_modules()}
    names = {name for name, own in parameters.items() if own and not any(weight.requires_grad for weight in own)}
    tops = sorted(name for name in names if name.rpartition(".")[0] not in names)
    return "|".join(rf"{re.escape(name)}(\..*)?" for name in tops)

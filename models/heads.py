"""Heads in float32, whatever the rest of a model computes in, and the log-probs of their scores.

A score in bf16 has eight bits: one of 20 is off by up to 0.06. In the sampler and in the training forward it is off by
different amounts, so that the ratio of the two is noise. With the product of the head in float32 what is left is the
rounding of the hidden states (MiniMax-M1, arXiv 2506.13585, found the same and does the same).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

BLOCK_ROWS = 8192
"""Rows of a head in 16 bits that are cast at a time."""


class Float32Heads:
    """While it is entered, linear layers multiply in float32 and give float32, under autocast too.

    A head of 16 bits is cast some rows at a time, in the backward pass again, and no copy of it is kept; but for a
    sampler, that asks for the same product every token, within `kept`.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[int, torch.Size], Tensor] | None = None
        self._as_they_are = False
        """All weights are of float32, as far as that is known."""

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        if self._as_they_are and not torch.is_autocast_enabled(device.type):
            return nullcontext()  # of a tiny model, to catch its products takes as long as a tenth of them
        return self._on(device)

    @contextmanager
    def _on(self, device: torch.device) -> Iterator[None]:
        with torch.autocast(device.type, enabled=False), _Linear(self._copies):
            yield

    @contextmanager
    def kept(self, model: nn.Module) -> Iterator[None]:
        """The weights of the model stand still and need no gradient: each head is cast once."""
        self._copies = {}
        self._as_they_are = all(weight.dtype == torch.float32 for weight in model.parameters())
        try:
            yield
        finally:
            self._copies, self._as_they_are = None, False


class _Linear(TorchFunctionMode):
    """Catches the products of a module, which may be wrapped (adapters, gathered parameters), where they are made."""

    def __init__(self, copies: dict[tuple[int, torch.Size], Tensor] | None):
        super().__init__()
        self.copies = copies

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._product(*args, **(kwargs or {})) if func is linear else func(*args, **(kwargs or {}))

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.dtype != torch.float32 and self.copies is not None:
            key = (weight.data_ptr(), weight.shape)
            if key not in self.copies:
                self.copies[key] = weight.float()
            weight = self.copies[key]
        if weight.dtype == torch.float32:
            return linear(input.float(), weight, None if bias is None else bias.float())
        scores = _InBlocks.apply(input.flatten(0, -2), weight).unflatten(0, input.shape[:-1])
        return scores if bias is None else scores + bias


class _InBlocks(torch.autograd.Function):
    """input [n, H] times the transpose of weight [V, H], in float32."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        states, scores = input.float(), input.new_empty(len(input), len(weight), dtype=torch.float32)
        for rows in _blocks(weight):
            scores[:, rows] = states @ weight[rows].float().T
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        wants_input, wants_weight = ctx.needs_input_grad
        states = input.float()
        of_input = torch.zeros_like(states) if wants_input else None
        of_weight = torch.empty_like(weight) if wants_weight else None
        with torch.autocast(input.device.type, enabled=False):
            for rows in _blocks(weight):
                if of_input is not None:
                    of_input.addmm_(gradient[:, rows], weight[rows].float())
                if of_weight is not None:
                    of_weight[rows] = gradient[:, rows].T @ states
        return None if of_input is None else of_input.to(input.dtype), of_weight


def _blocks(weight: Tensor) -> list[slice]:
    return [slice(first, first + BLOCK_ROWS) for first in range(0, len(weight), BLOCK_ROWS)]


# ---- log-probs of scores ----


def tempered(scores: Tensor, temperature: float) -> Tensor:
    return scores if temperature == 1 else scores / temperature


def in_chunks(
    scores: Callable[..., Tensor],
    target: Tensor,
    inputs: list[Tensor],
    log_q: Tensor | None,
    chunk: int | None,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-probs, entropies and, to a given `log_q`, KLs of n targets, [n] each.

    With `chunk` the [n, choices] scores never exist as a whole.
    """

    def part(target: Tensor, log_q: Tensor | None, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return score(scores(*inputs), target, log_q, entropy_gradient)

    if chunk is None or len(target) <= chunk:
        return part(target, log_q, *inputs)
    parts = [
        checkpoint(part, *tensors, use_reentrant=False)
        for tensors in zip(
            target.split(chunk),
            repeat(None) if log_q is None else log_q.split(chunk),
            *(tensor.split(chunk) for tensor in inputs),
            strict=log_q is not None,
        )
    ]
    logps, entropies, kls = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(entropies), None if log_q is None else torch.cat(kls)


def score(
    scores: Tensor, target: Tensor, log_q: Tensor | None = None, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-prob of `target`, entropy of the softmax and its KL to `log_q`, each [n], for scores [n, choices].

    -inf masks a choice. A position of D residual codes, scores [n, D, choices] and targets [n, D], is one token: all
    sum over depth.
    """
    log_p = scores.log_softmax(-1)
    del scores  # one of the largest tensors of a step
    found = [log_p.gather(-1, target[..., None])[..., 0], None, None]
    if log_q is not None:  # 0 times a finite number where a choice is masked
        found[2] = (log_p.exp() * (log_p.clamp(min=-1e4) - log_q.clamp(min=-1e4))).sum(-1)
    log_p = log_p if entropy_gradient else log_p.detach()
    found[1] = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)
    logp, entropy, kl = (part.sum(1) if part is not None and target.dim() > 1 else part for part in found)
    return logp, entropy, kl  # type: ignore[return-value]

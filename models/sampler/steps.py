"""Steps whose shape says nothing about their rows: run as they are, compiled, or recorded as a CUDA graph.

Slots are a power of two and columns whole blocks, and both heads run on all slots. So a step has one of few shapes, and
the model's part of it can be recorded once and played again, where Python and the launches of single kernels took
longer than the kernels. The ids are those of plain steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from ...configs.errors import InputError
from ..policy import UnifiedPolicy

Steps = Literal["plain", "fixed", "compiled", "graphs"]
"""plain: as many slots and columns as the rows need; fixed: whole buckets; compiled, graphs: those by torch.compile,
or as CUDA graphs."""

Work = Callable[..., Tensor]
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], object]]]
"""Runs the work once, and gives its result and what makes it anew, in the same memory."""
WARM_UP = 3
"""Runs before a recording: libraries allocate and choose kernels in the first ones."""


def check_steps(policy: UnifiedPolicy, steps: Steps, device: torch.device) -> None:
    """Raises InputError for steps that cannot be recorded."""
    if steps != "graphs":
        return
    if device.type != "cuda":
        raise InputError(
            f"steps 'graphs': CUDA graphs need a GPU, and the model is on {device.type}; "
            "steps 'fixed' have the same shapes and give the same ids"
        )
    if policy.rope_switch is not None:
        raise InputError(
            "steps 'graphs': the rope of this model asks how long its rows are, which no graph can record; "
            "take 'fixed' or 'plain'"
        )


def compile_decoder(policy: UnifiedPolicy) -> None:
    """Runs the decoder through torch.compile from now on, one program for all lengths.

    The first call then takes minutes; what is drawn and scored stays the same up to rounding.
    """
    decoder: Any = policy.model.get_decoder()
    policy.compiled_forward = policy.compiled_forward or torch.compile(decoder.forward, dynamic=True)
    decoder.forward = policy.compiled_forward


@contextmanager
def compiled(policy: UnifiedPolicy) -> Iterator[None]:
    """The same for a while; what was compiled is kept for the next time."""
    decoder: Any = policy.model.get_decoder()
    stock = decoder.forward
    compile_decoder(policy)
    try:
        yield
    finally:
        decoder.forward = stock


def as_graph(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
    """A recording on the current GPU (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)."""
    aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    with torch.cuda.graph(graph):
        result = work()
    return result, graph.replay


class Recorded:
    """Work that is played from a recording, over inputs that are copied to where it was recorded with.

    It may write to memory of others, the same at each run, until that moves: `moved` says how often it has.
    """

    def __init__(self, work: Work, record: Record = as_graph):
        self.work, self.record, self.moved = work, record, -1
        self.inputs: tuple[Tensor, ...] = ()
        self.result: Tensor | None = None
        self.play: Callable[[], object] = lambda: None

    def __call__(self, moved: int, *inputs: Tensor) -> Tensor:
        """The result; the next call overwrites it."""
        if self.result is None or moved != self.moved:
            self.result = None  # the memory of the recording before
            self.moved, self.inputs = moved, tuple(tensor.clone() for tensor in inputs)
            self.result, self.play = self.record(lambda: self.work(*self.inputs))
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.play()
        return self.result

"""What the sampler knows of each slot: on the device as tensors, and on the host as far as it can be known there.

Inside a picture the grammar says where a row goes, so the host follows without asking. Of a text it must be told the
id, once a step (`Message`), and tells by it which rows go on, open a picture or end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from .draw import Kinds, Rules

FREE, TWIN = -1, -2
"""Of `Mirror.key`: nobody's slot, and that of a twin."""
NO_LIMIT = 2**62


class Message:
    """A tensor on its way to the host, which is waited for when it is read."""

    def __init__(self, tensor: Tensor):
        self.copy = tensor.to("cpu", non_blocking=tensor.is_cuda)  # then into pinned memory
        self.sent = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def read(self) -> np.ndarray:
        if self.sent is not None:
            self.sent.synchronize()
        return self.copy.numpy()


@dataclass(slots=True, eq=False)
class State:
    """Tensors by slot. A slot holds a row, or the twin of a guided one, which is fed the same ids and draws nothing."""

    leader: Tensor
    """The slot whose ids it is fed: its own, or of a twin that of its row."""
    twin: Tensor
    """The slot that goes without the prompt; its own where there is no guidance."""
    place: Tensor
    """Of the grammar. That of a twin or a free slot is `finished`."""
    images: Tensor
    """Images begun."""
    drawn: Tensor
    """Ids of the completion so far, forced ones among them: the key of the random stream."""
    position: Tensor
    """Of the next id, as the model counts."""
    next: Tensor
    """The id to be fed next."""
    limit: Tensor
    max_images: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    guidance: Tensor
    uniforms: Tensor
    """Float64 [slots, room + 1, D], of which a text takes the first; of the last column nothing is used, and so with
    the next two."""
    ids: Tensor
    logp: Tensor
    first: Tensor
    """Where the rows of these tables begin, were each one row."""

    @classmethod
    def empty(cls, device: torch.device | str, depth: int = 1) -> State:
        whole = {"dtype": torch.long, "device": device}
        kinds = {name: {"dtype": torch.float32, "device": device} for name in ("temperature", "top_p", "guidance")}
        tables = {"uniforms": torch.float64, "ids": torch.long, "logp": torch.float32}
        columns = {field.name: torch.zeros(0, **kinds.get(field.name, whole)) for field in fields(cls)}
        made = {name: torch.zeros(0, 1, dtype=kind, device=device) for name, kind in tables.items()}
        return cls(**columns | made | {"uniforms": made["uniforms"].new_zeros(0, 1, depth)})

    def arrange(self, order_S: Tensor, added: int) -> None:
        for field in fields(self):
            column = getattr(self, field.name)[order_S]
            setattr(self, field.name, torch.cat([column, column.new_zeros(added, *column.shape[1:])]))
        self._measure()

    def _measure(self) -> None:
        slots, width = self.ids.shape
        self.first = torch.arange(slots, device=self.ids.device) * width

    def widen(self, room: int) -> None:
        """Room for completions of so many tokens."""
        for name in ("uniforms", "ids", "logp"):
            column = getattr(self, name)
            if (missing := room + 1 - column.shape[1]) > 0:
                sides = (0, 0) * (column.dim() - 2)
                setattr(self, name, torch.nn.functional.pad(column, (*sides, 0, missing)))
        self._measure()

    def put(self, slots: np.ndarray, **values: Sequence | np.ndarray) -> None:
        """Sets columns of some slots."""
        at = torch.as_tensor(slots, device=self.leader.device)
        for name, given in values.items():
            column: Tensor = getattr(self, name)
            column[at] = torch.as_tensor(given, dtype=column.dtype).to(column.device)

    def rules(self, at: Tensor, kinds: Kinds) -> Rules:
        """Those that any row needs."""
        return Rules(
            self.temperature.index_select(0, at) if kinds.tempered or kinds.greedy else None,
            self.top_k.index_select(0, at) if kinds.most_kept else None,
            self.top_p.index_select(0, at) if kinds.nucleus else None,
        )


class Mirror:
    """Arrays by slot on the host: whose a slot is, and the counters, which no draw changes."""

    def __init__(self) -> None:
        for name in Mirror.__annotations__:
            setattr(self, name, np.zeros(0, dtype=np.int64))

    key: np.ndarray
    """The number of the row that has this slot, or `FREE` or `TWIN`."""
    leader: np.ndarray
    twin: np.ndarray
    place: np.ndarray
    drawn: np.ndarray
    limit: np.ndarray
    length: np.ndarray
    """Tokens in the cache."""
    before: np.ndarray
    """The place at which the last id was drawn."""
    told: np.ndarray
    """The last id of a text."""
    read: np.ndarray
    """Ids that were handed to whoever reads along."""

    def arrange(self, order: np.ndarray, added: int) -> None:
        for name in vars(self):
            column = getattr(self, name)[order]
            setattr(self, name, np.concatenate([column, np.full(added, FREE if name == "key" else 0)]))

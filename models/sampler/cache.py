"""The KV cache by slots: every slot has its own length, and rooms for more tokens come in blocks.

A slot's tokens stand in the columns 0 to its length, so the mask of a step is `column <= length`. What stands behind is
of a row before, or nothing, and is overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

BLOCK = 128
"""Columns that are added at a time."""


class SlotCache(Cache):
    """Keys and values of each layer, and the tokens of each slot."""

    def __init__(self, layers: int, device: torch.device | str):
        self.length_S = torch.zeros(0, dtype=torch.long, device=device)
        """Tokens written, by slot."""
        self.columns = 0
        """Room for so many tokens in every slot."""
        self.seen = 0
        """Columns that the step under way looks at."""
        self.moved = 0
        """How often the keys and values have been given other memory."""
        self._column = torch.zeros(0, dtype=torch.long, device=device)
        self._first = self._column
        """Where each slot begins among the columns of all."""
        self.at_S = self._column
        """Where the tokens of the step under way stand among them."""
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    @property
    def slots(self) -> int:
        return len(self.length_S)

    @property
    def _layers(self) -> list[_SlotLayer]:
        return cast("list[_SlotLayer]", self.layers)

    def arrange(self, order_S: Tensor, added: int = 0) -> None:
        """Keeps these slots in this order, and puts empty ones behind."""
        self.length_S = torch.cat([self.length_S[order_S], self.length_S.new_zeros(added)])
        self._measure()
        for layer in self._layers:
            layer.arrange(order_S, added)

    def reserve(self, tokens: int, most: int) -> None:
        """Room for so many tokens, in whole blocks; no more than `most`, which is all that will ever be needed."""
        if tokens <= self.columns:
            return
        self.columns = max(tokens, min(most, -(-tokens // BLOCK) * BLOCK))
        self._measure()
        for layer in self._layers:
            layer.widen(self.columns)

    def _measure(self) -> None:
        self.moved += 1
        self._column = torch.arange(self.columns, device=self.length_S.device)
        self._first = torch.arange(self.slots, device=self.length_S.device) * self.columns

    def admit(self, slots_n: Tensor, layers: Sequence[tuple[Tensor, Tensor]], rows_n: Tensor, length_n: Tensor) -> None:
        """Puts rows of prefilled keys and values, [rows, heads, T, d] a layer, into slots; of each so many tokens."""
        for layer, (keys, values) in zip(self._layers, layers, strict=True):
            layer.admit(slots_n, keys, values, rows_n, (self.slots, self.columns))
        self.length_S[slots_n] = length_n

    def begin(self, seen: int) -> Tensor:
        """Before a step that writes a token a slot: its mask [slots, 1, 1, seen]."""
        # A row that has ended may be full: what it writes is not read.
        self.seen, self.at_S = seen, self._first + self.length_S.clamp(max=self.columns - 1)
        return self._column[:seen] <= self.length_S.view(-1, 1, 1, 1)

    def free(self, slots_n: Tensor) -> None:
        """A free slot attends nothing but what is written next."""
        self.length_S[slots_n] = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.seen - 1, 0)


class _SlotLayer(DynamicLayer):
    """`keys` and `values` as attention takes them, [slots, heads, columns, d], over memory in which a token of a slot
    stands together: `rows`, [slots * columns, heads * d] each."""

    keys: Tensor
    values: Tensor

    def __init__(self, cache: SlotCache):
        super().__init__()
        self.cache = cache
        self.rows: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Writes a token a slot, at its length, and gives the columns that the step looks at."""
        at_S, seen = self.cache.at_S, self.cache.seen
        for rows, states in zip(self.rows, (key_states, value_states), strict=True):
            # Of one token heads come before d, as they stand; all are of the type that the prompt's had.
            rows.index_copy_(0, at_S, states.to(self.dtype).flatten(1))
        keys, values = self.keys, self.values
        if torch.compiler.is_compiling():  # a program cannot take two views of one memory that it writes
            of_heads = self.cache.slots, self.cache.columns, *key_states.shape[1::2]
            keys, values = (rows.view(of_heads).transpose(1, 2) for rows in self.rows)
        return keys.narrow(2, 0, seen), values.narrow(2, 0, seen)

    def admit(self, slots_n: Tensor, keys: Tensor, values: Tensor, rows_n: Tensor, shape: tuple[int, int]) -> None:
        keys, values = (_as_in_products(part).transpose(1, 2) for part in (keys, values))
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self._hold(*(part.new_zeros(*shape, *part.shape[2:]) for part in (keys, values)))
        for held, part in zip((self.keys, self.values), (keys, values), strict=True):
            buffer = held.transpose(1, 2).narrow(1, 0, part.shape[1])
            buffer.index_copy_(0, slots_n, part.index_select(0, rows_n))

    def _hold(self, *buffers: Tensor) -> None:
        """[slots, columns, heads, d] each."""
        self.rows = tuple(buffer.view(-1, buffer.shape[2] * buffer.shape[3]) for buffer in buffers)
        self.keys, self.values = (buffer.transpose(1, 2) for buffer in buffers)

    def arrange(self, order_S: Tensor, added: int) -> None:
        if self.is_initialized:
            self._hold(*(_arranged(part.transpose(1, 2), order_S, added) for part in (self.keys, self.values)))

    def widen(self, columns: int) -> None:
        if self.is_initialized:
            self._hold(*(_widened(part.transpose(1, 2), columns) for part in (self.keys, self.values)))

    def get_seq_length(self) -> int:
        return self.cache.get_seq_length()


def _arranged(source: Tensor, order_S: Tensor, added: int) -> Tensor:
    buffer = source.new_empty(len(order_S) + added, *source.shape[1:])
    torch.index_select(source, 0, order_S, out=buffer.narrow(0, 0, len(order_S)))
    buffer[len(order_S) :] = 0  # what nobody attends is multiplied by zero, so it must be a number
    return buffer


def _widened(source: Tensor, columns: int) -> Tensor:
    buffer = source.new_empty(len(source), columns, *source.shape[2:])
    buffer[:, : source.shape[1]] = source
    buffer[:, source.shape[1] :] = 0
    return buffer


def _as_in_products(states: Tensor) -> Tensor:
    """As attention takes them under autocast, which else would cast the whole cache for every token."""
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states

"""Who is next: requests wait by owner, owners take turns, and a row is admitted when its worst case fits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...models.policy import UnifiedPolicy
from ...models.sampler.cache import BLOCK
from .ticket import Ticket


@dataclass(frozen=True, slots=True)
class Room:
    """What the cache may hold. A slot is a row, or the twin of a guided one; all have as many columns as the longest
    needs, so the worst case of a set of rows is their slots times the tokens of the longest."""

    slots: int
    tokens: int
    """Of all slots together."""
    in_buckets: bool = False
    """Slots come as powers of two and columns as whole blocks (`steps` of the sampler but plain ones)."""

    def holds(self, slots: int, longest: int) -> bool:
        return slots <= self.slots and self.taken(slots, longest) <= self.tokens

    def taken(self, slots: int, longest: int) -> int:
        """Tokens that so many slots have room for, if the longest row needs so many."""
        if self.in_buckets and slots:
            slots, longest = 1 << (slots - 1).bit_length(), -(-longest // BLOCK) * BLOCK
        return slots * longest


class Waiting:
    """A queue an owner. The next one is the first of the owner whose turn it is; nobody overtakes it, so that long
    requests are not starved by short ones."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Ticket]] = {}

    def __len__(self) -> int:
        """Asked from threads that do not hold the engine's lock, too."""
        return sum(map(len, list(self._queues.values())))

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for queue in list(self._queues.values()) for ticket in list(queue))

    def put(self, ticket: Ticket) -> None:
        self._queues.setdefault(ticket.owner, deque()).append(ticket)

    def first(self) -> Ticket | None:
        return next(iter(self._queues.values()))[0] if self._queues else None

    def pop(self) -> Ticket:
        """The first one; its owner's next turn comes after those of all others."""
        owner, queue = next(iter(self._queues.items()))
        ticket = queue.popleft()
        del self._queues[owner]
        if queue:
            self._queues[owner] = queue
        return ticket

    def remove(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if (queue := self._queues.get(ticket.owner)) and ticket in queue:
                queue.remove(ticket)
                if not queue:
                    del self._queues[ticket.owner]


def bytes_of_a_token(policy: UnifiedPolicy) -> int:
    """Keys and values of one token in all layers."""
    config = policy.model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    element = next(policy.model.parameters()).element_size()
    return 2 * config.num_hidden_layers * kept * width * element

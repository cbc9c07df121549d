"""What both wire forms know of an answer besides its events."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...models.tokens.sequence import Vocabulary
from ..rows.events import Ended, Failed, Shown
from ..store import PictureStore
from .fields import Fault

STATUS = {"time": 504, "slow": 408, "shutdown": 503, "engine": 500, "cancelled": 408, "nothing": 404}


@dataclass
class Meta:
    model: str
    seed: int
    store: PictureStore
    vocabulary: Vocabulary
    base_url: str
    """Before the path of links to pictures."""
    log_probs: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int = 0
    retry_s: float = 1.0
    sources: Sequence[dict[str, Any]] = ()
    """Of an answer from an index: `title`, `document`, and what was used of it."""

    def link(self, shown: Shown) -> str:
        return f"{self.base_url}/v1/images/{self.store.put(shown.png)}"

    def drawn(self, ended: Ended) -> tuple[int, int]:
        """Tokens of the answer, and how many of them are codes of pictures."""
        ids = ended.answer.ids_C
        if ids is None:
            return 0, 0
        return len(ids), int((ids >= self.vocabulary.text_size).sum())

    def fault(self, failed: Failed) -> Fault:
        status = STATUS[failed.kind]
        return Fault(status, failed.line, code=failed.kind, retry_s=self.retry_s if status == 503 else None)

    def extras(self, ended: Ended) -> dict[str, Any]:
        """What the forms have no place for."""
        extra: dict[str, Any] = {"seed": self.seed, "ended": ended.why}
        if ended.answer.cut_image:
            extra["cut_image"] = True
        if ended.answer.faults:
            extra["faults"] = dict(ended.answer.faults)
        if self.sources:
            extra["sources"] = list(self.sources)
        return extra

    def sources_as_text(self) -> str:
        """For programs that show nothing else."""
        lines = [f"{number}. {source['title'] or source['document']}" for number, source in enumerate(self.sources, 1)]
        return "\n\nSources:\n\n" + "\n".join(lines) if lines else ""

    def chat_log_probs(self, ended: Ended) -> dict[str, Any] | None:
        if not self.log_probs or ended.told is None:
            return None
        return {"content": [entry for run in ended.told for entry in run], "refusal": None}

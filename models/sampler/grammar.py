"""The image grammar as tables: what is due at a place, and which place comes next.

A row is in a text (`TEXT`), at place 1, 2, .. of an image's pattern, at `finished`, or at `opening`, where an answer
begins that must begin with an image.
"""

from __future__ import annotations

import numpy as np
import torch

from ..tokens.sequence import Vocabulary

TEXT = 0
"""A row's place while it writes text; 1 and on are those of an image's pattern."""
ANY_TEXT = -2
"""What is due in a text; else `CODE`, or the id that the grammar forces."""


class Grammar:
    def __init__(self, vocabulary: Vocabulary, device: torch.device | str):
        control, length = vocabulary.controls, len(vocabulary.image)
        self.finished, self.opening = length + 1, length + 2
        self.painted = vocabulary.last_code + 2
        """The place behind the last code of an image."""
        self.host_due = np.array([ANY_TEXT, *vocabulary.image, control.pad, control.boi])
        self.host_after = np.array([TEXT, *range(2, self.finished), TEXT, self.finished, 1])
        self.host_led_to = np.full(vocabulary.text_size, TEXT)
        self.host_led_to[control.boi], self.host_led_to[control.eos] = 1, self.finished
        self.due, self.after, self.led_to = (
            torch.from_numpy(table).to(device) for table in (self.host_due, self.host_after, self.host_led_to)
        )
        """The same on the device: what is due at a place, the place behind it, and the one behind a text id."""

    def inside(self, place: np.ndarray) -> np.ndarray:
        """Inside an image: what follows is known, but for the codes."""
        return (place > TEXT) & (place < self.finished)

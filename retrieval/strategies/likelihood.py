"""Pictures to places by likelihood: how much better a language model foresees each sentence once it has read a caption.

    gain of (sentence, candidate) = log p(sentence | caption, text before it) - the mean of that over other captions

Nothing is trained: any causal language model of transformers, read and never written with, K + 1 times over the text. A
candidate goes behind the sentence that gains most, if it gains more than `least` nats. The other way round, captions
foreseen from sentences, says little: `carbonara` is likely in any recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...configs.errors import InputError
from ...configs.registry import register
from ...data.insertion.placements import InsertionTask, Placement
from ...data.insertion.prompt import MAX_TEXT
from ..answering import Illustrate, Means
from ..placing import PlacementRules, open_places
from .inserter import load_model

LEAST = 10.0
"""Nats; chosen on five recipes, which are not among those of docs/insertion.md."""
REQUEST = "Write a text in which there is this picture: {caption}"
NO_CAPTION = "one without a caption"


@dataclass(eq=False)
class LikelihoodInserter:
    """An `Inserter`. Captions are all that it knows of pictures; one without a caption stays out."""

    model: Any
    tokenizer: Any
    rules: PlacementRules = field(default_factory=PlacementRules)
    least: float = LEAST

    def place(self, task: InsertionTask) -> list[Placement]:
        return placements_of(self.gains(task), open_places(task.sentences, self.rules.sections), self.least)

    def gains(self, task: InsertionTask) -> np.ndarray:
        """[S, K] nats; minus infinity for a candidate without a caption. Raises InputError for a text too long."""
        captions = [" ".join(candidate.caption.split())[:MAX_TEXT] for candidate in task.candidates]
        gains = np.full((len(task.sentences), len(captions)), -np.inf)
        said = [number for number, caption in enumerate(captions) if caption]
        if not said or not task.sentences:
            return gains
        read = [NO_CAPTION, *(captions[number] for number in said)]
        found_RS = np.stack([self._log_likelihoods(caption, task.sentences) for caption in read])
        others_RS = (found_RS.sum(0) - found_RS) / (len(read) - 1)
        gains[:, said] = (found_RS - others_RS)[1:].T
        return gains

    @torch.inference_mode()
    def _log_likelihoods(self, caption: str, sentences: Sequence[str]) -> np.ndarray:
        """Nats of each sentence [S] behind the caption and the sentences before it; one forward."""
        before = self._asked(caption)
        pieces = [self._ids(sentence) for sentence in sentences]
        ids = [*before, *(token for piece in pieces for token in piece)]
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", len(ids))
        if len(ids) > most:
            raise InputError(f"the text has {len(ids):,} tokens, and the model {most:,} positions; give a shorter one")
        ids_1T = torch.tensor([ids], device=self.model.device)
        logits_TV: Tensor = self.model(ids_1T, logits_to_keep=len(ids) - len(before) + 1, use_cache=False).logits[0]
        wanted_T = ids_1T[0, len(before) :]
        log_probs_T = -torch.nn.functional.cross_entropy(logits_TV[:-1].float(), wanted_T, reduction="none")
        sums = np.concatenate([[0.0], log_probs_T.double().cumsum(0).cpu().numpy()])
        ends = list(accumulate(map(len, pieces)))
        return sums[ends] - sums[[0, *ends[:-1]]]

    def _asked(self, caption: str) -> list[int]:
        """The prompt to which the text would be the answer; control tokens typed in a caption are letters."""
        turn = {"role": "user", "content": REQUEST.format(caption=caption)}
        settings = {"add_generation_prompt": True, "return_dict": True, "sanitize_control_tokens": True}
        return self.tokenizer.apply_chat_template([turn], **settings)["input_ids"]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def placements_of(gains: np.ndarray, open_at: np.ndarray, least: float) -> list[Placement]:
    """Each candidate behind the open sentence that it helps most, the first of equals, where that is more than `least`.

    gains: [S, K]. open_at: the S + 1 places; before the first sentence nothing is placed.
    """
    if not gains.size:
        return []
    gains = np.where(open_at[1:, None], gains, -np.inf)
    best = gains.argmax(0)
    chosen = [Placement(int(at) + 1, number + 1) for number, at in enumerate(best) if gains[at, number] > least]
    return sorted(chosen)


@register("strategy", "likelihood")
class LoadedLikelihood(Illustrate):
    """A finished text, or an extract, gets its pictures where their captions help a language model to foresee it."""

    illustrates = True
    needs = ("model",)

    def __init__(self, means: Means):
        model, prompter = load_model(means.model)
        device: Any = means.device or ("cuda" if torch.cuda.is_available() else "cpu")
        inserter = LikelihoodInserter(model.to(device).eval(), prompter.tokenizer, means.rules)
        super().__init__(inserter.place, means.text, document=means.document, own=means.own)

"""Texts against a reference, or against the prompt: ROUGE-L, BERTScore, similarity of sentence embeddings.

A prompt brings its reference in `meta["reference"]`: the text of a whole answer, or a list with one for each text of
the answer, which gives process scores too: the k-th text is held against the k-th of the list, and one past its end
earns 0. An answer without words earns 0. Without a reference the reward does not apply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoTokenizer

from ...configs.errors import InputError
from ...configs.registry import register
from ...models.documents.document import InterleavedDocument, TextSegment
from ..base import Completion, RewardOutput
from ..rules.structure import words
from .pretrained import Encoder, batches, load_pretrained, preset_of

Against = Literal["reference", "prompt"]

_LATIN = re.compile("[A-Za-z0-9]")


class Comparison(Protocol):
    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float | None]:
        """A score from 0 to 1 for each pair; None where it does not apply."""
        ...


class RougeL:
    """F1 of the longest common subsequences of stemmed words (`rougeLsum` of the package rouge-score, 0 to 1).

    It knows the letters a-z and digits alone: a reference in another script does not apply. Lines are its sentences.
    """

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError:
            raise InputError("rouge_l: needs the package rouge-score: pip install 'limner[rewards]'") from None
        self._scorer = RougeScorer(["rougeLsum"], use_stemmer=True)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float | None]:
        return [
            self._scorer.score(reference, candidate)["rougeLsum"].fmeasure if _LATIN.search(reference) else None
            for candidate, reference in zip(candidates, references, strict=True)
        ]


class TextEncoder:
    """A stock transformers encoder of texts; their ends are cut at `tokens`."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 32):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.tokens = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    @classmethod
    def load(cls, place: str, encoder: Encoder) -> TextEncoder:
        model = encoder.model(place, unused=("pooler.",))
        return cls(model, load_pretrained(AutoTokenizer, place), encoder.batch_size)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], layer: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states [B, T, H] of a layer (0 the embeddings, -1 the last), fp32; which tokens are no padding [B, T];
        which of those are of the text itself, no [CLS] or [SEP] [B, T]."""
        inputs = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.tokens,
            return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        special_BT = inputs.pop("special_tokens_mask").bool()
        states_BTH = self.model(**inputs, output_hidden_states=True).hidden_states[layer].float()
        there_BT = inputs["attention_mask"].bool()
        return states_BTH, there_BT, there_BT & ~special_BT


class BertScore:
    """F1 of greedily matched token embeddings (arXiv 1904.09675), without idf, as the package bert-score computes it.

    A token's best partner may be any token of the other text; [CLS] and [SEP] themselves do not count. The score is
    (F1 - baseline) / (1 - baseline), the package's rescaling, cut to 0..1.
    """

    def __init__(self, encoder: TextEncoder, layer: int, baseline: float = 0.0):
        layers = encoder.model.config.num_hidden_layers
        if not 0 <= layer <= layers:
            raise InputError(
                f"bertscore: the model has {layers} layers, not {layer}; it is meant for {BERTSCORE.model}"
            )
        self.encoder, self.layer, self.baseline = encoder, layer, baseline

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float | None]:
        scores: list[float | None] = []
        for _, _, f1 in self.precision_recall_f1(candidates, references):
            scores.append(min(max((f1 - self.baseline) / (1 - self.baseline), 0.0), 1.0))
        return scores

    def precision_recall_f1(
        self, candidates: Sequence[str], references: Sequence[str]
    ) -> list[tuple[float, float, float]]:
        """Of each pair, not rescaled; zeros where one of the texts has no token."""
        scores: list[tuple[float, float, float]] = []
        pairs = list(zip(candidates, references, strict=True))
        for batch in batches(pairs, self.encoder.batch_size):
            # The package, too, begins a text with a space: RoBERTa spells a first word without one otherwise.
            given = self.encoder([f" {candidate}" for candidate, _ in batch], self.layer)
            wanted = self.encoder([f" {reference}" for _, reference in batch], self.layer)
            scores += [tuple(row) for row in greedy_matching(*given, *wanted).tolist()]
        return scores


def greedy_matching(
    given_BTH: Tensor, given_BT: Tensor, given_own_BT: Tensor, wanted_BSH: Tensor, wanted_BS: Tensor, own_BS: Tensor
) -> Tensor:
    """Precision, recall and F1 [B, 3] of candidates (given) and references (wanted).

    The masks are those of `TextEncoder`: what may be matched, and what counts.
    """
    cosine_BTS = normalize(given_BTH, dim=-1) @ normalize(wanted_BSH, dim=-1).transpose(1, 2)
    best_BT = cosine_BTS.masked_fill(~wanted_BS[:, None, :], -1).amax(2)
    best_BS = cosine_BTS.masked_fill(~given_BT[:, :, None], -1).amax(1)
    precision_B = (best_BT * given_own_BT).sum(1) / given_own_BT.sum(1)
    recall_B = (best_BS * own_BS).sum(1) / own_BS.sum(1)
    f1_B = 2 * precision_B * recall_B / (precision_B + recall_B)
    return torch.stack([precision_B, recall_B, f1_B], 1).nan_to_num(0.0)


class EmbeddingSimilarity:
    """max(cosine, 0) of mean-pooled last hidden states, the recipe of sentence-transformers' models."""

    def __init__(self, encoder: TextEncoder):
        self.encoder = encoder

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float | None]:
        scores: list[float | None] = []
        for batch in batches(list(zip(candidates, references, strict=True)), self.encoder.batch_size):
            given_BH, wanted_BH = (self._pooled([pair[side] for pair in batch]) for side in (0, 1))
            scores += (given_BH * wanted_BH).sum(1).clamp(0, 1).tolist()
        return scores

    def _pooled(self, texts: Sequence[str]) -> Tensor:
        states_BTH, there_BT, _ = self.encoder(texts)
        return normalize((states_BTH * there_BT[:, :, None]).sum(1) / there_BT.sum(1, keepdim=True), dim=-1)


class TextReward:
    """An answer's text against the reference or the prompt: as a whole the outcome, and text by text."""

    def __init__(self, name: str, compare: Comparison, against: Against = "reference"):
        self.name, self.compare, self.against = name, compare, against
        self.needs = ("reference",) if against == "reference" else ()
        """Keys of a prompt's `meta` without which there is no score."""

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        outcome: list[float | None] = [None] * len(completions)
        segments: list[list[float | None]] = [[None] * len(completion.answer.segments) for completion in completions]
        asked = [(row, pair) for row, completion in enumerate(completions) for pair in self._pairs(completion)]
        both = [pair for _, pair in asked if pair.said and pair.wanted]
        scores = iter(self.compare([pair.said for pair in both], [pair.wanted for pair in both]))
        for row, pair in asked:
            score = next(scores) if pair.said and pair.wanted else 0.0
            if pair.segment is None:
                outcome[row] = score
            else:
                segments[row][pair.segment] = score
        return RewardOutput(outcome, segments)

    def _pairs(self, completion: Completion) -> Iterator[_Pair]:
        """The whole answer, then each of its texts where the reference has texts; nothing where there is none."""
        prompt, answer = completion.prompt, completion.answer
        texts = [(i, words(s.text)) for i, s in enumerate(answer.segments) if isinstance(s, TextSegment)]
        texts = [(index, text) for index, text in texts if text]
        if self.against == "prompt":
            whole, parts = prompt.text, [prompt.text] * len(texts)
        else:
            whole, parts = reference_of(prompt)
        if not whole:
            return
        yield _Pair(None, " ".join(text for _, text in texts), whole)
        if parts:
            for number, (index, text) in enumerate(texts):
                yield _Pair(index, text, parts[number] if number < len(parts) else "")


class _Pair(NamedTuple):
    segment: int | None
    """Index of a text of the answer; None for all of it."""
    said: str
    wanted: str
    """Empty past the end of the reference."""


def reference_of(prompt: InterleavedDocument) -> tuple[str, list[str]]:
    """The whole reference and its texts one by one, empty where there is none. Raises InputError for another type."""
    reference = prompt.meta.get("reference")
    if reference is None or isinstance(reference, str):
        return (reference or "").strip(), []
    if not isinstance(reference, list) or not all(isinstance(text, str) and text.strip() for text in reference):
        raise InputError(
            f'prompt {prompt.id!r}: meta "reference" is neither a text nor a list of texts that have words'
        )
    return " ".join(reference), reference


@dataclass(frozen=True, slots=True)
class BertScorePreset:
    model: str
    layer: int
    baseline: float


BERTSCORE = BertScorePreset("FacebookAI/roberta-large", 17, 0.83122575)
"""Layer and baseline of bert-score's own table (rescale_baseline/en/roberta-large.tsv). English."""
EMBEDDING = "sentence-transformers/all-mpnet-base-v2"
"""English; its card pools as `EmbeddingSimilarity` does."""


def _rouge_l(encoder: Encoder, model: str) -> Comparison:
    return RougeL()


def _bertscore(encoder: Encoder, model: str) -> Comparison:
    return BertScore(TextEncoder.load(model or BERTSCORE.model, encoder), BERTSCORE.layer, BERTSCORE.baseline)


def _embedding(encoder: Encoder, model: str) -> Comparison:
    return EmbeddingSimilarity(TextEncoder.load(model or EMBEDDING, encoder))


PRESETS: dict[str, tuple[Callable[[Encoder, str], Comparison], Against]] = {
    "rouge_l": (_rouge_l, "reference"),
    "bertscore": (_bertscore, "reference"),
    "embedding": (_embedding, "reference"),
    "prompt_embedding": (_embedding, "prompt"),
}


@register("reward", "text/PRESET")
@dataclass
class PresetTextReward(TextReward):
    """Texts against a reference, or against the prompt."""

    preset: str
    """rouge_l, bertscore or embedding against the reference; prompt_embedding against the prompt."""
    encoder: Encoder = field(default_factory=Encoder)
    """One of `encoders:`; rouge_l needs none."""
    model: str = ""
    """Where the weights are, if not at the preset's: a folder, ORG/NAME or ORG/NAME@REVISION."""

    def __post_init__(self) -> None:
        load, against = preset_of(PRESETS, self.preset)
        super().__init__(self.preset, load(self.encoder, self.model), against)

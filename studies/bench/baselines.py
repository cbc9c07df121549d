"""The other sides of `limner bench sampler`: what people do with transformers today, and the best its modules allow.

All of them write the same documents, token by token. A family that stock `generate` cannot drive alone brings its own
`Baseline`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from ...models.policy import UnifiedPolicy
from ...models.tokens.sequence import CODE, Vocabulary


class Baseline(ABC):
    """One family's stock model, with nothing of the sampler in it. Ids are joint."""

    def __init__(self, policy: UnifiedPolicy):
        self.vocabulary = policy.vocabulary
        self.model: Any = stock_copy(policy.model)
        self.device = policy.model.device

    def settings(self, length: int) -> GenerationConfig:
        """Of `generate`: plain sampling, until the segment's end."""
        control = self.vocabulary.controls
        ends = {"eos_token_id": [control.boi, control.eos], "pad_token_id": control.pad}
        return GenerationConfig(max_new_tokens=length, do_sample=True, top_k=0, **ends)

    @abstractmethod
    def write(self, ids_BT: Tensor, attend_BT: Tensor, wanted_BS: Tensor, cache: Cache | None) -> None:
        """One segment behind each prefix, as a user has it written: texts end with `<boi>` or `<eos>`, then padding.

        Prefixes are padded on the left. A cache holds all of them but the last token, or nothing yet, and takes the
        new keys and values. Raises RuntimeError if other ids than the wanted ones were written.
        """

    @abstractmethod
    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """The stock decoder alone: last hidden states [B, T, H]."""

    @abstractmethod
    def logits(self, hidden: Tensor, image: bool, ids: Tensor) -> Tensor:
        """The scores of one modality, [..., choices], from which these ids are chosen."""


class OneHeadBaseline(Baseline):
    """A stock model whose one LM head scores text ids and image codes alike: Llama, Gemma, Chameleon, Emu3."""

    def __init__(self, policy: UnifiedPolicy):
        super().__init__(policy)
        size = self.vocabulary.text_size
        codes = policy.processor.code_ids or range(size, size + self.vocabulary.image_codes)
        self.own_ids = torch.tensor([*range(size), *codes], device=self.device)
        """The model's own id of each joint one."""
        head = self.model.get_output_embeddings().weight
        self.heads = head[:size], head[self.own_ids[size:]]

    def write(self, ids_BT: Tensor, attend_BT: Tensor, wanted_BS: Tensor, cache: Cache | None) -> None:
        wanted_BS, width = self.own_ids[wanted_BS], ids_BT.shape[1]
        output = self.model.generate(
            self.own_ids[ids_BT],
            attention_mask=attend_BT,
            past_key_values=cache,
            logits_processor=LogitsProcessorList([Wanted(wanted_BS, width)]),
            generation_config=self.settings(wanted_BS.shape[1]),
        )
        check(output[:, width:], wanted_BS)

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        return self.model.get_decoder()(
            input_ids=self.own_ids[ids_BT],
            position_ids=positions_BT,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state

    def logits(self, hidden: Tensor, image: bool, ids: Tensor) -> Tensor:
        return hidden @ self.heads[image].T


class TwoHeadBaseline(Baseline):
    """Stock Janus: `generate` for texts, over embeddings since prefixes hold codes; for images the authors' own loop.

    transformers' image mode always doubles the batch for guidance and knows no prefix with codes
    (deepseek-ai/Janus, generation_inference.py, has the loop).
    """

    @property
    def decoder(self) -> Any:
        return self.model.model.language_model

    def embedded_codes(self, ids: Tensor) -> Tensor:
        """Codes as the decoder reads them, [..., H]."""
        return self.model.prepare_embeddings_for_image_generation(ids - self.vocabulary.text_size)

    def draw(self, hidden: Tensor, wanted_B: Tensor) -> None:
        """One position of an image, from the last hidden states [B, H]."""
        codes_B1 = self.vocabulary.codes_of(wanted_B)[:, None]
        scores = Wanted(codes_B1, 0)(codes_B1[:, :0], self.model.model.generation_head(hidden))
        check(torch.multinomial(scores.softmax(-1), 1), codes_B1)

    def write(self, ids_BT: Tensor, attend_BT: Tensor, wanted_BS: Tensor, cache: Cache | None) -> None:
        if wanted_BS[0, 0] >= self.vocabulary.text_size:
            return self._write_image(ids_BT, attend_BT, wanted_BS, cache or DynamicCache())
        stock: Any = GenerationMixin
        output = stock.generate(  # the class's own drops the processors
            self.model,
            inputs_embeds=self._embedded(ids_BT),
            attention_mask=attend_BT,
            past_key_values=cache,
            logits_processor=LogitsProcessorList([Wanted(wanted_BS, 0)]),
            generation_config=self.settings(wanted_BS.shape[1]),
        )
        check(output, wanted_BS)

    @torch.inference_mode()  # theirs is
    def _write_image(self, ids_BT: Tensor, attend_BT: Tensor, wanted_BS: Tensor, cache: Cache) -> None:
        """The `<eoi>` behind the codes is read with the next segment."""
        embedded = self._embedded(ids_BT[:, cache.get_seq_length() :])
        for number, wanted_B in enumerate(wanted_BS[:, :-1].unbind(1)):
            if number:
                embedded = self.embedded_codes(wanted_BS[:, number - 1 : number])
                attend_BT = torch.cat([attend_BT, torch.ones_like(attend_BT[:, :1])], 1)
            positions = (attend_BT.cumsum(1) - 1)[:, -embedded.shape[1] :].clamp(min=0)
            hidden = self.decoder(
                inputs_embeds=embedded, attention_mask=attend_BT, position_ids=positions, past_key_values=cache
            ).last_hidden_state[:, -1]
            self.draw(hidden, wanted_B)

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        return self.decoder(
            inputs_embeds=self._embedded(ids_BT),
            position_ids=positions_BT,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        code_BT = ids_BT >= self.vocabulary.text_size
        embedded = self.model.get_input_embeddings()(ids_BT.masked_fill(code_BT, 0))
        if code_BT.any():
            embedded[code_BT] = self.embedded_codes(ids_BT[code_BT])
        return embedded

    def logits(self, hidden: Tensor, image: bool, ids: Tensor) -> Tensor:
        if image:
            return self.model.model.generation_head(hidden)
        return hidden @ self.model.lm_head.weight[: self.vocabulary.text_size].T


class DepthBaseline(TwoHeadBaseline):
    """VILA-U: texts by stock `generate`, pictures by the loop of its authors, over the modules of the folder.

    For a position they run the decoder, then the depth transformer once a code over the codes before it
    (mit-han-lab/vila-u, vila_u_llama.py, `sample` of the depth transformer).
    """

    @property
    def decoder(self) -> Any:
        return self.model.model

    def embedded_codes(self, ids: Tensor) -> Tensor:
        return self.model.projector(self.model.codebooks(self.vocabulary.codes_of(ids)).sum(-2))

    def draw(self, hidden: Tensor, wanted_B: Tensor) -> None:
        codes_BD = self.vocabulary.codes_of(wanted_B)
        drawn, choose = codes_BD[:, :0], Wanted(codes_BD, 0)
        for _ in range(codes_BD.shape[1]):
            scores = choose(drawn, self._deeper(hidden, drawn))
            drawn = torch.cat([drawn, torch.multinomial(scores.softmax(-1), 1)], 1)
        check(drawn, codes_BD)

    def logits(self, hidden: Tensor, image: bool, ids: Tensor) -> Tensor:
        """Of a picture [..., D, codes]: each code needs those before it, so that the depth transformer runs D times."""
        if not image:
            return super().logits(hidden, image, ids)
        codes = self.vocabulary.codes_of(ids)
        return torch.stack([self._deeper(hidden, codes[:, :step]) for step in range(self.vocabulary.depth)], 1)

    def _deeper(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Scores of the code behind those of each position, [n, codes]."""
        transformer = self.model.depth_transformer
        return transformer.classifier_mlp.linear(transformer(hidden, self.model.codebooks(before))[:, -1])


def check(written: Tensor, wanted: Tensor) -> None:
    if not torch.equal(written, wanted):
        raise RuntimeError("transformers wrote other ids than it was made to")


class Wanted(LogitsProcessor):
    """Allows one id a row and step. A user's own, which allows one modality, masks the same row of scores."""

    def __init__(self, wanted_BS: Tensor, width: int):
        self.wanted_BS, self.width = wanted_BS, width

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        step = input_ids.shape[1] - self.width
        return torch.full_like(scores, float("-inf")).scatter_(1, self.wanted_BS[:, step : step + 1], 0.0)


def stock_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model over the same weights; the policy has put a forward of its own on its model."""
    copy: Any = type(model)(model.config)
    copy.load_state_dict(model.state_dict(), assign=True)
    return copy.to(model.device).eval()


def segments(ids_C: Tensor, vocabulary: Vocabulary) -> list[Tensor]:
    """A completion cut into texts, each with the `<boi>` or `<eos>` that ends it, and images, each with its `<eoi>`."""
    found, start = [], 0
    while start < len(ids_C):
        opened = (ids_C[start:] == vocabulary.controls.boi).nonzero()
        stop = start + int(opened[0]) + 1 if len(opened) else len(ids_C)
        found.append(ids_C[start:stop])
        start = stop + len(vocabulary.image)
        if len(opened):
            found.append(ids_C[stop:start])
    return found


def write_unbatched(baseline: Baseline, prompt_T: Tensor, documents: Sequence[Tensor]) -> None:
    """Document by document, segment by segment: rows of one batch would be in different modalities.

    The cache is kept from one segment to the next, though `generate` alone would drop it.
    """
    for ids_C in documents:
        ids_T, cache = prompt_T, DynamicCache(config=baseline.model.config.get_text_config())
        for segment in segments(ids_C, baseline.vocabulary):
            baseline.write(ids_T[None], torch.ones_like(ids_T)[None], segment[None], cache)
            ids_T = torch.cat([ids_T, segment])


def write_batched(baseline: Baseline, prompt_T: Tensor, documents: Sequence[Tensor]) -> None:
    """All documents together, a segment at a time: the next begins when the last row is through.

    Rows are then of different lengths, so they are padded anew and the prefix is computed again.
    """
    pad = baseline.vocabulary.controls.pad
    rows = [prompt_T] * len(documents)
    for parts in zip(*(segments(ids_C, baseline.vocabulary) for ids_C in documents), strict=True):
        ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
        ones = [torch.ones_like(row) for row in rows]
        attend_BT = pad_sequence(ones, batch_first=True, padding_side="left")
        baseline.write(ids_BT, attend_BT, pad_sequence(list(parts), batch_first=True, padding_value=pad), None)
        rows = [torch.cat([row, part]) for row, part in zip(rows, parts, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One position of all documents, the longest first, so that those which have ended are the last rows."""

    ids_R: Tensor
    text: Tensor
    """Rows whose token here was chosen among the text ids."""
    image: Tensor
    """Rows whose token here was chosen among the codes; one that the grammar forced needs no head."""


def columns(documents: Sequence[Tensor], vocabulary: Vocabulary) -> list[Column]:
    """What `run_ceiling` is fed."""
    pattern = torch.tensor(vocabulary.image)
    kinds = []
    for ids_C in documents:
        parts = [torch.ones_like(part) for part in segments(ids_C, vocabulary)]
        parts[1::2] = [torch.where(pattern == CODE, 2, 0).to(ids_C.device)] * len(parts[1::2])
        kinds.append(torch.cat(parts))
    order = sorted(range(len(documents)), key=lambda row: -len(documents[row]))
    table = []
    for step in range(len(documents[order[0]])):
        running = [row for row in order if len(documents[row]) > step]
        ids_R, kind_R = (torch.stack([rows[row][step] for row in running]) for rows in (documents, kinds))
        table.append(Column(ids_R, (kind_R == 1).nonzero()[:, 0], (kind_R == 2).nonzero()[:, 0]))
    return table


@torch.inference_mode()
def run_ceiling(baseline: Baseline, prompt_T: Tensor, table: Sequence[Column]) -> None:
    """The stock decoder with transformers' static cache and the head rows that a choice would need; nothing chooses.

    The prompt is computed once, and rows leave the batch as soon as they end.
    """
    width, room = len(prompt_T), len(prompt_T) + len(table) - 1
    cache = StaticCache(config=baseline.model.config.get_text_config(), max_cache_len=room)
    order = torch.arange(room, device=baseline.device)
    mask = (order[:, None] >= order)[None, None]
    hidden = baseline.hidden(prompt_T[None], order[None, :width], mask[:, :, :width], cache)[:, -1]
    rows = len(table[0].ids_R)
    hidden = hidden.expand(rows, -1)
    for layer in cache.layers:
        layer.keys, layer.values = (kept.repeat(rows, 1, 1, 1) for kept in (layer.keys, layer.values))  # type: ignore
    for step, column in enumerate(table):
        for chosen, image in ((column.text, False), (column.image, True)):
            if len(chosen):
                baseline.logits(hidden[chosen], image, column.ids_R[chosen])
        if step + 1 == len(table):
            break
        rows = len(table[step + 1].ids_R)
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:rows], layer.values[:rows]  # type: ignore
        at = slice(width + step, width + step + 1)
        hidden = baseline.hidden(column.ids_R[:rows, None], order[None, at], mask[:, :, at], cache)[:, -1]

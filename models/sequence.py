"""TokenSequence, the only tensor form of a document, and its batches.

Shape suffixes, one legend for the whole repository: B batch, G rollouts of a prompt, K segments, T tokens, C
completion tokens, V text vocabulary, N image tokens of one image, D codes a position, H hidden size.

Ids are joint: a text id is below V, image code c is V + c, so an id alone tells its modality. A document is laid out as

    <bos> prompt segments <answer> completion segments <eos>

and an image as `<boi>` N codes `<eoi>`. The sampler chooses `<boi>` and `<eos>`; `<eoi>` follows by the grammar, so it
is never trained and its log-prob is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ControlIds:
    """Ids that only the processor and the sampler write; text, whatever it says, never becomes one."""

    pad: int
    bos: int
    eos: int
    boi: int
    eoi: int
    answer: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The joint id space and the image grammar of a model."""

    controls: ControlIds
    text_size: int
    """V: ids below it are text and controls."""
    image_codes: int
    """Number of image codes; the joint id of code c is V + c."""
    image_length: int
    """N: codes of one image."""

    @property
    def never_sampled(self) -> tuple[int, ...]:
        """Text ids the model may not choose: the grammar or the processor writes them."""
        return (self.controls.pad, self.controls.bos, self.controls.eoi, self.controls.answer)


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """Where one image stands in a sequence."""

    start: int
    """First code, in T; `<boi>` stands before it."""
    stop: int
    """One past the last code; `<eoi>` stands there."""
    segment: int
    role: Literal["given", "generated"]


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    ids_T: Tensor
    """Joint ids, int64 [T]."""
    segment_T: Tensor
    """Index of the document's segment, int64 [T]; -1 for `<bos>` and `<answer>`; `<eos>` has the number of segments."""
    trainable_T: Tensor
    """Where the model's own choices stand, bool [T]."""
    prompt_length: int
    """Tokens up to and with `<answer>`."""
    slots: tuple[ImageSlot, ...] = ()

    def __len__(self) -> int:
        return self.ids_T.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Token sequences as rows, several to a row if packed; every tensor is indexed by row first."""

    ids_BT: Tensor
    positions_BT: Tensor
    """Position of a token in its own sequence."""
    sequence_BT: Tensor
    """Which sequence of the row a token belongs to; -1 where the row is padding."""
    segment_BT: Tensor
    """Number of a token's segment, counted through the whole row; `<eos>` belongs to the last one of its document."""
    trainable_BT: Tensor
    images_before_BT: Tensor
    """Number of images begun in the completion before a token; the grammar's `max_images` counts it."""

    def mask_BTT(self) -> Tensor:
        """True where a token may attend: earlier (or itself) and of the same sequence. Shape [B, 1, T, T]."""
        length = self.ids_BT.shape[1]
        same = self.sequence_BT[:, :, None] == self.sequence_BT[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
        return (same & causal)[:, None]

    def without_prompt(self, answer: int) -> tuple[Tensor, Tensor]:
        """Positions [B, T] and mask [B, 1, T, T] of the same tokens had their prompts been empty: `<bos> <answer> ...`.

        What classifier-free guidance calls unconditional. `answer` is the id of `<answer>`; the prompt's own tokens
        attend only themselves, and what they give is not to be read.
        """
        answered_BT = (self.ids_BT == answer).cumsum(1) > self.sequence_BT  # one `<answer>` a sequence
        prompt_BT = ~answered_BT & (self.positions_BT > 0)
        skipped_BT = torch.zeros_like(self.positions_BT)
        for index in range(int(self.sequence_BT.max()) + 1 if self.sequence_BT.numel() else 0):
            own_BT = self.sequence_BT == index
            skipped_BT += own_BT * (prompt_BT & own_BT).sum(1, keepdim=True)
        positions_BT = torch.where(answered_BT, self.positions_BT - skipped_BT, 0).clamp(min=0)
        itself = torch.eye(self.ids_BT.shape[1], dtype=torch.bool, device=self.ids_BT.device)
        return positions_BT, self.mask_BTT() & ~prompt_BT[:, None, None, :] | itself

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(*(getattr(self, name).to(device) for name in self.__slots__))

    def rows(self, index: slice | Tensor) -> TokenBatch:
        return TokenBatch(*(getattr(self, name)[index] for name in self.__slots__))


def images_before(ids_T: Tensor, prompt_length: int, boi: int) -> Tensor:
    """Number of `<boi>` in the completion strictly before each token, int64 [T]."""
    begun_T = (ids_T == boi) & (torch.arange(ids_T.shape[0]) >= prompt_length)
    return begun_T.cumsum(0) - begun_T.long()


def collate(rows: Sequence[Sequence[TokenSequence]], controls: ControlIds, length: int | None = None) -> TokenBatch:
    """Puts the sequences of each row one after the other and pads on the right, to `length` if given.

    Attention and positions are those of each sequence alone, so a packed row gives the losses of its sequences (a test
    says so).
    """
    width = length or max(sum(len(sequence) for sequence in row) for row in rows)
    batch = TokenBatch(
        ids_BT=torch.full((len(rows), width), controls.pad),
        positions_BT=torch.zeros(len(rows), width, dtype=torch.long),
        sequence_BT=torch.full((len(rows), width), -1),
        segment_BT=torch.full((len(rows), width), -1),
        trainable_BT=torch.zeros(len(rows), width, dtype=torch.bool),
        images_before_BT=torch.zeros(len(rows), width, dtype=torch.long),
    )
    for row, sequences in enumerate(rows):
        start = segments = 0
        for index, sequence in enumerate(sequences):
            span = slice(start, start + len(sequence))
            batch.ids_BT[row, span] = sequence.ids_T
            batch.positions_BT[row, span] = torch.arange(len(sequence))
            batch.sequence_BT[row, span] = index
            segment_T = (sequence.segment_T - (sequence.ids_T == controls.eos).long()).clamp(min=0)
            batch.segment_BT[row, span] = segments + segment_T
            segments += int(segment_T.max()) + 1
            batch.trainable_BT[row, span] = sequence.trainable_T
            batch.images_before_BT[row, span] = images_before(sequence.ids_T, sequence.prompt_length, controls.boi)
            start = span.stop
    return batch

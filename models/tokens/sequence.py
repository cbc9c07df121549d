"""TokenSequence, the only tensor form of a document, and its batches.

Shape suffixes, one legend for the whole repository: B batch, G rollouts of a prompt, K segments, T tokens, C
completion tokens, V text vocabulary, N image tokens of one image, D codes a position, H hidden size.

Ids are joint: a text id is below V, image code c is V + c, so an id alone tells its modality. A position of D residual
codes is one token, and its id tells them all: V + c_0 + c_1 * codes + c_2 * codes^2 ... A document is laid out as

    start, prompt segments, answer, completion segments, <eos>

where `start` and `answer` are the ids of the model's chat template, and an image as `<boi>` and the ids of its
pattern, which ends with `<eoi>`. The sampler chooses `<boi>`, the codes and `<eos>`; whatever else a pattern holds
follows by the grammar, so it is never trained and its log-prob is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CODE = -1
"""Where a code stands in the pattern of an image."""


@dataclass(frozen=True, slots=True)
class ControlIds:
    """Ids that only the processor and the sampler write; text, whatever it says, never becomes one."""

    pad: int
    bos: int
    eos: int
    boi: int
    eoi: int
    image: int | None = None
    """Stands, once a feature, where the model sees a picture through its own encoder."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The joint id space, the layout of documents and the image grammar of a model."""

    controls: ControlIds
    text_size: int
    """V: ids below it are text and controls."""
    image_codes: int
    """Number of image codes (at a depth); the joint id of code c is V + c."""
    image_length: int
    """N: positions of one image, each of a code, or of D."""
    start: tuple[int, ...]
    """Ids before the prompt."""
    answer: tuple[int, ...]
    """Ids between the prompt and the completion."""
    image: tuple[int, ...]
    """What follows `<boi>` in an image of codes: `CODE` where one stands, else the id that the grammar forces."""
    given: tuple[int, ...]
    """What follows `<boi>` in a given image: the same, or one `controls.image` a feature."""
    never_sampled: tuple[int, ...]
    """Text ids the model may not choose: the grammar or the processor writes them, or they are codes."""
    unconditional: tuple[int, ...]
    """Ids before the completion where guidance takes the prompt away; no more of them than in `start` and `answer`."""
    pads_prompt: bool = False
    """How guidance takes a prompt away: it is padded over, all but `<bos>` and `<boi>` (Janus); else it is empty."""
    depth: int = 1
    """D: codes of a position."""

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Of the codes of one image: (N,), or (N, D) where a position has several."""
        return (self.image_length,) if self.depth == 1 else (self.image_length, self.depth)

    def ids_of(self, codes: Tensor) -> Tensor:
        """Joint ids of codes, [...] of [...], or where a position has D of them [...] of [..., D]."""
        if self.depth == 1:
            return codes + self.text_size
        numbers = codes[..., -1]
        for place in reversed(range(self.depth - 1)):
            numbers = numbers * self.image_codes + codes[..., place]
        return numbers + self.text_size

    def codes_of(self, ids: Tensor) -> Tensor:
        """The inverse of `ids_of`."""
        numbers = ids - self.text_size
        if self.depth == 1:
            return numbers
        # Of numbers alone: a tensor made of them on the host would be a wait for the device in every step.
        places = [self.image_codes**place for place in range(self.depth)]
        return torch.stack([numbers // place % self.image_codes for place in places], -1)

    def are_image(self, ids: Tensor) -> Tensor:
        """True for codes and for placeholders of features."""
        codes = ids >= self.text_size
        return codes if self.controls.image is None else codes | (ids == self.controls.image)

    @property
    def last_code(self) -> int:
        """Where the last code stands in the pattern of an image."""
        return len(self.image) - 1 - self.image[::-1].index(CODE)

    @property
    def features(self) -> int:
        """Features of a picture that the model sees through an encoder of its own; 0 where it has none."""
        return 0 if self.controls.image is None else self.given.count(self.controls.image)


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """Where one image stands in a sequence."""

    start: int
    """The id behind `<boi>`, in T."""
    stop: int
    """The last id of the pattern, an `<eoi>`."""
    segment: int
    role: Literal["given", "generated"]
    pixels: Tensor | None = None
    """[3, S, S] for the model's own encoder, where it sees this image by features."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    ids_T: Tensor
    """Joint ids, int64 [T]."""
    segment_T: Tensor
    """Index of the document's segment, int64 [T]; -1 for the template; `<eos>` has the number of segments."""
    trainable_T: Tensor
    """Where the model's own choices stand, bool [T]."""
    prompt_length: int
    """Tokens before the completion."""
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
    prompt_BT: Tensor
    """What guidance takes away."""
    pixels_BI: Tensor
    """Pictures that the model sees by features, in order, padded with zeros: [B, I, 3, S, S], or [B, 0] without any."""

    @property
    def is_unpacked(self) -> bool:
        """Every row is one sequence, padded on the right: then a causal mask is all that attention needs."""
        sequence_BT = self.sequence_BT
        return bool((sequence_BT[:, 0] == 0).all() & (sequence_BT[:, 1:] <= sequence_BT[:, :-1]).all())

    def mask_BTT(self) -> Tensor:
        """True where a token may attend: earlier (or itself) and of the same sequence. Shape [B, 1, T, T]."""
        length = self.ids_BT.shape[1]
        same = self.sequence_BT[:, :, None] == self.sequence_BT[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool, device=same.device).tril()
        return (same & causal)[:, None]

    def without_prompt(self, vocabulary: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [B, T], positions [B, T] and mask [B, 1, T, T] of the same tokens had their prompts been taken away.

        What classifier-free guidance calls unconditional. What stands before the completion then, stands in the last
        places of the prompt; the tokens before attend only themselves, and what they give is not to be read.
        """
        ids_BT = self.ids_BT.masked_fill(self.prompt_BT, vocabulary.controls.pad)
        if vocabulary.pads_prompt:
            return ids_BT, self.positions_BT, self.mask_BTT()
        skipped_BT = torch.zeros_like(self.positions_BT)
        for index in range(int(self.sequence_BT.max()) + 1 if self.sequence_BT.numel() else 0):
            own_BT = self.sequence_BT == index
            skipped_BT += own_BT * (self.prompt_BT & own_BT).cumsum(1)
        positions_BT = (self.positions_BT - skipped_BT).clamp(min=0)
        instead_T = torch.tensor(vocabulary.unconditional, device=ids_BT.device)
        instead_BT = (positions_BT < len(instead_T)) & ~self.prompt_BT & (self.sequence_BT >= 0)
        ids_BT[instead_BT] = instead_T[positions_BT[instead_BT]]
        itself = torch.eye(ids_BT.shape[1], dtype=torch.bool, device=ids_BT.device)
        return ids_BT, positions_BT, self.mask_BTT() & ~self.prompt_BT[:, None, None, :] | itself

    def placeholders(self, vocabulary: Vocabulary) -> tuple[Tensor, Tensor, Tensor]:
        """Where placeholders stand [B, T], whose picture of the row each is, and which of its features.

        A picture's placeholders are a run, which the length limit may have cut.
        """
        seen_BT = self.ids_BT == vocabulary.controls.image
        first_BT = seen_BT & ~torch.cat([torch.zeros_like(seen_BT[:, :1]), seen_BT[:, :-1]], dim=1)
        order_BT = seen_BT.cumsum(1)
        return seen_BT, first_BT.cumsum(1) - 1, order_BT - (order_BT * first_BT).cummax(1).values

    def pictures(self, vocabulary: Vocabulary) -> Tensor:
        """The pictures that placeholders stand for, in the order of rows and tokens, [n, 3, S, S]; [0] for none."""
        held_B = self.placeholders(vocabulary)[1].max(1).values + 1
        order_I = torch.arange(self.pixels_BI.shape[1], device=held_B.device)
        return self.pixels_BI[order_I < held_B[:, None]]

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(*(getattr(self, name).to(device) for name in self.__slots__))

    def rows(self, index: slice | Tensor) -> TokenBatch:
        return TokenBatch(*(getattr(self, name)[index] for name in self.__slots__))


def images_before(sequence: TokenSequence) -> Tensor:
    """Number of images begun in the completion strictly before each token, int64 [T]."""
    begun_T = torch.zeros(len(sequence), dtype=torch.long)
    for slot in sequence.slots:
        begun_T[slot.start - 1] = slot.start > sequence.prompt_length
    return begun_T.cumsum(0) - begun_T


def collate(rows: Sequence[Sequence[TokenSequence]], vocabulary: Vocabulary, length: int | None = None) -> TokenBatch:
    """Puts the sequences of each row one after the other and pads on the right, to `length` if given.

    Attention and positions are those of each sequence alone, so a packed row gives the losses of its sequences (a test
    says so).
    """
    controls, width = vocabulary.controls, length or max(sum(len(sequence) for sequence in row) for row in rows)
    shape = (len(rows), width)
    batch = TokenBatch(
        ids_BT=torch.full(shape, controls.pad),
        positions_BT=torch.zeros(shape, dtype=torch.long),
        sequence_BT=torch.full(shape, -1),
        segment_BT=torch.full(shape, -1),
        trainable_BT=torch.zeros(shape, dtype=torch.bool),
        images_before_BT=torch.zeros(shape, dtype=torch.long),
        prompt_BT=torch.zeros(shape, dtype=torch.bool),
        pixels_BI=_pixels(rows),
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
            batch.images_before_BT[row, span] = images_before(sequence)
            batch.prompt_BT[row, span] = taken_away(sequence, vocabulary)
            start = span.stop
    return batch


def taken_away(sequence: TokenSequence, vocabulary: Vocabulary) -> Tensor:
    """The tokens of its prompt that a sequence loses under guidance, bool [T]."""
    order_T = torch.arange(len(sequence))
    if vocabulary.pads_prompt:
        kept_T = (sequence.ids_T == vocabulary.controls.bos) | (sequence.ids_T == vocabulary.controls.boi)
        return (order_T < sequence.prompt_length) & ~kept_T
    return order_T < sequence.prompt_length - len(vocabulary.unconditional)


def _pixels(rows: Sequence[Sequence[TokenSequence]]) -> Tensor:
    held = [[slot.pixels for item in row for slot in item.slots if slot.pixels is not None] for row in rows]
    most = max(map(len, held))
    if not most:
        return torch.zeros(len(rows), 0)
    example = next(pixels for row in held for pixels in row)
    padded = example.new_zeros(len(rows), most, *example.shape)
    for row, pictures in enumerate(held):
        for index, pixels in enumerate(pictures):
            padded[row, index] = pixels
    return padded

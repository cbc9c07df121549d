"""Prompts to illustrated answers: the processor, the sampler and the image tokenizer in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .document import ImageSegment, InterleavedDocument, TextSegment, open_image
from .errors import InputError
from .generation import Sampling, generate
from .policy import UnifiedPolicy


@dataclass(frozen=True, slots=True)
class Answer:
    document: InterleavedDocument
    """The completion, its pictures painted."""
    ended: bool
    """False where the length limit came first."""
    cut_image: bool
    """True where the limit fell inside a picture, which is left out."""


def write(
    policy: UnifiedPolicy, prompts: Sequence[InterleavedDocument], sampling: Sampling, batch_size: int = 128
) -> list[Answer]:
    """One answer a prompt. A document that holds an answer already gives its prompt alone."""
    processor = policy.processor
    answers: list[Answer] = []
    for start in range(0, len(prompts), batch_size):
        sequences = processor.encode_all([prompt.prompt for prompt in prompts[start : start + batch_size]])
        samples = generate(policy, sequences, sampling, first_row=start)
        readings = [processor.read(sample.ids_C.tolist()) for sample in samples]
        documents = processor.paint([reading.document for reading in readings])
        for document, reading in zip(documents, readings, strict=True):
            answers.append(Answer(document, reading.ended, reading.cut_image))
    return answers


def make_prompt(text: str, pictures: Sequence[Path] = ()) -> InterleavedDocument:
    """A prompt of pictures and a text. Raises InputError naming a picture that does not open or decode."""
    segments: list[ImageSegment | TextSegment] = []
    for path in pictures:
        try:
            segment = ImageSegment(open_image(path.read_bytes()))
            segment.pixels()
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: {error}") from None
        segments.append(segment)
    if not text.strip():
        raise InputError("the prompt is empty")
    return InterleavedDocument((*segments, TextSegment(text)))

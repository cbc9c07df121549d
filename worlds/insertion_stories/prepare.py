"""What the study of insert or generate trains on: prompts, shards and tokenizers of the world with candidates."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configs.bounds import Limit
from ...configs.terminal import say
from ...data.prompts import read_lines
from ...data.records import KINDS
from ...data.shards import read_documents
from ...models.documents.candidates import marker
from ...models.tokens.processing import Processor
from ...train.from_scratch.new_model import NewModelConfig
from ..picture_stories.prepare import learnt_processor, prepare_once, scene_texts
from .prompts import write_plans
from .scenes import InsertionNoise, Plan, draw_plans, insertion_documents, insertion_story, read_plan, thinned


@dataclass
class CandidatesWorldConfig:
    heldout_prompts: Limit = 400
    """Plans kept out of every stage, for the figures."""
    train_prompts: Limit = 4000
    """Plans that GRPO writes stories for; to some nothing is offered."""
    interleaved: Limit = 10_000
    """Noisy warm-up stories."""
    understanding: Limit = 16_000
    """Clean questions, most of them about candidates."""
    text_to_image: Limit = 3600
    """Clean pictures of a sentence."""


def prepare(
    root: Path, world: CandidatesWorldConfig, new_model: NewModelConfig, seed: int, say: Callable[[str], None] = say
) -> tuple[list[Plan], list[Plan], dict[str, Any]]:
    """Prompts, tokenizers, shards and the untrained model; (held-out plans, training plans, figures).

    say: is told what is being done.
    """
    heldout = draw_plans(1_000_000 + seed, world.heldout_prompts)
    rng = random.Random(f"thinned {seed}")
    train = [thinned(rng, p) for p in draw_plans(2_000_000 + seed, world.train_prompts, exclude=frozenset(heldout))]
    write_plans(root / "prompts" / "heldout.jsonl", heldout)
    write_plans(root / "prompts" / "train.jsonl", train)
    figures = prepare_once(
        root,
        new_model,
        seed,
        lambda config: world_processor(config, seed),
        {kind: getattr(world, kind) for kind in KINDS},
        lambda kind: insertion_documents(kind, seed, InsertionNoise(), frozenset(heldout)),
        lambda: heldout_in_training(root, heldout),
        say,
    )
    return heldout, train, figures


def world_processor(config: NewModelConfig, seed: int) -> tuple[Processor, dict[str, Any]]:
    """Tokenizers of the world, and figures of them."""
    texts = [insertion_story(plan).text for plan in draw_plans(3_000_000 + seed, 600)]
    stream = insertion_documents("understanding", 4_000_000 + seed, InsertionNoise(), frozenset())
    texts += [document.text for document in itertools.islice(stream, 600)]
    texts += scene_texts()
    texts += [marker(1 + number % 9) for number in range(900)]
    return learnt_processor(texts, config)


def heldout_in_training(root: Path, heldout: Sequence[Plan]) -> int:
    """Reads every training story and prompt back and counts the plans that are held out: it must be 0."""
    seen = {read_plan(value, place) for place, value in read_lines(root / "prompts" / "train.jsonl")}
    for document in read_documents(root / "data" / "interleaved", "train", shuffle_seed=None):
        seen.add(read_plan(document.meta, document.id))
    return len(set(heldout) & seen)

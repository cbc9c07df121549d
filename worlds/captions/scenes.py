"""The embedded world of the inserter: a text that names things, and captions that name some of them.

    1. A lantern.         img 1: A hare.          belongs nowhere
    2. A couch.           img 2: A sofa.          stands after 2

Half of the captions use another word, so that matching words finds only a part. The answers that the model is warmed
up on think about each candidate in turn, `1: A hare. no 2: A sofa. 2`, and are noisy: some of it at random, some of it
biased (animals one sentence too late, furniture left out, both more often than not), so that the mode is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ...configs.bounds import OneOrMore, Share
from ...data.insertion.placements import Candidate, InsertionTask, Placement
from ...data.insertion.prompt import answer_text, messages
from ...models.tokens.text_tokenizer import CONTROL_TOKENS, train_text_tokenizer
from ...retrieval.strategies.inserter import Prompter
from ...train.from_scratch.new_model import attend_alike

ANIMALS = {"rabbit": "hare", "pigeon": "dove", "donkey": "mule", "frog": "toad", "snake": "serpent", "dog": "hound"}
FURNITURE = {
    "couch": "sofa",
    "rug": "carpet",
    "chair": "seat",
    "lantern": "lamp",
    "wardrobe": "closet",
    "desk": "table",
}
OTHERS = {
    **{"ship": "vessel", "forest": "wood", "stone": "rock", "path": "trail", "cup": "mug", "coat": "jacket"},
    **{"hat": "cap", "bag": "sack", "bicycle": "bike", "shop": "store", "violin": "fiddle", "jar": "pot"},
}
OTHER_WORDS = {**ANIMALS, **FURNITURE, **OTHERS}
"""The things of this world by their first word, and another word for each."""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ answer_token }}{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ answer_token }}{% endif %}"
).replace("{{ answer_token }}", CONTROL_TOKENS["answer"])
"""Without the instructions: a model that learns one task needs none."""


@dataclass
class WorldSize:
    sentences: tuple[int, int] = (3, 4)
    """Fewest and most of a text."""
    candidates: OneOrMore = 10
    shown: Share = 0.6
    """Share of the sentences whose picture is among the candidates."""
    abstain: Share = 0.1
    """Share of tasks in which no candidate belongs."""


@dataclass
class AnswerNoise:
    """How often a placement of a warm-up answer is wrong; shares of 0 to 1."""

    biased: Share = 0.65
    """Animals one sentence late; furniture left out."""
    moved: Share = 0.1
    """At any other place."""
    missing: Share = 0.1
    extra: Share = 0.1
    """Of answers: a distractor inserted as well."""


def named(word: str) -> str:
    """A sentence, and a caption."""
    return f"{'An' if word[0] in 'aeiou' else 'A'} {word}."


def make_task(rng: random.Random, size: WorldSize, identifier: str = "") -> InsertionTask:
    """A text of distinct things, the pictures of some of them, and pictures of things it does not name."""
    words = list(OTHER_WORDS)
    text = rng.sample(words, rng.randint(*size.sentences))
    none = rng.random() < size.abstain
    shown = [number for number in range(len(text)) if not none and rng.random() < size.shown][: size.candidates]
    offered: list[tuple[str, int | None]] = [(text[number], number + 1) for number in shown]
    strange = [word for word in words if word not in text]
    offered += [(word, None) for word in rng.sample(strange, size.candidates - len(offered))]
    rng.shuffle(offered)
    gold = [Placement(after, number) for number, (_, after) in enumerate(offered, 1) if after is not None]
    candidates = []
    for word, _ in offered:
        shade = 10 * words.index(word)
        called = OTHER_WORDS[word] if rng.random() < 0.5 else word
        candidates.append(Candidate(Image.new("RGB", (32, 32), (shade, shade, 255 - shade)), named(called)))
    sentences = tuple((" " if number else "") + named(word) for number, word in enumerate(text))
    meta = {"things": [word for word, _ in offered]}
    return InsertionTask("Illustrate the text.", sentences, tuple(candidates), tuple(sorted(gold)), identifier, meta)


def make_world(seed: int, count: int, size: WorldSize, name: str) -> list[InsertionTask]:
    rng = random.Random(f"{name} {seed}")
    return [make_task(rng, size, f"{name}-{number:06d}") for number in range(count)]


def noisy(task: InsertionTask, rng: random.Random, noise: AnswerNoise) -> list[Placement]:
    """What a warm-up answer says instead of the gold, by candidate number."""
    length, placements = len(task.sentences), []
    for placement in task.gold:
        thing = task.meta["things"][placement.candidate - 1]
        after = placement.after
        if thing in FURNITURE and rng.random() < noise.biased or rng.random() < noise.missing:
            continue
        if thing in ANIMALS and rng.random() < noise.biased:
            after = min(length, after + 1)
        if rng.random() < noise.moved:
            after = rng.randint(0, length)
        placements.append(Placement(after, placement.candidate))
    wrong = sorted({*range(1, len(task.candidates) + 1)} - {placement.candidate for placement in task.gold})
    if wrong and rng.random() < noise.extra:
        placements.append(Placement(rng.randint(0, length), rng.choice(wrong)))
    return sorted(placements, key=lambda placement: placement.candidate)


def thought(task: InsertionTask, placements: Sequence[Placement]) -> str:
    """Each candidate in its order, by number and caption, and where it stands: ten small decisions instead of one.

    Without the numbers the answer would have to count candidates, which a small model does badly.
    """
    after = {placement.candidate: str(placement.after) for placement in placements}
    return " ".join(
        f"{number}: {item.caption} {after.get(number, 'no')}" for number, item in enumerate(task.candidates, 1)
    )


# ---- the model ----


def new_tokenizer(size: WorldSize) -> PreTrainedTokenizerFast:
    """A byte-level BPE that has a token for every word of the world, and its chat template."""
    texts = []
    for task in make_world(0, 300, size, "tokenizer"):
        texts += [messages(task)[-1]["content"], answer_text(task.gold, thought(task, task.gold))]
    tokenizer = train_text_tokenizer(texts, 1024)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(tokenizer: Any, hidden_size: int, layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        max_position_embeddings=1024,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    attend_alike(model, 0.7)
    return model


def answer_loss(
    model: Any, prompter: Prompter, tasks: Sequence[InsertionTask], answers: Sequence[Sequence[Placement]]
) -> Tensor:
    """Mean cross-entropy of the answers' tokens behind their prompts; a scalar."""
    tokenizer = prompter.tokenizer
    prompts = tokenizer([prompter.text(task) for task in tasks], add_special_tokens=False)["input_ids"]
    written = [answer_text(answer, thought(task, answer)) for task, answer in zip(tasks, answers, strict=True)]
    # Letter by letter: `<answer>` is a control token of this tokenizer, which a reader of completions would not see.
    spelled = tokenizer(written, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    completions = [[*ids, tokenizer.eos_token_id] for ids in spelled]
    length = max(len(a) + len(b) for a, b in zip(prompts, completions, strict=True))
    ids_BT = torch.full((len(tasks), length), tokenizer.pad_token_id)
    labels_BT = torch.full_like(ids_BT, -100)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        ids_BT[row, :end] = torch.tensor(prompt + completion)
        labels_BT[row, len(prompt) : end] = torch.tensor(completion)
    # Padding stands behind, where no token of a causal model looks.
    return model(input_ids=ids_BT, labels=labels_BT, use_cache=False).loss

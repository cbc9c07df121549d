"""Inserters, `place(task) -> placements`: a language model that writes its answer, and one that scores pairs.

    inserter = load_inserter("runs/inserter/model")           # writes: constrained decoding, with or without thinking
    inserter = load_inserter("runs/inserter/pairs")           # scores: one forward for all (sentence, candidate) pairs
    inserter.place(task)

Both are stock causal or vision-language models of transformers over the same prompt. A folder that has a
`pair_head.safetensors` beside the model scores pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import PreTrainedModel

from ...configs.errors import InputError, reading
from ...configs.registry import register
from ...configs.whole import whole_directory
from ...data.insertion.placements import InsertionTask, Placement
from ...data.insertion.prompt import NO_THOUGHT, PICTURES, SENTENCES, THINK_END, messages, pictures, read_answer
from ...models.checkpoints.hub import check_repository
from ...models.documents.document import to_rgb
from ...models.sizes import check_sizes
from ..answering import Illustrate, Means
from .constrained import Grammar, LegalAnswers, TokenTexts, longest

HEAD_FILE = "pair_head.safetensors"
IMAGE_SIDE = 336
"""Candidates are shown with at most this many pixels on their longer side: 144 tokens of Qwen2.5-VL."""


class Inserter(Protocol):
    def place(self, task: InsertionTask) -> list[Placement]:
        """In the order of the answer; each candidate at most once."""
        ...


@dataclass(frozen=True, slots=True)
class Prompter:
    """Tasks as a model reads them."""

    processor: Any
    """A tokenizer, or for a vision-language model its processor."""
    image_side: int = IMAGE_SIDE

    @property
    def pixels(self) -> bool:
        return hasattr(self.processor, "image_processor")

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer if self.pixels else self.processor

    def messages(self, task: InsertionTask) -> list[dict[str, Any]]:
        controls = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        return messages(task, self.pixels, sorted(controls, key=len, reverse=True))

    def pictures(self, task: InsertionTask) -> list[Image.Image]:
        """Raises InputError for a picture that does not decode."""
        shown = []
        for picture in pictures(task) if self.pixels else []:
            try:
                shown.append(shrunk(picture, self.image_side))
            except ValueError as error:
                raise InputError(f"task {task.id!r}: {error}") from None
        return shown

    def text(self, task: InsertionTask) -> str:
        """The whole prompt, up to where the model's turn begins; a picture is one placeholder."""
        return self.processor.apply_chat_template(self.messages(task), add_generation_prompt=True, tokenize=False)

    def encode(self, tasks: Sequence[InsertionTask], texts: Sequence[str], side: str) -> dict[str, Tensor]:
        """Model inputs, padded on one side."""
        settings = {"return_tensors": "pt", "padding": True, "padding_side": side, "add_special_tokens": False}
        if not self.pixels:
            return dict(self.processor(list(texts), return_token_type_ids=False, **settings))
        images = [self.pictures(task) for task in tasks]
        # The processor wants no empty lists, and cares for the order of all pictures only.
        flat = [picture for those in images for picture in those]
        return dict(self.processor(text=list(texts), images=flat or None, **settings))


def shrunk(picture: Image.Image, side: int) -> Image.Image:
    rgb = to_rgb(picture)
    if max(rgb.size) > side:
        rgb = rgb.copy()
        rgb.thumbnail((side, side))
    return rgb


# ---- writing ----


@dataclass(eq=False)
class WritingInserter:
    """Greedy and constrained: every answer is a list of legal placements."""

    model: Any
    prompter: Prompter
    think: int = 0
    """Tokens that the model may think before it answers; 0 skips the thought."""
    batch_size: int = 8

    def __post_init__(self) -> None:
        self.model.eval()
        tokenizer = self.prompter.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokens = TokenTexts(tokenizer)
        stops = self.model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        self.ends = sorted({tokenizer.eos_token_id, *stops} - {None})

    def place(self, task: InsertionTask) -> list[Placement]:
        return self.place_all([task])[0]

    def place_all(self, tasks: Sequence[InsertionTask]) -> list[list[Placement]]:
        return [
            placements
            for start in range(0, len(tasks), self.batch_size)
            for placements in self._place(tasks[start : start + self.batch_size])
        ]

    @torch.inference_mode()
    def _place(self, tasks: Sequence[InsertionTask]) -> list[list[Placement]]:
        placed: list[list[Placement]] = [[] for _ in tasks]
        asked = [row for row, task in enumerate(tasks) if task.candidates]
        if not asked:
            return placed
        asked_tasks = [tasks[row] for row in asked]
        texts = [self.prompter.text(task) for task in asked_tasks]
        thoughts = self._think(asked_tasks, texts) if self.think else [NO_THOUGHT] * len(texts)
        inputs = self._inputs(asked_tasks, [text + thought for text, thought in zip(texts, thoughts, strict=True)])
        grammars = [Grammar(len(task.candidates), len(task.sentences)) for task in asked_tasks]
        legal = LegalAnswers(self.tokens, grammars, self.ends, inputs["input_ids"].shape[1])
        limit = max(longest(grammar) for grammar in grammars) + 1
        for row, written, task in zip(asked, self._generate(inputs, limit, [legal]), asked_tasks, strict=True):
            answer = read_answer(written, len(task.sentences), len(task.candidates))
            assert not answer.faults, written
            placed[row] = list(answer.placements)
        return placed

    def _think(self, tasks: Sequence[InsertionTask], texts: Sequence[str]) -> list[str]:
        """`<think>...</think>` of each; one that is cut at the limit, or that answers in between, is closed."""
        opened = "<think>"
        inputs = self._inputs(tasks, [text + opened for text in texts])
        written = self._generate(inputs, self.think, [], stop_strings=[THINK_END], tokenizer=self.prompter.tokenizer)
        return [opened + text.partition("</")[0].partition("<answer")[0] + THINK_END for text in written]

    def _inputs(self, tasks: Sequence[InsertionTask], texts: Sequence[str]) -> dict[str, Tensor]:
        inputs = self.prompter.encode(tasks, texts, side="left")
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _generate(self, inputs: dict[str, Tensor], limit: int, processors: list[Any], **settings: Any) -> list[str]:
        """Raises InputError where the longest prompt leaves the model no position."""
        tokens = inputs["input_ids"].shape[1]
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", tokens + 1)
        if tokens >= most:
            raise InputError(
                f"the inserter's prompt has {tokens:,} tokens, and its model {most:,} positions; give fewer "
                "candidates, smaller pictures or a shorter text"
            )
        ids_BT = self.model.generate(
            **inputs,
            max_new_tokens=limit,
            do_sample=False,
            logits_processor=processors,
            pad_token_id=self.prompter.tokenizer.pad_token_id,
            eos_token_id=self.ends,
            **settings,
        )
        new = ids_BT[:, inputs["input_ids"].shape[1] :]
        return self.prompter.tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# ---- scoring ----


class PairHead(nn.Module):
    """Where each candidate stands, from the mean hidden states of the lines of sentences and candidates.

    A bilinear form compares a candidate with each place; a linear one says that it belongs nowhere, which it can know,
    for it comes behind all sentences in the prompt.
    """

    def __init__(self, hidden_size: int, rank: int):
        super().__init__()
        self.place = nn.Linear(hidden_size, rank)
        self.candidate = nn.Linear(hidden_size, rank)
        self.nowhere = nn.Linear(hidden_size, 1)

    def forward(self, places_SD: Tensor, candidates_ND: Tensor) -> Tensor:
        """Log-probabilities [N, 1 + S] of each candidate: nowhere, then each place, before the first sentence on."""
        scores_NS = self.candidate(candidates_ND) @ self.place(places_SD).T / math.sqrt(self.place.out_features)
        return torch.cat([self.nowhere(candidates_ND), scores_NS], 1).float().log_softmax(1)


class PairScorer(nn.Module):
    """A model and its head, for inference and training alike."""

    def __init__(self, model: Any, prompter: Prompter, head: PairHead):
        super().__init__()
        self.model, self.prompter, self.head = model, prompter, head
        if prompter.tokenizer.pad_token_id is None:
            prompter.tokenizer.pad_token = prompter.tokenizer.eos_token
        self._breaks: dict[int, int] = {}

    @classmethod
    def create(cls, model: Any, prompter: Prompter, rank: int = 128) -> PairScorer:
        width = model.config.get_text_config().hidden_size
        return cls(model, prompter, PairHead(width, min(rank, width)).to(model.device))

    def forward(self, tasks: Sequence[InsertionTask]) -> list[Tensor]:
        """Log-probabilities [N, 1 + S] of each task with candidates, see `PairHead`. One forward of the model."""
        texts = [self.prompter.text(task) for task in tasks]
        inputs = self.prompter.encode(tasks, texts, side="right")
        hidden_BTD = self.model.base_model(
            **{name: value.to(self.model.device) for name, value in inputs.items()}, use_cache=False
        ).last_hidden_state
        scores = []
        for task, text, ids, hidden_TD in zip(tasks, texts, inputs["input_ids"].tolist(), hidden_BTD, strict=True):
            places, candidates = landmarks(text, task)
            ends = torch.tensor(self._line_ends(ids)[: candidates[-1] + 1], device=hidden_TD.device)
            begins = nn.functional.pad(ends, (1, 0))[:-1]
            sums_TD = hidden_TD.to(self.head.place.weight.dtype).cumsum(0)
            lines_LD = (sums_TD[ends] - sums_TD[begins]) / (ends - begins).clamp(min=1)[:, None]
            scores.append(self.head(lines_LD[places], lines_LD[candidates]))
        return scores

    def _line_ends(self, ids: Sequence[int]) -> list[int]:
        """Position of the token that ends each line; a token's text is needed for its line breaks alone."""
        ends: list[int] = []
        for position, token in enumerate(ids):
            if token not in self._breaks:
                self._breaks[token] = self.prompter.tokenizer.decode([token]).count("\n")
            ends += [position] * self._breaks[token]
        return ends

    def place(self, task: InsertionTask) -> list[Placement]:
        return self.place_all([task])[0]

    @torch.inference_mode()
    def place_all(self, tasks: Sequence[InsertionTask], batch_size: int = 8) -> list[list[Placement]]:
        self.eval()
        asked = [row for row, task in enumerate(tasks) if task.candidates]
        placed: list[list[Placement]] = [[] for _ in tasks]
        for start in range(0, len(asked), batch_size):
            rows = asked[start : start + batch_size]
            for row, scores in zip(rows, self([tasks[row] for row in rows]), strict=True):
                places = scores.argmax(1).tolist()
                chosen = [Placement(place - 1, number) for number, place in enumerate(places, 1) if place]
                placed[row] = sorted(chosen)
        return placed


def landmarks(text: str, task: InsertionTask) -> tuple[list[int], list[int]]:
    """(lines of the places, lines of the candidates) of a prompt, counted from 0.

    Texts of others are one line each, so no line of theirs can be taken for a heading.
    """
    lines = text.split("\n")
    start = lines.index(SENTENCES)
    middle = start + len(task.sentences) + 1
    assert lines[middle] == PICTURES, lines[middle]
    return list(range(start, middle)), list(range(middle + 1, middle + 1 + len(task.candidates)))


# ---- on disk ----


def load_model(name: str, dtype: str = "auto") -> tuple[PreTrainedModel, Prompter]:
    """A stock causal or vision-language model with its tokenizer or processor; no remote code, safetensors only.

    Raises InputError where it cannot be loaded, or has no chat template.
    """
    check_repository(name)
    with reading(Path(name)):
        check_sizes(Path(name))
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        pixels = hasattr(config, "vision_config")
        kind: Any = AutoModelForImageTextToText if pixels else AutoModelForCausalLM
        # The tokenizer as it was written: the automatic class would rebuild it by the rules of the model's family.
        reader: Any = AutoProcessor if pixels else PreTrainedTokenizerFast
        processor = reader.from_pretrained(name, trust_remote_code=False)
        model = kind.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    if not processor.chat_template:
        raise InputError(f"{name}: the model has no chat template; take one that was trained on instructions")
    return model, Prompter(processor)


def save_inserter(model: Any, processor: Any, directory: Path, head: PairHead | None = None) -> None:
    """Whole or not at all; `load_inserter` reads it again."""
    with whole_directory(directory) as staging:
        model.save_pretrained(staging, safe_serialization=True)
        processor.save_pretrained(staging)
        if head is not None:
            save_file({name: value.contiguous() for name, value in head.state_dict().items()}, staging / HEAD_FILE)


def load_inserter(
    name: str, *, think: int = 0, device: str | None = None, dtype: str = "auto"
) -> WritingInserter | PairScorer:
    """An inserter of a folder or the Hub; see the top. think: tokens of thought of one that writes."""
    model, prompter = load_model(name, dtype)
    model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()  # type: ignore[arg-type]
    file = Path(name) / HEAD_FILE
    if not file.is_file():
        return WritingInserter(model, prompter, think)
    with reading(file):
        weights = load_file(file)
        scorer = PairScorer.create(model, prompter, weights["place.weight"].shape[0])
        scorer.head.load_state_dict(weights)
    return scorer


@register("strategy", "inserter")
class LoadedInserter(Illustrate):
    """A finished text, or an extract, gets its pictures from a trained inserter."""

    illustrates = True
    needs = ("model",)

    def __init__(self, means: Means):
        place = load_inserter(means.model, think=means.think, device=means.device).place
        super().__init__(place, means.text, decode=True, document=means.document, own=means.own)

"""A vision-language model of transformers in this process: the alternative to an endpoint, behind the same contract.

Stock classes only (`AutoModelForImageTextToText`, `AutoProcessor`), safetensors, no remote code; greedy decoding. What
the texts of a request hold is never a control token: `<image>` typed in a judged document stays seven letters.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ...configs.bounds import OneOrMore, Side
from ...configs.errors import InputError, reading
from ...configs.schema import check_ranges
from ..pictures.contract import complete
from .reply_cache import ReplyCache
from .requests import Answer, Failure, Prepared, Reply, Request, prepare, recall, remember

logger = logging.getLogger(__name__)


@dataclass
class LocalVLMConfig:
    model: str = ""
    """Folder, or name on the Hub."""
    revision: str = "main"
    """Branch, tag or commit on the Hub."""
    device: str = ""
    """`cuda:1`, `cpu`; empty takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: OneOrMore = 4
    """Requests answered at a time."""
    max_new_tokens: OneOrMore = 512
    image_side: Side = 1024
    """Pictures are shrunk to this many pixels on their longer side; 0 leaves it to the model's own processor."""
    cache: str = ""
    """SQLite file of replies: what stands there is not computed again."""

    def __post_init__(self) -> None:
        check_ranges(self)


class LocalVLM:
    """A `ChatModel`. `counts`: `replies`, `cached`, `shared`, `prompt_tokens`, `completion_tokens`, `failures/<kind>`.

    Raises InputError for a model that cannot be loaded whole. Calls from several threads wait for each other.
    """

    def __init__(self, config: LocalVLMConfig):
        if not config.model:
            raise InputError("model: missing; name a folder or a model on the Hub")
        self.config = config
        self.counts: Counter[str] = Counter()
        self._cache = ReplyCache(Path(config.cache)) if config.cache else None
        self._lock = Lock()
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        with reading(Path(config.model)):
            self.processor: Any = AutoProcessor.from_pretrained(config.model, revision=config.revision)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                config.model,
                revision=config.revision,
                dtype=config.dtype,
                use_safetensors=True,
                output_loading_info=True,  # without it transformers would judge with random numbers for what is missing
            )
            self.model = complete(Path(config.model), loaded).to(device).eval()
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.keeps_order = self._keeps_order()
        if not self.keeps_order:
            logger.warning("%s: its chat template moves pictures away from where they stand in the text", config.model)
        stops = self.model.generation_config.eos_token_id
        self._stops = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}

    def complete(self, requests: Sequence[Request]) -> list[Answer]:
        answers = dict(self.as_completed(requests))
        return [answers[index] for index in range(len(requests))]

    def as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
        """(index, answer), some batches at a time: pictures of all requests together may not fit into memory."""
        waiting, start = iter(requests), 0
        while window := list(islice(waiting, 16 * self.config.batch_size)):
            for index, answer in self._answers(window):
                yield start + index, answer
            start += len(window)

    def manifest(self) -> dict[str, Any]:
        """`keeps_order` is false where the model's chat template puts all pictures first, as some of LLaVA do."""
        return {**_settings(self.config), "image_side": self.config.image_side, "keeps_order": self.keeps_order}

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """What is cached first, then batch by batch; equal questions are answered once."""
        waiting: dict[str, list[int]] = {}
        asked: dict[str, Prepared] = {}
        for index, request in enumerate(requests):
            try:
                prepared = prepare(request, self.config.image_side, _settings(self.config))
            except ValueError as error:
                self.counts["failures/image"] += 1
                yield index, Failure("image", str(error))
                continue
            if reply := recall(self._cache, prepared.key):
                self.counts["cached"] += 1
                yield index, reply
                continue
            self.counts["shared"] += prepared.key in asked
            waiting.setdefault(prepared.key, []).append(index)
            asked[prepared.key] = prepared
        # By length, so that neighbours need little padding.
        order = sorted(asked.values(), key=lambda prepared: len(prepared.question))
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            for prepared, reply in zip(batch, self._generate(batch), strict=True):
                self.counts["replies"] += 1
                self.counts["prompt_tokens"] += reply.prompt_tokens
                self.counts["completion_tokens"] += reply.completion_tokens
                remember(self._cache, prepared, reply)
                for index in waiting[prepared.key]:
                    yield index, reply

    def _keeps_order(self) -> bool:
        """Does a picture between two texts stand between them in the prompt?"""

        def between(*middle: dict[str, str]) -> str:
            content = [{"type": "text", "text": "Former."}, *middle, {"type": "text", "text": "Latter."}]
            prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            return prompt.partition("Former.")[2].partition("Latter.")[0]

        return between({"type": "image"}) != between()

    @torch.no_grad()
    def _generate(self, batch: Sequence[Prepared]) -> list[Reply]:
        with self._lock:
            inputs = self.processor.apply_chat_template(
                [_messages(prepared) for prepared in batch],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                sanitize_control_tokens=True,
                processor_kwargs={"padding": True},
            ).to(self.model.device, self.model.dtype)
            ids_BT = self.model.generate(
                **inputs,
                max_new_tokens=self.config.max_new_tokens,
                do_sample=False,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                eos_token_id=sorted(self._stops),
            )
        replies = []
        read = inputs["attention_mask"].sum(1).tolist()
        for row, prompt_tokens in zip(ids_BT[:, inputs["input_ids"].shape[1] :].tolist(), read, strict=True):
            end = next((place for place, token in enumerate(row) if token in self._stops), None)
            text = self.processor.tokenizer.decode(row[:end], skip_special_tokens=True)
            count = len(row) if end is None else end + 1
            replies.append(Reply(text.strip(), "length" if end is None else "stop", int(prompt_tokens), count))
        return replies


def _settings(config: LocalVLMConfig) -> dict[str, Any]:
    """What a reply depends on beside the messages, up to rounding."""
    names = ("model", "revision", "dtype", "max_new_tokens")
    return {"backend": "transformers", **{name: getattr(config, name) for name in names}}


def _messages(prepared: Prepared) -> list[dict[str, Any]]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in prepared.parts
    ]
    system = [{"role": "system", "content": [{"type": "text", "text": prepared.system}]}] if prepared.system else []
    return [*system, {"role": "user", "content": content}]

"""A model of transformers in this process, vision-language or text alone: the alternative to an endpoint.

Stock classes only (`AutoModelForImageTextToText` and its processor; of a model that reads no pictures
`AutoModelForCausalLM` and its tokenizer), safetensors, no remote code; greedy decoding. What the texts of a request
hold is never a control token: `<image>` typed in a judged document stays seven letters.
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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
)

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
            source = {"revision": config.revision, "trust_remote_code": False}
            kind = AutoConfig.from_pretrained(config.model, **source)
            self.sees = type(kind) in AutoModelForImageTextToText._model_mapping
            """Does it read pictures? One that does not gives no answer to a request that has some."""
            # Of a text model the tokenizer as it was written: the automatic class would rebuild it by family.
            reader: Any = AutoProcessor if self.sees else PreTrainedTokenizerFast
            self.processor: Any = reader.from_pretrained(config.model, **source)
            model_class: Any = AutoModelForImageTextToText if self.sees else AutoModelForCausalLM
            loaded: Any = model_class.from_pretrained(
                config.model,
                **source,
                dtype=config.dtype,
                use_safetensors=True,
                output_loading_info=True,  # without it transformers would judge with random numbers for what is missing
            )
            self.model = complete(Path(config.model), loaded).to(device).eval()
        if not self.processor.chat_template:
            raise InputError(f"{config.model}: no chat template; take a model that was trained on instructions")
        tokenizer = self.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.keeps_order = self._keeps_order()
        if not self.keeps_order:
            logger.warning("%s: its chat template moves pictures away from where they stand in the text", config.model)
        stops = self.model.generation_config.eos_token_id
        self._stops = {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer if self.sees else self.processor

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
        return {**settings_of(self.config), "image_side": self.config.image_side, "keeps_order": self.keeps_order}

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def _answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """What is cached first, then batch by batch; equal questions are answered once."""
        waiting: dict[str, list[int]] = {}
        asked: dict[str, Prepared] = {}
        for index, request in enumerate(requests):
            try:
                prepared = prepare(request, self.config.image_side, settings_of(self.config))
            except ValueError as error:
                yield index, self._failed(Failure("image", str(error)))
                continue
            if not self.sees and any(not isinstance(part, str) for part in prepared.parts):
                reason = f"{self.config.model} reads no pictures; take a vision-language model"
                yield index, self._failed(Failure("image", reason))
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
            for prepared, answer in zip(batch, self._generate(batch), strict=True):
                if isinstance(answer, Reply):
                    self.counts["replies"] += 1
                    self.counts["prompt_tokens"] += answer.prompt_tokens
                    self.counts["completion_tokens"] += answer.completion_tokens
                    remember(self._cache, prepared, answer)
                for index in waiting[prepared.key]:
                    yield index, self._failed(answer) if isinstance(answer, Failure) else answer

    def _failed(self, failure: Failure) -> Failure:
        self.counts[f"failures/{failure.kind}"] += 1
        return failure

    def _keeps_order(self) -> bool:
        """Does a picture between two texts stand between them in the prompt? It does where there are none."""
        if not self.sees:
            return True

        def between(*middle: dict[str, str]) -> str:
            content = [{"type": "text", "text": "Former."}, *middle, {"type": "text", "text": "Latter."}]
            prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            return prompt.partition("Former.")[2].partition("Latter.")[0]

        return between({"type": "image"}) != between()

    @torch.no_grad()
    def _generate(self, batch: Sequence[Prepared]) -> list[Answer]:
        """One answer each; a prompt that leaves the model no room for one is a failure."""
        with self._lock:
            inputs = self._inputs(batch)
        read = [int(length) for length in inputs["attention_mask"].sum(1)]
        if failures := {row: failure for row, length in enumerate(read) if (failure := self._no_room(length))}:
            fit = [prepared for row, prepared in enumerate(batch) if row not in failures]
            others = iter(self._generate(fit) if fit else ())
            return [failures[row] if row in failures else next(others) for row in range(len(batch))]
        with self._lock:
            ids_BT = self.model.generate(
                **inputs,
                max_new_tokens=self.config.max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=sorted(self._stops),
            )
        replies: list[Answer] = []
        for row, prompt_tokens in zip(ids_BT[:, inputs["input_ids"].shape[1] :].tolist(), read, strict=True):
            end = next((place for place, token in enumerate(row) if token in self._stops), None)
            text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
            count = len(row) if end is None else end + 1
            replies.append(Reply(text.strip(), "length" if end is None else "stop", prompt_tokens, count))
        return replies

    def _inputs(self, batch: Sequence[Prepared]) -> Any:
        settings: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "sanitize_control_tokens": True}
        settings |= {"return_dict": True, "return_tensors": "pt"}
        if self.sees:
            messages = [_messages(prepared) for prepared in batch]
            inputs = self.processor.apply_chat_template(messages, **settings, processor_kwargs={"padding": True})
            return inputs.to(self.model.device, self.model.dtype)
        settings |= {"padding": True, "tokenizer_kwargs": {"return_token_type_ids": False}}
        return self.processor.apply_chat_template([_texts(prepared) for prepared in batch], **settings).to(
            self.model.device
        )

    def _no_room(self, tokens: int) -> Failure | None:
        """Where a prompt of so many tokens and the longest answer do not fit into the model's positions."""
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        answer = self.config.max_new_tokens
        if most is None or tokens + answer <= most:
            return None
        return Failure(
            "rejected",
            f"the prompt has {tokens:,} tokens and its answer may have {answer:,}, which {self.config.model} with its "
            f"{most:,} positions cannot hold; give it less to read, or lower max_new_tokens",
        )


def settings_of(config: LocalVLMConfig) -> dict[str, Any]:
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


def _texts(prepared: Prepared) -> list[dict[str, str]]:
    """For a template of texts alone, which joins contents as strings."""
    system = [{"role": "system", "content": prepared.system}] if prepared.system else []
    return [*system, {"role": "user", "content": "".join(part for part in prepared.parts if isinstance(part, str))}]

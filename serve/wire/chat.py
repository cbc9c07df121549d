"""`/v1/chat/completions`: what chat programs, gateways and benches speak.

A picture is a link in the text, `![..](.../v1/images/ID)`, alone in one chunk; where the request asks `modalities` with
"image", it is an entry of `images` instead (OpenRouter's form), with `offset`, the character of the text at which it
stands. `limner` in the last chunk, and in a whole answer, holds the seed and, of an index, the sources.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..rows.events import Ended, Event, Failed, Shown, Text
from .fields import Fields, wrong
from .pictures import Pictures
from .prompt import Conversation, Given, Wanted, part_picture, settings, stops
from .reply import Meta

ROLES = ("system", "developer", "user", "assistant")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "top_logprobs": (0,),
    "functions": ([],),
}
IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "reasoning_effort", "verbosity")


def read(body: Any, given: Given, pictures: Pictures) -> tuple[Wanted, ChatForm]:
    """Raises Fault."""
    fields = Fields(body)
    conversation = Conversation(pictures)
    messages = fields.need("messages", list)
    for number, message in enumerate(messages):
        _read_message(Fields(message, f"messages[{number}]"), conversation)
    modalities = fields.take("modalities", list, ["text"])
    if not modalities or not all(isinstance(each, str) and each in ("text", "image") for each in modalities):
        raise wrong("modalities", 'a list of "text" and "image"')
    options = Fields(fields.take("stream_options", dict, {}), "stream_options")
    usage = options.take("include_usage", bool, False)
    options.ignore("include_obfuscation", "continuous_usage_stats")
    options.end()
    sampling = settings(fields, given, ("max_tokens", "max_completion_tokens"))
    model, stream = fields.need("model", str), fields.take("stream", bool, False)
    log_probs = fields.take("logprobs", bool, False)
    stop = stops(fields)
    fields.neutral(**NEUTRAL)
    fields.ignore(*IGNORED)
    fields.end()
    wanted = Wanted(conversation.prompt(), sampling, stop, model, stream, log_probs, conversation.last_words)
    return wanted, ChatForm("image" in modalities, usage)


def _read_message(fields: Fields, conversation: Conversation) -> None:
    role = fields.need("role", str)
    if role not in ROLES:
        raise wrong(fields.name("role"), f"one of {', '.join(ROLES)}")
    conversation.speaks(role)
    content = fields.take("content", (str, list), "")
    fields.ignore("name", "refusal", "annotations", "audio")
    fields.neutral(tool_calls=([],), images=([],))
    fields.end()
    say = conversation.own_words if role == "assistant" else conversation.text
    if isinstance(content, str):
        if content:
            say(content)
        return
    for number, part in enumerate(content):
        place = f"{fields.place}.content[{number}]"
        inner = Fields(part, place)
        kind = inner.need("type", str)
        if kind == "text":
            say(inner.need("text", str))
        elif kind == "image_url":
            url = inner.need("image_url", (dict, str))
            if isinstance(url, dict):
                holder = Fields(url, f"{place}.image_url")
                url = holder.need("url", str)
                holder.ignore("detail")
                holder.end()
            part_picture(inner, url, conversation, f"{place}.image_url")
        else:
            raise wrong(f"{place}.type", 'a part is "text" or "image_url"')
        inner.ignore("cache_control")
        inner.end()


class ChatForm:
    """Events of one answer to chunks, or to a whole completion."""

    def __init__(self, images: bool, usage: bool):
        self.images, self.usage = images, usage
        self._said = 0
        """Characters of the text so far."""
        self._shown = 0

    def opening(self, meta: Meta) -> Iterator[Mapping[str, Any] | str]:
        yield self._chunk(meta, {"role": "assistant", "content": ""})

    def chunks(self, event: Event, meta: Meta) -> Iterator[Mapping[str, Any] | str]:
        """Objects of a stream, and the word that ends it."""
        if isinstance(event, Text):
            self._said += len(event.piece)
            yield self._chunk(meta, {"content": event.piece})
        elif isinstance(event, Shown):
            if self.images:
                yield self._chunk(meta, {"content": "", "images": [self._image(event)]})
            else:
                yield self._chunk(meta, {"content": self._link(event, meta)})
        elif isinstance(event, Ended):
            if extra := meta.sources_as_text() if not self.images else "":
                yield self._chunk(meta, {"content": extra})
            last: dict[str, Any] = self._chunk(meta, {}, _finish(event)) | {"limner": meta.extras(event)}
            last["choices"][0]["logprobs"] = meta.chat_log_probs(event)  # they are known when it has ended
            yield last
            if self.usage:
                yield {**self._head(meta), "choices": [], "usage": usage(meta, event)}
            yield "[DONE]"
        elif isinstance(event, Failed):
            yield meta.fault(event).body()

    def whole(self, events: list[Event], meta: Meta) -> dict[str, Any]:
        text, images = "", []
        last = events[-1]
        assert isinstance(last, Ended)
        for event in events:
            if isinstance(event, Text):
                text += event.piece
                self._said += len(event.piece)
            elif isinstance(event, Shown) and self.images:
                images.append(self._image(event))
            elif isinstance(event, Shown):
                text += self._link(event, meta)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.images:
            message["images"] = images
        else:
            message["content"] += meta.sources_as_text()
        choice = {"index": 0, "message": message, "logprobs": meta.chat_log_probs(last), "finish_reason": _finish(last)}
        head = {**self._head(meta), "object": "chat.completion"}
        return {**head, "choices": [choice], "usage": usage(meta, last), "limner": meta.extras(last)}

    def _head(self, meta: Meta) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{meta.id}",
            "object": "chat.completion.chunk",
            "created": meta.created,
            "model": meta.model,
        }

    def _chunk(self, meta: Meta, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {
            **self._head(meta),
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        }

    def _image(self, shown: Shown) -> dict[str, Any]:
        url = "data:image/png;base64," + base64.b64encode(shown.png).decode("ascii")
        number, self._shown = self._shown, self._shown + 1
        extra = {} if shown.image.candidate is None else {"candidate": shown.image.candidate}
        return {"type": "image_url", "index": number, "image_url": {"url": url}, "offset": self._said, **extra}

    def _link(self, shown: Shown, meta: Meta) -> str:
        self._shown += 1
        alt = re.sub(r"[^\w ,.;:'-]+", " ", shown.image.alt)[:100].strip() or f"picture {self._shown}"
        return f"\n\n![{alt}]({meta.link(shown)})\n\n"


def _finish(ended: Ended) -> str:
    return "stop" if ended.why == "stop" else "length"


def usage(meta: Meta, ended: Ended) -> dict[str, Any]:
    """Tokens of pictures are completion tokens, too."""
    drawn, of_images = meta.drawn(ended)
    return {
        "prompt_tokens": meta.prompt_tokens,
        "completion_tokens": drawn,
        "total_tokens": meta.prompt_tokens + drawn,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": of_images},
    }

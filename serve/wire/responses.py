"""`/v1/responses`: the form that keeps the order of texts and pictures exactly, each an item of its own.

A text is a `message` item, a picture an `image_generation_call` item between them. What the form has no place for
stands under one key `limner`: of a picture its `origin`, `url` and, if it was inserted, its `candidate`; of one that is
being drawn its `progress`; of a response its seed and, of an index, its sources. Nothing is kept but the pictures, so a
conversation is sent whole each time, and the items of an answer may be sent back as they are.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from typing import Any

from ..rows.events import Begun, Ended, Event, Failed, Progress, Shown, Text
from .fields import Fields, wrong
from .pictures import Pictures
from .prompt import Conversation, Given, Wanted, part_picture, settings, stops
from .reply import Meta

ROLES = ("system", "developer", "user", "assistant")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (True, False),  # what is asked to be stored is not; nothing refers to it later
    "background": (False,),
    "tools": ([], [{"type": "image_generation"}]),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "text": ({"format": {"type": "text"}},),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "stream_options": ({}, {"include_obfuscation": False}, {"include_obfuscation": True}),
}
IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "reasoning", "max_tool_calls")
LOG_PROBS = "message.output_text.logprobs"
FORMATS = ("b64", "url")


def read(body: Any, given: Given, pictures: Pictures) -> tuple[Wanted, ResponsesForm]:
    """Raises Fault."""
    fields = Fields(body)
    conversation = Conversation(pictures)
    if fields.take_any("previous_response_id") is not None:
        raise wrong("previous_response_id", "responses are not kept; send the items of the conversation in `input`")
    if fields.take_any("conversation") is not None:
        raise wrong("conversation", "conversations are not kept; send the items in `input`")
    if instructions := fields.take("instructions", str, ""):
        conversation.text(instructions)
    asked = fields.need("input", (str, list))
    if isinstance(asked, str):
        conversation.speaks("user")
        conversation.text(asked)
    else:
        for number, item in enumerate(asked):
            _read_item(Fields(item, f"input[{number}]"), conversation)
    include = fields.take("include", list, [])
    if any(each != LOG_PROBS for each in include):
        raise wrong("include", f"only {LOG_PROBS!r} is known")
    pictures_as = fields.take("picture_format", str, "b64")
    if pictures_as not in FORMATS:
        raise wrong("picture_format", f"one of {', '.join(FORMATS)}")
    sampling = settings(fields, given, ("max_output_tokens",))
    model, stream = fields.need("model", str), fields.take("stream", bool, False)
    stop = stops(fields)
    fields.neutral(**NEUTRAL)
    fields.ignore(*IGNORED)
    fields.end()
    wanted = Wanted(conversation.prompt(), sampling, stop, model, stream, LOG_PROBS in include, conversation.last_words)
    return wanted, ResponsesForm(pictures_as == "b64")


def _read_item(fields: Fields, conversation: Conversation) -> None:
    kind = fields.take("type", str, "message")
    if kind == "image_generation_call":
        conversation.speaks("assistant")
        result, extra = fields.take("result", str), Fields(fields.take("limner", dict, {}), fields.name("limner"))
        url = extra.take("url", str)
        if result is not None:
            conversation.picture(conversation.pictures.of_base64(result, fields.name("result")))
        elif url is not None:
            conversation.picture(conversation.pictures.of_url(url, extra.name("url")))
        elif fields.take("status", str, "") != "failed":  # of a picture that was cut there is nothing
            raise wrong(fields.name("result"), "missing")
        fields.ignore("id", "status", "output_format", "size", "quality", "background", "revised_prompt", "action")
        fields.end()
        return
    if kind != "message":
        raise wrong(fields.name("type"), 'an item is "message" or "image_generation_call"')
    role = fields.need("role", str)
    if role not in ROLES:
        raise wrong(fields.name("role"), f"one of {', '.join(ROLES)}")
    content = fields.need("content", (str, list))
    fields.ignore("id", "status", "phase")
    fields.end()
    conversation.speaks(role)
    if isinstance(content, str):
        if content:
            conversation.text(content)
        return
    for number, part in enumerate(content):
        place = f"{fields.place}.content[{number}]"
        inner = Fields(part, place)
        kind = inner.need("type", str)
        if kind in ("input_text", "output_text", "text"):
            conversation.text(inner.need("text", str))
            inner.ignore("annotations", "logprobs")
        elif kind == "input_image":
            inner.ignore("detail")
            if inner.take_any("file_id") is not None:
                raise wrong(inner.name("file_id"), "no files are kept; send the picture in `image_url`")
            part_picture(inner, inner.need("image_url", str), conversation, inner.name("image_url"))
        else:
            raise wrong(f"{place}.type", 'a part is "input_text" or "input_image"')
        inner.end()


class ResponsesForm:
    """Events of one answer to the events of a response, or to a whole one."""

    def __init__(self, base64_results: bool):
        self.base64_results = base64_results
        self.items: list[dict[str, Any]] = []
        self._number, self._tag = 0, secrets.token_hex(8)
        self._open: dict[str, Any] | None = None
        """The item that is being written."""

    def opening(self, meta: Meta) -> Iterator[dict[str, Any]]:
        yield self._event("response.created", response=self._response(meta, "in_progress"))
        yield self._event("response.in_progress", response=self._response(meta, "in_progress"))

    def chunks(self, event: Event, meta: Meta) -> Iterator[dict[str, Any]]:
        if isinstance(event, Text):
            yield from self._text(event.piece)
        elif isinstance(event, Begun):
            yield from self._begin_picture()
        elif isinstance(event, Progress):
            if self._open and self._open["type"] == "image_generation_call":
                self._open["status"] = "generating"
                yield self._of_item("response.image_generation_call.generating", limner={"progress": event.share})
        elif isinstance(event, Shown):
            yield from self._picture(event, meta)
        elif isinstance(event, Ended):
            if self._open and self._open["type"] == "image_generation_call":
                self._open["status"] = "failed"  # the limit fell inside it
            self._log_probs(event)
            yield from self._close()
            status = "completed" if event.why == "stop" else "incomplete"
            yield self._event(f"response.{status}", response=self._response(meta, status, event))
        elif isinstance(event, Failed):
            error = {"code": "server_error", "message": event.line}
            yield self._event("response.failed", response={**self._response(meta, "failed"), "error": error})

    def whole(self, events: list[Event], meta: Meta) -> dict[str, Any]:
        response = {}
        for event in events:
            for said in self.chunks(event, meta):
                response = said.get("response", response)
        return response

    def _text(self, piece: str) -> Iterator[dict[str, Any]]:
        if self._open is None:
            part = _text_part("")
            yield from self._add(
                "msg", {"type": "message", "status": "in_progress", "role": "assistant", "content": []}
            )
            yield self._of_item("response.content_part.added", content_index=0, part=part)
            self._open["content"].append(part)  # type: ignore[index]
        self._open["content"][0]["text"] += piece  # type: ignore[index]
        yield self._of_item("response.output_text.delta", content_index=0, delta=piece, logprobs=[])

    def _begin_picture(self) -> Iterator[dict[str, Any]]:
        yield from self._close()
        yield from self._add("ig", {"type": "image_generation_call", "status": "in_progress", "result": None})
        yield self._of_item("response.image_generation_call.in_progress")

    def _picture(self, event: Shown, meta: Meta) -> Iterator[dict[str, Any]]:
        if event.image.origin == "inserted" or self._open is None:
            yield from self._begin_picture()
        item, picture = self._open, event.image
        assert item is not None
        item["status"], item["output_format"] = "completed", "png"
        item["size"] = f"{picture.pixels().width}x{picture.pixels().height}"
        item["result"] = base64.b64encode(event.png).decode("ascii") if self.base64_results else None
        item["limner"] = {"origin": picture.origin, "url": meta.link(event)}
        if picture.candidate is not None:
            item["limner"] |= {"candidate": picture.candidate, "caption": picture.alt}
        yield self._of_item("response.image_generation_call.completed")
        yield from self._close()

    def _add(self, prefix: str, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._open = {"id": f"{prefix}_{self._tag}_{len(self.items)}", **item}
        self.items.append(self._open)
        yield self._event("response.output_item.added", output_index=len(self.items) - 1, item=_copy(self._open))

    def _close(self) -> Iterator[dict[str, Any]]:
        item = self._open
        if item is None:
            return
        if item["type"] == "message":
            item["status"], part = "completed", item["content"][0]
            yield self._of_item(
                "response.output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"]
            )
            yield self._of_item("response.content_part.done", content_index=0, part=dict(part))
        yield self._event("response.output_item.done", output_index=len(self.items) - 1, item=_copy(item))
        self._open = None

    def _log_probs(self, ended: Ended) -> None:
        """Into the texts of the whole response: they are known when it has ended."""
        messages = [item for item in self.items if item["type"] == "message"]
        for item, run in zip(messages, ended.told or [], strict=False):
            item["content"][0]["logprobs"] = run

    def _of_item(self, kind: str, **more: Any) -> dict[str, Any]:
        item = self.items[-1]
        return self._event(kind, item_id=item["id"], output_index=len(self.items) - 1, **more)

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}

    def _response(self, meta: Meta, status: str, ended: Ended | None = None) -> dict[str, Any]:
        cut = ended is not None and ended.why != "stop"
        reason = {"length": "max_output_tokens"}.get(ended.why, ended.why) if ended and cut else None
        return {
            "id": f"resp_{meta.id}",
            "object": "response",
            "created_at": meta.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if cut else None,
            "instructions": None,
            "metadata": {},
            "model": meta.model,
            "output": [_copy(item) for item in self.items],
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "temperature": None,
            "top_p": None,
            "usage": _usage(meta, ended) if ended else None,
            "limner": meta.extras(ended) if ended else {"seed": meta.seed},
        }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "content": [dict(part) for part in item["content"]]} if "content" in item else dict(item)


def _usage(meta: Meta, ended: Ended) -> dict[str, Any]:
    drawn, of_images = meta.drawn(ended)
    return {
        "input_tokens": meta.prompt_tokens,
        "output_tokens": drawn,
        "total_tokens": meta.prompt_tokens + drawn,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0, "image_tokens": of_images},
    }

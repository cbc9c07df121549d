"""Requests in files: a line of a prompt file, and a whole file of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...configs.errors import InputError
from ...configs.registry import register
from ...configs.whole import write_atomically
from ...data.prompts import check_keys, read_lines
from ...models.documents.document import InterleavedDocument
from .tales import REQUESTS, Request, read_nouns


@register("prompt", "tale")
def tale_prompt(value: dict[str, Any], identifier: str) -> InterleavedDocument:
    """{"tale": ["owl", "cake"], "request": "Draw a story of {things}."}, of the icon tales; a request is not needed"""
    return read_request(value).prompt(identifier)


def read_request(value: dict[str, Any], where: str = "") -> Request:
    """Raises InputError naming `where`."""
    where = where and f"{where}: "
    check_keys(value, ("tale", "request", "id"))
    wording = value.get("request", REQUESTS[0])
    if not isinstance(wording, str) or wording.count("{things}") != 1 or wording.count("{") + wording.count("}") != 2:
        raise InputError(f"{where}request: expected a text with {{things}} in it once, not {wording!r:.80}")
    return Request(read_nouns(value.get("tale"), f"{where}tale: "), wording)


def read_requests(path: Path) -> list[Request]:
    return [read_request(value, place) for place, value in read_lines(path)]


def write_requests(path: Path, requests: Sequence[Request]) -> None:
    lines = [json.dumps({"tale": request.nouns, "request": request.wording}) + "\n" for request in requests]
    write_atomically(path, "".join(lines))

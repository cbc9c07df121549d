"""Reads the JSON of a request field by field: what is missing, of another type or unknown is a fault that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...configs.terminal import one_line

SHOWN = 60


class Fault(Exception):
    """An HTTP answer that is none: status, a line for the client, the field at fault, seconds to wait."""

    def __init__(
        self, status: int, line: str, param: str | None = None, code: str | None = None, retry_s: float | None = None
    ):
        super().__init__(line)
        self.status, self.param, self.code, self.retry_s = status, param, code, retry_s

    def body(self) -> dict[str, Any]:
        """As OpenAI's API says it."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def wrong(param: str, line: str) -> Fault:
    return Fault(400, f"{param}: {line}", param)


def shown(value: Any) -> str:
    """A client's value in a line of ours: short, printable, and never a long text."""
    text = one_line(ascii(value))
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class Fields:
    """An object of a request. `take` reads a field; `end` refuses what was not read."""

    def __init__(self, value: Any, place: str = ""):
        if not isinstance(value, Mapping):
            raise wrong(place or "body", f"expected an object, got {kind(value)}")
        self.place, self._left = place, dict(value)

    def name(self, field: str) -> str:
        return f"{self.place}.{field}" if self.place else field

    def take(self, field: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
        """The value; the default where it is missing or null. A bool is no number."""
        value = self._left.pop(field, None)
        if value is None:
            return default
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join(NAMES.get(each, each.__name__) for each in allowed)
            raise wrong(self.name(field), f"expected {names}, got {kind(value)}")
        return value

    def need(self, field: str, kinds: type | tuple[type, ...]) -> Any:
        value = self.take(field, kinds)
        if value is None:
            raise wrong(self.name(field), "missing")
        return value

    def take_any(self, field: str) -> Any:
        return self._left.pop(field, None)

    def neutral(self, **allowed: tuple[Any, ...]) -> None:
        """Fields that clients send by habit; only a value that asks for nothing is taken."""
        for field, values in allowed.items():
            value = self._left.pop(field, None)
            if value is not None and not any(type(value) is type(each) and value == each for each in values):
                raise wrong(self.name(field), f"{shown(value)} is not supported here; leave it out")

    def ignore(self, *fields: str) -> None:
        """Fields that say something about the client, not about the answer."""
        for field in fields:
            self._left.pop(field, None)

    def end(self) -> None:
        for field in self._left:
            raise wrong(self.name(shown(field).strip("'")), "no such field")


NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def kind(value: Any) -> str:
    return "null" if value is None else NAMES.get(type(value), type(value).__name__)

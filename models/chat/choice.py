"""Which model is asked: one behind a server, or one in this process. Judges, answers and benchmarks choose alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...configs.errors import InputError
from .endpoint import Endpoint, EndpointConfig
from .endpoint import settings_of as of_endpoint
from .local_vlm import LocalVLM, LocalVLMConfig
from .local_vlm import settings_of as of_local


@dataclass
class ChatConfig:
    """A model to ask; exactly one of the two."""

    endpoint: EndpointConfig | None = None
    """The model behind an OpenAI-compatible server,"""
    local: LocalVLMConfig | None = None
    """or in this process; one that reads text alone serves where no picture is shown."""


@dataclass
class SharedEndpoint(EndpointConfig):
    """A model that several ask, under one name: a server's, unless `local` says that it runs here."""

    local: LocalVLMConfig | None = None
    """A model in this process instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local and (self.base_url or self.model):
            raise InputError("local: runs in this process; leave out base_url and model")


def shared_model(config: SharedEndpoint, place: str) -> Endpoint | LocalVLM:
    """One client, or one model, for all that name it. Raises InputError beginning with the place."""
    try:
        return LocalVLM(config.local) if config.local else Endpoint(config)
    except InputError as error:
        raise InputError(f"{place}{'.local' if config.local else ''}: {error}") from error


def chat_model(config: ChatConfig, section: str) -> Endpoint | LocalVLM:
    """`section` is where the settings stand: `judge`; empty where they are the command's own.

    Raises InputError naming the option, unless exactly one model is given and can be had.
    """
    prefix = f"{section}." if section else ""
    if (config.endpoint is None) == (config.local is None):
        raise InputError(
            f"{prefix}endpoint, {prefix}local: give one of them, --{prefix}endpoint.base_url URL "
            f"--{prefix}endpoint.model NAME or --{prefix}local.model DIR"
        )
    try:
        return Endpoint(config.endpoint) if config.endpoint else LocalVLM(config.local or LocalVLMConfig())
    except InputError as error:
        raise InputError(f"{prefix}{'endpoint' if config.endpoint else 'local'}: {error}") from error


def settings_of(config: ChatConfig) -> dict[str, Any]:
    """What replies depend on, for a manifest; nothing is loaded or asked."""
    one = config.endpoint or config.local or LocalVLMConfig()
    settings = of_endpoint(one) if isinstance(one, EndpointConfig) else of_local(one)
    return {**settings, "image_side": one.image_side}

"""Which model paints: a pipeline of diffusers in this process, or one behind a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....configs.errors import InputError
from .images_endpoint import ImagesEndpoint, ImagesEndpointConfig
from .images_endpoint import settings_of as of_endpoint
from .local_pipeline import LocalPipeline, LocalPipelineConfig
from .local_pipeline import settings_of as of_local


@dataclass
class PainterConfig:
    """A model that paints; exactly one of the two."""

    endpoint: ImagesEndpointConfig | None = None
    """The model behind an OpenAI-compatible server,"""
    local: LocalPipelineConfig | None = None
    """or a pipeline of diffusers in this process."""


def check_painter(config: PainterConfig, section: str) -> None:
    """Raises InputError naming the options, unless exactly one is given."""
    if (config.endpoint is None) == (config.local is None):
        raise InputError(
            f"{section}: who paints? Give one of --{section}.local.model DIR, a pipeline of diffusers, or "
            f"--{section}.endpoint.base_url URL --{section}.endpoint.model NAME"
        )


def make_painter(config: PainterConfig, section: str) -> ImagesEndpoint | LocalPipeline:
    """Raises InputError naming the option, unless exactly one is given and can be had."""
    check_painter(config, section)
    try:
        return (
            ImagesEndpoint(config.endpoint) if config.endpoint else LocalPipeline(config.local or LocalPipelineConfig())
        )
    except InputError as error:
        raise InputError(f"{section}.{'endpoint' if config.endpoint else 'local'}: {error}") from error


def settings_of(config: PainterConfig) -> dict[str, Any]:
    """What pictures depend on, for a manifest; nothing is loaded or asked."""
    return of_endpoint(config.endpoint) if config.endpoint else of_local(config.local or LocalPipelineConfig())

"""`limner serve`: a model over HTTP.

limner serve --model runs/demo/model
limner serve --model ORG/NAME --host 0.0.0.0 --hosts limner.example.org      # with LIMNER_SERVE_KEYS=...
limner serve --config serve.yaml

It says where it listens when it is ready. SIGTERM and Ctrl-C let running answers end, for `drain_seconds`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from transformers.utils.logging import disable_progress_bar

from ..configs import parse
from ..configs.errors import InputError
from ..configs.terminal import say
from ..models.checkpoints.hub import load_model
from .access import is_loopback
from .settings import ServeConfig


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse((ServeConfig,), argv, prog="limner serve")
    check_installed()
    keys = keys_of(config)
    listener = listen(config)
    disable_progress_bar()
    model = load_model(config.model, config.device or None, config.dtype)
    from .server import Server
    from .service import Service

    service = Service(model, config, keys)
    Server(service).serve_at(listener, lambda url: say(f"serving {config.name} at {url}", flush=True))


def check_installed() -> None:
    """Raises InputError where the extra is missing."""
    try:
        import starlette
        import uvicorn
    except ImportError:
        raise InputError("the server's libraries are not installed: pip install 'limner[serve]'") from None
    _: Any = starlette, uvicorn


def keys_of(config: ServeConfig) -> list[str]:
    """Raises InputError for an address that others reach, and no key."""
    keys = [key.strip() for key in os.environ.get(config.api_key_env, "").split(",") if key.strip()]
    if not keys and not is_loopback(config.host):
        raise InputError(f"host: {config.host} is open to others; set a key: export {config.api_key_env}=...")
    return keys


def listen(config: ServeConfig) -> socket.socket:
    """Before the model is loaded: a port that is taken should not wait for it. Raises InputError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or "no such address"
        raise InputError(f"{config.host}:{config.port}: {reason}; take another --host or --port") from None
    return listener

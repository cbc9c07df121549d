"""`limner serve` as replicas that Ray Serve places and restarts: a GPU each, behind one address.

    pip install 'limner[serve]' 'ray[serve]'
    python scripts/ray_serve.py --model runs/demo/model --replicas 4
    python scripts/ray_serve.py --model ORG/NAME --replicas 2 --gpus 0 --port 9000     # on CPUs

The settings are those of `limner serve`. A picture's link is known to the replica that drew it alone: with several,
ask for pictures inside the answer (`modalities`, or `picture_format: "b64"`). Ctrl-C ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from limner.configs import parse
from limner.configs.bounds import NoneOrMore, OneOrMore
from limner.configs.errors import InputError, run_or_exit
from limner.configs.terminal import say
from limner.serve.command import check_installed, keys_of
from limner.serve.settings import ServeConfig


@dataclass
class RayConfig:
    replicas: OneOrMore = 1
    """Each loads the model and answers by itself."""
    gpus: NoneOrMore = 1
    """Of a replica; 0 runs it on the CPU."""


def main(argv: Sequence[str] | None = None) -> None:
    config, ray_config = parse((ServeConfig, RayConfig), argv, prog="python scripts/ray_serve.py")
    check_installed()
    keys = keys_of(config)
    try:
        from ray import serve
    except ImportError:
        raise InputError("Ray is not installed: pip install 'ray[serve]'") from None
    serve.start(http_options={"host": config.host, "port": config.port})
    serve.run(deployment(config, ray_config, keys), name=config.name)
    say(f"serving {config.name} at http://{config.host}:{config.port}", flush=True)
    try:
        Event().wait()
    except KeyboardInterrupt:
        serve.shutdown()


def deployment(config: ServeConfig, ray_config: RayConfig, keys: list[str]) -> Any:
    """What `serve.run` takes."""
    from ray import serve

    def app() -> Any:
        """In the replica's own process."""
        from limner.models.checkpoints.hub import load_model
        from limner.serve.api import make_app
        from limner.serve.service import Service

        model = load_model(config.model, config.device or None, config.dtype)
        return make_app(Service(model, config, keys))

    replica = serve.deployment(
        serve.ingress(app)(),  # type: ignore[operator]
        name=config.name,
        num_replicas=ray_config.replicas,
        ray_actor_options={"num_gpus": ray_config.gpus},
        max_ongoing_requests=config.slots + config.waiting,  # Ray's own 5 would leave most slots empty
        graceful_shutdown_timeout_s=config.drain_seconds,
    )
    return replica.bind()


if __name__ == "__main__":
    run_or_exit(main)

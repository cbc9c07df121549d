"""What `limner serve` is told: the model, where it listens, and the limits that hold for everybody and for a key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..configs.bounds import Above0, NoneOrMore, OneOrMore, Port, Seconds, Weight
from ..configs.errors import InputError
from ..configs.schema import check_ranges
from ..models.sampler.steps import Steps
from ..rewards.remote.client import check_variable

KEYS_VARIABLE = "LIMNER_SERVE_KEYS"


@dataclass
class ServeConfig:
    model: str = ""
    """Checkpoint folder, or ORG/NAME on the Hub."""
    name: str = ""
    """What clients call the model; by default the last part of `model`."""
    device: str = ""
    """`cuda:1`, `cpu`; empty takes the GPU where there is one."""
    dtype: str = "auto"
    """float32, bfloat16 or float16; `auto` is the one the model was saved in."""
    host: str = "127.0.0.1"
    """Address to listen at; one that other machines reach (0.0.0.0) needs a key."""
    port: Port = 8000
    """0 takes a free one."""
    hosts: list[str] = field(default_factory=list)
    """Names under which clients reach the server; at a loopback address others than localhost are refused."""
    public_url: str = ""
    """Address of the server in links to pictures, where a proxy stands before it: https://limner.example.org"""
    api_key_env: str = KEYS_VARIABLE
    """*Name* of the environment variable that holds the keys of clients, with commas between; unset or empty: none."""

    slots: OneOrMore = 16
    """Rows at a time; a guided answer takes two."""
    cache_gib: Weight = 0.0
    """Memory of the KV cache; 0 is most of what a GPU has free, and on a CPU what the slots can hold."""
    steps: Steps = "plain"
    """How the model is run: plain; graphs, which a GPU repeats without Python between; compiled; or fixed."""
    waiting: OneOrMore = 64
    """Requests in the queue; further ones are sent away with 429."""
    seconds: Above0 = 600.0
    """An answer that takes longer is given up, the wait in the queue included."""
    reader_seconds: Above0 = 30.0
    """A client that takes nothing for so long is given up."""
    drain_seconds: Seconds = 30.0
    """What running answers get when the server is asked to stop."""

    max_tokens: OneOrMore = 4096
    """Longest answer that a request may ask for; more is cut to it."""
    max_images: NoneOrMore = 16
    """Most pictures that a request may ask for; more are cut to it."""
    max_megabytes: OneOrMore = 48
    """Largest body of a request, pictures included."""
    max_pictures: OneOrMore = 32
    """Pictures in a request."""
    max_megapixels: OneOrMore = 128
    """Of all pictures in a request together."""
    picture_megabytes: OneOrMore = 512
    """Pictures of answers that are kept for their links; the oldest go first."""
    picture_minutes: Above0 = 60.0
    """How long they are kept."""
    connections: OneOrMore = 256
    """At a time."""

    key_concurrency: OneOrMore = 32
    """Requests of one key under way."""
    key_requests: NoneOrMore = 0
    """Requests of one key a minute; 0 is no limit."""
    key_tokens: NoneOrMore = 0
    """Tokens drawn for one key a minute."""
    key_pictures: NoneOrMore = 0
    """Pictures for one key a minute."""

    index: str = ""
    """Folder of an index (`limner index`): questions to the model NAME-index are answered from it, with sources."""
    strategy: str = "rule"
    """Who answers from the index: rule, inserter, unified, as for `limner answer`."""
    inserter: str = ""
    """Model of the strategy `inserter`."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """What differs from the model's own settings where a request says nothing: `{temperature: 0.8}`."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_variable(self.api_key_env)
        if not self.model:
            raise InputError("model: missing; limner serve --model FOLDER, or ORG/NAME on the Hub")
        self.name = self.name or self.model.rstrip("/").rpartition("/")[2]

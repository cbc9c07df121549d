"""From settings to the hybrid reward: each part by its name in the registry, what they share once.

endpoints: {critic: {base_url: http://localhost:8000/v1, model: NAME, cache: critic.sqlite}}
encoders: {default: {device: cuda:1, dtype: bfloat16}}
rewards:
  format: 1
  judge/text_relevance: {weight: 1, endpoint: critic}
  image/clipscore: 1
  consistency/dino: {weight: 0.5, absent: 0}
  my_rewards.py:Brevity: {weight: 0.5, words: 80}
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..configs import registry
from ..configs.errors import InputError
from ..configs.options import check, make, options_of
from ..configs.schema import Place, build, fields_of
from ..models.chat.choice import SharedEndpoint, shared_model
from ..models.chat.requests import ChatModel
from .base import Reward
from .encoders.pretrained import Encoder, EncoderConfig
from .forms import AdaptedReward, check_call, filled
from .guard import GuardedReward, RewardGuardConfig
from .hybrid import HybridReward, PartRule
from .renamed import new_form

Part = tuple[Reward, float]


@dataclass
class RewardSettings:
    """The hybrid reward. What several of its parts share is named here once."""

    rewards: dict[str, Any] = field(default_factory=lambda: {"format": 1.0})
    """Parts by name, `NAME: WEIGHT` or `NAME: {weight: W, OPTION: VALUE}`: one of `limner list reward`,
    path/to/file.py:Name or package.module:Name. A weight of 0 leaves it out; flags add to what a file says. Beside
    options of its own each part has `absent`, what an answer counts as that it does not apply to (worst, mean,
    leave-out or a number), and `floor`, for `reward_aggregation: normalise-then-sum` (`docs/rewards.md`)."""
    reward_guard: RewardGuardConfig = field(default_factory=RewardGuardConfig)
    endpoints: dict[str, SharedEndpoint] = field(default_factory=dict)
    """Models that parts ask, by a name of yours."""
    encoders: dict[str, EncoderConfig] = field(default_factory=dict)
    """How pretrained encoders run, by a name of yours; `default` is that of parts that name none."""

    def __post_init__(self) -> None:
        """What there is not should not wait for models to be loaded. Raises InputError that names all of it."""
        if not isinstance(self.rewards, Mapping):
            raise InputError(f"rewards: expected parts by name, {{NAME: WEIGHT}}, got {self.rewards!r}")
        faults = []
        for name, value in self.rewards.items():
            try:
                find_reward(name, value)
                terms_of(value, f"rewards.{name}")
            except InputError as error:
                faults.append(str(error))
        if faults:
            raise InputError("; and ".join(faults))


def build_reward(settings: RewardSettings, python: Mapping[str, Part] | None = None) -> HybridReward:
    """python: callables with their weights, by name, beside those that the settings name.

    Raises InputError for settings that leave no reward, and for models that cannot be loaded.
    """
    guard = settings.reward_guard
    parts = [*reward_parts(settings), *python_parts(python or {})]
    refuse_twice([part.name for part, _ in parts])
    rules = {find_reward(n, v).label: terms_of(v, f"rewards.{n}")[1] for n, v in settings.rewards.items()}
    return HybridReward(
        [(GuardedReward(part, guard.timeout, guard.patience, guard.calls), weight) for part, weight in parts], rules
    )


def reward_parts(settings: RewardSettings) -> list[Part]:
    """(part, weight) of all parts with a weight, without a guard. Raises InputError like `build_reward`."""
    shared = Shared(settings)
    parts = []
    for name, value in settings.rewards.items():
        place = f"rewards.{name}"
        found = find_reward(name, value)
        weight, _, options = terms_of(value, place)
        if weight:
            parts.append((shared.make(found, options, place), weight))
    refuse_twice([part.name for part, _ in parts])
    return parts


def find_reward(name: str, value: Any) -> registry.Found:
    """Raises InputError; for a key of limner 0.1 it shows the new form."""
    try:
        found = registry.find("reward", name, "rewards")
    except InputError as error:
        raise InputError(new_form(name, value, [*registry.entries("reward")]) or str(error)) from error
    check_call(found.thing, f"rewards.{name}")
    return found


def terms_of(value: Any, place: str) -> tuple[float, PartRule, dict[str, Any]]:
    """Weight, rule and options of `WEIGHT` or `{weight: WEIGHT, absent: .., OPTION: ..}`; a weight not given is 1."""
    if isinstance(value, Mapping):
        given = dict(value)
        weight = given.pop("weight", 1.0)
    else:
        weight, given = value, {}
    if type(weight) not in (int, float) or not 0 <= weight < math.inf:
        raise InputError(
            f"{place}: {weight!r} is no weight; give a number of at least 0 or {{weight: 1, OPTION: ..}}, or delete it"
        )
    rule = {name: given.pop(name) for name in fields_of(PartRule) if name in given}
    return float(weight), build(PartRule, rule, Place(place)), given


def python_parts(callables: Mapping[str, Part]) -> list[Part]:
    """Rewards that a program hands over. Raises InputError for what cannot score."""
    for name, (score, weight) in callables.items():
        if inspect.isclass(score) or not callable(score):
            raise InputError(
                f"reward {name!r}: give a function of completions, or an object with __call__(completions)"
            )
        check_call(score, f"reward {name!r}")
        terms_of(weight, f"reward {name!r}")
    return [(AdaptedReward(name, score), float(weight)) for name, (score, weight) in callables.items() if weight]


def refuse_twice(names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"rewards: two parts are called {twice[0]}; leave one out, or rename what a file defines")


class Shared:
    """Models and encoders that parts share: each is made when the first part asks for it, and once."""

    def __init__(self, settings: RewardSettings):
        self._endpoints, self._encoders = settings.endpoints, {"default": EncoderConfig(), **settings.encoders}
        self._made: dict[tuple[str, str], Any] = {}

    def make(self, found: registry.Found, options: Mapping[str, Any], place: str) -> Reward:
        """Raises InputError naming the option at fault."""
        by_name = {ChatModel: self.endpoint, Encoder: self.encoder}
        if inspect.isclass(found.thing):
            return AdaptedReward(found.label, make(found, options, place, by_name))
        own = options_of(found.thing, filled(found.thing), place)
        checked = check(own, options, place, by_name)
        return AdaptedReward(found.label, found.thing, {name: getattr(checked, name) for name in fields_of(own)})

    def endpoint(self, name: Any, place: str) -> Any:
        if not self._endpoints and name is None:
            raise InputError(f"{place}: missing; name one of `endpoints: {{NAME: {{base_url: URL, model: MODEL}}}}`")
        return self._shared("endpoints", self._endpoints, name, place, lambda c: shared_model(c, f"endpoints.{name}"))

    def encoder(self, name: Any, place: str) -> Encoder:
        return self._shared("encoders", self._encoders, "default" if name is None else name, place, Encoder)

    def _shared(self, section: str, configs: Mapping[str, Any], name: Any, place: str, start: Callable) -> Any:
        if not isinstance(name, str) or name not in configs:
            known = f"there are {', '.join(configs)}" if configs else f"`{section}:` names none"
            fault = "missing" if name is None else f"{name!r} is none of `{section}:`"
            raise InputError(f"{place}: {fault}; {known}")
        if (section, name) not in self._made:
            self._made[section, name] = start(configs[name])
        return self._made[section, name]

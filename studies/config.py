"""The settings of a study: its arms, which of them are one, what a finished one depends on, and its tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ..configs import find_config, read_yaml
from ..configs.bounds import Above0, Guidance, OneOrMore, Seed
from ..configs.errors import InputError
from ..configs.schema import Flag
from ..configs.yaml_file import scalar
from ..train.from_scratch.new_model import NewModelConfig
from ..worlds.icon_tales.prepare import TalesConfig
from ..worlds.picture_stories.prepare import WorldConfig
from .arms import Setting, grpo_settings, warmup_settings
from .subjects import Subject, subject_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
BASES = {"control": ("grpo",), "measure": ("warmup", "control", "grpo")}
"""Kinds that build on another arm, `of`, and the kinds it may have."""
WITHOUT_EFFECT = ("output_dir", "report_to", "logging_steps", "save_strategy")
"""Training arguments that no result depends on."""
SET_HERE = {"warmup": ("seed", "sources"), "grpo": ("seed", "max_steps", "algorithm.replay.sources")}
"""Settings that a study, or the demo, sets itself, by the folder of the packaged ones."""


class Shared(Protocol):
    """What the configurations of a study and of the demo have in common."""

    seed: Seed
    iterations: OneOrMore
    curve_prompts: OneOrMore
    warmup: dict[str, Any]
    grpo: dict[str, Any]

    @property
    def subject(self) -> Subject: ...


@dataclass
class ArmConfig:
    kind: Literal["grpo", "warmup", "control", "measure", "mixture"] = "grpo"
    """`warmup`: where all others start; `control`: as long as `of`, of more warm-up; `measure`: the model of `of`;
    `mixture`: a warm-up of its own, of another mixture."""
    label: str = ""
    """What tables call it; the arm's name if empty."""
    grpo: dict[str, Any] = field(default_factory=dict)
    """Settings of `grpo/tiny` to change, by dotted name; for the kind `grpo`."""
    iterations: OneOrMore | None = None
    """Rollout batches, for the kind `grpo`; those of the study if not given. An arm whose batches are cheaper may have
    more of them in the same seconds."""
    of: str | None = None
    guidance: Guidance = 1.0
    """Classifier-free guidance with which held-out stories are written; 1 is none."""
    temperature: Above0 = 1.0
    """Of what is called sampled; for the kind `measure`."""
    mixture: dict[str, float] = field(default_factory=dict)
    """Weights of the warm-up's data that differ, for the kind `mixture`; 0 leaves a folder out."""

    def __post_init__(self) -> None:
        self.grpo = flat(self.grpo)


@dataclass
class RowConfig:
    arm: str
    marks: list[str] = field(default_factory=list)
    """A word for each column of the table."""
    against: str | None = None
    """The arm over which the gain is shown, prompt by prompt."""


@dataclass
class TableConfig:
    title: str
    rows: list[RowConfig]
    columns: list[str] = field(default_factory=list)
    note: str = ""


@dataclass
class StudyConfig:
    title: str
    """Heading of the report."""
    arms: dict[str, ArmConfig]
    """In the file, all arms by name; as a flag, `A,B`: those to run, with what they build on."""
    tables: list[TableConfig]
    """Which arms stand together, in which order; best written in the file."""
    out: str = "runs/study"
    """Folder of the study: results.json, table.md, figure.svg, report.html, and a folder for each seed."""
    seeds: OneOrMore = 3
    """So many seeds, from `seed` on."""
    seed: Seed = 0
    """The first seed."""
    processes: OneOrMore = 1
    """So many arms at a time; each takes the memory of one, and their seconds are of a machine that is shared."""
    iterations: OneOrMore = 60
    """Rollout batches of every GRPO arm that does not say itself how many."""
    curve_prompts: OneOrMore = 128
    """Held-out prompts scored while training."""
    world: WorldConfig = field(default_factory=WorldConfig)
    new_model: NewModelConfig = field(default_factory=NewModelConfig)
    tales: TalesConfig | None = None
    """Icon tales on a released model, instead of picture stories on a new one (`world`, `new_model`)."""
    warmup: dict[str, Any] = field(default_factory=dict)
    """Settings of `warmup/tiny` (`warmup/smollm2` for tales) to change: `--warmup.max_steps 500`."""
    grpo: dict[str, Any] = field(default_factory=dict)
    """Settings of `grpo/tiny` (`grpo/smollm2` for tales) to change in all arms: `--grpo.learning_rate 1e-4`."""

    def __post_init__(self) -> None:
        self.warmup, self.grpo = flat(self.warmup), flat(self.grpo)

    @property
    def subject(self) -> Subject:
        return subject_of(self.tales, self.world, self.new_model)

    @property
    def all_seeds(self) -> list[int]:
        return [self.seed + number for number in range(self.seeds)]

    @property
    def warmup_arm(self) -> str:
        return next(name for name, arm in self.arms.items() if arm.kind == "warmup")

    def label(self, name: str) -> str:
        return self.arms[name].label or name


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; `{"a": {"b": 1}}`, `{"a.b": 1}` and the flag `--a.b 1` come out the same."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        value = value.value if isinstance(value, Flag) else value
        value = scalar(value) if isinstance(value, str) else value
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings by dotted name as command-line flags."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def check(config: StudyConfig) -> None:
    """Raises InputError for whatever would otherwise stop the study hours later, or leave a hole in its tables."""
    if config.tales and (config.world != WorldConfig() or config.new_model != NewModelConfig()):
        raise InputError("tales: a study of icon tales has no world of shapes and no new model; leave those out")
    if [arm.kind for arm in config.arms.values()].count("warmup") != 1:
        raise InputError("arms: exactly one of the kind warmup, where the others start")
    for name, arm in config.arms.items():
        if not NAME.fullmatch(name):
            raise InputError(f"arms.{name}: a name has letters, digits, _ and - only; it becomes a folder")
        read_by = {"grpo": "grpo", "iterations": "grpo", "mixture": "mixture", "temperature": "measure"}
        for key, kind in read_by.items():
            if getattr(arm, key) != getattr(ArmConfig(), key) and arm.kind != kind:
                raise InputError(f"arms.{name}.{key}: an arm of the kind {arm.kind} does not read it")
        if unknown := [folder for folder in arm.mixture if folder not in config.subject.mixture]:
            raise InputError(f"arms.{name}.mixture: {unknown[0]!r} is none of {', '.join(config.subject.mixture)}")
        allowed = BASES.get(arm.kind, ())
        if not allowed and arm.of is not None:
            raise InputError(f"arms.{name}.of: an arm of the kind {arm.kind} does not read it")
        if allowed and (arm.of not in config.arms or config.arms[arm.of].kind not in allowed):
            raise InputError(f"arms.{name}.of: name an arm of the kind {' or '.join(allowed)}, not {arm.of}")
    for number, table in enumerate(config.tables):
        for row in table.rows:
            where = f"tables.{number} ({table.title})"
            for arm in filter(None, (row.arm, row.against)):
                if arm not in config.arms:
                    raise InputError(f"{where}: no arm is called {arm!r}; known: {', '.join(config.arms)}")
            if len(row.marks) != len(table.columns):
                raise InputError(f"{where}: row {row.arm} has {len(row.marks)} marks, columns {len(table.columns)}")
    check_settings(config, {f"arms.{name}.grpo": arm.grpo for name, arm in config.arms.items()})


def check_settings(config: Shared, arms: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Reads all settings as training will; `arms` are what arms change of `config.grpo`, by where they say so."""
    asked = {"warmup": ("warmup", config.warmup), "grpo": ("grpo", config.grpo)}
    asked |= {place: ("grpo", {**config.grpo, **changes}) for place, changes in (arms or {}).items()}
    subject, nowhere = config.subject, Path("nowhere")
    for place, (stage, changes) in asked.items():
        if taken := [name for name in SET_HERE[stage] if name in changes]:
            raise InputError(f"{place}.{taken[0]}: this command sets it itself; leave it out")
        try:
            if stage == "warmup":
                warmup_settings(subject, nowhere, nowhere, config.seed, flags(changes))
            else:
                run, args = grpo_settings(subject, nowhere, nowhere, config.seed, flags(changes))
                run.algorithm.check(args)
        except InputError as error:
            raise InputError(f"{place}: {error}") from error


def setting_of(config: Shared, root: Path, seed: int, heldout: Sequence[Any], train: Sequence[Any]) -> Setting:
    """What the arms of a seed are trained with."""
    return Setting(
        subject=config.subject,
        root=root,
        seed=seed,
        curve_items=list(heldout[: config.curve_prompts]),
        train_items=list(train),
        iterations=config.iterations,
        warmup_flags=flags(config.warmup),
        grpo_flags=flags(config.grpo),
    )


def shared_settings(config: StudyConfig, seed: int) -> dict[str, Any]:
    """What the results of all arms of a seed depend on."""
    return {
        "seed": seed,
        **config.subject.settings(),
        "warmup": effective(config.subject.warmup, config.warmup),
        "curve_prompts": config.curve_prompts,
    }


def arm_settings(config: StudyConfig, name: str) -> dict[str, Any]:
    """What an arm's result depends on besides; arms of the same settings are one. In JSON's own types."""
    arm = config.arms[name]
    settings: dict[str, Any] = {"kind": arm.kind, "guidance": arm.guidance}
    if arm.kind == "grpo":
        settings["iterations"] = arm.iterations or config.iterations
        settings |= effective(config.subject.grpo, {**config.grpo, **arm.grpo})
    if arm.kind == "mixture":
        settings["mixture"] = arm.mixture
    if arm.temperature != 1:
        settings["temperature"] = arm.temperature
    if arm.of is not None:
        settings["of"] = arm_settings(config, arm.of)
    return json.loads(json.dumps(settings))


def homes(config: StudyConfig) -> dict[str, str]:
    """Every arm's name to the first arm of the same settings: only that one is run."""
    settings = {name: arm_settings(config, name) for name in config.arms}
    return {name: next(first for first in settings if settings[first] == settings[name]) for name in settings}


def running_order(config: StudyConfig, chosen: Iterable[str] | None = None) -> list[str]:
    """The arms to run, each after the one it builds on: those chosen (default all), what they need, the warm-up.

    Raises InputError for a name that no arm has.
    """
    home, needed = homes(config), {config.warmup_arm}
    for name in config.arms if chosen is None else chosen:
        if name not in config.arms:
            raise InputError(f"--arms: {name!r} is none of {', '.join(config.arms)}")
        at: str | None = name
        while at is not None:
            needed.add(home[at])
            at = config.arms[at].of
    return sorted(needed, key=lambda name: (name != config.warmup_arm, _depth(config, name)))


def _depth(config: StudyConfig, name: str) -> tuple[int, int]:
    """How many arms it builds on, and its place in the file."""
    depth, at = 0, config.arms[name].of
    while at is not None:
        depth, at = depth + 1, config.arms[at].of
    return depth, list(config.arms).index(name)


def effective(packaged: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a packaged file with changes, by dotted name: an edit of the file is a change as well."""
    settings = {**flat(read_yaml(find_config(packaged))), **changes}
    left_out = (*WITHOUT_EFFECT, *SET_HERE[packaged.partition("/")[0]])
    return {key: value for key, value in settings.items() if key not in left_out}

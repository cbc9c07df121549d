"""What led to a checkpoint: the runs that trained it, their settings and the data they read, as they lie on the disk.

A run leaves `config.yaml` and `model/` in its folder, and its setting `model` names the checkpoint it started from:

    runs/grpo/model -> runs/grpo/config.yaml -> runs/warmup/model -> runs/warmup/config.yaml
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...configs import read_yaml
from ...configs.errors import InputError
from ...configs.redaction import is_secret
from ...data.prompts import read_lines
from ...data.shards import INDEX, read_index
from ...train.scale.run_folder import read_plugins
from ..metrics import dig, mapping, records

CONFIG = "config.yaml"
WRITTEN = re.compile(r"model|checkpoint-[0-9]+")
"""Names under which a run leaves its checkpoints."""


@dataclass(frozen=True, slots=True)
class Source:
    """Data of a run: a folder of shards, or a file of prompts."""

    path: str
    use: str
    """trained on, replayed or prompts."""
    weight: float | None
    kinds: dict[str, dict[str, int]] | None
    """Records by split and kind; None where the data are no longer at hand."""
    report: Mapping[str, Any]
    """What the converter had to say."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One training run."""

    name: str
    settings: Mapping[str, Any]
    """As the run resolved them, `presentable`."""
    sources: tuple[Source, ...]
    prompts: Path | None
    """The held-out prompts of its settings, or else those it trained on."""
    prompt_form: str = ""
    """How they are read."""
    plugins: Mapping[str, str] = field(default_factory=dict)
    """Files of code that its settings name, and the sha256 of each."""

    @property
    def reinforced(self) -> bool:
        return "algorithm" in self.settings


def runs_of(model: Path) -> list[Path]:
    """Folders of the runs that led to a checkpoint, first to last; empty where none is recorded beside it.

    A relative path in the settings counts from the working directory, as it did for the run.
    """
    runs: list[Path] = []
    model = model.absolute()
    while WRITTEN.fullmatch(model.name) and model.parent not in runs and (model.parent / CONFIG).is_file():
        runs.append(model.parent)
        model = Path(read_yaml(model.parent / CONFIG).get("model") or "").absolute()
    return runs[::-1]


def read_stages(runs: Sequence[Path]) -> list[Stage]:
    """Raises InputError for a folder without a `config.yaml`, and for shards that are damaged."""
    stages = []
    for run in runs:
        if not (run / CONFIG).is_file():
            raise InputError(f"{run}: no {CONFIG}; name the folder that a training run wrote")
        settings = read_yaml(run / CONFIG)
        prompts = dig(settings, "heldout", "prompts") or settings.get("prompts")
        name, file = Path(settings.get("output_dir") or run.absolute()).name, Path(prompts) if prompts else None
        form = settings.get("prompt_form") or ""
        file = None if settings.get("prompts_source") else file  # no file of lines
        plugins = {row["file"]: row["sha256"] for row in read_plugins(run)}
        stages.append(Stage(name, presentable(settings), tuple(_sources(settings)), file, form, plugins))
    return stages


def _sources(settings: Mapping[str, Any]) -> Iterator[Source]:
    data = settings.get("data")
    for source in [{"path": data}] if isinstance(data, str) and data else records(settings, "sources"):
        yield _shards(source, "trained on")
    if prompts := settings.get("prompts"):
        listed = Path(prompts).is_file() and not settings.get("prompts_source")
        count = {"train": {"prompts": sum(1 for _ in read_lines(Path(prompts)))}} if listed else None
        yield Source(_shown(prompts), "prompts", None, count, {})
    for source in records(settings, "algorithm", "replay", "sources"):
        yield _shards(source, "replayed")


def _shards(source: Mapping[str, Any], use: str) -> Source:
    path, weight = Path(str(source.get("path"))), source.get("weight", 1.0)
    if not (path / INDEX).is_file():
        return Source(_shown(str(path)), use, weight, None, {})
    index = read_index(path)
    return Source(_shown(str(path)), use, weight, index.kinds, index.report)


def summary(report: Mapping[str, Any]) -> str:
    """A converter's report in a line: figures and words as they are, a list by its length and kinds."""
    parts = []
    for key, value in report.items():
        if isinstance(value, list):
            kinds = Counter(str(item["kind"]) for item in value if isinstance(item, Mapping) and "kind" in item)
            detail = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            parts.append(f"{key} {len(value)}" + (f" ({detail})" if detail else ""))
        elif isinstance(value, str | int | float):
            parts.append(f"{key} {value}")
        elif isinstance(value, Mapping) and value:
            parts.append(f"{key}: {summary(mapping(value))}")
    return "; ".join(parts)


def presentable(value: Any) -> Any:
    """Settings as strangers may see them: no secret, and of an absolute path only its last part."""
    if isinstance(value, Mapping):
        return {key: presentable(item) for key, item in value.items() if not is_secret(key)}
    if isinstance(value, list):
        return [presentable(item) for item in value]
    return _shown(value) if isinstance(value, str) else value


def _shown(text: str) -> str:
    """Where somebody's home is, nobody needs to know."""
    return Path(text).name if text.startswith(("/", "~")) else text

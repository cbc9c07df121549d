"""What a study is of: an embedded world with a new model, or icon tales with a released one. The arms know no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from ..models.documents.document import InterleavedDocument
from ..models.policy import UnifiedPolicy
from ..models.sampler.generation import Sampling
from ..models.writing import write
from ..train.from_scratch.new_model import NewModelConfig
from ..train.scale.precision import sampling_weights
from ..worlds.icon_tales import figures as icon_tales
from ..worlds.icon_tales.icons import open_icons
from ..worlds.icon_tales.kept import measure_kept
from ..worlds.icon_tales.prepare import TalesConfig
from ..worlds.icon_tales.prepare import prepare as prepare_tales
from ..worlds.picture_stories.figures import MAX_IMAGES, STORY_TOKENS, score_abilities, verify_stories
from ..worlds.picture_stories.prepare import WorldConfig, prepare
from ..worlds.picture_stories.scenes import SCENES, Outline, story_prompt

Items = dict[str, list[float]]
"""Scores of every item by metric."""
ABILITIES = {"vqa": "understanding.vqa", "caption": "understanding.caption", "text_to_image": "text_to_image.exact"}
"""Of the world's own, by the names that its scores have."""


class Subject(Protocol):
    warmup: str
    """Packaged settings of the warm-up; its `grpo` those of GRPO."""
    grpo: str
    mixture: Mapping[str, float]
    """Folders of a seed's data, and their weights in the warm-up."""
    replayed: Mapping[str, float]
    """The same in GRPO's replay."""

    def prepare(self, root: Path, seed: int, say: Callable[[str], None]) -> tuple[list[Any], list[Any], Any]:
        """(held-out items, training items, figures); `root/new_model` and `root/data` are there then."""
        ...

    def prompt(self, item: Any, identifier: str = "") -> InterleavedDocument: ...

    def score(
        self, policy: UnifiedPolicy, items: Sequence[Any], temperature: float, seed: int, guidance: float = 1.0
    ) -> Items:
        """Of an answer each; `story_exact` is the one that curves show. Temperature 0 is greedy, guidance 1 none."""
        ...

    def abilities(self, policy: UnifiedPolicy, root: Path, seed: int) -> Items:
        """What else the model can do, by dotted name."""
        ...

    def settings(self) -> dict[str, Any]:
        """What every result depends on."""
        ...

    def rewards(self, root: Path) -> dict[str, dict[str, Any]]:
        """Options of rewards that depend on the seed's folder."""
        ...


class PictureStories:
    warmup, grpo = "warmup/tiny", "grpo/tiny"
    mixture: Mapping[str, float] = {"interleaved": 8.0, "understanding": 5.0, "text_to_image": 3.0}
    replayed: Mapping[str, float] = {"understanding": 5.0, "text_to_image": 3.0}

    def __init__(self, world: WorldConfig, new_model: NewModelConfig):
        self.world, self.new_model = world, new_model

    def prepare(self, root: Path, seed: int, say: Callable[[str], None]) -> tuple[list[Outline], list[Outline], Any]:
        return prepare(root, self.world, self.new_model, seed, say)

    def prompt(self, item: Outline, identifier: str = "") -> InterleavedDocument:
        return story_prompt(item, identifier)

    def score(
        self, policy: UnifiedPolicy, items: Sequence[Outline], temperature: float, seed: int, guidance: float = 1.0
    ) -> Items:
        sampling = Sampling(
            max_new_tokens=STORY_TOKENS, temperature=temperature, max_images=MAX_IMAGES, guidance=guidance, seed=seed
        )
        return verify_stories(write(policy, [story_prompt(outline) for outline in items], sampling), items).rows()

    def abilities(self, policy: UnifiedPolicy, root: Path, seed: int) -> Items:
        return {ABILITIES[name]: rows for name, rows in score_abilities(policy, SCENES, seed).items()}

    def settings(self) -> dict[str, Any]:
        return {"world": asdict(self.world), "new_model": asdict(self.new_model)}

    def rewards(self, root: Path) -> dict[str, dict[str, Any]]:
        return {}


class IconTales:
    warmup, grpo = "warmup/smollm2", "grpo/smollm2"
    mixture: Mapping[str, float] = {"interleaved": 8.0, "text_to_image": 4.0, "kept": 4.0}
    replayed: Mapping[str, float] = {"text_to_image": 4.0, "kept": 4.0}

    def __init__(self, tales: TalesConfig):
        self.tales = tales

    def prepare(self, root: Path, seed: int, say: Callable[[str], None]) -> tuple[list[Any], list[Any], Any]:
        return prepare_tales(root, self.tales, seed, say, self.writing)

    def prompt(self, item: Any, identifier: str = "") -> InterleavedDocument:
        return item.prompt(identifier)

    def score(
        self, policy: UnifiedPolicy, items: Sequence[Any], temperature: float, seed: int, guidance: float = 1.0
    ) -> Items:
        with self.writing(policy):
            return icon_tales.score_tales(policy, items, open_icons(self.tales.icons), temperature, seed, guidance)

    def abilities(self, policy: UnifiedPolicy, root: Path, seed: int) -> Items:
        before = json.loads((root / "before.json").read_text())
        with self.writing(policy):
            pictures = icon_tales.score_pictures(policy, open_icons(self.tales.icons), seed)
            kept = measure_kept(policy, before["right"])
        return {"text_to_image.exact": pictures, **{f"kept.{name}": rows for name, rows in kept.items()}}

    def settings(self) -> dict[str, Any]:
        return {"tales": asdict(self.tales)}

    def rewards(self, root: Path) -> dict[str, dict[str, Any]]:
        return {
            "icon_tales/image_sentence": {"icons": self.tales.icons},
            "icon_tales/fluency": {"model": str(root / "new_model")},
        }

    @contextmanager
    def writing(self, policy: UnifiedPolicy) -> Iterator[None]:
        """In 16 bits, as rollouts are written, where the settings say so."""
        device = policy.model.device.type  # type: ignore[attr-defined]
        with torch.autocast(device, torch.bfloat16, enabled=self.tales.bf16), sampling_weights(policy):
            yield


def subject_of(tales: TalesConfig | None, world: WorldConfig, new_model: NewModelConfig) -> Subject:
    return PictureStories(world, new_model) if tales is None else IconTales(tales)

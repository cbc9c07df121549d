"""GenEval (arXiv 2310.11513): 553 prompts; are the objects in the picture, so many, of that colour, in that place?

Rules and thresholds are those of `evaluate_images.py` and `summary_scores.py` in github.com/djghosh13/geneval; what
finds the objects is one of three:

- `detections`: what a detector found, as JSON: the official Mask2Former and CLIP run in an environment of theirs;
- `detector`: a zero-shot detector and a CLIP of transformers, loaded by name;
- `judge`: a vision-language model that is asked whether the picture shows the prompt. No rules then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoProcessor

from ...configs.bounds import OneOrMore
from ...configs.errors import InputError, plain_file, reading
from ...configs.registry import register
from ...configs.schema import check_ranges
from ...models.chat.requests import Answer
from ...models.documents.document import ImageSegment, InterleavedDocument, to_rgb
from ...rewards.base import Completion
from ...rewards.encoders.pretrained import load_model, load_pretrained, split_revision
from ...rewards.judges.grading import Verdict, questions, read_verdict
from ..benchmark import Given, Item, Outcome, Table, Task, judge_template
from ..entries import segments_of
from ..figures import Figure, Share, figure_estimate
from ..statistics import Estimate
from .object_files import COLORS, Detection, read, read_detections, samples_of

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MOST_OBJECTS = 16
"""Of one class."""
POSITION_THRESHOLD = 0.1
PROMPTS = 553
SAMPLES = 4
ASPECT = "correct"

SOURCE = "independent reproductions by TorchUMM at 083395e"
PUBLISHED = (
    ("Janus-Pro 7B", (78.92,)),
    ("Bagel 14B", (78.81,)),
    ("Show-o 1.3B", (65.06,)),
    ("Emu3 8B", (45.76,)),
    ("Janus 1.3B", (40.04,)),
)
"""Overall."""


@dataclass
class DetectorConfig:
    model: str = "google/owlv2-large-patch14-ensemble"
    """Zero-shot detector of transformers: a folder, ORG/NAME or ORG/NAME@REVISION."""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP that tells colours."""
    device: str = ""
    """`cuda:1`, `cpu`; empty takes the process's GPU where there is one."""


@dataclass
class GenEvalConfig:
    by: Literal["detections", "detector", "judge"] = "detector"
    """What looks at the pictures."""
    detections: str = ""
    """JSONL of what was found: {"id": "00012/3", "objects": [{"class", "score", "box": [x0, y0, x1, y1], "color"}]}."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    samples: OneOrMore = SAMPLES
    """Pictures of each prompt that are written."""
    template: str = "geneval"
    """Judge prompt, scale 0 to 1."""

    def __post_init__(self) -> None:
        if (self.by == "detections") != bool(self.detections):
            raise InputError("by, detections: by detections needs their file, and nothing else reads it")
        check_ranges(self)


# ---- the rules ----


ColorOf = Callable[[Detection], str | None]


def kept(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The surest of each class, surest first: score above the threshold of the task, at most 16."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    groups: dict[str, list[Detection]] = {}
    for found in sorted(detections, key=lambda found: -found.score):
        if found.score > threshold and len(groups.setdefault(found.name, [])) < MOST_OBJECTS:
            groups[found.name].append(found)
    return groups


def relations(box: Sequence[float], target: Sequence[float]) -> set[str]:
    """Where a box is, seen from another: the offset of the centres, less a tenth of the sizes, by direction."""
    corners = np.array([box, target], dtype=np.float64).reshape(2, 2, 2)
    sizes = np.abs(corners[:, 1] - corners[:, 0])
    offset = corners[0].mean(0) - corners[1].mean(0)
    beyond = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes.sum(0), 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    dx, dy = beyond / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, true in holds.items() if true}


def judge_objects(
    metadata: Mapping[str, Any], detections: Sequence[Detection], color_of: ColorOf = lambda found: found.color
) -> list[str]:
    """Why a picture is wrong, nothing where it is right: every `include` clause holds, and no `exclude` clause.

    Of a class only the surest objects that a clause asks for are looked at. A position is that to the group of an
    earlier clause, each to each; where that clause does not hold, neither does the position.
    """
    objects = kept(detections, metadata["tag"])
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for clause in metadata["include"]:
        name, count = clause["class"], clause["count"]
        found = objects.get(name, [])[:count]
        reason = ""
        if len(found) < count:
            reason = f"expected {name} >= {count}, found {len(found)}"
        elif "color" in clause:
            colors = [color_of(one) for one in found]
            if colors.count(clause["color"]) < count:
                reason = f"expected {clause['color']} {name} >= {count}, found {', '.join(map(str, colors))}"
        if not reason and "position" in clause:
            relation, number = clause["position"]
            targets = groups[number]
            if targets is None:
                reason = f"no target for {name} to be {relation}"
            elif any(relation not in relations(one.box, target.box) for one in found for target in targets):
                reason = f"expected {name} {relation} target"
        groups.append(None if reason else found)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude", []):
        if (seen := len(objects.get(clause["class"], []))) >= clause["count"]:
            reasons.append(f"expected {clause['class']} < {clause['count']}, found {seen}")
    return reasons


# ---- what finds objects ----


class Detector(Protocol):
    def __call__(self, image: Image.Image, classes: Sequence[str]) -> list[Detection]:
        """Objects of the classes, all scores, colours not yet known."""
        ...

    def color(self, image: Image.Image, found: Detection) -> str: ...


class ZeroShotDetector:
    """A zero-shot detector of transformers (OWL-ViT, OWLv2) with CLIP on the boxes for colours. A `Detector`.

    The official colours are told on masks with the background grey; here, as there without masks, on the whole box.
    """

    def __init__(self, config: DetectorConfig):
        from transformers import pipeline  # slow to import, and not needed by other benchmarks

        gpu = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
        device = config.device or (gpu if torch.cuda.is_available() else "cpu")
        name, revision = split_revision(config.model)
        with reading(Path(name)):
            self.pipeline = pipeline("zero-shot-object-detection", model=name, revision=revision, device=device)
        self.clip = load_model(config.clip).to(device).eval()
        self.processor = load_pretrained(AutoProcessor, config.clip)
        self._texts: dict[str, torch.Tensor] = {}

    def __call__(self, image: Image.Image, classes: Sequence[str]) -> list[Detection]:
        found = self.pipeline(image, candidate_labels=list(classes), threshold=THRESHOLD)
        corners = ("xmin", "ymin", "xmax", "ymax")
        return [Detection(one["label"], one["score"], tuple(one["box"][name] for name in corners)) for one in found]

    @torch.no_grad()
    def color(self, image: Image.Image, found: Detection) -> str:
        x0, y0, x1, y1 = (round(value) for value in found.box)
        crop = image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
        pixels = self.processor(images=[crop], return_tensors="pt").to(self.clip.device)
        seen = self.clip.visual_projection(self.clip.vision_model(**pixels).pooler_output)
        return COLORS[int((normalize(seen, dim=-1) @ self._colors(found.name).T).argmax())]

    @torch.no_grad()
    def _colors(self, name: str) -> torch.Tensor:
        """[colour, feature], each the mean of three wordings."""
        if name not in self._texts:
            wordings = ("a photo of a {c} {n}", "a photo of a {c}-colored {n}", "a photo of a {c} object")
            texts = [wording.format(c=color, n=name) for color in COLORS for wording in wordings]
            tokens = self.processor(text=texts, padding=True, return_tensors="pt").to(self.clip.device)
            read = self.clip.text_projection(self.clip.text_model(**tokens).pooler_output)
            means = normalize(read, dim=-1).unflatten(0, (len(COLORS), len(wordings))).mean(1)
            self._texts[name] = normalize(means, dim=-1)
        return self._texts[name]


# ---- the benchmark ----


@register("benchmark", "geneval")
class GenEval:
    """Pictures of counted, coloured and placed objects (GenEval).

    make: builds the detector when the first picture needs it.
    """

    name = "geneval"
    records = staticmethod(read)
    highest: float = 1

    def __init__(
        self,
        items: Sequence[Item],
        config: GenEvalConfig,
        make: Callable[[DetectorConfig], Detector] = ZeroShotDetector,
    ):
        self.config, self.items, self._make = config, samples_of(items, config.samples), make
        self.title = f"GenEval, by {config.by}"
        self.needs_judge = config.by == "judge"
        self.template = judge_template(config.template, (0, 1)) if self.needs_judge else None
        self.detections: dict[str, list[Detection]] = {}
        if config.detections:
            self.detections = read_detections(Path(config.detections))
            self._sha256 = hashlib.sha256(plain_file(Path(config.detections)).read_bytes()).hexdigest()
        self._detector: Detector | None = None

    def manifest(self) -> dict[str, Any]:
        if self.template:
            return {"by": "judge", "template": self.template.manifest()}
        if self.config.by == "detections":
            return {"by": "detections", "detections": {"sha256": self._sha256, "items": len(self.detections)}}
        return {"by": "detector", "model": self.config.detector.model, "clip": self.config.detector.clip}

    def aspects(self, item: Item) -> tuple[str, ...]:
        return (ASPECT,)

    def tasks(self, item: Item, given: Given) -> list[Task]:
        """The first picture of an answer counts; without one it is wrong."""
        pictures = [s for s in segments_of(given.entries) if isinstance(s, ImageSegment)]
        if not pictures:
            return [Task(ASPECT, Verdict(0.0, "", "no picture"), {"answers without a picture": 1})]
        notes = {"further pictures": len(pictures) - 1} if len(pictures) > 1 else {}
        if self.template:
            prompt, answer = segments_of(item.question), (pictures[0],)
            completion = Completion(InterleavedDocument(prompt), InterleavedDocument(answer), given.ended)
            return [Task(ASPECT, questions(self.template, completion)[0].request, notes)]
        return [Task(ASPECT, self._by_rules(item, pictures[0]), notes)]

    def _by_rules(self, item: Item, picture: ImageSegment) -> Verdict:
        metadata = item.meta["metadata"]
        if self.config.by == "detections":
            if item.id not in self.detections:
                return Verdict(None, "no detections", f"{self.config.detections} has none of {item.id}")
            reasons = judge_objects(metadata, self.detections[item.id])
        else:
            self._detector = detector = self._detector or self._make(self.config.detector)
            image = to_rgb(picture.pixels())
            clauses = [*metadata["include"], *metadata.get("exclude", [])]
            classes = list(dict.fromkeys(clause["class"] for clause in clauses))
            found = detector(image, classes)
            reasons = judge_objects(metadata, found, lambda one: detector.color(image, one))
        return Verdict(float(not reasons), "", "\n".join(reasons))

    def read(self, item: Item, aspect: str, answer: Answer) -> Verdict:
        assert self.template is not None
        return read_verdict(answer, self.template)

    def figures(self, outcomes: Sequence[Outcome]) -> dict[str, Figure]:
        """Percent of pictures, of each task, and the unweighted mean of the tasks; a prompt is a unit."""
        tags: dict[str, dict[str, list[float]]] = {}
        for outcome in outcomes:
            if outcome.score is not None:
                prompts = tags.setdefault(outcome.item.category, {})
                prompts.setdefault(outcome.item.id.partition("/")[0], []).append(outcome.score)
        named = [*(tag for tag in TAGS if tag in tags), *(tag for tag in tags if tag not in TAGS)]
        units = {tag: {prompt: (sum(s), float(len(s))) for prompt, s in tags[tag].items()} for tag in named}
        overall = [Share(units[tag], 100 / len(named)) for tag in named]
        return {"overall": overall, **{tag: [Share(units[tag], 100)] for tag in named}}

    def scores(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        estimates = {name: figure_estimate(figure) for name, figure in self.figures(outcomes).items()}
        return {name: value for name, value in estimates.items() if value}

    def tables(self, outcomes: Sequence[Outcome]) -> list[Table]:
        scores = self.scores(outcomes)
        tasks = tuple(name for name in scores if name != "overall")
        row: list[Estimate | None] = [scores.get("overall")]
        return [
            Table("Overall, percent", ("overall",), [("this run", row)], PUBLISHED, SOURCE),
            Table("Tasks, percent of pictures", tasks, [("this run", [scores[name] for name in tasks])]),
        ]

    def caveats(self, outcomes: Sequence[Outcome]) -> list[str]:
        prompts = len({item.id.partition("/")[0] for item in self.items})
        said = []
        if len(self.items) != SAMPLES * prompts:
            said.append(f"{len(self.items):,} pictures of {prompts} prompts: the published rows are of {SAMPLES} each.")
        if prompts != PROMPTS:
            said.append(f"{prompts} prompts of {PROMPTS}: the published rows are of the whole set.")
        if self.config.by == "detector":
            said.append(
                f"Objects were found by {self.config.detector.model}, whose scores are not Mask2Former's: the "
                "threshold of 0.9 for counting was chosen for that. Compare runs by this detector with each other only."
            )
        if self.needs_judge:
            said.append("A vision-language model was asked instead of GenEval's rules: not the published measure.")
        if missing := sum(outcome.score is None for outcome in outcomes):
            said.append(f"{missing:,} pictures have no verdict and do not count.")
        return said

"""The model card of a release: YAML metadata that the Hub reads, and what a person must know before using the model.

Pure: everything the card says comes in as a `Release`. What is not known is said to be unknown.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, ModelCardData
from PIL import Image

from ...configs.errors import InputError
from ...models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from ...models.documents.rendering import SMALL_PICTURE
from ...models.sampler.generation import Sampling
from ...models.writing import Answer
from ..metrics import METRICS, Estimate, arm_names, figure, mapping, metric_label, records
from .lineage import Source, Stage, presentable, summary

EXAMPLE = "How do I fold a crane?"
ENLARGED = 4
"""Times, small pictures of the samples; a browser would blur them."""
OURS = ("new_model", "pack_length", "normalisation", "algorithm", "rewards", "lora")
TRAINING = (
    *("max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "steps_per_generation"),
    *("num_iterations", "max_completion_length", "temperature", "bf16", "activation_checkpointing", "seed"),
)
"""Settings that the card itself shows; all of them are in the file it links."""


@dataclass(frozen=True, slots=True)
class Release:
    """What a model card tells."""

    repo: str
    """ORG/NAME."""
    parts: Mapping[str, str]
    """What the model is made of: a label and its value."""
    sampling: Sampling
    """The settings that the release samples with unless told otherwise."""
    base: str | None = None
    """Repository of the model that training started from."""
    license: str | None = None
    license_link: str | None = None
    """Of a licence that the Hub does not list by its name."""
    datasets: Sequence[str] = ()
    """Data sets on the Hub."""
    stages: Sequence[Stage] = ()
    """Training runs, first to last; their settings lie in `stage_file(number, stage)`."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """Results by the name of their file."""
    samples: str = ""
    """Markdown."""
    samples_from: str = ""
    """Where their prompts come from."""
    seed: int = 0
    """Of the samples."""
    example: str = EXAMPLE
    """A prompt that the model can answer."""


def model_card(release: Release) -> str:
    """README.md: metadata and text."""
    sections = {
        "Use": _use(release),
        "What it is": _table(("", ""), release.parts.items()),
        "Training data": _data(release),
        "Settings": _settings(release),
        "Evaluation": _evaluation(release.results, [stage.name for stage in release.stages]),
        "Licence": _licence(release),
        "Intended use and limits": _limits(release),
        "Samples": _samples(release),
    }
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" for title, text in sections.items())
    name = release.repo.partition("/")[2]
    lead = "A unified vision-language model: it writes and illustrates in one stream. Trained with `limner`."
    return f"---\n{metadata(release).to_yaml()}\n---\n\n# {name}\n\n{lead}\n\n{body}\n"


def metadata(release: Release) -> ModelCardData:
    """The YAML block. A licence with a link is one that the Hub knows as `other`."""
    named = {"license": release.license}
    if release.license_link:
        named = {"license": "other", "license_name": release.license, "license_link": release.license_link}
    tags = ["limner", "interleaved-generation", "multimodal"]
    return ModelCardData(
        base_model=release.base,
        datasets=list(release.datasets) or None,
        library_name="limner",
        pipeline_tag="any-to-any",
        tags=tags + ["grpo"] * any(stage.reinforced for stage in release.stages),
        **named,  # type: ignore[arg-type]
    )


def stage_file(number: int, stage: Stage) -> str:
    """Where the whole settings of a run lie in the release."""
    return f"training/{number}-{re.sub(r'[^A-Za-z0-9_.-]', '_', stage.name)}.yaml"


def read_entries(results: Mapping[str, Any]) -> list[EvalResultEntry]:
    """`eval_results` of each file: results on data sets of the Hub. Raises InputError naming the file."""
    entries = []
    for name, result in results.items():
        for number, record in enumerate(records(result, "eval_results"), 1):
            try:
                entries.append(EvalResultEntry(**record))
            except (TypeError, ValueError) as error:
                raise InputError(f"{name}: eval_results, entry {number}: {error}") from None
    return entries


def sample_document(answers: Sequence[Answer]) -> InterleavedDocument:
    """Prompts and answers one below the other, with headings, to be rendered as Markdown."""
    segments: list[TextSegment | ImageSegment] = []
    for number, answer in enumerate(answers, 1):
        segments.append(TextSegment(f"### Sample {number}"))
        for segment in answer.prompt.segments:
            if isinstance(segment, TextSegment):
                segments.append(TextSegment("\n".join(f"> {line}".rstrip() for line in segment.text.splitlines())))
            else:
                segments.append(_enlarged(segment))
        for segment in answer.document.segments:
            segments.append(segment if isinstance(segment, TextSegment) else _enlarged(segment))
        if not answer.ended:
            left_out = "; an unfinished picture is left out" if answer.cut_image else ""
            segments.append(TextSegment(f"*(The answer ran into the limit of tokens{left_out}.)*"))
    return InterleavedDocument(tuple(segments))


def _enlarged(segment: ImageSegment) -> ImageSegment:
    image = segment.pixels()
    if max(image.size) <= SMALL_PICTURE:
        image = image.resize((ENLARGED * image.width, ENLARGED * image.height), Image.Resampling.NEAREST)
    return ImageSegment(image, origin=segment.origin, candidate=segment.candidate, alt=segment.alt)


def _use(release: Release) -> str:
    settings = release.sampling
    how = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}"
    how += f", top-k {settings.top_k}" if settings.top_k else ""
    how += f", top-p {settings.top_p:g}" if settings.top_p < 1 else ""
    how += f", image guidance {settings.guidance:g}" if settings.guidance != 1 else ""
    images = "any number of" if settings.max_images is None else f"at most {settings.max_images}"
    return f"""```python
from limner import load

model = load("{release.repo}")
model.write({json.dumps(release.example, ensure_ascii=False)}).save("answer.html")
```

It samples with {how}, at most {settings.max_new_tokens} new tokens and {images} pictures (`generation_config.json`);
`write` takes other values by keyword. Language model and tokenizer are stock transformers and load without limner too;
the image tokenizer lies in `image_tokenizer/`. Nothing in this repository is code or a pickle."""


def _data(release: Release) -> str:
    rows = [(stage.name, *_source_row(source)) for stage in release.stages for source in stage.sources]
    blocks = [_table(("run", "data", "use", "weight", "records", "report of the converter"), rows)] if rows else []
    for name, result in release.results.items():
        tokens = mapping(result, "data", "tokens")
        if counts := [(kind, *(_count(item, unit) for unit in COUNTED)) for kind, item in tokens.items()]:
            blocks.append(f"Of the documents trained on (`{name}`):")
            blocks.append(_table(("kind", "documents", "text tokens", "image tokens"), counts))
    if release.datasets:
        links = ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in release.datasets)
        blocks.append(f"On the Hub: {links}.")
    return "\n\n".join(blocks) or "Not recorded: no run's folder was given with this release."


COUNTED = ("documents", "text", "image")


def _count(item: Any, unit: str) -> str:
    value = item.get(unit) if isinstance(item, Mapping) else None
    return f"{value:,}" if isinstance(value, int) else ""


def _source_row(source: Source) -> tuple[str, ...]:
    if source.kinds is None:
        counts = "no longer at hand when this card was written"
    else:
        counts = "; ".join(
            f"{split}: " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
            for split, kinds in source.kinds.items()
            if kinds
        )
    weight = "" if source.weight is None else f"{source.weight:g}"
    return f"`{source.path}`", source.use, weight, counts, summary(source.report)


def _settings(release: Release) -> str:
    blocks = []
    for number, stage in enumerate(release.stages, 1):
        kind = "extended GRPO" if stage.reinforced else "warm-up: cross-entropy"
        shown = {name: stage.settings[name] for name in (*OURS, *TRAINING) if stage.settings.get(name) is not None}
        file = stage_file(number, stage)
        blocks.append(f"### {number}. {stage.name}\n\nStage: {kind}. All settings: [{file}]({file}).")
        blocks.append(_yaml(shown))
        if stage.plugins:
            files = ", ".join(f"`{file}` (sha256 `{digest}`)" for file, digest in stage.plugins.items())
            blocks.append(f"Code of the trainer's own, not part of this release: {files}.")
    for name, result in release.results.items():
        if settings := mapping(result, "settings"):
            said = [f"{key} `{result[key]}`" for key in ("command", "seed", "device", "created") if key in result]
            blocks.append(f"### As `{name}` has them\n\n{', '.join(said)}")
            blocks.append(_yaml(presentable(settings)))
    return "\n\n".join(blocks) or "Not recorded: no run's folder was given with this release."


def _yaml(value: Mapping[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True).strip()}\n```"


def _evaluation(results: Mapping[str, Any], stages: Sequence[str]) -> str:
    blocks = []
    for name, result in results.items():
        blocks.append(f"From `{name}`; in brackets 95 % intervals, where known.")
        blocks += _result_tables(result, stages)
    return "\n\n".join(blocks) or "No evaluation was given with this release."


def has_figures(result: Any) -> bool:
    """Whether a results file holds anything that the card can show."""
    return bool(_result_tables(result, ()))


def _result_tables(result: Any, stages: Sequence[str]) -> list[str]:
    tables = []
    arms = arm_names(result)
    if metrics := [metric for metric in METRICS if any(figure(result, arm, metric) for arm in arms)]:
        names = {arm: f"**{arm}** (this model)" if stages and arm == stages[-1] else arm for arm in arms}
        rows = [(metric_label(metric), *(_estimate(figure(result, arm, metric)) for arm in arms)) for metric in metrics]
        tables.append(_table(("", *names.values()), rows))
    elif flat := list(_flat(result)):
        rows = [(name, _estimate(estimate), "" if estimate.n is None else f"{estimate.n:,}") for name, estimate in flat]
        tables.append(_table(("metric", "value", "items"), rows))
    if entries := records(result, "eval_results"):
        keys = ("dataset_id", "task_id", "value", "date", "notes")
        rows = [[str(entry.get(key, "")) for key in keys] for entry in entries]
        tables.append(_table(("data set", "task", "value", "date", "notes"), rows))
    return tables


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Estimate]]:
    """Every `{"value": ..}` in nested mappings, under its dotted name."""
    if found := Estimate.read(value):
        yield name, found
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}".strip("."))


def _estimate(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


def _licence(release: Release) -> str:
    name = f"[{release.license}]({release.license_link})" if release.license_link else release.license
    if release.base:
        base = f"[{release.base}](https://huggingface.co/{release.base})"
        return f"Trained from {base}, whose licence ({name}) holds for this model too, its use policy included."
    return f"{name}. No base model was named." if name else "None was stated: ask the authors before you use the model."


def _limits(release: Release) -> str:
    base = " What the base model's card says of use, bias and risks holds here too." if release.base else ""
    return f"""For research on interleaved generation: answers to prompts like those of its training data, in text and
in generated pictures. Further from these data it has no competence, and it has their bias. What it says may be false,
and its pictures show nothing that happened: mark them as generated where others see them, and decide nothing about
people by them. How it behaves under misuse was not tested.{base}"""


def _samples(release: Release) -> str:
    if not release.samples:
        return "None: no prompts were given with this release."
    small = f"; pictures of up to {SMALL_PICTURE} pixels are enlarged {ENLARGED} times"
    return f"""The first prompts of {release.samples_from}, sampled once by this release with its own settings and seed
{release.seed}; none was left out{small}.

{release.samples}"""


def _table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(str(cell).replace("|", r"\|").split()) for cell in cells) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, rows)])


def eval_files(entries: Sequence[EvalResultEntry]) -> dict[str, EvalResultEntry]:
    """A file for each entry, as the Hub wants it: several scores on one data set are several files."""
    files: dict[str, EvalResultEntry] = {}
    taken: Counter[str] = Counter()
    for entry in entries:
        name = re.sub(r"[^a-z0-9]+", "_", f"{Path(entry.dataset_id).name}_{entry.task_id}".lower()).strip("_")
        taken[name] += 1
        files[f".eval_results/{name}{f'_{taken[name]}' if taken[name] > 1 else ''}.yaml"] = entry
    return files

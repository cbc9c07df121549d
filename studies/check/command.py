"""`limner check`: first contact with a model: read it, compare it, sample from it, train one step, and say what held.

limner check ORG/NAME --json check.json
limner check DIR --image-tokenizer vqgan.ckpt --device cuda:1

Every check is made that can be: one that fails stops only those that need it. A page and a JSON hold what was found,
with versions, device and configuration, and nothing that tells of the machine: no path, no name, no token.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ...configs.bounds import Width, bounded
from ...configs.errors import ArgumentParser, InputError
from ...configs.redaction import without_secrets
from ...configs.terminal import say, say_next
from ...configs.whole import write_atomically
from ...models.checkpoints.gguf import as_folder
from ...models.checkpoints.hub import find_model, usable_device
from ...report.check import check_page
from . import model as models
from . import training
from .findings import Finding, Findings, Private
from .model import Subject

DTYPES = ("auto", "float32", "bfloat16", "float16")
PACKAGES = ("limner", "torch", "transformers", "trl", "accelerate", "peft", "diffusers", "tokenizers", "safetensors")
NOT_SAID = ("_name_or_path", "vocabulary_map")
"""Of a configuration: where it was read, and a table of all its tokens."""
FORMAT = 1


def main(argv: Sequence[str]) -> int:
    """Exit code: 1 where a check failed or could not be made."""
    parser = ArgumentParser(prog="limner check", description="Is a model read right, and can it be trained here?")
    parser.add_argument(
        "model", metavar="MODEL", help="ORG/NAME on the Hub, or a folder or .gguf: a checkpoint or an original"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (default NAME-check.html, here)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON, to be attached to an issue")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default the GPU, where there is one")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the language model (default: as saved)")
    parser.add_argument("--no-training", action="store_true", help="take no step: no warm-up, no GRPO, no memory")
    parser.add_argument(
        "--image-tokenizer", type=Path, metavar="FILE_OR_DIR", help="as for `limner convert`, of an original model"
    )
    parser.add_argument("--image-size", type=bounded(Width), metavar="PIXELS", help="the same")
    parser.add_argument("--family", metavar="NAME", help="the same")
    given = parser.parse_args(argv)
    name = Path(given.model).expanduser().absolute().name or "model"
    out: Path = given.out or Path(f"{name}-check.html")
    if out.suffix != ".html":
        raise InputError(f"--out {out}: end the name in .html")
    options = {key: getattr(given, key) for key in ("image_tokenizer", "image_size") if getattr(given, key) is not None}
    device = usable_device(given.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the trainers take the current one
    with as_folder(Path(given.model)) as place:
        folder = find_model(str(place), lambda path: models.check_folder(path, given.family, options)).absolute()
        report = Report(given.model, folder, device, given.dtype, out, given.json)
        for _ in checks(report, given.family, options, not given.no_training):
            report.write()
        counts = ", ".join(f"{number} {state}" for state, number in report.findings.counts.items() if number)
        say(f"{out}: {counts}" + (f"; attach {given.json} to an issue" if given.json else ""))
        say_next(page=out)
        return int(not report.findings.hold)


class Report:
    """What is told, and written after every check: a run that is killed has left what it found."""

    def __init__(self, model: str, folder: Path, device: torch.device, dtype: str, out: Path, file: Path | None):
        self.out, self.file, self.device, self.dtype, self.folder = out, file, device, dtype, folder
        self.private = Private(folder)
        self.findings = Findings(self.private, lambda finding: say(finding, flush=True))
        self.subject: Subject | None = None
        self.public = None if Path(model).expanduser().exists() else model
        """Its name on the Hub; that of a folder is nobody's business."""
        self.write()

    def write(self) -> None:
        """Raises InputError where the page or the JSON cannot be written, before any work."""
        figures = self.figures()
        pictures, text = (self.subject.pictures, self.subject.text) if self.subject else ({}, "")
        write_atomically(self.out, check_page(figures, pictures, text))
        if self.file:
            write_atomically(self.file, json.dumps(figures, indent=1) + "\n")

    def figures(self) -> dict[str, Any]:
        """What the JSON holds; `Private` has gone over every text of it."""
        config: dict[str, Any] = {}
        sizes: dict[str, Any] = {}
        if self.subject:
            sizes = models.sizes(self.subject)
            config = json.loads(self.subject.policy.model.config.to_json_string())
        found: dict[str, Any] = {
            "format": FORMAT,
            "model": self.public,
            "holds": self.findings.hold,
            "counts": self.findings.counts,
            "checks": [finding.to_json() for finding in self.findings.all],
            "sizes": sizes,
            "versions": versions(),
            "device": describe(self.device),
            "settings": {"dtype": self.dtype, "device": self.device.type},
            "configuration": without_secrets(_shown(config))[0],
        }
        return self.private.everywhere(found)


def checks(report: Report, family: str | None, options: dict[str, Any], train: bool) -> Iterator[None]:
    """Makes them, one after the other, and yields after each."""
    base, findings, device = training.memory_in_use(report.device), report.findings, str(report.device)
    set_seed(0)

    def read() -> Iterator[Finding]:
        report.subject = models.read(report.folder, family, options, device, report.dtype)
        sizes = models.sizes(report.subject)
        text = f"{sizes['read']}: family {sizes['family']}, {sizes['class']}, {sizes['dtype']}"
        yield Finding("read", "ok", f"{text}, {sizes['parameters'] / 1e6:,.1f} million parameters")

    findings.look("read", read)
    yield
    subject, unread = report.subject, "" if report.subject else "a model that can be read"
    for name, check in models.CHECKS:
        findings.look(name, lambda check=check: check(subject), unread)  # type: ignore[arg-type,misc]
        yield
    whole = subject is not None and len(subject.sampled) == 2
    lacks = unread or ("" if whole else "samples")
    findings.look("bfloat16", lambda: models.check_bf16(subject), lacks)  # type: ignore[arg-type]
    yield
    if not train:
        return
    with tempfile.TemporaryDirectory(prefix="limner-check-") as work:
        half = report.device.type == "cuda" and report.dtype != "float32"
        setup = training.Setup(subject, Path(work), base, half)  # type: ignore[arg-type]
        findings.look("plan", lambda: training.check_plan(setup), unread)
        yield
        lacks = unread or ("more memory" if setup.fits is False else "")
        findings.look("warm-up step", lambda: training.check_warmup(setup), lacks)
        yield
        findings.look("GRPO step", lambda: training.check_grpo(setup), lacks)
        yield


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def describe(device: torch.device) -> dict[str, Any]:
    """A kind of machine, not which one."""
    found: dict[str, Any] = {"type": device.type, "system": platform.system(), "machine": platform.machine()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"name": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}
        found["compute capability"] = f"{properties.major}.{properties.minor}"
    return found | {"threads": torch.get_num_threads(), "cores": os.cpu_count()}


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(inner) for key, inner in value.items() if key not in NOT_SAID}
    return [_shown(inner) for inner in value] if isinstance(value, list) else value

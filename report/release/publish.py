"""A release: a folder of standard parts with its model card, checked, and uploaded to the Hub in one commit.

    config.json, model.safetensors, tokenizer.json, image_tokenizer/, limner.json    the checkpoint
    generation_config.json        the settings it samples with
    README.md, samples/*.png      the model card
    training/<n>-<run>.yaml       the settings of each run that led to it
    .eval_results/*.yaml          results on data sets of the Hub, in the Hub's own format

limner publish MODEL --repo ORG/NAME --dry-run DIR
limner publish MODEL --repo ORG/NAME --base ID --license L
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResultEntry,
    HfApi,
    eval_result_entries_to_yaml,
    get_token,
)
from huggingface_hub.utils import HFValidationError, filter_repo_objects, validate_repo_id

from ...configs.bounds import NoneOrMore, bounded
from ...configs.errors import ArgumentParser, InputError, keeping, run_or_exit
from ...configs.json_text import parse_json
from ...configs.terminal import say, say_next
from ...configs.whole import whole_directory, write_atomically
from ...data.prompts import read_prompts
from ...eval.folder import read_json
from ...models.checkpoints.folder import IMAGE_TOKENIZER, SETTINGS_FILE, write
from ...models.checkpoints.hub import asking_hub, load_model
from ...models.documents.document import InterleavedDocument
from ...models.documents.rendering import to_markdown
from ...models.pictures.contract import SETTINGS_FILE as IMAGE_SETTINGS
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling
from ...models.writing import About, Model, set_default_sampling
from .check import check_release, digest
from .lineage import CONFIG, Stage, read_stages, runs_of
from .model_card import EXAMPLE, Release, eval_files, has_figures, model_card, read_entries, sample_document, stage_file

EXAMPLES = 3
"""Prompts that a release offers to those who ask it, where its model names none."""
RESULTS, HELDOUT = "metrics.json", "prompts/heldout.jsonl"
"""What a run that measures itself leaves beside its model."""
SAMPLES, SEED = 4, 0
REPLACED = ("*.safetensors", "*.safetensors.index.json", "samples/*", "training/*", ".eval_results/*")
"""What is deleted of an older release where the new one has no such file: old weights would be loaded, old results
shown beside new weights. Other files of the repository stay."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to publish, and what to say of it."""

    model: str
    repo: str
    base: str | None = None
    license: str | None = None
    license_link: str | None = None
    datasets: Sequence[str] = ()
    samples: int | None = None
    prompts: Path | None = None
    reports: Sequence[Path] = ()
    """Folders of runs and files of results; what is not given of a kind is looked for beside the model."""

    def check(self) -> None:
        """Raises InputError, before anything is loaded."""
        for option, name in (("--repo", self.repo), ("--base", self.base), *(("--dataset", d) for d in self.datasets)):
            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise InputError(f"{option} {name}: {error}") from None
            if name is not None and "/" not in name:
                raise InputError(f"{option} {name}: say whose, too (ORG/NAME)")
        if self.base and not self.license:
            raise InputError(f"--base {self.base}: name its licence, too (--license L); it holds for this model")
        if self.license_link and not self.license:
            raise InputError("--license-link: name the licence, too (--license L)")
        if self.samples is not None and self.samples < 0:
            raise InputError(f"--samples {self.samples}: no number of samples")


@dataclass(frozen=True, slots=True)
class Summary:
    files: int
    bytes: int
    notes: tuple[str, ...]
    """What the card could not say, and how to make it."""

    def __str__(self) -> str:
        return "\n".join([f"{self.files} files, {self.bytes / 1e6:.1f} MB", *self.notes])


def write_release(request: Request, directory: Path) -> Summary:
    """Writes the folder, checks every file and loads it back; it appears whole and sound or not at all.

    Raises InputError, also where `directory` holds anything but an earlier release.
    """
    request.check()
    earlier = (directory / SETTINGS_FILE).is_file() and (directory / "README.md").is_file()
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir()) and not earlier):
        raise InputError(f"{directory}: exists and is no release; name another folder")
    if directory.absolute() == Path(request.model).absolute():
        raise InputError(f"{directory}: is the model itself; name another folder")
    runs, results = _reports(request)
    stages = read_stages(runs)
    prompts, source = _prompts(request, stages)
    model = load_model(request.model)
    set_default_sampling(model.policy, _trained_sampling(model.sampling, stages))
    model = Model(model.policy, _about(model.about, prompts))
    with whole_directory(directory) as staging:
        write(model.policy, staging, model.about)
        _forget_paths(staging)
        release = Release(
            repo=request.repo,
            parts=_parts(model.policy, staging),
            sampling=model.sampling,
            base=request.base,
            license=request.license,
            license_link=request.license_link,
            datasets=request.datasets,
            stages=stages,
            results=results,
            samples=_sample(model, prompts, staging),
            samples_from=source,
            seed=SEED,
            example=next(_short(prompts), EXAMPLE),
        )
        for number, stage in enumerate(stages, 1):
            text = yaml.safe_dump(dict(stage.settings), sort_keys=False, allow_unicode=True)
            write_atomically(staging / stage_file(number, stage), text)
        _write_entries(read_entries(results), staging)
        # A young model may write any character: CommonMark, too, shows U+FFFD for this one.
        write_atomically(staging / "README.md", model_card(release).replace("\0", "\ufffd"))
        expected = digest(model.policy), model.sampling
        del model  # the check loads it again, and a large one may not fit twice
        check_release(staging, *expected)
    files = release_files(directory)
    return Summary(len(files), sum(path.stat().st_size for path in files.values()), _notes(release))


def release_files(directory: Path) -> dict[str, Path]:
    """Every file of a release by its name in the repository."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path for path in paths}


def open_repository(repo: str, private: bool) -> HfApi:
    """A client that may write to the repository, which is made if need be. Raises InputError."""
    if not get_token():
        raise InputError(f"{repo}: the Hub wants to know you; run `hf auth login` or set HF_TOKEN")
    with asking_hub(repo, "the Hub does not let you write there"):
        api = HfApi(library_name="limner")
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise InputError(f"{repo}: exists and is public; --private does not change that, its page on the Hub does")
        return api


def upload(api: HfApi, directory: Path, repo: str) -> str:
    """One commit, so that nobody meets half a release; `upload_folder` may make several. Returns its address."""
    files = release_files(directory)
    with asking_hub(repo, "the upload failed; nothing was committed"):
        old = [name for name in api.list_repo_files(repo) if name not in files]
        stale = filter_repo_objects(old, allow_patterns=list(REPLACED))
        operations = [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, path) for name, path in files.items()),
        ]
        return api.create_commit(repo, operations, commit_message="Release, written by limner").commit_url


def _reports(request: Request) -> tuple[list[Path], dict[str, Any]]:
    """Folders of runs, and results by the name of their file."""
    runs, files = [], []
    for path in request.reports:
        found = [path] if path.is_file() else [path / RESULTS] if (path / RESULTS).is_file() else []
        if (path / CONFIG).is_file():
            runs.append(path)
        elif not found:
            raise InputError(f"--report {path}: neither the folder of a run ({CONFIG} in it) nor a file of results")
        files += found
    if not files and (beside := Path(request.model).absolute().parent / RESULTS).is_file():
        files = [beside]
    results: dict[str, Any] = {}
    for path in files:
        result = read_json(path)
        if not has_figures(result):
            raise InputError(f"{path}: no figures to show: no {{'value': ..}}, no arms, no eval_results")
        results[path.name if path.name not in results else path.as_posix()] = result
    return runs or runs_of(Path(request.model)), results


def _prompts(request: Request, stages: Sequence[Stage]) -> tuple[list[InterleavedDocument], str]:
    """Prompts of the samples and where they come from: given, beside the model, or those of the last run with some."""
    beside = Path(request.model).absolute().parent / HELDOUT
    recorded = [(stage.prompts, stage.prompt_form) for stage in reversed(stages)]
    known = [(path, form) for path, form in [(beside, ""), *recorded] if path and path.is_file()]
    path, form = (request.prompts, "") if request.prompts else next(iter(known), (None, ""))
    if path is None or request.samples == 0:
        if request.samples:
            raise InputError(f"--samples {request.samples}: no prompts are known; give --prompts FILE")
        return [], ""
    return read_prompts(path, form=form)[: SAMPLES if request.samples is None else request.samples], f"`{path.name}`"


def _trained_sampling(sampling: Sampling, stages: Sequence[Stage]) -> Sampling:
    """The settings that the last reinforced run sampled with, where there was one."""
    for stage in reversed(stages):
        if stage.reinforced:
            algorithm, settings = stage.settings["algorithm"], stage.settings
            return replace(
                sampling,
                max_new_tokens=settings.get("max_completion_length", sampling.max_new_tokens),
                temperature=settings.get("temperature", sampling.temperature),
                max_images=algorithm.get("max_images", sampling.max_images),
                guidance=algorithm.get("guidance", sampling.guidance),
            )
    return sampling


def _forget_paths(staging: Path) -> None:
    """diffusers writes into a configuration from which folder it was once read."""
    for path in staging.rglob("config.json"):
        config = parse_json(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None):
            write_atomically(path, json.dumps(config, indent=2) + "\n")


def _sample(model: Model, prompts: Sequence[InterleavedDocument], staging: Path) -> str:
    """Markdown of the answers, their pictures in `samples/`."""
    answers = model.write_many(prompts, seed=SEED)
    return to_markdown(sample_document(answers), staging / "samples") if answers else ""


def _short(prompts: Sequence[InterleavedDocument]) -> Iterator[str]:
    """The prompts that are one short line, without pictures: for the card, and for the page of `limner serve`."""
    texts = (prompt.text for prompt in prompts if not prompt.images)
    return (text for text in texts if len(text) <= 80 and "\n" not in text)


def _about(said: About, prompts: Sequence[InterleavedDocument]) -> About:
    return replace(said, examples=said.examples or tuple(islice(_short(prompts), EXAMPLES)))


def _parts(policy: UnifiedPolicy, staging: Path) -> dict[str, str]:
    vocabulary, config = policy.vocabulary, policy.model.config.get_text_config()
    parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    dtype = str(policy.model.dtype).removeprefix("torch.")
    image_tokenizer = parse_json((staging / IMAGE_TOKENIZER / IMAGE_SETTINGS).read_text(encoding="utf-8"))["type"]
    versions = parse_json((staging / SETTINGS_FILE).read_text(encoding="utf-8"))["versions"]
    return {
        "language model": f"`{type(policy.model).__name__}`, {parameters:,} parameters, {dtype}",
        "family": f"`{policy.family}`",
        "image tokenizer": f"`{image_tokenizer}` in `{IMAGE_TOKENIZER}/`: {vocabulary.image_codes:,} codes, "
        f"{' x '.join(f'{count:,}' for count in vocabulary.code_shape)} a picture",
        "text vocabulary": f"{vocabulary.text_size:,} ids",
        "longest sequence": f"{config.max_position_embeddings:,} tokens",
        "written with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _write_entries(entries: Sequence[EvalResultEntry], staging: Path) -> None:
    for name, entry in eval_files(entries).items():
        write_atomically(staging / name, yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False))


def _notes(release: Release) -> tuple[str, ...]:
    missing = {
        "no run is known, so the card says little of data and settings (--report RUN)": not release.stages,
        "no evaluation is known, and the card says so (--report FILE.json)": not release.results,
        "no prompts are known, so there are no samples (--prompts FILE)": not release.samples,
        "no licence is stated (--license L)": not release.license,
    }
    return tuple(f"note: {text}" for text, holds in missing.items() if holds)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="limner publish", description="Writes a release with its model card, and uploads it.")
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, or ORG/NAME on the Hub")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="where to; made if it is not there")
    parser.add_argument("--dry-run", type=Path, metavar="DIR", help="write and check the folder, upload nothing")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--base", metavar="ID", help="repository of the model that training started from")
    parser.add_argument("--license", metavar="L", help="licence, as the Hub spells it (apache-2.0): that of the base")
    parser.add_argument("--license-link", metavar="URL", help="text of a licence that the Hub does not list")
    parser.add_argument("--dataset", action="append", default=[], metavar="ID", help="data set on the Hub (repeatable)")
    parser.add_argument("--samples", type=bounded(NoneOrMore), metavar="N", help=f"samples to show (default {SAMPLES})")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL file of their prompts (default: the run's)")
    parser.add_argument(
        "--report",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="folder of a run, first to last, or JSON of results (repeatable; default: what lies beside MODEL)",
    )
    given = parser.parse_args(argv)
    request = Request(
        model=given.model,
        repo=given.repo,
        base=given.base,
        license=given.license,
        license_link=given.license_link,
        datasets=given.dataset,
        samples=given.samples,
        prompts=given.prompts,
        reports=given.report,
    )
    request.check()
    if given.dry_run:
        summary = write_release(request, given.dry_run)
        say(f"{given.dry_run}: ok, files and metadata are sound, the same model loads back: {summary}")
        say("nothing was sent; next: the same command without --dry-run")
        return
    api = open_repository(given.repo, given.private)
    nothing_sent = f"{given.repo} is as it was, or has all of the release; the same command does it again"
    with keeping(nothing_sent), tempfile.TemporaryDirectory() as folder:
        summary = write_release(request, Path(folder) / "release")
        say(f"{upload(api, Path(folder) / 'release', given.repo)}: {summary}")
    say_next("limner", "generate", "--model", given.repo, "--prompt", "TEXT", "--out", "answer.html")


if __name__ == "__main__":
    run_or_exit(main)

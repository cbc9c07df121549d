"""Outside data to shards: `limner data from SOURCE SRC --out DIR`, and which source a folder fits.

A source is a class with `documents(path, report)`: it yields a document at a time, alone or with the encoded bytes of
its pictures, and puts into the report what gave none. It never writes. `fits(path)`, if it has that, says whether a
folder is of its kind; `beside = True` that such files lie among those of others, too, whose kind it then is. One is
registered by `@register("source", NAME)`, or named by file: my_source.py:Diary.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ..configs.errors import InputError
from ..configs.options import make, options_of
from ..configs.registry import entries, find
from ..configs.schema import fields_of
from ..configs.yaml_file import scalar
from ..models.documents.document import InterleavedDocument
from .records import encode_record
from .shards import ShardWriter
from .sources.report import LISTED, Enough, Problem, Problems, Report

Given = InterleavedDocument | tuple[InterleavedDocument, Sequence[bytes | None]]
"""A document, or that and for each of its pictures the file it came from, or None."""

MOST_WAITING = 256
"""Documents of the first group that are held in memory until it is known whether another is held out."""


class Source(Protocol):
    def documents(self, path: Path, report: Report) -> Iterable[Given]:
        """Raises InputError where the path as a whole cannot be read."""
        ...


def open_source(name: str, options: Mapping[str, Any] | None = None) -> Source:
    """A source by its name. Raises InputError for one that there is not, and for options that it has not."""
    return make(find("source", name, "source"), options or {}, f"source {name}")


def setting(text: str) -> tuple[str, Any]:
    """`KEY=VALUE`, the value read as YAML. Raises InputError."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"--set {text}: give KEY=VALUE")
    return key, scalar(value)


def fitting(path: Path) -> list[str]:
    """The registered sources of whose kind this is."""
    known = {name: find("source", name).thing for name in entries("source")}
    return [name for name, thing in known.items() if hasattr(thing, "fits") and thing.fits(path)]


def fitting_source(path: Path) -> str:
    """The one of whose kind this folder is; what only lies beside it does not count. Raises InputError for none."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; name one that holds documents")
    found = fitting(path)
    fits = [name for name in found if not getattr(find("source", name).thing, "beside", False)] or found
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise InputError(
            f"{path}: could be {' or '.join(fits)}; leave only one kind of files in it, or name the kind: "
            f"limner data from {fits[0]} {path} --out DIR"
        )
    kinds = "; ".join(f"{name}: {entry.doc}" for name, entry in entries("source").items())
    raise InputError(f"{path}: no source knows this kind of folder ({kinds})")


def convert(
    source: Source,
    path: Path,
    target: Path,
    *,
    heldout_share: float = 0.1,
    keep_duplicates: bool = False,
    overwrite: bool = False,
) -> Report:
    """Writes what a source reads as shards, whole or not at all.

    Which documents are held out depends on their group (`meta["group"]`) or else their id alone, so that it survives
    additions; of two or more documents at least one is held out and one is not (unless the share is 0). A document in
    which nothing is trainable is learnt as a whole; one that no training could use is a problem of the report, as is a
    second one of the same id (keep_duplicates: it gets another). Raises InputError where nothing can be read.
    """
    if not 0 <= heldout_share < 1:
        raise InputError(f"held-out share {heldout_share}: give a number from 0 up to, not including, 1")
    report, found = Report(problems=Problems(LISTED)), Counter[str]()
    with ShardWriter(target, overwrite=overwrite) as writer:
        documents = named_once(read(source, path, report), report, keep_duplicates)
        for split, (document, originals) in _split(documents, heldout_share):
            try:
                writer.write(document, split, originals)
            except InputError as error:
                lost = len(document.images) if report.written else 0
                report.problems.append(Problem(document.id, 1, "refused", "", str(error), lost))
                continue
            found.update(documents=1, images=len(document.images))
        report.documents, report.images = found["documents"], found["images"]
        if not report.documents:
            first = f": {report.problems[0]}" if report.problems else ""
            raise InputError(f"{path}: gives no document{first}")
        report.problems.sort(key=lambda problem: (problem.file, problem.line))
        writer.report = report.to_json()
    return report


def try_source(source: Source, path: Path, records: int, keep_duplicates: bool = False) -> Report:
    """What the first records give, nothing written: so many records of a source that counts them, else documents."""
    if records < 1:
        raise InputError(f"--dry-run {records}: give a number of records from 1")
    report, found = Report(problems=Problems(LISTED), most_records=records), Counter[str]()
    with suppress(Enough):
        for document, originals in named_once(read(source, path, report), report, keep_duplicates):
            try:
                encode_record(document, "0" * 9, originals)
            except InputError as error:
                report.problems.append(Problem(document.id, 1, "refused", "", str(error)))
                continue
            found.update(documents=1, images=len(document.images))
            if not report.records and found["documents"] >= records:
                break
    report.documents, report.images = found["documents"], found["images"]
    return report


def read_asked(
    path: Path, name: str, options: Mapping[str, Any], report: Report, least: int = 1
) -> list[InterleavedDocument]:
    """What the documents of a source ask, their prompts: of a source with an option `prompts`, which needs no answers.

    What gives none is a problem of the report. Raises InputError where there are fewer than `least`.
    """
    thing = find("source", name, "prompts_source").thing
    asks: Mapping[str, Any] = {"prompts": True} if "prompts" in fields_of(options_of(thing)) else {}
    asked = []
    for given in open_source(name, {**asks, **options}).documents(path, report):
        document = given[0] if isinstance(given, tuple) else given
        prompt = document.prompt
        if prompt.segments:
            asked.append(replace(prompt, id=prompt.id or f"{path.name}:{len(asked) + 1}"))
        else:
            report.problems.append(Problem(document.id, 1, "no prompt", "", "all of it is learnt"))
    if len(asked) < least:
        first = f" ({report.problems[0]})" if report.problems else ""
        raise InputError(
            f"{path}: {len(asked)} prompts{first}, and a batch of rollouts takes {least}; add some, or lower "
            "steps_per_generation"
        )
    return asked


def named_once(
    documents: Iterable[tuple[InterleavedDocument, Any]], report: Report, keep: bool, ids: list[int] | None = None
) -> Iterator[tuple[InterleavedDocument, Any]]:
    """Ids are unique in a folder of shards. Of each that was seen, 8 bytes are remembered, and put into `ids`."""
    seen: set[int] = set()
    for document, originals in documents:
        name, number = document.id, 1
        while name and _short(name) in seen:
            number += 1
            name = f"{document.id}#{number}"
        if number > 1 and not keep:
            report.problems.append(Problem(document.id, 1, "duplicate id", "", "left out; --keep-duplicates keeps it"))
            continue
        if number > 1:
            report.note("duplicate id")
        seen.add(_short(name))
        if ids is not None:
            ids.append(_short(name))
        yield (document if number == 1 else replace(document, id=name)), originals


def _short(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8])


def read(source: Source, path: Path, report: Report) -> Iterator[tuple[InterleavedDocument, Sequence[bytes | None]]]:
    """The documents as shards take them, with the bytes of their pictures. Raises InputError for what is none."""
    for given in source.documents(path, report):
        document, originals = given if isinstance(given, tuple) else (given, ())
        if not isinstance(document, InterleavedDocument):
            raise InputError(f"{type(source).__name__}: yields a {type(document).__name__}, no InterleavedDocument")
        if not any(segment.trainable for segment in document.segments):
            document = replace(document, segments=tuple(replace(s, trainable=True) for s in document.segments))
        yield replace(document, meta={"kind": "interleaved", **document.meta}), originals


def is_heldout(identifier: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8]) / 2**64 < share


def _split(documents: Iterable[Any], share: float) -> Iterator[tuple[str, Any]]:
    """(split, document with its bytes). The first group waits for one of the other split; if none comes, it is that."""
    if not share:
        yield from ((_name(False), item) for item in documents)
        return
    rest = iter(documents)
    first, own = [], False
    for item in rest:
        if first and (group_of(item[0]) != group_of(first[0][0]) or len(first) == MOST_WAITING):
            rest = itertools.chain([item], rest)
            break
        first.append(item)
        own = is_heldout(group_of(item[0]), share)
    if not first:
        return
    others, again, waiting = set(), False, True
    for item in rest:
        again = again or group_of(item[0]) == group_of(first[0][0])
        heldout = is_heldout(group_of(item[0]), share)
        if heldout != own and waiting:
            yield from ((_name(own), one) for one in first)
            waiting = False
        others.add(heldout)
        yield _name(heldout), item
    if waiting:
        split = _name(own if again else not own if others else False)
        yield from ((split, one) for one in first)


def split_of(document: InterleavedDocument, share: float) -> str:
    return _name(is_heldout(group_of(document), share))


def group_of(document: InterleavedDocument) -> str:
    """Documents of one group are held out together."""
    return str(document.meta.get("group") or document.id)


def _name(heldout: bool) -> str:
    return "heldout" if heldout else "train"

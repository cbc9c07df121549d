"""Outside data to shards: `limner data from SOURCE SRC --out DIR`, and which source a folder fits.

A source is a class with `documents(path, report)`: it yields a document at a time, alone or with the encoded bytes of
its pictures, and puts into the report what gave none. It never writes. `fits(path)`, if it has that, says whether a
folder is of its kind. One is registered by `@register("source", NAME)`, or named by file: my_source.py:Diary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from ..configs.errors import InputError
from ..configs.options import make
from ..configs.registry import entries, find
from ..configs.yaml_file import scalar
from ..models.documents.document import InterleavedDocument
from .shards import ShardWriter
from .sources.report import Problem, Report

Given = InterleavedDocument | tuple[InterleavedDocument, Sequence[bytes | None]]
"""A document, or that and for each of its pictures the file it came from, or None."""


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


def fitting_source(path: Path) -> str:
    """The registered source whose kind of folder this is. Raises InputError where none or several are."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; name one that holds documents")
    known = {name: find("source", name).thing for name in entries("source")}
    fits = [name for name, thing in known.items() if hasattr(thing, "fits") and thing.fits(path)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise InputError(f"{path}: could be {' or '.join(fits)}; leave only one kind of files in it")
    kinds = "; ".join(f"{name}: {entry.doc}" for name, entry in entries("source").items())
    raise InputError(f"{path}: no source knows this kind of folder ({kinds})")


def convert(source: Source, path: Path, target: Path, *, heldout_share: float = 0.1, overwrite: bool = False) -> Report:
    """Writes what a source reads as shards, whole or not at all.

    Which documents are held out depends on their ids alone, so that it survives additions; of two or more documents at
    least one is held out and one is not (unless the share is 0). A document in which nothing is trainable is learnt as
    a whole; one that no training could use is a problem of the report. Raises InputError where nothing can be read.
    """
    if not 0 <= heldout_share < 1:
        raise InputError(f"held-out share {heldout_share}: give a number from 0 up to, not including, 1")
    report = Report()
    with ShardWriter(target, overwrite=overwrite) as writer:
        for split, (document, originals) in _split(read(source, path, report), heldout_share):
            try:
                writer.write(document, split, originals)
            except InputError as error:
                lost = len(document.images) if report.written else 0
                report.problems.append(Problem(document.id, 1, "refused", "", str(error), lost))
                continue
            report.documents += 1
            report.images += len(document.images)
        if not report.documents:
            first = f": {report.problems[0]}" if report.problems else ""
            raise InputError(f"{path}: gives no document{first}")
        report.problems.sort(key=lambda problem: (problem.file, problem.line))
        writer.report = asdict(report)
    return report


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
    """(split, document with its bytes). The first waits for one of the other split; if none comes, it is that one."""
    rest = iter(documents)
    first = next(rest, None)
    if first is None:
        return
    own, others = is_heldout(first[0].id, share), set()
    for item in rest:
        heldout = is_heldout(item[0].id, share)
        if heldout != own and heldout not in others:
            yield _name(own), first
        others.add(heldout)
        yield _name(heldout), item
    if not others - {own}:
        yield _name(not own if others and share else False), first


def _name(heldout: bool) -> str:
    return "heldout" if heldout else "train"

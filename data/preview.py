"""One page that shows what lies in shards: a sample of the documents as a reader would see them."""

from __future__ import annotations

import html
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..configs.errors import InputError
from ..configs.whole import write_atomically
from ..models.documents.document import ImageSegment, InterleavedDocument
from ..models.documents.rendering import document_html, html_page
from .shards import ShardIndex, read_documents, read_index

MAX_SIDE = 256
"""Pictures are shown at most this many pixels wide and high, so that the page stays small enough to send."""
MAX_REPORT_CHARACTERS = 20_000

CSS = """
.facts { color: var(--muted); margin: 0 0 2rem; }
.sample { border-top: 1px solid var(--line); padding: 1.5rem 0; }
.sample h2 { font: 600 1.1rem/1.3 var(--serif); margin: 0 0 0.2rem; overflow-wrap: anywhere; }
.sample .kind { color: var(--muted); font-size: 0.8rem; margin: 0 0 1rem; }
.rules td, .rules th { text-align: left; padding: 0.1rem 1.5rem 0.1rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8rem; }
"""


def write_preview(directory: str | Path, page: str | Path, samples: int = 24, split: str = "train") -> int:
    """Writes a self-contained page of up to `samples` documents, a fixed random choice; returns how many.

    Raises InputError for damaged shards or a split without records.
    """
    index = read_index(directory)
    if not index.of(split):
        raise InputError(f"{directory}: no records in split {split!r}; it has {', '.join(_splits(index)) or 'none'}")
    documents = read_documents(directory, split, shuffle_seed=0, buffer=max(4 * samples, 1))
    shown = [_sample_html(document) for document in itertools.islice(documents, samples)]
    name = index.directory.resolve().name
    report = json.dumps(index.report, indent=1, ensure_ascii=False)
    if len(report) > MAX_REPORT_CHARACTERS:
        report = report[:MAX_REPORT_CHARACTERS] + "\n..."
    body = f"""<main>
<h1>{html.escape(name)}</h1>
<p class="facts">{html.escape(_facts(index, split, len(shown)))}</p>
{"".join(shown)}
{_rules_html(index.report)}
<details><summary>Report of the converter</summary><pre>{html.escape(report)}</pre></details>
</main>"""
    write_atomically(Path(page), html_page(f"{name}: {split}", body, CSS))
    return len(shown)


def _rules_html(report: dict[str, Any]) -> str:
    """What the converter's rules did, a row each; what stands in an index may be anything."""
    rules = report.get("rules")
    if not isinstance(rules, dict):
        return ""
    rows = [
        f"<tr><td>{html.escape(str(rule))}</td><td>{html.escape(what)}</td><td>{html.escape(str(count))}</td></tr>"
        for what in ("left out", "kept")
        if isinstance(rules.get(what), dict)
        for rule, count in rules[what].items()
    ]
    read = f"{report.get('records') or report.get('documents')} records gave {report.get('documents')} documents"
    table = f"<table><tr><th>rule</th><th>what it did</th><th>times</th></tr>{''.join(rows)}</table>" if rows else ""
    return f'<section class="rules"><h2>Rules</h2><p>{html.escape(read)}</p>{table}</section>'


def _splits(index: ShardIndex) -> list[str]:
    return sorted({shard.split for shard in index.shards})


def _facts(index: ShardIndex, split: str, shown: int) -> str:
    counts = ", ".join(f"{count} {kind.replace('_', '-')}" for kind, count in sorted(index.kinds[split].items()))
    codes = f"codes of image tokenizer {index.fingerprint}" if index.fingerprint else "no cached image codes"
    others = [f"{sum(kinds.values())} of {name}" for name, kinds in index.kinds.items() if name != split and kinds]
    beside = f", and {' and '.join(others)} beside them (--split)" if others else ""
    return f"{shown} of {sum(index.kinds[split].values())} documents of split {split} ({counts}){beside}; {codes}"


def _sample_html(document: InterleavedDocument) -> str:
    small = [_small(segment) if isinstance(segment, ImageSegment) else segment for segment in document.segments]
    return (
        f'<section class="sample"><h2>{html.escape(document.id or "(no id)")}</h2>'
        f'<p class="kind">{html.escape(document.meta["kind"])}</p>'
        f"{document_html(replace(document, segments=tuple(small)))}</section>"
    )


def _small(segment: ImageSegment) -> ImageSegment:
    """The same with a thumbnail; where the picture does not decode, as it is: the page then says so in its place."""
    try:
        picture = segment.pixels().copy()
    except ValueError:
        return segment
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return replace(segment, image=picture)

"""The index: chunks and pictures in LanceDB, searched by words, by meaning and by picture at once.

    index = Index.create("runs/index", load_encoders("minilm"))
    index.add(read_source(Path("recipes"), problems), whole=True)
    Index.open("runs/index").search("how thin is strudel dough?", limit=5)

Tables: `documents` (id, generation, content hash), `chunks`, `pictures`, `files` (each picture's bytes once, by their
hash), `manifest` (format and encoders). Every version of a document that is written gets a number of its own, its
generation, on all of its rows. A row is served only while `documents`, written last and in one commit, lists its
generation: whenever a writer is killed, a document is there as it was or as it is to be.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ...configs.errors import InputError, reading, writing
from ...configs.json_text import parse_json
from ...models.documents.document import InterleavedDocument, to_rgb
from .corpus import Chunk, Hit, Picture, Problem, content_hash, make_chunks, title_of, valid_text
from .encoders import NONE, Encoders, load_encoders, same
from .letters import runs_of
from .lock import one_writer
from .matching import Matching, calibrated, drawn, fitting_first
from .report import Entry, Made, Report
from .tables import (
    PLACE,
    STOP_WORDS,
    Place,
    among,
    asked_runs,
    chunk_fields,
    closest,
    column,
    few,
    fuse,
    nearest,
    passage_vectors,
    picture_fields,
    picture_vectors,
    ranking,
    rows,
    schemas,
    searched_text,
    vector_array,
)

try:
    import lancedb
    from lancedb.index import FTS, BTree, IvfPq
    from lancedb.query import MatchQuery
except ImportError:
    raise InputError("the index: needs LanceDB: pip install 'limner[retrieval]'") from None

FORMAT = {"format": "limner-index", "version": 2}
READABLE = (1, 2)
"""Versions. An index of the first has no letters, and vectors of texts that its encoder does not read."""
TABLES = ("documents", "chunks", "pictures", "files")
DEPTH = 50
"""Places of a ranking that are fused, at least; 5 for each hit asked for."""
BATCH_DOCUMENTS, BATCH_BYTES = 64, 32 * 2**20
"""A commit has so many documents, or as few as have pictures of so many bytes."""
VECTOR_INDEX_ROWS = 100_000
"""From so many vectors on they get an IVF-PQ index; with fewer, all are compared."""
TRAINING_ITERATIONS, TRAINING_SAMPLES = 20, 64
"""Of its k-means: rounds, and vectors a centre. LanceDB's own 50 and 256 take far longer (docs/retrieval.md)."""
KEPT_VERSIONS = timedelta(hours=1)
"""How long files stay that no current version of a table needs: a search that has begun may still read them."""


class Index:
    """place: a folder, or a URI of an object store (`s3://bucket/index`), where nothing holds off a second writer."""

    def __init__(self, place: str, tables: dict[str, Any], encoders: Encoders):
        self.place, self.encoders = place, encoders
        self._documents, self._chunks, self._pictures, self._files = (tables[name] for name in TABLES)
        self.lettered = "letters" in self._chunks.schema.names
        """Texts that the encoder does not read are searched by letters; an index of version 1 has none."""
        self._version = -1
        self._matching: tuple[int, Matching] | None = None
        self.documents: dict[str, Entry] = {}
        """By id, as of the last call."""
        self._refresh()

    @classmethod
    def create(cls, place: str | Path, encoders: Encoders | None = None) -> Index:
        """An empty index. Raises InputError where there is one, or a folder of other things."""
        place, encoders = str(place), encoders or Encoders()
        layout = schemas(encoders)
        if "://" not in place:
            with writing(place):
                Path(place).mkdir(parents=True, exist_ok=True)
            if strange := sorted(set(os.listdir(place)) - {f"{name}.lance" for name in layout}):
                raise InputError(f"{place}: holds {strange[0]!r}, which is no part of an index; name another folder")
        with one_writer(place):
            database = lancedb.connect(place)
            if cls.exists(place):
                raise InputError(f"{place}: holds an index already; open it, or name another folder")
            for name in database.list_tables().tables:  # of one killed while it was made
                database.drop_table(name)
            tables = {name: database.create_table(name, schema=layout[name]) for name in TABLES}
            for name, key in (("chunks", "generation"), ("pictures", "generation"), ("files", "sha256")):
                tables[name].create_index(key, config=BTree())
            # ICU finds words in languages that put no space between them.
            words = FTS(base_tokenizer="icu/split", custom_stop_words=[*STOP_WORDS.split()])
            tables["chunks"].create_index("searched", config=words)
            plain = FTS(base_tokenizer="whitespace", lower_case=False, stem=False, remove_stop_words=False)
            tables["chunks"].create_index("letters", config=plain)
            manifest = json.dumps({**FORMAT, "encoders": encoders.describe()})
            # Last, and at once with its row: without it there is no index.
            database.create_table("manifest", pa.table({"json": [manifest]}, schema=layout["manifest"]))
        return cls(place, tables, encoders)

    @staticmethod
    def exists(place: str | Path) -> bool:
        if "://" not in str(place) and not Path(place).is_dir():  # LanceDB would make the folder
            return False
        try:
            lancedb.connect(str(place)).open_table("manifest")
        except Exception as error:  # not there, or of one killed while it made just this; what is damaged is there
            return "was not found" not in str(error)
        return True

    @classmethod
    def open(cls, place: str | Path, encoders: Encoders | None = None, *, device: str = "") -> Index:
        """encoders: by default those that it was built with, loaded by name onto `device`.

        Raises InputError where there is no index, where it is of another format, and where other encoders built it.
        """
        place = str(place)
        with reading(Path(place)):
            if not cls.exists(place):
                raise InputError(f"{place}: no index, or one that was never finished; make it with limner index")
            database = lancedb.connect(place)
            tables = {name: database.open_table(name) for name in TABLES}
            manifest = parse_json(rows(database.open_table("manifest"), ["json"])[0]["json"])
            built, found = manifest["encoders"], {name: manifest[name] for name in FORMAT}
        if found["format"] != FORMAT["format"] or found["version"] not in READABLE:
            raise InputError(f"{place}: format {found['version']}; this limner reads {READABLE}: build it again")
        names = {kind: described["name"] if described else NONE for kind, described in built.items()}
        encoders = encoders or load_encoders(names["text"], names["image"], device=device)
        for kind, described in encoders.describe().items():
            if not same(built[kind], described):
                given = described["name"] if described else NONE
                given += ", which is another model now" if given == names[kind] else ""
                raise InputError(
                    f"{place}: its {kind} encoder is {names[kind]}, not {given}; use that one, or build another index"
                )
        return cls(place, tables, encoders)

    # ---- writing ----

    def add(self, documents: Iterable[InterleavedDocument], *, whole: bool = False) -> Report:
        """Writes what is new or has changed, some documents at a time; what is committed stays, whatever happens later.

        whole: these are all the documents there are, so others in the index are deleted. Raises InputError, deleting
        none, where none of those in the index is given, and where another process writes to it.
        """
        report, batch, seen = Report(), [], set[str]()
        with one_writer(self.place):
            self._refresh()
            before, written = set(self.documents), {*column(self._chunks, "generation")}
            written |= {*column(self._pictures, "generation")}
            self._remove(written - {entry.generation for entry in self.documents.values()})  # of a writer killed
            for document in documents:
                identifier = valid_text(document.id)
                if identifier in seen:
                    report.problems.append(Problem(identifier, "duplicate", "a document of this id was there before"))
                    continue
                seen.add(identifier)
                if made := self._changed(identifier, document, report):
                    batch.append(made)
                size = sum(len(picture.data) for m in batch for chunk in m.chunks for picture in chunk.pictures)
                if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_BYTES:
                    self._commit(batch)
                    batch = []
            self._commit(batch)
            if whole and (not seen or before and not before & seen):
                self._delete(seen)
                raise InputError(f"{self.place}: none of its documents is among those given; give another --out")
            if whole:
                report.deleted = self._delete(before - seen)
            self._tidy()
        return report

    def delete(self, documents: Sequence[str]) -> int:
        """Deletes documents by id; returns how many of them there were."""
        with one_writer(self.place):
            self._refresh()
            if deleted := self._delete(set(documents) & set(self.documents)):
                self._tidy()
        return deleted

    def _changed(self, identifier: str, document: InterleavedDocument, report: Report) -> Made | None:
        """The document's chunks, or None where the index has it as it is."""
        digest, old = content_hash(document), self.documents.get(identifier)
        if old and old.sha256 == digest:
            report.unchanged += 1
            return None
        chunks, problems = make_chunks(document)
        report.problems += problems
        if not chunks:
            report.problems.append(Problem(identifier, "empty", "neither text nor a picture"))
        if old:
            report.updated += 1
        else:
            report.added += 1
        report.pictures += sum(len(chunk.pictures) for chunk in chunks)
        return Made(identifier, Entry(secrets.randbits(62), digest, title_of(document)), chunks)

    def _commit(self, batch: Sequence[Made]) -> None:
        if not batch:
            return
        chunks = [(made.entry.generation, number, chunk) for made in batch for number, chunk in enumerate(made.chunks)]
        pictures = [(g, number, at, p) for g, number, chunk in chunks for at, p in enumerate(chunk.pictures)]
        read = self._read_by_encoder([searched_text(chunk) for *_, chunk in chunks])
        if pictures:
            by_chunk = {(g, number): reads for (g, number, _), reads in zip(chunks, read, strict=True)}
            self._add_pictures(pictures, [by_chunk[g, number] for g, number, *_ in pictures])
        if chunks:
            fields = chunk_fields(chunks)
            if self.encoders.text:
                fields["text_vector"] = passage_vectors(self.encoders.text, fields["searched"], read)
            if self.lettered:
                texts = zip(fields["searched"], read, strict=True)
                fields["letters"] = [None if reads else " ".join(runs_of(text)) for text, reads in texts]
            self._chunks.add(pa.table(fields, schema=self._chunks.schema))
        listed = [(made.id, made.entry.generation, made.entry.sha256, made.entry.title) for made in batch]
        names = self._documents.schema.names
        fields = {name: list(values) for name, values in zip(names, zip(*listed, strict=True), strict=True)}
        update = self._documents.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        update.execute(pa.table(fields, schema=self._documents.schema))
        self._remove({self.documents[made.id].generation for made in batch if made.id in self.documents})
        self.documents |= {made.id: made.entry for made in batch}

    def _read_by_encoder(self, texts: Sequence[str]) -> list[bool]:
        return self.encoders.text.reads(texts) if self.encoders.text else [False] * len(texts)

    def _add_pictures(self, pictures: Sequence[tuple[int, int, int, Picture]], read: Sequence[bool]) -> None:
        """pictures: generation, number of the chunk, place in the chunk, picture. read: what the chunk says, by the
        text encoder."""
        hashes = [hashlib.sha256(picture.data).hexdigest() for *_, picture in pictures]
        data = {sha256: picture.data for sha256, (*_, picture) in zip(hashes, pictures, strict=True)}
        there = {sha256 for batch in few(data) for sha256 in column(self._files, "sha256", among("sha256", batch))}
        if new := [sha256 for sha256 in data if sha256 not in there]:
            files = {"sha256": new, "data": [data[sha256] for sha256 in new]}
            self._files.add(pa.table(files, schema=self._files.schema))
        fields = picture_fields(pictures, hashes)
        if self.encoders.text:
            said = [f"{picture.caption}\n{picture.context}".strip() for *_, picture in pictures]
            fields["caption_vector"] = passage_vectors(self.encoders.text, said, read)
        if self.encoders.image:
            vectors = dict(zip(data, picture_vectors(self.encoders.image, list(data.values())), strict=True))
            fields["image_vector"] = vector_array(np.stack([vectors[sha256] for sha256 in hashes]))
        self._pictures.add(pa.table(fields, schema=self._pictures.schema))

    def _delete(self, names: set[str]) -> int:
        gone = {self.documents.pop(name).generation for name in names}
        for batch in few(gone):
            self._documents.delete(among("generation", batch))
        self._remove(gone)
        return len(gone)

    def _remove(self, generations: set[int]) -> None:
        for batch in few(generations):
            self._chunks.delete(among("generation", batch))
            self._pictures.delete(among("generation", batch))

    def _tidy(self) -> None:
        """Takes out files that no picture has, merges small tables' files, and brings the indices up to date."""
        for batch in few(set(column(self._files, "sha256")) - set(column(self._pictures, "sha256"))):
            self._files.delete(among("sha256", batch))
        for table in (self._chunks, self._pictures):
            indexed = {name for index in table.list_indices() for name in index.columns}
            if table.count_rows() >= VECTOR_INDEX_ROWS:
                for name in (name for name in table.schema.names if name.endswith("_vector") and name not in indexed):
                    index_vectors(table, name)
        alone = "://" not in self.place  # what no version needs was left by a killed writer, not by one at work
        for table in (self._documents, self._chunks, self._pictures, self._files):
            table.optimize(cleanup_older_than=KEPT_VERSIONS, delete_unverified=alone)

    def _refresh(self) -> None:
        """Sees what writers have committed. What `documents` lists is in the other tables before, and gone after."""
        while True:
            version = self._documents.version
            for table in (self._chunks, self._pictures, self._files, self._documents):
                table.checkout_latest()
            if self._documents.version == version:
                break
        if version != self._version:
            found = self._documents.to_arrow().to_pylist()
            self.documents = {row["id"]: Entry(row["generation"], row["sha256"], row["title"]) for row in found}
            self._version = version

    # ---- searching ----

    def search(
        self,
        text: str | None,
        image: Image.Image | None = None,
        limit: int = 10,
        documents: Sequence[str] = (),
        titles: Sequence[str] = (),
    ) -> list[Hit]:
        """The best chunks for a text, a picture, or both: several rankings, by reciprocal-rank fusion.

        documents, titles: search only in those, by id or by title (in any case of letters). Raises InputError for a
        document that is not there, and for a picture where no picture encoder built the index.
        """
        text = valid_text(text or "").strip()
        if limit < 1:
            raise InputError(f"limit: {limit}; at least 1")
        if not text and image is None:
            raise InputError("nothing to search for: give a text, a picture, or both")
        if image is not None and self.encoders.image is None:
            said = "without a picture encoder (limner index --image-encoder) a picture finds nothing"
            raise InputError(f"{self.place}: {said}")
        self._refresh()
        names = {self.documents[name].generation: name for name in self._chosen(documents, titles)}
        if not names:
            return []
        found = fuse(self._rankings(text, image, names, max(DEPTH, 5 * limit)))
        best = sorted(found, key=lambda place: (-found[place][0], names[place[0]], place[1]))[:limit]
        hits = [Hit(chunk, *found[place]) for place, chunk in zip(best, self._read(best, names), strict=True)]
        mixed = image is None and 0 < sum("letters" in hit.found_by for hit in hits) < len(hits)
        return fitting_first(self.matching(), text, hits) if mixed else hits

    def matching(self) -> Matching:
        """How well a chunk fits a question, and from where on it answers it: of a sample, the same for one state."""
        self._refresh()
        if self._matching is None or self._matching[0] != self._version:
            sample = drawn(self._chunks, {entry.generation for entry in self.documents.values()})
            self._matching = self._version, calibrated(sample, self.encoders.text)
        return self._matching[1]

    def chunks_of(self, document: str) -> list[Chunk]:
        """All of a document, in its order. Raises InputError for one that is not there."""
        self._refresh()
        (name,) = self._chosen([document], [])
        generation = self.documents[name].generation
        numbers = sorted(column(self._chunks, "number", among("generation", {generation})))
        return self._read([(generation, number) for number in numbers], {generation: name})

    def _chosen(self, documents: Sequence[str], titles: Sequence[str]) -> list[str]:
        if unknown := [name for name in documents if name not in self.documents]:
            raise InputError(f"{self.place}: no document {unknown[0]!r} is in it")
        wanted = {title.casefold() for title in titles}
        names = dict.fromkeys(documents) if documents else self.documents
        return [name for name in names if not titles or self.documents[name].title.casefold() in wanted]

    def _rankings(
        self, text: str, image: Image.Image | None, names: dict[int, str], depth: int
    ) -> dict[str, Iterable[Place]]:
        """Chunks of the documents of these generations, best first, by the names of `Hit.found_by`."""
        filtered = len(names) < len(self.documents)

        def near(table: Any, column: str, vector_W: np.ndarray) -> dict[Place, float]:
            query = partial(nearest, table, column, vector_W, [*PLACE, "_distance"])
            return ranking(query, names, depth, filtered=filtered)

        def by_words(words: str, column: str, where: str = "") -> dict[Place, float]:
            # No query language: any text is only its words.
            match = MatchQuery(words, column)  # type: ignore[call-arg]
            asked = lambda: self._chunks.search(match).select([*PLACE, "_score"])  # noqa: E731
            return ranking(asked, names, depth, filtered=filtered, where=where)

        rankings: dict[str, Iterable[Place]] = {}
        if text and (self.encoders.text or not self.lettered):
            rankings["full text"] = by_words(text, "searched", "letters IS NULL" if self.lettered else "")
        if text and self.lettered and (runs := asked_runs(text)):
            rankings["letters"] = by_words(" ".join(runs), "letters")
        if text and self.encoders.text and self.encoders.text.reads([text], question=True)[0]:
            vector_W = self.encoders.text.queries([text])[0]
            # One ranking: with one for captions alone, chunks without pictures would lose to whatever has one.
            captions = near(self._pictures, "caption_vector", vector_W)
            rankings["text vector"] = closest(near(self._chunks, "text_vector", vector_W), captions)[:depth]
        if text and self.encoders.image:
            vector_W = self.encoders.image.texts([text])[0]
            rankings["image vector by text"] = near(self._pictures, "image_vector", vector_W)
        if image is not None and self.encoders.image:
            vector_W = self.encoders.image.images([to_rgb(image)])[0]
            rankings["image vector"] = near(self._pictures, "image_vector", vector_W)
        return rankings

    def _read(self, places: Sequence[Place], names: dict[int, str]) -> list[Chunk]:
        """The chunks at these places with their pictures."""
        if not places:
            return []
        where = among("generation", {generation for generation, _ in places})
        texts = {(row["generation"], row["number"]): row for row in rows(self._chunks, [*PLACE, "id", "text"], where)}
        shown: dict[Place, list[dict[str, Any]]] = {place: [] for place in places}
        for row in rows(self._pictures, [*PLACE, "place", "id", "sha256", "caption", "context"], where):
            shown.get((row["generation"], row["number"]), []).append(row)
        hashes = {row["sha256"] for found in shown.values() for row in found}
        files = {
            row["sha256"]: row["data"]
            for batch in few(hashes)
            for row in rows(self._files, ["sha256", "data"], among("sha256", batch))
        }
        chunks = []
        for place in places:
            pictures = tuple(
                Picture(row["id"], files[row["sha256"]], row["caption"], row["context"])
                for row in sorted(shown[place], key=lambda row: row["place"])
            )
            name, row = names[place[0]], texts[place]
            chunks.append(Chunk(row["id"], name, self.documents[name].title, row["text"], pictures))
        return chunks


def index_vectors(table: Any, name: str) -> None:
    """An IVF-PQ index over a column of vectors, for cosines: sqrt(rows) partitions, a byte for 8 numbers."""
    width = table.schema.field(name).type.list_size
    config = IvfPq(
        distance_type="cosine",
        num_partitions=math.isqrt(table.count_rows()),
        num_sub_vectors=next(count for count in range(max(width // 8, 1), 0, -1) if width % count == 0),
        max_iterations=TRAINING_ITERATIONS,
        sample_rate=TRAINING_SAMPLES,
    )
    table.create_index(name, config=config)


def write_vectors(folder: Path, blocks: Iterable[np.ndarray], width: int) -> Any:
    """A table of bare vectors, column `vector`, with their numbers, column `id`; blocks are [any, width]."""
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), width))])

    def batches() -> Iterator[pa.RecordBatch]:
        first = 0
        for block in blocks:
            ids = pa.array(range(first, first + len(block)), pa.int64())
            yield pa.record_batch([ids, vector_array(block)], schema=schema)
            first += len(block)

    return lancedb.connect(str(folder)).create_table("vectors", pa.RecordBatchReader.from_batches(schema, batches()))

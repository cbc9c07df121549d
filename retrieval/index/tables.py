"""What the tables of an index hold and how they are asked; LanceDB itself is in `store.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from ...models.documents.document import open_image, to_rgb
from .corpus import PIC, Chunk, Picture
from .encoders import Encoders, ImageEncoder, TextEncoder
from .letters import runs_of

Place = tuple[int, int]
"""A chunk: its generation and its number in the document."""
PLACE = ("generation", "number")
FUSION_K = 60
"""Of reciprocal-rank fusion. Cormack, Clarke and Buettcher, SIGIR 2009."""
NPROBES, REFINE_FACTOR = 20, 10
"""Of a vector index: partitions searched; candidates a place asked for that are compared by their whole vectors."""
DECODED = 8
LONGEST_FILTER = 1000
"""With more documents allowed than this, what is not allowed is taken out after the search."""
STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with can do does did how what when where which who why i you we my your"
)
"""Lucene's English ones and those of questions. ICU's own list is of all languages at once: `cat` is in it."""
ASKING = frozenset(f"{STOP_WORDS} about get give have has like look make made mean much need tell use work".split())
"""English words of the asking, not of what is asked for."""
LONGEST_QUESTION = 512
"""Runs of letters that are searched for."""
HASH = re.compile("[0-9a-f]{64}")


def schemas(encoders: Encoders) -> dict[str, pa.Schema]:
    place = [("generation", pa.int64()), ("number", pa.int32())]
    chunks = [*place, ("id", pa.string()), ("text", pa.string()), ("searched", pa.string()), ("letters", pa.string())]
    pictures = [*place, ("place", pa.int32()), ("id", pa.string()), ("sha256", pa.string())]
    pictures += [("caption", pa.string()), ("context", pa.string())]
    if encoders.text:
        chunks.append(("text_vector", pa.list_(pa.float32(), encoders.text.width)))
        pictures.append(("caption_vector", pa.list_(pa.float32(), encoders.text.width)))
    if encoders.image:
        pictures.append(("image_vector", pa.list_(pa.float32(), encoders.image.width)))
    documents = [("id", pa.string()), ("generation", pa.int64()), ("sha256", pa.string()), ("title", pa.string())]
    fields = {
        "documents": documents,
        "chunks": chunks,
        "pictures": pictures,
        "files": [("sha256", pa.string()), ("data", pa.large_binary())],
        "manifest": [("json", pa.string())],
    }
    return {name: pa.schema(columns) for name, columns in fields.items()}


def searched_text(chunk: Chunk) -> str:
    """What full text and text vector are made of: the title, and the text with the captions where the pictures are."""
    captions = iter(chunk.pictures)
    return f"{chunk.title}\n{re.sub(PIC, lambda _: next(captions).caption, chunk.text)}"


def asked_runs(question: str) -> list[str]:
    return list(dict.fromkeys(runs_of(question, ASKING)))[:LONGEST_QUESTION]


def chunk_fields(chunks: Sequence[tuple[int, int, Chunk]]) -> dict[str, Any]:
    """chunks: generation, number in the document, chunk."""
    return {
        "generation": [generation for generation, *_ in chunks],
        "number": [number for _, number, _ in chunks],
        "id": [chunk.id for *_, chunk in chunks],
        "text": [chunk.text for *_, chunk in chunks],
        "searched": [searched_text(chunk) for *_, chunk in chunks],
    }


def picture_fields(pictures: Sequence[tuple[int, int, int, Picture]], hashes: Sequence[str]) -> dict[str, Any]:
    """pictures: generation, number of the chunk, place in the chunk, picture."""
    return {
        "generation": [generation for generation, *_ in pictures],
        "number": [number for _, number, *_ in pictures],
        "place": [place for *_, place, _ in pictures],
        "id": [picture.id for *_, picture in pictures],
        "sha256": list(hashes),
        "caption": [picture.caption for *_, picture in pictures],
        "context": [picture.context for *_, picture in pictures],
    }


def vector_array(vectors_NW: np.ndarray, there: Sequence[bool] | None = None) -> pa.Array:
    """there: rows that have a vector; the others are null, and no search by vectors finds them."""
    absent = None if there is None else pa.array([not one for one in there], pa.bool_())
    values = pa.array(vectors_NW.ravel(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(values, vectors_NW.shape[1], mask=absent)


def passage_vectors(encoder: TextEncoder, texts: Sequence[str], read: Sequence[bool]) -> pa.Array:
    """Null where the encoder does not read a text."""
    vectors_NW = np.zeros((len(texts), encoder.width), np.float32)
    rows = np.flatnonzero(np.asarray(read, bool)).tolist()
    vectors_NW[rows] = encoder.passages([texts[row] for row in rows])
    return vector_array(vectors_NW, read)


def picture_vectors(encoder: ImageEncoder, data: Sequence[bytes]) -> np.ndarray:
    """[pictures, width]; few are in memory with their pixels at a time."""
    groups = (data[start : start + DECODED] for start in range(0, len(data), DECODED))
    return np.concatenate([encoder.images([to_rgb(open_image(one)) for one in group]) for group in groups])


def among(column: str, values: Collection[int] | Collection[str]) -> str:
    """A condition of SQL. Only numbers and hashes get in, so nobody's text can be a part of it."""
    if not all(isinstance(value, int) or HASH.fullmatch(value) for value in values):
        raise ValueError(f"{column}: neither numbers nor hashes")
    return f"{column} IN ({', '.join(str(v) if isinstance(v, int) else repr(v) for v in values)})"


def few(values: Collection[Any]) -> Iterator[tuple[Any, ...]]:
    """As many at a time as go well into one condition."""
    rest = iter(values)
    while some := tuple(islice(rest, 500)):
        yield some


def column(table: Any, name: str, where: str = "") -> list[Any]:
    return [row[name] for row in rows(table, [name], where)]


def rows(table: Any, columns: Sequence[str], where: str = "") -> list[dict[str, Any]]:
    query = table.search().select(list(columns)).limit(None)
    return (query.where(where) if where else query).to_arrow().to_pylist()


def nearest(
    table: Any,
    name: str,
    vector_W: np.ndarray,
    columns: Sequence[str],
    *,
    nprobes: int = NPROBES,
    refine_factor: int | None = REFINE_FACTOR,
) -> Any:
    """A query for the rows with the smallest angle to this vector; without a vector index all are compared."""
    query = table.search(vector_W, vector_column_name=name).distance_type("cosine").select(list(columns))
    query = query.nprobes(nprobes)
    return query if refine_factor is None else query.refine_factor(refine_factor)


def ranking(
    query: Callable[[], Any], allowed: Collection[int], depth: int, *, filtered: bool, where: str = ""
) -> dict[Place, float]:
    """The first `depth` different chunks that a query finds, in its order, of these generations alone.

    query: makes it anew, with the columns of PLACE and its `_distance` or `_score`, which is the value here. filtered:
    other generations are there, and are to be kept out. where: a further condition.
    """
    fetched = 2 * depth
    while True:
        asked = query().limit(fetched)
        allow = among("generation", allowed) if filtered and len(allowed) <= LONGEST_FILTER else ""
        if conditions := [condition for condition in (where, allow) if condition]:
            asked = asked.where(" AND ".join(conditions))
        found = asked.to_arrow().to_pylist()
        places: dict[Place, float] = {}
        for row in found:
            if row["generation"] in allowed:
                places.setdefault((row["generation"], row["number"]), row.get("_distance", row.get("_score")))
        if len(places) >= depth or len(found) < fetched:
            return dict(islice(places.items(), depth))
        fetched *= 4  # rows of documents that are not served, or several pictures of a chunk


def closest(*rankings: Mapping[Place, float]) -> list[Place]:
    """Rankings by one distance as one: a place has the smallest that it has in any."""
    best: dict[Place, float] = {}
    for ranked in rankings:
        for place, distance in ranked.items():
            best[place] = min(distance, best.get(place, distance))
    return sorted(best, key=lambda place: best[place])


def fuse(rankings: Mapping[str, Iterable[Place]]) -> dict[Place, tuple[float, tuple[str, ...]]]:
    """Score and names of the rankings of each place: the sum of 1 / (60 + rank), ranks from 1."""
    found: dict[Place, tuple[float, tuple[str, ...]]] = {}
    for name, places in rankings.items():
        for rank, place in enumerate(places, 1):
            score, names = found.get(place, (0.0, ()))
            found[place] = (score + 1 / (FUSION_K + rank), (*names, name))
    return found

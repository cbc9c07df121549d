"""Trajectories on disk: what was sampled, token by token, and what it earned; one JSON line a rollout.

    <folder>/step-000120.rank-0.jsonl

The record is for people to look at. Pictures are stored at most MAX_SIDE pixels wide and high, log-probs and advantages
rounded to four decimals. What training needs to go on is in the checkpoints, exact.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from PIL import Image

from ...configs.errors import InputError, reading
from ...configs.whole import write_atomically
from ...models.documents.document import ImageSegment, InterleavedDocument, TextSegment

if TYPE_CHECKING:  # a viewer reads records without torch
    from ...models.tokens.processing import Processor
    from ..rollout import Rollout, RolloutBatch

MAX_SIDE = 256
"""A larger picture is stored reduced to this many pixels on its longer side."""
DECIMALS = 4
OF_ONE_CODE = {"image_codes": 0, "depth": 1}
FILE = re.compile(r"step-([0-9]{6,12})\.rank-([0-9]{1,6})\.jsonl")
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder gives for bytes that are no whole character."""


@dataclass(frozen=True, slots=True)
class SegmentScore:
    kind: Literal["text", "image"]
    reward: float | None
    """Process reward; None where none applies."""
    advantage: float | None
    """Advantage of the segment's tokens, outcome and process together."""


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One rollout of a group. C is the number of its completion tokens, K that of its segments."""

    step: int
    """Optimizer steps done when it was sampled."""
    group: int
    """Number of its group in the generation batch, over all ranks."""
    number: int
    """Its number in the group."""
    prompt: InterleavedDocument
    answer: InterleavedDocument
    """K segments, pictures painted; their codes are in `ids`."""
    ended: bool
    """False where the length limit cut the answer."""
    cut_image: bool
    """True where the limit fell inside a picture, which the answer lacks."""
    outcome: float | None
    """The reward of the whole."""
    breakdown: dict[str, float | None]
    """Its parts by name."""
    segments: tuple[SegmentScore, ...]
    """[K]"""
    text_size: int
    """Ids from this one on are image codes: code c is text_size + c."""
    ids: tuple[int, ...]
    """Joint ids of the completion, [C]."""
    logp: tuple[float | None, ...]
    """Log-prob of each as it was sampled, [C]; 0 where the grammar forced the token, None where it is not finite."""
    token_segments: tuple[int, ...]
    """Segment of each token, [C]; K for `<eos>` and for a picture that was cut."""
    pieces: tuple[str, ...]
    """What each token adds to its segment's text, [C]; a control's name; empty for an image code.

    A character that several tokens spell stands with the last of them.
    """
    image_codes: int = 0
    """Of a depth, where a position has several; their id is then text_size + c_0 + c_1 * image_codes + ..."""
    depth: int = 1
    """Codes of a position."""

    def codes_of(self, token: int) -> list[int]:
        """The codes that an id from `text_size` on stands for."""
        number = token - self.text_size
        if self.depth == 1:
            return [number]
        return [number // self.image_codes**place % self.image_codes for place in range(self.depth)]

    def to_json(self) -> dict[str, Any]:
        """A JSON value; `from_json` is its exact inverse."""
        value = {item.name: getattr(self, item.name) for item in fields(self)}
        documents = {name: value[name].to_json() for name in ("prompt", "answer")}
        return {**value, **documents, "segments": [asdict(segment) for segment in self.segments]}

    @classmethod
    def from_json(cls, value: Any) -> Trajectory:
        """Raises ValueError naming the field at fault."""
        known = {item.name for item in fields(cls)}
        _expect(isinstance(value, dict), "expected an object")
        value = OF_ONE_CODE | value  # as they were written before a position could have several
        if odd := known ^ set(value):
            raise ValueError(f"field {min(odd)!r} is {'missing' if min(odd) in known else 'unknown'}")
        for name in ("step", "group", "number", "text_size", "image_codes", "depth"):
            _expect(_is_count(value[name]), f"`{name}` is no count")
        _expect(value["depth"] == 1 or (value["depth"] > 1 and value["image_codes"] > 0), "`depth` and `image_codes`")
        for name in ("ended", "cut_image"):
            _expect(isinstance(value[name], bool), f"`{name}` is neither true nor false")
        _expect(_is_score(value["outcome"]), "`outcome` is neither a number nor null")
        parts = value["breakdown"]
        _expect(isinstance(parts, dict) and all(map(_is_score, parts.values())), "`breakdown` is no object of numbers")
        documents = {name: InterleavedDocument.from_json(value[name]) for name in ("prompt", "answer")}
        segments = _segments(value["segments"], documents["answer"])
        return cls(**{**value, **documents, "segments": segments, **_tokens(value, len(segments))})


def build(batch: RolloutBatch, group_size: int, processor: Processor) -> list[Trajectory]:
    """The records of a rollout batch, in its order; of each sequence the completion alone."""
    size, vocabulary = processor.vocabulary.text_size, processor.vocabulary
    several = {"image_codes": vocabulary.image_codes, "depth": vocabulary.depth} if vocabulary.depth > 1 else {}
    spelling: dict[int, str] = {}

    def decode(ids: Sequence[int]) -> str:
        return cast(str, processor.tokenizer.decode(list(ids), skip_special_tokens=False))

    def alone(token: int) -> str:
        if token not in spelling:
            spelling[token] = decode([token]) if token < size else ""
        return spelling[token]

    trajectories = []
    for row, item in enumerate(batch.rollouts):
        start, answer = item.sequence.prompt_length, item.completion.answer
        ids = item.sequence.ids_T[start:].tolist()
        owners = item.sequence.segment_T[start:].tolist()
        pieces = [alone(token) for token in ids]
        for index, segment in enumerate(answer.segments):
            if isinstance(segment, TextSegment) and index in owners:  # a sign between two markers may own no token
                at = slice(owners.index(index), owners.index(index) + owners.count(index))
                if "".join(pieces[at]) != segment.text:
                    pieces[at] = text_pieces(ids[at], decode)
        trajectories.append(
            Trajectory(
                batch.step,
                *divmod(batch.first_row + row, group_size),
                prompt=_reduced(item.completion.prompt.prompt),
                answer=_reduced(answer),
                ended=item.completion.ended,
                cut_image=item.cut_image,
                outcome=_finite(batch.output.outcome[row]),
                breakdown={name: _finite(scores[row]) for name, scores in batch.output.breakdown.items()},
                segments=_scores(item, batch.output.segments[row], batch.advantages_RT[row].tolist()),
                text_size=size,
                ids=tuple(ids),
                logp=tuple(_rounded(value) for value in item.logp_T[start:].tolist()),
                token_segments=tuple(owners),
                pieces=tuple(pieces),
                **several,
            )
        )
    return trajectories


def text_pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """What each id adds to the text of them all; together the pieces are that text.

    Byte-level tokens may be parts of a character, and others drop their leading space when decoded alone. So each is
    decoded behind the ones before it, and one that leaves a character unfinished adds nothing.
    """
    pieces = [""] * len(ids)
    start, known = 0, 0  # ids[known:] are not in the text yet; ids[start:known] are the context they are decoded in
    for stop in range(1, len(ids) + 1):
        text = decode(ids[start:stop])
        if not text.endswith(UNFINISHED) or stop == len(ids):
            pieces[stop - 1] = text[len(decode(ids[start:known])) if known > start else 0 :]
            start, known = known, stop
    return pieces


def write_trajectories(folder: Path, step: int, rank: int, trajectories: Iterable[Trajectory]) -> Path:
    """One process's trajectories of a step as a file of their own, whole or not at all."""
    path = folder / f"step-{step:06d}.rank-{rank}.jsonl"
    write_atomically(path, "".join(json.dumps(item.to_json(), separators=(",", ":")) + "\n" for item in trajectories))
    return path


def read_trajectories(folder: Path) -> Iterator[Trajectory]:
    """All trajectories of a folder, by step, rank and place. Raises InputError naming file and line."""
    found = [(match, path) for path in folder.glob("step-*.jsonl") if (match := FILE.fullmatch(path.name))]
    if not found:
        raise InputError(f"{folder}: no trajectories here (step-000000.rank-0.jsonl and so on)")
    for _, path in sorted(found, key=lambda item: (int(item[0][1]), int(item[0][2]))):
        with reading(path), path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield _read_line(line, f"{path}:{number}")


def _read_line(line: str, place: str) -> Trajectory:
    try:
        return Trajectory.from_json(json.loads(line))  # our own: an answer may hold half a surrogate pair
    except RecursionError:
        raise InputError(f"{place}: nested too deep") from None
    except (ValueError, OverflowError) as error:
        raise InputError(f"{place}: {error}") from None


def _scores(item: Rollout, rewards: Sequence[float | None], advantages_T: Sequence[float]) -> tuple[SegmentScore, ...]:
    """A segment's advantage is that of its first token of the model's own choice; the others have the same."""
    first: dict[int, float] = {}
    for place, (owner, chosen) in enumerate(
        zip(item.sequence.segment_T.tolist(), item.sequence.trainable_T.tolist(), strict=True)
    ):
        if chosen:
            first.setdefault(owner, advantages_T[place])
    return tuple(
        SegmentScore(
            "text" if isinstance(segment, TextSegment) else "image", _finite(reward), _rounded(first.get(index))
        )
        for index, (segment, reward) in enumerate(zip(item.completion.answer.segments, rewards, strict=True))
    )


def _reduced(document: InterleavedDocument) -> InterleavedDocument:
    """The same with small pictures and without their codes; a picture that does not decode keeps its codes alone."""

    def small(segment: ImageSegment) -> ImageSegment:
        if segment.image is None:
            return segment
        try:
            picture = segment.pixels()
        except ValueError:
            return segment if segment.codes_N is None else replace(segment, image=None)
        if max(picture.size) > MAX_SIDE:
            picture = picture.copy()
            picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        return replace(segment, image=picture, codes_N=None)

    segments = (small(segment) if isinstance(segment, ImageSegment) else segment for segment in document.segments)
    return replace(document, segments=tuple(segments))


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _rounded(value: float | None) -> float | None:
    return None if (known := _finite(value)) is None else round(known, DECIMALS)


def _segments(value: Any, answer: InterleavedDocument) -> tuple[SegmentScore, ...]:
    wrong = "`segments` does not give kind, reward and advantage of each segment of `answer`"
    _expect(isinstance(value, list) and len(value) == len(answer.segments), wrong)
    for item, segment in zip(value, answer.segments, strict=True):
        _expect(isinstance(item, dict) and set(item) == {"kind", "reward", "advantage"}, wrong)
        _expect(item["kind"] == ("text" if isinstance(segment, TextSegment) else "image"), wrong)
        _expect(_is_score(item["reward"]) and _is_score(item["advantage"]), wrong)
    return tuple(SegmentScore(**item) for item in value)


def _tokens(value: dict[str, Any], segments: int) -> dict[str, tuple]:
    def is_owner(item: Any) -> bool:
        return _is_count(item) and item <= segments

    checks: dict[str, Callable[[Any], bool]] = {
        "ids": _is_count,
        "logp": _is_score,
        "token_segments": is_owner,
        "pieces": lambda item: isinstance(item, str),
    }
    for name, holds in checks.items():
        _expect(
            isinstance(value[name], list) and all(map(holds, value[name])), f"`{name}` is no list of the kind it is"
        )
        _expect(len(value[name]) == len(value["ids"]), f"`{name}` is not as long as `ids`")
    return {name: tuple(value[name]) for name in checks}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_score(value: Any) -> bool:
    """A finite number, or None."""
    return value is None or type(value) in (int, float) and math.isfinite(value)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)

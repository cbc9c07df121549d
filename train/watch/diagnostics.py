"""What a batch of rollouts looks like, as sums that add up over micro-batches and ranks. Pure: no logging, no gather.

A metric is a total and a count; `merged` adds them, `means` divides. Steps are those people see: a text with the images
up to the next text, counted from 0; the ninth and all later ones are called "8+". R is the number of rollouts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...models.documents.document import ImageSegment, InterleavedDocument
from ...rewards.base import RewardOutput
from ..objective.spread import SPREAD_FLOOR
from ..rollout import Rollout

Sums = dict[str, tuple[float, float]]
"""Metric to (total, count). A count of 0 means that nothing of the kind occurred."""

MODALITIES = ("text", "image")
STEPS = 8
"""Steps with a metric of their own."""
HYBRID = "reward"
"""Name of the hybrid reward among the components."""

THUMBNAIL = 16
"""Pixels of a side."""
NEAR = 0.05
"""Two pictures are near-duplicates where their squared difference is at most this share of what both have in them."""
WORDS = 3
"""Words in a row that count as said again."""
NOISE = (4 / 255) ** 2
"""Mean squared difference that nobody sees; it decides between pictures without content."""


def merged(parts: Iterable[Sums]) -> Sums:
    """Sums of several micro-batches or ranks."""
    sums: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = before[0] + total, before[1] + count
    return sums


def means(sums: Sums) -> dict[str, float]:
    """Means by metric; one without a count is left out."""
    return {name: total / count for name, (total, count) in sums.items() if count}


def largest(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The largest of each figure over micro-batches or ranks; NaN is larger than any number."""
    found: dict[str, float] = {}
    for name, value in ((name, value) for part in parts for name, value in part.items()):
        found[name] = max(value, found.get(name, value), key=lambda size: (math.isnan(size), size))
    return found


def rollout_sums(
    rollouts: Sequence[Rollout],
    output: RewardOutput,
    text_size: int,
    group_size: int,
    first_row: int = 0,
    advantages_RT: Tensor | None = None,
) -> Sums:
    """Completions, segment rewards, pictures and, if given, advantages [R, >= T] of this rank's rows.

    `text_size` is V: an id below it is text. `first_row` is the number of the first row among those of all ranks: a
    group that straddles ranks is compared in its parts, and the pairs of pictures of either part count.
    """
    answers = [item.completion.answer for item in rollouts]
    parts = [
        completion_sums(rollouts, text_size),
        segment_reward_sums(answers, output.segments),
        picture_sums(answers, group_size, first_row),
    ]
    if advantages_RT is not None:
        parts.append(advantage_sums(rollouts, advantages_RT, text_size))
    return merged(parts)


# ---- rewards ----


def component_scores(output: RewardOutput) -> tuple[list[str], Tensor]:
    """Names [N], the hybrid reward first, and scores [R, N]; NaN where a reward does not apply."""
    columns = {HYBRID: output.outcome, **output.breakdown}
    scores = [[float("nan") if score is None else score for score in column] for column in columns.values()]
    return list(columns), torch.tensor(scores, dtype=torch.float32).T


def group_sums(names: Sequence[str], scores_RN: Tensor, group_size: int, floor: float = SPREAD_FLOOR) -> Sums:
    """Mean, spread inside groups and share of dead groups of each component, from the scores of *all* ranks.

    The spread is the population's standard deviation, the one that advantages divide by; a group whose spread is below
    `floor` is dead. A group in which a component scores nothing takes no part in its figures; for the hybrid reward
    such a group is dead.
    """
    groups_GSN = scores_RN.double().view(-1, group_size, len(names))
    scored_GN = (~groups_GSN.isnan()).any(1)
    std_GN = ((groups_GSN - groups_GSN.nanmean(1, keepdim=True)) ** 2).nanmean(1).sqrt()
    sums: Sums = {}
    for column, name in enumerate(names):
        scores, scored = scores_RN[:, column].double(), scored_GN[:, column]
        std = std_GN[scored, column]
        dead = int((std < floor).sum())
        mean, spread, deaths = (
            ("reward", "reward_std", "dead_groups")
            if name == HYBRID
            else (f"rewards/{name}", f"rewards/{name}/std", f"rewards/{name}/dead_groups")
        )
        sums[mean] = scores.nansum().item(), float((~scores.isnan()).sum())
        sums[spread] = std.sum().item(), float(len(std))
        unscored = int((~scored).sum()) if name == HYBRID else 0
        sums[deaths] = float(dead + unscored), float(len(std) + unscored)
    return sums


def segment_reward_sums(answers: Sequence[InterleavedDocument], segments: Sequence[Sequence[float | None]]) -> Sums:
    """Process rewards by modality, and by modality and step."""
    scores: dict[str, list[float]] = defaultdict(list)
    for answer, row in zip(answers, segments, strict=True):
        for segment, step, score in zip(answer.segments, steps_of(answer), row, strict=True):
            if score is not None:
                name = f"segment_reward/{MODALITIES[isinstance(segment, ImageSegment)]}"
                scores[name].append(score)
                scores[f"{name}/{_label(step)}"].append(score)
    return {name: (sum(values), float(len(values))) for name, values in scores.items()}


def advantage_sums(rollouts: Sequence[Rollout], advantages_RT: Tensor, text_size: int) -> Sums:
    """Magnitude of the advantage of a trained token, by modality and step; `<eos>` belongs to the last step."""
    sizes_RT = advantages_RT.float().abs().cpu().numpy()
    cells = len(MODALITIES) * (STEPS + 1)
    totals, counts = np.zeros(cells), np.zeros(cells)
    for row, item in enumerate(rollouts):
        sequence = item.sequence
        steps = np.minimum(steps_of(item.completion.answer) or [0], STEPS)
        trained = sequence.trainable_T.numpy()
        step = steps[sequence.segment_T.numpy()[trained].clip(0, len(steps) - 1)]
        cell = (sequence.ids_T.numpy()[trained] >= text_size) * (STEPS + 1) + step
        totals += np.bincount(cell, sizes_RT[row, : len(sequence)][trained], cells)
        counts += np.bincount(cell, minlength=cells)
    names = [f"advantage/{modality}/{_label(step)}" for modality in MODALITIES for step in range(STEPS + 1)]
    cells_of = zip(names, totals.tolist(), counts.tolist(), strict=True)
    return {name: (total, count) for name, total, count in cells_of if count}


def steps_of(answer: InterleavedDocument) -> list[int]:
    """The step of each segment, from 0."""
    return [number for number, step in enumerate(answer.steps()) for _ in step]


def _label(step: int) -> str:
    return str(step) if step < STEPS else f"{STEPS}+"


# ---- completions and their pictures ----


def completion_sums(rollouts: Sequence[Rollout], text_size: int) -> Sums:
    """Lengths in sampled tokens, number of pictures, shares cut by the length limit, share of text said again."""
    rows = []
    for item in rollouts:
        sampled = item.sequence.ids_T[item.sequence.trainable_T]
        image = int((sampled >= text_size).sum())
        rows.append(
            {
                "completions/tokens": len(sampled),
                "completions/tokens/text": len(sampled) - image,
                "completions/tokens/image": image,
                "completions/images": len(item.completion.answer.images),
                "completions/cut": not item.completion.ended,
                "completions/cut_image": item.cut_image,
            }
        )
        if (repeated := repeated_share(item.completion.answer.text)) is not None:
            rows[-1]["completions/text/repeated"] = repeated
    return merged({name: (float(value), 1.0) for name, value in row.items()} for row in rows)


def repeated_share(text: str) -> float | None:
    """1 - different / all runs of three words (seq-rep-n of Welleck et al., arXiv 1908.04319); None below two runs."""
    words = text.lower().split()
    runs = list(zip(*(words[first:] for first in range(WORDS)), strict=False))
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else None


def picture_sums(answers: Sequence[InterleavedDocument], group_size: int, first_row: int = 0) -> Sums:
    """Saturation of generated pictures, and shares of pairs that are near-duplicates.

    Within a group the pictures at the same place of different answers are compared, within a document all of its
    pictures. Thumbnails are compared, not codes: with many tokenizers a change that nobody sees changes most codes, and
    with a tiled one two different pictures share every code of their background.
    """
    shown = [
        (row, place, image)
        for row, answer in enumerate(answers)
        for place, image in enumerate(answer.images)
        if image.origin == "generated" and image.image is not None
    ]
    if not shown:
        return {}
    thumbnails_PSC = thumbnails([image.pixels() for _, _, image in shown])
    red, green, blue = np.moveaxis(thumbnails_PSC, -1, 0)
    chroma_PS = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    row_P, place_P = np.array([(row, place) for row, place, _ in shown]).T
    group_P = (first_row + row_P) // group_size
    pairs = np.zeros((2, 2))  # within a group, within a document; near-duplicates, all
    for group in np.unique(group_P):
        at = np.flatnonzero(group_P == group)
        near_PP = near_duplicates(thumbnails_PSC[at])
        same_row_PP, same_place_PP = (index[at][:, None] == index[at][None] for index in (row_P, place_P))
        for index, compared_PP in enumerate((same_place_PP & ~same_row_PP, same_row_PP & ~same_place_PP)):
            pairs[index] += (near_PP & compared_PP).sum() / 2, compared_PP.sum() / 2
    group_pairs, document_pairs = pairs.tolist()
    return {
        "pictures/saturation": (float(chroma_PS.mean(1).sum()), float(len(shown))),
        "pictures/near_duplicates/group": (group_pairs[0], group_pairs[1]),
        "pictures/near_duplicates/document": (document_pairs[0], document_pairs[1]),
    }


def thumbnails(pictures: Sequence[Image.Image]) -> np.ndarray:
    """RGB pictures at 16 x 16, each pixel the mean of those it stands for: float32 [P, 256, 3] in 0..1."""
    small = b"".join(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes() for picture in pictures)
    return np.frombuffer(small, np.uint8).reshape(len(pictures), THUMBNAIL**2, 3).astype(np.float32) / 255


def near_duplicates(thumbnails_PSC: np.ndarray) -> np.ndarray:
    """Which pictures look alike, bool [P, P].

    The squared difference is held against the pictures' own variance about their mean colour, so that a common
    background makes no two pictures alike: unrelated drawings on one background differ by about 1, a copy by 0.
    """
    flat_PD = thumbnails_PSC.reshape(len(thumbnails_PSC), -1)
    squares_P = (flat_PD**2).sum(1)
    difference_PP = squares_P[:, None] + squares_P[None] - 2 * flat_PD @ flat_PD.T
    mean_PC = thumbnails_PSC.mean(1)
    content_P = squares_P - thumbnails_PSC.shape[1] * (mean_PC**2).sum(1) + flat_PD.shape[1] * NOISE
    return difference_PP <= NEAR * (content_P[:, None] + content_P[None])

"""Pictures to places by rule: an assignment in the order of the source, or none where nothing fits.

Each picture of a document is placed at most once, and none before one that stands before it in its document. Among all
such assignments the one with the largest sum of (relevance - threshold) is taken, so a picture below the threshold
stays out. Pictures of different documents have no order among each other and are assigned by themselves; so is one
that its document shows at several places (a context of several lines). Where pictures of several documents would stand
at one place, those of the best document do: documents that tell the same would show everything twice.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from ...configs.registry import register
from ...data.insertion.placements import Candidate, InsertionTask, Placement
from ..answering import Illustrate, Means
from ..placing import Encode, PlacementRules, open_places, relevance

MIN_RELEVANCE = 0.3
"""About a third of what the two texts say, in weighted words, they have in common. Texts on the same subject that share
a word or two stay below."""
MIN_RELEVANCE_ENCODED = 0.4
"""With an encoder, whose cosines of unrelated sentences on one subject are 0.3 to 0.5: half of that is in the mean."""


@dataclass(frozen=True, slots=True)
class RuleInserter:
    """Places the candidates of a finished answer, in the order of the answer."""

    rules: PlacementRules = field(default_factory=PlacementRules)
    encode: Encode | None = None
    """Texts to vectors of length 1; words alone where there is none."""

    def place(self, task: InsertionTask) -> list[Placement]:
        fits = relevance(task.sentences, task.candidates, self.encode)
        least = self.rules.min_relevance
        if least is None:
            least = MIN_RELEVANCE_ENCODED if self.encode else MIN_RELEVANCE
        gains = np.where(open_places(task.sentences, self.rules.sections)[:, None], fits - least, -1.0)
        documents: dict[str, list[int]] = defaultdict(list)
        for index, candidate in sorted(enumerate(task.candidates), key=lambda pair: source_order(pair[1])):
            shown_again = "\n" in candidate.context
            documents[candidate.id if shown_again else candidate.source].append(index)
        at: dict[int, list[list[int]]] = defaultdict(list)  # by place the pictures of each document there
        for indices in documents.values():
            here: dict[int, list[int]] = defaultdict(list)
            for index, place in zip(indices, assign(gains[:, indices]), strict=True):
                if place is not None:
                    here[place].append(index)
            for place, mine in here.items():
                at[place].append(mine)
        return [
            Placement(place, index + 1)
            for place, rivals in sorted(at.items())
            for index in max(rivals, key=lambda mine: gains[place, mine].sum())
        ]


@register("strategy", "rule")
class Rule(Illustrate):
    """A finished text, or an extract, gets its pictures by a rule: no model."""

    illustrates = True

    def __init__(self, means: Means):
        place = RuleInserter(means.rules, means.encode).place
        super().__init__(place, means.text, document=means.document, own=means.own)


def source_order(candidate: Candidate) -> int:
    """Its number among the pictures of its document (`DOCUMENT#i`); 0 where the id does not say, then as they come."""
    number = candidate.id.rpartition("#")[2]
    return int(number) if number.isdecimal() else 0


def assign(gains: np.ndarray) -> list[int | None]:
    """(places, pictures) of gains to the place of each picture, or None: the largest sum with places in order.

    Dynamic programming, pictures x places steps. Several pictures may share a place; a picture without a gain above 0
    is left out, and of equal places the first is taken.
    """
    places, pictures = gains.shape
    best = np.zeros((pictures + 1, places))  # of the first pictures, all at this place or before it
    for picture in range(pictures):
        placed = best[picture] + gains[:, picture]
        best[picture + 1] = np.maximum.accumulate(np.maximum(best[picture], placed))
    chosen: list[int | None] = [None] * pictures
    place = places - 1
    for picture in reversed(range(pictures)):
        if best[picture + 1, place] == best[picture, place]:
            continue
        while place and best[picture + 1, place - 1] == best[picture + 1, place]:
            place -= 1
        chosen[picture] = place
    return chosen

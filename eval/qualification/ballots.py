"""What scorers said of pairs, as figures: agreement with people, ties, position bias, and the sanity set's gate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..statistics import Estimate, estimate
from .preference_pairs import Preference


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a scorer said of a pair."""

    group: str
    preferred: Preference
    choices: tuple[Preference | None, ...]
    """One of a scorer that sees single answers; of a judge two, shown (a, b) and (b, a). None where it failed."""


def figures(ballots: Sequence[Ballot]) -> dict[str, Any]:
    """Of one scorer on one group; every estimate is a mean over pairs, None where there are none."""
    answered = [(ballot.preferred, _without(ballot.choices, None)) for ballot in ballots]
    voted = [(preferred, choices) for preferred, choices in answered if choices]
    apart = [(preferred, choices) for preferred, choices in voted if preferred != "tie"]
    decided = [(preferred, _without(choices, "tie")) for preferred, choices in apart]
    result: dict[str, Any] = {
        "pairs": len(ballots),
        "with_verdict": len(voted),
        "people_tie": sum(ballot.preferred == "tie" for ballot in ballots),
        "agreement": _estimate([_share(c, lambda x, p=p: 1.0 if x == p else 0.5 * (x == "tie")) for p, c in apart]),
        "decided": _estimate([_share(c, lambda x, p=p: float(x == p)) for p, c in decided if c]),
        "outright": _estimate([_share(c, lambda x, p=p: float(x == p)) for p, c in apart]),
        "ties": _estimate([_share(choices, lambda x: float(x == "tie")) for _, choices in voted]),
    }
    both = [ballot.choices for ballot in ballots if len(ballot.choices) == 2 and all(ballot.choices)]
    if both:
        slots = [
            [choice == first for choice, first in zip(choices, "ab", strict=True) if choice != "tie"]
            for choices in both
        ]
        result["first_slot"] = _estimate([float(np.mean(firsts)) for firsts in slots if firsts])
        result["same_both_ways"] = _estimate([float(shown == turned) for shown, turned in both])
    return result


def _without(choices: Sequence[Preference | None], left_out: Preference | None) -> list[Preference]:
    return [choice for choice in choices if choice is not None and choice != left_out]


def _share(choices: Sequence[Preference], credit: Callable[[Preference], float]) -> float:
    return sum(map(credit, choices)) / len(choices)


def _estimate(values: Sequence[float]) -> Estimate | None:
    return estimate(values) if values else None


def faults(groups: Mapping[str, Any], corruptions: Iterable[str], threshold: float) -> list[str]:
    """Why a scorer's figures, by group, do not pass the gate; empty where they do."""
    found = []
    for name in corruptions:
        row = groups.get(name)
        if row is None:
            found.append(f"{name}: no document to damage so; name others, or leave it out of `corruptions`")
        elif row["with_verdict"] < threshold * row["pairs"] or row["outright"] is None:
            found.append(f"{name}: only {row['with_verdict']} of {row['pairs']} have a verdict")
        elif row["outright"]["value"] < threshold:
            found.append(f"{name}: {row['outright']['value']:.3f} score lower, the threshold is {threshold:g}")
    return found

"""Which prompts teach anything: a prompt that is always answered well, or never, has no differences to learn from.

Keeping those whose mean score lies between two bounds is the offline form of difficulty filtering; of a score of 0 or 1
the variance p (1 - p), which bounds what a step can learn, is largest in the middle (arXiv 2504.03380, section 3).
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

Verdict = Literal["kept", "too hard", "too easy", "not scored"]


def verdict(scores: Sequence[float | None], lowest: float, highest: float) -> Verdict:
    """Of one prompt, by the outcomes of its answers, 0 to 1; None for one that could not be scored."""
    known = [score for score in scores if score is not None]
    if not known:
        return "not scored"
    mean = fmean(known)
    return "too hard" if mean < lowest else "too easy" if mean > highest else "kept"

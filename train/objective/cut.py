"""Answers that the length limit cut, and what is learned from them. Pure."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

CutAnswers = Literal["train", "mask", "punish"]


def overlong_punishment(tokens_R: Tensor, longest: int, start: float) -> Tensor:
    """What an answer's length adds to its outcome, [R]: soft overlong punishment (DAPO, arXiv 2503.14476, section 3.4).

    With L_max = longest and L_cache = (1 - start) L_max: 0 up to L_max - L_cache tokens, then
    (L_max - L_cache - |y|) / L_cache, which is -1 at L_max. DAPO's 4096 of 20480 tokens are a start of 0.8.
    """
    begin = start * longest
    return -((tokens_R - begin) / (longest - begin)).clamp(0, 1)


def learned_tokens(
    chosen_RT: Tensor, segment_RT: Tensor, segments_R: Tensor, cut_R: Tensor, mask_answers: bool, mask_pictures: bool
) -> Tensor:
    """Which of the tokens that the model chose are trained on, [R, T].

    `segment_RT` is the segment of each token, `segments_R` how many segments the answers have, `cut_R` which of them
    are cut. `mask_answers` takes out all of a cut answer: overlong filtering (DAPO). `mask_pictures` takes out what
    stands behind the last segment of a cut answer, which is the picture that the cut left unfinished: nobody saw it.
    """
    if mask_answers:
        chosen_RT = chosen_RT & ~cut_R[:, None]
    if mask_pictures:
        chosen_RT = chosen_RT & ~(cut_R[:, None] & (segment_RT >= segments_R[:, None]))
    return chosen_RT

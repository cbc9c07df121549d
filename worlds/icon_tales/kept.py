"""What a released model could before it was trained, measured in its own chat: English, questions, the form of a chat.

`nats`: of passages of plain English (train/from_scratch/english.txt, which no tale or kept answer is made of), as
answers to a request for their title: negative log-likelihood a token; perplexity is its exponential. `right`: an answer
to a question, greedy, holds one of the words that are right. `agreement`: right now and before, or wrong both times.
`chat`: an answer has words and no picture, though it may draw one.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence

import torch

from ...models.documents.document import InterleavedDocument, TextSegment
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling
from ...models.tokens.sequence import collate
from ...models.writing import write
from ...train.from_scratch.new_model import general_english
from .written import plain

PASSAGES, PASSAGE_WORDS = 40, 110
ANSWER_TOKENS = 40
Scores = dict[str, list[float]]


def questions() -> list[tuple[str, tuple[str, ...]]]:
    """(question, words of which a right answer holds one), a hundred."""
    text = (importlib.resources.files(__package__ or "") / "questions.txt").read_text("utf-8")
    lines = [line.split("|") for line in text.splitlines() if line and not line.startswith("#")]
    return [(asked.strip(), tuple(word.strip().lower() for word in words)) for asked, *words in lines]


def is_right(answer: str, words: Sequence[str]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", answer.lower()) for word in words)


def passages(count: int = PASSAGES) -> list[tuple[str, str]]:
    """(title, beginning of the text) of so many pages of the English that comes with limner, from the last one back."""
    pages = [page.partition("\n") for page in re.split(r"^# ", general_english(), flags=re.MULTILINE) if page.strip()]
    found = [(title.strip(), " ".join(body.split()[:PASSAGE_WORDS])) for title, _, body in pages if body.strip()]
    return found[::-1][:count]


def measure_kept(policy: UnifiedPolicy, before: Sequence[float] | None = None, batch_size: int = 8) -> Scores:
    """Item by item. before: `right` of the released model; without it this is that model."""
    asked = questions()
    sampling = Sampling(max_new_tokens=ANSWER_TOKENS, temperature=0.0, max_images=1)
    answers = write(policy, [plain(question) for question, _ in asked], sampling)
    right = [float(is_right(a.document.text, words)) for a, (_, words) in zip(answers, asked, strict=True)]
    chat = [float(bool(a.document.text) and not a.document.images) for a in answers]
    agreement = [float(now == then) for now, then in zip(right, before or right, strict=True)]
    return {"nats": nats(policy, batch_size), "right": right, "agreement": agreement, "chat": chat}


@torch.no_grad()
def nats(policy: UnifiedPolicy, batch_size: int = 8) -> list[float]:
    """A passage each: mean negative log-likelihood of its tokens."""
    documents = [
        InterleavedDocument((TextSegment(f"Write a text with the title: {title}"), TextSegment(text, trainable=True)))
        for title, text in passages()
    ]
    found: list[float] = []
    for start in range(0, len(documents), batch_size):
        rows = [[tokens] for tokens in policy.processor.encode_all(documents[start : start + batch_size])]
        batch = collate(rows, policy.vocabulary).to(policy.model.device)
        logp_BT, _ = policy.log_probs(policy.model, batch)
        trained_BT = batch.trainable_BT.to(logp_BT.device)
        found += (-(logp_BT * trained_BT).sum(1) / trained_BT.sum(1)).tolist()
    return found

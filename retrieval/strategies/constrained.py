"""Constrained decoding of an inserter's answer: what it writes is always a list of legal placements.

    <answer>[{"img": 3, "after": 2}, {"img": 1, "after": 4}]</answer>

A state machine over characters knows what may follow; a token is legal where all its characters are. So it works with
any tokenizer whose tokens have texts. Each candidate is placed at most once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ...data.insertion.prompt import ANSWER, ANSWER_END

ALPHABET = frozenset(f'{ANSWER}{ANSWER_END}[{{"img": 0123456789, "after": }}]')
ANCHOR = "a"
"""Tokens are decoded behind it: at the beginning of a text some tokenizers take a token's space away."""


class State(NamedTuple):
    """Where in an answer one stands."""

    at: str
    """What is being written: `head`, `img` (an entry up to its number, or the end), `after` (the rest of it), `end`."""
    placed: tuple[int, ...] = ()
    """Candidates, ascending, the one of the open entry among them."""
    written: str = ""
    """Of the part that is being written."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """Answers about `candidates` pictures and a text of `sentences` sentences."""

    candidates: int
    sentences: int

    def parts(self, state: State) -> list[tuple[str, State]]:
        """The texts of which one is being written, none the beginning of another, and the state behind each."""
        if state.at == "head":
            return [(f"{ANSWER}[", State("img"))]
        if state.at == "after":
            return [(f"{after}}}", State("img", state.placed)) for after in range(self.sentences + 1)]
        if state.at == "end":
            return []
        entry = ', {"img": ' if state.placed else '{"img": '
        entries = [
            (f'{entry}{number}, "after": ', State("after", tuple(sorted((*state.placed, number)))))
            for number in range(1, self.candidates + 1)
            if number not in state.placed
        ]
        return [(f"]{ANSWER_END}", State("end")), *entries]

    def advance(self, state: State, text: str) -> State | None:
        """The state after `text`; None where that is not legal."""
        for char in text:
            written = state.written + char
            parts = [(part, behind) for part, behind in self.parts(state) if part.startswith(written)]
            if not parts:
                return None
            state = parts[0][1] if parts[0][0] == written else state._replace(written=written)
        return state


@lru_cache(maxsize=100_000)
def advance(grammar: Grammar, state: State, text: str) -> State | None:
    return grammar.advance(state, text)


@dataclass(eq=False)
class TokenTexts:
    """The texts of a tokenizer's tokens, as far as answers are made of them, and what is legal in each state."""

    tokenizer: Any
    texts: dict[int, str] = field(init=False)
    """Of tokens made of the answer's letters alone."""
    _legal: dict[tuple[Grammar, State], Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        anchor = self.tokenizer.encode(ANCHOR, add_special_tokens=False)
        before = self.tokenizer.decode(anchor)
        special = set(self.tokenizer.all_special_ids)
        ids = [token for token in range(len(self.tokenizer)) if token not in special]
        decoded = self.tokenizer.batch_decode([[*anchor, token] for token in ids], clean_up_tokenization_spaces=False)
        texts = {token: text.removeprefix(before) for token, text in zip(ids, decoded, strict=True)}
        self.texts = {token: text for token, text in texts.items() if text and ALPHABET.issuperset(text)}
        if missing := ALPHABET - {text for text in self.texts.values() if len(text) == 1}:
            raise ValueError(f"the tokenizer has no token for {min(missing)!r}, which answers are written with")

    def legal(self, grammar: Grammar, state: State) -> Tensor:
        """Ids of the tokens that may follow."""
        key = (grammar, state)
        if key not in self._legal:
            ids = [token for token, text in self.texts.items() if advance(grammar, state, text) is not None]
            if len(self._legal) > 20_000:  # a long run over tasks of many sizes
                self._legal.clear()
            self._legal[key] = torch.tensor(ids)
        return self._legal[key]


class LegalAnswers(LogitsProcessor):
    """For `generate`, one sequence a row: lets a row write an answer of its grammar, and then end.

    prompt_length: tokens of the (padded) prompts.
    """

    def __init__(self, tokens: TokenTexts, grammars: Sequence[Grammar], ends: Sequence[int], prompt_length: int):
        self.tokens, self.grammars, self.ends, self.read = tokens, grammars, torch.tensor(list(ends)), prompt_length
        self.states = [State("head")] * len(grammars)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids[:, self.read :].tolist()
        self.read = input_ids.shape[1]
        masked = torch.full_like(scores, float("-inf"))
        for row, (grammar, ids) in enumerate(zip(self.grammars, new, strict=True)):
            state = self.states[row]
            for token in ids:
                if state.at != "end":
                    following = advance(grammar, state, self.tokens.texts[token])
                    assert following is not None  # it was drawn from the legal ones
                    state = following
            self.states[row] = state
            legal = (self.ends if state.at == "end" else self.tokens.legal(grammar, state)).to(scores.device)
            masked[row, legal] = scores[row, legal]
        return masked


def longest(grammar: Grammar) -> int:
    """Characters, and so tokens at most, of the longest answer."""
    entry = len(f', {{"img": {grammar.candidates}, "after": {grammar.sentences}}}')
    return len(ANSWER) + grammar.candidates * entry + len(ANSWER_END) + 2

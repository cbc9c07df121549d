"""`limner answer`: a question and an index to an illustrated answer with its sources.

limner answer DIR "How is apple strudel made?" --out answer.html
limner answer DIR "..." --out answer.html --strategy llm --endpoint.base_url URL --endpoint.model NAME
limner answer DIR "..." --out answer.html --max_images 3 --sections Steps --min_relevance 0.4
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import isclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from transformers.utils.logging import disable_progress_bar

from ..configs import parse
from ..configs.bounds import Hits, NoneOrMore, Share
from ..configs.errors import InputError, plain_file, reading
from ..configs.options import make
from ..configs.registry import find
from ..configs.schema import check_ranges
from ..configs.terminal import say, say_next
from ..models.chat.choice import ChatConfig, chat_model
from ..models.chat.painters.choice import PainterConfig, check_painter, make_painter
from ..models.documents.rendering import check_suffix
from .answering import Answered, Means, Strategy, answer, described, encoding, save
from .index.corpus import Chunk, Hit
from .index.store import Index
from .placing import Encode, PlacementRules

USAGE = """%(prog)s DIR "QUESTION" --out answer.html [--config NAME] [--KEY VALUE ...]

DIR is an index (limner index), NAME a YAML file; flags win over it, and dots reach into sections."""
WAYS = {
    "endpoint": "--endpoint.base_url URL --endpoint.model NAME",
    "local": "--local.model DIR",
    "model": "--model DIR",
}
"""How a setting that a strategy needs is given."""


@dataclass
class AnswerConfig(ChatConfig, PlacementRules):
    out: str = ""
    """File to write: answer.html, answer.md or answer.json."""
    strategy: str = "rule"
    """Who answers and places: rule, llm, vlm, inserter, likelihood, unified, pipeline (`limner list strategy`), or
    path/to/file.py:Name."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of a strategy of your own."""
    text: str = ""
    """File of a finished answer that gets its pictures (rule, inserter); without it an extract of the best document."""
    pictures: Literal["own", "found"] = "own"
    """What an extract is offered: the pictures that stand in it in its document, or those of all chunks retrieved."""
    hits: Hits = 10
    """Chunks retrieved."""
    min_match: Share | None = None
    """Least fit of the question and the best chunk, 0 to 1, instead of what the index itself says; 0 answers from
    whatever is found."""
    documents: list[str] = field(default_factory=list)
    """Ids of the documents that may be used; without any, all."""
    device: str = ""
    """`cuda:1`, `cpu`, for all but `local`; empty takes the GPU where there is one."""
    model: str = ""
    """Folder, or ORG/NAME on the Hub: of an inserter, or of a unified model."""
    think: NoneOrMore = 0
    """Tokens that an inserter may think before it answers."""
    painter: PainterConfig = field(default_factory=PainterConfig)
    """Who paints what the language model of a pipeline describes."""
    sampling: dict[str, Any] = field(default_factory=dict)
    """What differs from a unified model's own settings: `{temperature: 0, seed: 1}`; of a pipeline `seed`."""
    template: str = ""
    """Prompt (llm, vlm, unified, pipeline): the package's by name, or a YAML file; by default the strategy's own."""

    def __post_init__(self) -> None:
        check_ranges(self)
        super().__post_init__()
        if not self.out:
            raise InputError("out: missing; name the file to write, --out answer.html")
        check_suffix(Path(self.out))
        strategy = find("strategy", self.strategy, "strategy").thing
        if self.text and not getattr(strategy, "illustrates", False):
            raise InputError(f"text: strategy {self.strategy} writes its own; take rule or inserter")
        needed = getattr(strategy, "needs", ())
        if needed and sum(bool(getattr(self, name)) for name in needed) != 1:
            raise InputError(f"strategy: {self.strategy} needs a model, {' or '.join(WAYS[name] for name in needed)}")
        if getattr(strategy, "paints", False):
            check_painter(self.painter, "painter")
        elif self.painter.endpoint or self.painter.local:
            raise InputError(f"painter: strategy {self.strategy} has nothing painted; take --strategy pipeline")


def main(argv: Sequence[str] | None = None) -> None:
    """Raises InputError for faults in the settings, an empty index, nothing that answers, a model that does not."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = list(takewhile(lambda word: not word.startswith("-"), words))
    (config,) = parse((AnswerConfig,), words[len(given) :], prog="limner answer", usage=USAGE)
    if len(given) != 2:
        raise InputError('limner answer: give the index and the question first: limner answer DIR "QUESTION" --out ...')
    directory, question = given
    if not question.strip():
        raise InputError("limner answer: the question is empty")
    disable_progress_bar()
    index = Index.open(directory, device=config.device)
    if not index.documents:
        raise InputError(f"{directory}: the index is empty; fill it with limner index SRC --out {directory}")
    hits = index.search(question, limit=config.hits, documents=config.documents)
    matching = index.matching()

    def strategy(question: str, hits: Sequence[Hit]) -> Answered:  # a model is loaded when there is something to answer
        return strategy_of(config, encoding(matching.encoder, hits), index.chunks_of)(question, hits)

    answered = answer(question, hits, strategy, config, matching, config.min_match)
    save(answered, Path(config.out))
    say(f"{config.out}: {described(answered)}")
    if config.out.endswith(".html"):
        say_next(page=config.out)
    else:
        say_next("limner", "serve", "--model", "MODEL", "--index", directory)


def strategy_of(config: AnswerConfig, encode: Encode | None, document: Callable[[str], Sequence[Chunk]]) -> Strategy:
    text = ""
    if config.text:
        with reading(Path(config.text)):
            text = plain_file(Path(config.text)).read_text(encoding="utf-8")
        if not text.strip():
            raise InputError(f"{config.text}: empty; there is no answer to illustrate")
    means = Means(
        rules=config,
        chat=partial(chat_model, config, ""),
        painter=partial(make_painter, config.painter, "painter"),
        encode=encode,
        document=document,
        text=text,
        own=config.pictures == "own",
        model=config.model,
        device=config.device or None,
        think=config.think,
        template=config.template,
        sampling=config.sampling,
    )
    found = find("strategy", config.strategy, "strategy")
    return make(found, config.options, "options", filled={"means": means}) if isclass(found.thing) else found.thing

"""The forms in which people bring a reward: one contract (`base.Reward`) made of each.

    def brevity(completions): ...                         a list with a float or None a completion
    def brevity(completions, words: int = 80): ...        the same with an option
    def brevity(prompts, completions, **kwargs): ...      as TRL's GRPOTrainer calls it; may be async
    class Brevity: ... def __call__(self, completions)    with options; a list, or a RewardOutput with segments too

TRL's form is told by its parameters. It gets texts as strings, pictures as lists of PIL images (`images` of the prompt,
`completion_images` of the answer), and a column for every key of the prompts' `meta`. Of what else TRL hands in, token
ids and the trainer's state are None here, and what it logs goes nowhere.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..configs.errors import InputError
from .base import Completion, RewardOutput


class AdaptedReward:
    """Anything that scores completions, as a `Reward` of a given name."""

    def __init__(self, name: str, score: Callable[..., Any], options: Mapping[str, Any] | None = None):
        self.name, self.score, self.options = name, score, dict(options or {})

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        """Raises whatever the score raises; a list becomes outcomes, what is none goes to the guard as it is."""
        if is_trl_form(self.score):
            answer = self.score(**trl_columns(self.score, completions))
        else:
            answer = self.score(completions, **self.options)
        if inspect.isawaitable(answer):
            answer = asyncio.run(_awaited(answer))
        if hasattr(answer, "tolist"):  # an array, a tensor
            answer = answer.tolist()
        if not isinstance(answer, list | tuple):
            return answer
        return RewardOutput(list(answer), [[None] * len(c.answer.segments) for c in completions])


def is_trl_form(score: Callable[..., Any]) -> bool:
    """One of `prompts` and `completions`, or of `completions` and whatever else there is."""
    names = inspect.signature(score).parameters
    return "completions" in names and ("prompts" in names or _takes_all(score))


def filled(score: Any) -> tuple[str, ...]:
    """Parameters of a function that are no options: TRL's are all columns, else the completions alone come first."""
    if not inspect.isroutine(score):
        return ()
    names = tuple(inspect.signature(score).parameters)
    return names if is_trl_form(score) else names[:1]


def check_call(score: Any, place: str) -> None:
    """Raises InputError, beginning with the place, for what could not be called with completions.

    score: a function, a class (its instances are called) or an object with `__call__`.
    """
    of_class = inspect.isclass(score)
    call = score.__call__ if of_class else score
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # a built-in says nothing of its own
        return
    if is_trl_form(call):
        return
    if of_class and not isinstance(inspect.getattr_static(score, "__call__"), staticmethod | classmethod):
        parameters = [p for number, p in enumerate(parameters) if number or p.kind is p.VAR_POSITIONAL]  # without self
    form = "__call__(self, completions)" if of_class else "a function of completions"
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise InputError(f"{place}: takes no completions; a reward is {form}")
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    asked = [p.name for p in parameters[1:] if p.default is p.empty and p.kind not in starred]
    if of_class and asked:
        raise InputError(
            f"{place}: __call__ asks for {asked[0]!r}, which nothing gives; options belong to the constructor"
        )


def trl_columns(score: Callable[..., Any], completions: Sequence[Completion]) -> dict[str, Any]:
    """What TRL's form is called with. Raises InputError for a column that the prompts do not have."""
    keys = dict.fromkeys(key for completion in completions for key in completion.prompt.meta)
    columns: dict[str, Any] = {key: [completion.prompt.meta.get(key) for completion in completions] for key in keys}
    columns |= {
        "prompts": [completion.prompt.text for completion in completions],
        "completions": [completion.answer.text for completion in completions],
        "images": [[image.pixels() for image in completion.prompt.images] for completion in completions],
        "completion_images": [[image.pixels() for image in completion.answer.images] for completion in completions],
        **dict.fromkeys(("completion_ids", "trainer_state")),
        **dict.fromkeys(("log_extra", "log_metric"), lambda *_, **__: None),
    }
    if _takes_all(score):
        return columns
    asked = inspect.signature(score).parameters
    lacking = [name for name, p in asked.items() if name not in columns and p.default is p.empty]
    if lacking:
        name = getattr(score, "__name__", type(score).__name__)
        raise InputError(f"{name}: asks for {lacking[0]!r}, which the prompts do not have; put it into their meta")
    return {name: columns[name] for name in asked if name in columns}


def _takes_all(score: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(score).parameters.values())


async def _awaited(answer: Any) -> Any:
    return await answer

"""What a run of GRPO says when it has ended: each reward from its first line of the log to its last, and the alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WHOLE = {"reward": "all together", "heldout/score": "held out, all together"}
PARTS = {"rewards/": "", "heldout/": "held out, "}


def summary(history: Sequence[Mapping[str, Any]], needed: int = 0) -> str:
    """history: `trainer.state.log_history`. A reward that was never given is not in it.

    needed: lines of the log that an alarm which compares has to see.
    """
    lines = [line for line in history if "loss" in line]
    rows = {_shown(name): value for name, value in _first_and_last(lines).items()}
    width = max(map(len, rows), default=0)
    head = f"rewards, from the first of {len(lines)} lines of the log to the last:"
    table = [f"  {name:{width}}  {first:.3f} -> {last:.3f}" for name, (first, last) in rows.items()]
    alarms = [f"  {line['alarm']}, step {line['step']}: {line['text']}" for line in history if "alarm" in line]
    few = f" (most compare {needed} lines of the log or more)" if len(lines) < needed else ""
    return "\n".join([*([head, *table] if table else ["no reward was logged"]), *_headed(alarms, few)])


def _headed(alarms: Sequence[str], few: str) -> list[str]:
    return ["alarms:", *alarms] if alarms else [f"alarms: none{few}"]


def _first_and_last(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """By name as logged, the whole before its parts, and what was trained on before what was held out."""
    names = dict.fromkeys(name for line in lines for name in line if name in WHOLE or _is_part(name))
    given = {name: [line[name] for line in lines if line.get(name) is not None] for name in sorted(names, key=_order)}
    return {name: (values[0], values[-1]) for name, values in given.items() if values}


def _is_part(name: str) -> bool:
    """`rewards/NAME`; TRL's own trainer, which trains inserters, logs `rewards/NAME/mean`."""
    kind, _, rest = name.partition("/")
    return f"{kind}/" in PARTS and "/" not in rest.removesuffix("/mean")


def _order(name: str) -> tuple[bool, bool]:
    return name.startswith("heldout/"), name not in WHOLE


def _shown(name: str) -> str:
    kind, _, rest = name.partition("/")
    return WHOLE.get(name) or PARTS[f"{kind}/"] + rest.removesuffix("/mean")

"""The folder of a run, `output_dir`: what an earlier run left in it, where to go on from, and its settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...configs import read_yaml, resolved, save_resolved
from ...configs.errors import InputError, reading
from ...configs.json_text import parse_json
from ...configs.registry import files_in
from ...configs.schema import plain
from ...configs.terminal import say
from ...configs.whole import OLD, take_back, write_atomically

CHECKPOINT = re.compile(r"checkpoint-([0-9]+)")
CONFIG = "config.yaml"
OUTPUTS = ("model", "trajectories")
"""What a run without checkpoints leaves, and what another would replace or mix with."""
NEW_MODEL = "new_model"
"""What a warm-up without `model` starts from."""
CHECKPOINT_STATE = "trainer_state.json"
PLUGINS, LIST = "plugins", "plugins.json"
"""Folder of copies of files that settings named (my_rewards.py:Brevity), and what they are."""
OF_A_CALL = ("resume_from_checkpoint", "output_dir")
"""Settings that differ between the calls of one run."""


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    for aside in output_dir.glob(f"_limner-*/{OLD}/checkpoint-*"):
        take_back(output_dir / aside.name)
    found = [
        (int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def how_to_go_on(output_dir: str | None) -> str:
    """What a run that stopped leaves, and how it goes on."""
    if existing := checkpoints(Path(output_dir or "")):
        return f"{existing[-1]} is kept; the same command with --resume_from_checkpoint last goes on from it"
    return f"{output_dir}: no checkpoint was written yet, so start again (--save_steps says how often one is)"


def resume_point(output_dir: Path, resume: str | None) -> str | None:
    """The checkpoint to resume from: a folder, `last` for the newest complete one, or None to start anew.

    Raises InputError where there is none, where it is not whole, and where the run would mix with another one.
    """
    if in_the_way := next((path for path in (output_dir, *output_dir.parents) if path.is_file()), None):
        raise InputError(f"output_dir: {in_the_way} is a file; name a folder (--output_dir)")
    existing = checkpoints(output_dir)
    if resume is None:
        if existing:
            raise InputError(
                f"{output_dir}: holds {existing[-1].name} of an earlier run; "
                "give --resume_from_checkpoint last, or another --output_dir"
            )
        if left := [name for name in OUTPUTS if (output_dir / name).exists()]:
            raise InputError(
                f"{output_dir}: holds {' and '.join(left)} of an earlier run; give another --output_dir, or delete it"
            )
        return None
    if resume == "last":
        if not existing:
            raise InputError(f"{output_dir}: no checkpoint to resume from")
        return str(_whole(existing[-1]))
    if not Path(resume).is_dir():
        raise InputError(f"--resume_from_checkpoint {resume}: no such checkpoint; give a checkpoint folder, or `last`")
    if existing and existing[-1].resolve() != Path(resume).resolve():
        raise InputError(
            f"--resume_from_checkpoint {resume}: {output_dir} holds {existing[-1].name} of an earlier run; move what "
            "comes after it away, or give another --output_dir"
        )
    return str(_whole(Path(resume)))


def _whole(checkpoint: Path) -> Path:
    """Runs write whole checkpoints; one that was copied or cleaned up may be half of one."""
    try:
        step = parse_json((checkpoint / CHECKPOINT_STATE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        step = None
    if not isinstance(step, int):
        raise InputError(
            f"{checkpoint}: its {CHECKPOINT_STATE} is missing or damaged, so this is no whole checkpoint; "
            "delete the folder, and `last` is the one before it"
        )
    return checkpoint


def save_settings(output_dir: Path, resume: str | None, *settings: Any) -> None:
    """Writes the run's config.yaml. A resumed run says what it changes, and the earlier file is kept beside it."""
    if resume is not None and (Path(resume).parent / CONFIG).is_file():
        earlier = Path(resume).parent / CONFIG
        if changed := _changes(read_yaml(earlier), resolved(*settings)[0]):
            step = Path(resume).name.removeprefix("checkpoint-")
            kept = output_dir / f"config.until-{step}.yaml"
            if not kept.exists():  # else a resume from there has failed, and config.yaml is of that one
                write_atomically(kept, earlier.read_bytes())
            say(f"resumed with other settings, the earlier ones are in {kept}: {', '.join(changed)}", flush=True)
    save_resolved(output_dir / CONFIG, *settings)
    keep_plugins(output_dir, settings)


def keep_plugins(output_dir: Path, settings: Sequence[Any]) -> None:
    """Copies of the files that the settings named, and their digests: what the run was trained with stays with it."""
    rows = []
    for file in files_in(plain(settings)):
        copy = f"{PLUGINS}/{file.path.stem}-{file.sha256[:8]}.py"
        write_atomically(output_dir / copy, file.source)
        rows.append({"file": file.path.name, "sha256": file.sha256, "copy": copy})
    if rows:
        write_atomically(output_dir / PLUGINS / LIST, json.dumps(rows, indent=1) + "\n")


def read_plugins(output_dir: Path) -> list[dict[str, str]]:
    """`file`, `sha256` and `copy` of each file that a run was trained with. Raises InputError for a damaged list."""
    path = output_dir / PLUGINS / LIST
    if not path.is_file():
        return []
    with reading(path):
        return [{name: str(row[name]) for name in ("file", "sha256", "copy")} for row in parse_json(path.read_bytes())]


def check_model(resume: str | None, model: str) -> None:
    """Raises InputError where a resumed run names another model than it began with: the weights would come from the
    checkpoint all the same, and only what is copied from the start, such as the reference of a KL, from the other."""
    earlier = Path(resume).parent / CONFIG if resume else None
    if not (earlier and earlier.is_file() and model):
        return
    began = read_yaml(earlier).get("model")
    start = began or earlier.parent / NEW_MODEL
    if began is None or began == model or Path(start).resolve() == Path(model).resolve():
        return
    raise InputError(
        f"model: {model}, and the run in {earlier.parent} began with {began or 'a new model'}; "
        f"{f'go on with --model {began}' if began else 'leave --model out'}, or start anew in another --output_dir; "
        f"where it is the same model in another place, correct `model` in {earlier}"
    )


def check_plugins(resume: str | None, *settings: Any) -> None:
    """Raises InputError where a resumed run would go on with another file than it began with."""
    if resume is None:
        return
    now = {file.path.name: file for file in files_in(plain(settings))}
    for row in read_plugins(Path(resume).parent):
        file = now.get(row["file"])
        if file is not None and file.sha256 != row["sha256"]:
            raise InputError(
                f"{file.path}: has changed since the run began (sha256 {row['sha256'][:12]}, now {file.sha256[:12]}); "
                f"put {Path(resume).parent / row['copy']} back in its place, or start anew in another --output_dir"
            )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name old -> new` of each setting that both have and that differs."""
    found: list[str] = []
    for name in (name for name in before if name in after and name not in OF_A_CALL):
        old, new = before[name], after[name]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _changes(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} {json.dumps(old)} -> {json.dumps(new)}")
    return found

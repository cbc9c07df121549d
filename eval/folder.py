"""A run's folder: the manifest that says what it holds, and append-only files that a kill cannot damage."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..configs.errors import InputError, plain_file, reading, writing
from ..configs.whole import write_atomically

MANIFEST = "manifest.json"
SYNC_S = 0.5
"""Seconds between two waits for the disk, which may take longer than a judge's reply."""
NOT_COMPARED = ("created", "judge.base_url")
"""What may differ between two calls that fill one folder: neither changes a result."""


def keep_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest of a new folder. Raises InputError where the folder has another, naming what differs."""
    path = folder / MANIFEST
    wanted = json.loads(json.dumps(manifest))
    if not path.exists():
        write_atomically(path, json.dumps(wanted, indent=1) + "\n")
        return
    kept, given = _flat(read_json(path)), _flat(wanted)
    names = [name for name in {**kept, **given} if kept.get(name) != given.get(name) and name not in NOT_COMPARED]
    if names:
        said = "; ".join(f"{name} was {kept.get(name)!r}, is {given.get(name)!r}" for name in names[:3])
        raise InputError(f"{folder}: holds results of other settings ({said}); give another --out")


def read_json(path: Path) -> Any:
    """What limner has written; a text of others in it may hold half a surrogate pair. Raises InputError where the file
    cannot be read."""
    with reading(path):
        return json.loads(plain_file(path).read_bytes())


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"judge": {"model": "m"}}` -> `{"judge.model": "m"}`."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": inner}
    return flat


class Journal:
    """One process's file of records, `NAME.RANK.jsonl`, a line each: a kill loses none that was appended.

    A power cut may lose those of the last `SYNC_S` seconds. Raises InputError where another process writes the file.
    """

    def __init__(self, folder: Path, name: str, rank: int = 0):
        self.path = folder / f"{name}.{rank}.jsonl"
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise InputError(f"{self.path}: another process is writing it; give another --out, or wait") from None
        self._file.seek(0)
        whole = sum(len(line) for line in self._file if line.endswith(b"\n"))
        self._file.truncate(whole)  # a kill may have left the beginning of a line
        self._synced = time.monotonic()

    def append(self, record: Mapping[str, Any]) -> None:
        with writing(self.path):
            self._file.write(json.dumps(record).encode("ascii") + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def read_journals(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The records of all processes. A line that is being written is left out; InputError names a damaged one."""
    for path in sorted(folder.glob(f"{name}.*.jsonl")):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    yield json.loads(line)  # as in `read_json`
                except ValueError as error:
                    raise InputError(f"{path}:{number}: damaged ({error}); delete the line to have it redone") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process of this folder at a time."""
    with (folder / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

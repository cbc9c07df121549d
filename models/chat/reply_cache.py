"""Replies of models that are dear to ask, kept by the content of the question: one SQLite file.

Every reply is a transaction of its own, so a kill loses none that had arrived. Several processes and threads of one
machine may share the file (write-ahead log). SQLite's locks do not hold on network file systems: give each machine its
own file there.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from ...configs.errors import InputError

VERSION = 1
"""Of the table, as the file's `user_version`."""
PATIENCE_S = 60
"""How long a write waits for another process's."""
TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, question TEXT NOT NULL, reply TEXT NOT NULL, written REAL NOT NULL
) WITHOUT ROWID
"""


def canonical(value: Any) -> str:
    """JSON with one spelling for each value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key_of(question: str) -> str:
    """sha256 of a canonical question."""
    return hashlib.sha256(question.encode("ascii")).hexdigest()


class ReplyCache:
    """Raises InputError, here and in its methods, where the file is no cache of ours or cannot be read or written."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = Lock()
        with self._using_the_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: each statement is a transaction.
            self._file = sqlite3.connect(path, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False)
            self._file.execute("BEGIN IMMEDIATE")  # of two processes that open a new file, one makes the table
            found = self._file.execute("PRAGMA user_version").fetchone()[0]
            tables = self._file.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
            if found != VERSION and (found or tables):
                self._file.close()
                raise InputError(f"{path}: no cache of replies of format {VERSION}; name another file")
            self._file.execute(TABLE)
            self._file.execute(f"PRAGMA user_version = {VERSION}")
            self._file.execute("COMMIT")
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing, only a power cut may

    def get(self, key: str) -> dict[str, Any] | None:
        with self._using_the_file():
            row = self._file.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])  # our own: one of before may hold half a surrogate pair

    def put(self, key: str, question: str, reply: dict[str, Any]) -> None:
        """The first reply to a question stays, whoever asked it again meanwhile."""
        with self._using_the_file():
            row = (key, question, canonical(reply), time.time())
            self._file.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", row)

    def __len__(self) -> int:
        with self._using_the_file():
            return self._file.execute("SELECT COUNT(*) FROM replies").fetchone()[0]

    def close(self) -> None:
        with self._lock:
            self._file.close()

    @contextmanager
    def _using_the_file(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{self.path}: cannot hold a cache of replies: {error}; name another file") from error

"""Shards that lie elsewhere: `s3://`, `gs://`, `hf://datasets/..`, `https://`, whatever fsspec has a file system for.

A shard is fetched when it is read, checked against the index, and kept in a local cache of bounded size. An address
comes from a configuration and is no more than an address: what would run a command (`pipe:`) is refused, and so are
chains of file systems (`a::b`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...configs.errors import InputError, writing
from ...configs.whole import alone

CACHE = "LIMNER_SHARD_CACHE"
"""Environment variable: the folder of the cache, by default ~/.cache/limner/shards."""
CACHE_BYTES = "LIMNER_SHARD_CACHE_BYTES"
"""Environment variable: what it may hold, by default 50 GB. At least one shard is always kept."""
MOST_BYTES = 50 * 10**9
TRIES, WAIT_S = 3, 1.0
SCHEMES = re.compile(
    r"(s3|gs|gcs|hf|az|abfs|abfss|adl|http|https|memory|ftp|sftp|webhdfs|hdfs|oci|oss|r2|dropbox)://.+"
)


def address_of(directory: str | Path) -> str:
    """The address of a folder that is not local, else nothing. Raises InputError for one that is not to be opened."""
    text = str(directory)
    if re.match(r"pipe:|\||[a-z0-9+]+::", text) or "::" in text:
        raise InputError(f"{text}: commands and chains of file systems are not opened; give the address itself")
    if "://" not in text:
        return ""
    if not SCHEMES.fullmatch(text):
        raise InputError(f"{text}: no file system of that kind is opened; s3://, gs://, hf://, https:// are")
    return text.rstrip("/")


def read_small(address: str, most: int) -> bytes:
    """Raises FileNotFoundError, ValueError for more than `most` bytes, InputError for what is out of reach."""
    with _asking(address), _opened(address) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"larger than {most} bytes")
    return data


def fetched(address: str, name: str, sha256: str) -> Path:
    """The file in the cache, named by its checksum. Raises InputError where it is out of reach or another file."""
    folder = cache_folder()
    path = folder / f"{sha256}.tar"
    if path.is_file():
        with suppress(OSError):
            os.utime(path)  # what was used last goes last
        return path
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
    with alone(path):
        if not path.is_file():
            _fetch(f"{address}/{name}", path, sha256)
            _forget(folder, keep=path)
    return path


def cache_folder() -> Path:
    return Path(os.environ.get(CACHE) or "~/.cache/limner/shards").expanduser()


def _fetch(address: str, path: Path, sha256: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        for attempt in range(TRIES):
            try:
                with _asking(address), _opened(address) as source, beside.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
                break
            except InputError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(WAIT_S * 2**attempt)
        with beside.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise InputError(f"{address}: its sha256 is not that of the index: cut, or replaced; upload it again")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _forget(folder: Path, keep: Path) -> None:
    """Removes what was used longest ago, until the rest fits. A reader that has one open keeps it until it closes."""
    try:
        most = int(os.environ.get(CACHE_BYTES) or MOST_BYTES)
    except ValueError:
        raise InputError(f"{CACHE_BYTES}: {os.environ[CACHE_BYTES]!r} is no number of bytes") from None
    found = []
    for file in folder.glob("*.tar"):
        with suppress(OSError):  # another process removes, too
            found.append((file.stat().st_mtime, file.stat().st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total > most and file != keep:
            with suppress(OSError):
                file.unlink()
                total -= size


class _asking:
    """Whatever a file system raises becomes one InputError that names the address; a missing file stays that."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImportError):
            raise InputError(f"{self.address}: its file system is not installed: {error}") from None
        why = error.__cause__ if isinstance(error, FileNotFoundError) else None
        if isinstance(why, OSError) and not isinstance(why, FileNotFoundError):
            error = why  # fsspec calls a server that does not answer a missing file
        if isinstance(error, Exception) and not isinstance(error, InputError | FileNotFoundError):
            words = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self.address}: cannot be reached: {words[:300]}") from None


def _opened(address: str) -> Any:
    import fsspec

    return fsspec.open(address, "rb")

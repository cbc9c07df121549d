"""Files and folders that appear whole or not at all, whenever their writer is killed, and what killed writers left.

    FOLDER/NAME                 what readers see: the one before or the new one, each whole
    FOLDER/.limner-ID           a file in the making
    FOLDER/.limner-ID/new/NAME  a folder in the making; once it has its name, what had the name before
    FOLDER/.limner-ID/old/NAME  what had the name, where two folders cannot change places in one step

What is in the making is locked while its process lives, and the kernel unlocks it however that ends: the next one that
writes into FOLDER removes what nobody holds (`sweep`). What another machine left goes after a day, for locks may not
reach over a network; on a file system without locks nothing is removed.

A folder takes the place of another in one step on Linux (renameat2). Where the kernel or the file system cannot (macOS,
NFS), a kill between two renames leaves the moment without either, and a reader repairs it: see `take_back`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from .errors import InputError, writing

IN_THE_MAKING = re.compile("[._]limner-(?:([0-9a-f]{8})-)?([0-9a-f]{16})")
"""The kernel that its writer runs on, and when it began, or of what it is the lock."""
OTHER_KERNELS_S = 24 * 3600
LOCK, NEW, OLD, GONE = "lock", "new", "old", "gone"
SYNCS_AT_A_TIME = 16
"""A journal writes those that wait together at once: 500 small files take a tenth of a second instead of two."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of renameat2(2): paths are relative to the working folder; two paths change places."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes beside and renames: a kill or power cut leaves the old file or the new one. Makes the folder if needed.

    Raises InputError where the disk is full or the folder may not be written.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", errors="replace")  # a lone surrogate, which JSON can carry, has no UTF-8
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        beside, descriptor = _begin_file(path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A folder in the making: becomes `directory` at the end, replacing what stood there, or vanishes on any failure.

    Raises InputError where `directory` is a file, the disk is full or the place may not be written.
    """
    with writing(directory):
        staging = Staging(Path(directory))
        try:
            yield staging.written
            staging.publish()
        finally:
            staging.close()


class Staging:
    """What `whole_directory` is made of, for writers that are no `with` block. `close` it, whatever happens.

    mark: what the name of the hidden folder begins with, `.` or `_`. Raises InputError where `directory` is a file.
    """

    def __init__(self, directory: Path, mark: str = "."):
        self.directory = Path(os.path.realpath(directory))  # through a link, to the disk that it was put on
        if self.directory.exists() and not self.directory.is_dir():
            raise InputError(f"{directory}: is a file; name a folder")
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        sweep(self.directory.parent)
        self.container, self._lock = _begin_folder(self.directory.parent, mark)
        self.written = self.container / NEW / self.directory.name
        """Filled by the writer."""
        self.written.mkdir(parents=True)

    def publish(self, replace: bool = True) -> None:
        """Gives the folder its name; all of it is on the disk before: after a power cut too, one of that name is whole.

        Raises FileExistsError for a folder that is not to be replaced.
        """
        _open_to_umask(self.written)
        with ThreadPoolExecutor(SYNCS_AT_A_TIME) as pool:
            list(pool.map(_sync, [*self.written.rglob("*"), self.written]))
        while not (replace and _exchange(self.written, self.directory)):
            if replace and self.directory.exists():
                self._move_aside()
            try:
                self.written.rename(self.directory)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not replace:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.directory)) from None
        _sync(self.directory.parent)

    def _move_aside(self) -> None:
        _forget_old(self.container)  # another writer was faster, so that what was moved aside is not the last one
        (self.container / OLD).mkdir()
        with suppress(FileNotFoundError):
            self.directory.rename(self.container / OLD / self.directory.name)

    def close(self) -> None:
        """Removes what was in the making, or was replaced."""
        _remove(self.container)
        _let_go(self._lock)


def remove_folder(folder: Path, mark: str = ".") -> None:
    """Removes a folder in one step: whenever this is killed, all of it is there, or nothing."""
    container, lock = _begin_folder(folder.parent, mark)
    try:
        folder.rename(container / GONE)
    finally:
        _remove(container)
        _let_go(lock)


def take_back(folder: Path) -> Path:
    """The folder. Where it is not there, for its writer was killed between two renames, the one before gets its name.

    Readers ask for it first; where the kernel exchanges folders there never is anything to do.
    """
    place = Path(os.path.realpath(folder))
    if not place.exists():
        of_0_1 = re.compile(rf"\.{re.escape(place.name)}\.(previous|old-[0-9]+)")
        names = _names(place.parent)
        begun = {match[2]: name for name in names if (match := IN_THE_MAKING.fullmatch(name))}
        aside = [place.parent / begun[when] / OLD / place.name for when in sorted(begun, reverse=True)]
        aside += [place.parent / name for name in names if of_0_1.fullmatch(name)]
        for path in aside:
            with suppress(OSError):  # it is not there, or the writer, or another reader, was faster
                path.rename(place)
                break
    return folder


def sweep(folder: Path) -> None:
    """Removes what killed writers left in a folder; what living ones hold, or others own, is left alone."""
    for name in _names(folder):
        if match := IN_THE_MAKING.fullmatch(name):
            with suppress(OSError):  # somebody was faster, or it is not for us to remove
                _remove_if_dead(folder / name, match[1] in (None, _kernel()))


def _remove_if_dead(path: Path, here: bool) -> None:
    found = path.lstat()
    is_folder = stat.S_ISDIR(found.st_mode)
    if found.st_uid != os.geteuid() or not (is_folder or stat.S_ISREG(found.st_mode)):
        return
    if not here and time.time() - found.st_mtime < OTHER_KERNELS_S:
        return
    lock = path / LOCK if is_folder else path
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if is_folder else 0), 0o600)
    try:
        if _locked(descriptor) and _is_still(descriptor, lock):
            _remove(path)
    finally:
        _let_go(descriptor)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time in what belongs to a path; the others wait. The folder it lies in must be there."""
    token = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    lock = path.with_name(f".limner-{token}")
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_still(descriptor, lock):
            break
        os.close(descriptor)  # the one before has removed it
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        _let_go(descriptor)


def _begin_file(folder: Path) -> tuple[Path, int]:
    """A new file that its descriptor holds."""
    while True:
        path = folder / _new_name()
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            if _locked(descriptor) is not False and _is_still(descriptor, path):
                return path, descriptor
            os.close(descriptor)  # `sweep` came before the lock


def _begin_folder(folder: Path, mark: str = ".") -> tuple[Path, int]:
    """A new folder that the descriptor of its lock holds."""
    while True:
        path = folder / _new_name(mark)
        with suppress(FileExistsError):
            path.mkdir()
            with suppress(FileNotFoundError):
                descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                if _locked(descriptor) is not False and _is_still(descriptor, path / LOCK):
                    return path, descriptor
                os.close(descriptor)


def _new_name(mark: str = ".") -> str:
    return f"{mark}limner-{_kernel()}-{time.time_ns():016x}"


@cache
def _kernel() -> str:
    """Of this machine, since it was started: locks surely hold among processes of one kernel."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        name = socket.gethostname().encode()
    return hashlib.sha256(name).hexdigest()[:8]


def _locked(descriptor: int) -> bool | None:
    """Whether it is ours from now on, until it is closed or the process ends; None where the disk knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _let_go(descriptor: int) -> None:
    """Unlocks and closes; closed alone, it would be held until processes forked in between have ended, too."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def _exchange(one: Path, other: Path) -> bool:
    """Two paths change places in one step; False where they cannot, or one is not there."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    """Removes what is in the making and is held by the caller; what was moved aside and not replaced is put back."""
    for aside in (path / OLD).glob("*"):
        if not (place := path.parent / aside.name).exists():
            with suppress(OSError):  # somebody was faster
                aside.rename(place)
    _forget_old(path)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _forget_old(container: Path) -> None:
    """In one step: `take_back` must never find a half of it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        (container / OLD).rename(container / f"{GONE}-{time.time_ns()}")


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _sync(path: Path) -> None:
    """Waits until the disk holds a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows nothing of it
            raise
    finally:
        os.close(descriptor)


def _open_to_umask(directory: Path) -> None:
    """Files that only their owner may read get the mode of the folder, which is the umask's.

    safetensors writes through temporary files, and those are made for their owner alone.
    """
    mode = stat.S_IMODE(directory.stat().st_mode) & 0o666
    for path in directory.rglob("*"):
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) == 0o600 != mode:
            path.chmod(mode)

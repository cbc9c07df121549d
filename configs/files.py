"""Files of others are looked at before they are opened: a pipe keeps its reader waiting, a hole is read as zeros."""

import os
import stat
from pathlib import Path

LARGEST = 8 * 2**30
"""Bytes of a file that is read as a whole."""
HOLES_FROM, WRITTEN = 64 * 2**20, 1 / 64
"""A file of so many bytes of which a smaller share stands on the disk is all holes; no compression does that."""
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def plain_file(path: Path, most: int | None = LARGEST) -> Path:
    """The path, if what stands there is a plain file that can be read whole: `plain_file(path).read_bytes()`.

    most: bytes; None for files that are mapped, not read. Raises OSError where nothing is there, and ValueError that
    does not name the path for pipes, devices, too large files and those that are all holes. A folder is left to who
    opens it.
    """
    status = os.stat(path)
    if kind := KINDS.get(stat.S_IFMT(status.st_mode)):
        raise ValueError(f"{kind}, no plain file")
    if most is not None and status.st_size > most and not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{status.st_size} bytes; the limit is {most}")
    written = getattr(status, "st_blocks", status.st_size) * 512
    if stat.S_ISREG(status.st_mode) and status.st_size >= HOLES_FROM and written < status.st_size * WRITTEN:
        raise ValueError(f"{status.st_size} bytes, nearly all of them holes (a sparse file)")
    return path

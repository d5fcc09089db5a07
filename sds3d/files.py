"""Files that are whole or absent: written under another name, synced to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, of the same suffix, that takes the place of `path` once it is whole and on the disk."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write(path: Path, data: bytes) -> None:
    """Replace a file's content as a whole."""
    with replacing(path) as partial:
        write_new(partial, data)


def write_new(path: Path, data: bytes) -> None:
    """A file that did not exist, synced to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the renames in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain(error: OSError) -> str:
    """A failed file operation in a sentence, with what to do."""
    where = f" {error.filename}" if error.filename else " it"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"The disk is full: writing{where} failed, and what was there is intact. Free some space, then --resume."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"Writing{where} is not allowed: read-only, or it belongs to someone else. Choose another --out."
    return f"{error.strerror or error}:{where}." if error.filename else f"{str(error).rstrip('.')}."

"""What is written stays whole: one run a table, a file entire or not at all, a full disk told."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# Errors of the place and not of one file: the next file would meet them, too.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


@contextlib.contextmanager
def only_writer(table: Path) -> Iterator[None]:
    """Keeps other runs from a table, by a lock on a hidden file beside it.

    Raises:
        ValueError: another run has it.
        OSError: its folder cannot be made or written to; or there was no room for what was written.
    """
    table.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(table.with_name(f".{table.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"another run is writing {table}; wait for its end, or name another --output."
        ) from None
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(
            f"{error.filename or table} could not be written ({error.strerror}); the same command "
            "goes on from here once there is room."
        ) from error
    finally:
        lock.release()


def write_whole(path: str, content: bytes) -> None:
    """Writes a file under another name and renames it when it is whole.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    descriptor, partial = tempfile.mkstemp(".partial", ".", os.path.dirname(path))
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        os.unlink(partial)
        raise OSError(error.errno, error.strerror, path) from error

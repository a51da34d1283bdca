"""One folder for all that Gradio writes: swept while the Space runs, gone when it ends.

Imported before Gradio, which fixes some of its folders when it is imported.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UPLOAD_MINUTES = 10  # a file is gone by then; time to compare classes and methods
SWEEP_SECONDS = 20
# Gradio deletes what it knows of, every so often and from this age on; a sweep takes the rest.
DELETE_CACHE = (SWEEP_SECONDS, 60 * UPLOAD_MINUTES - 3 * SWEEP_SECONDS)
SWEPT_AGE = 60 * UPLOAD_MINUTES - 2 * SWEEP_SECONDS

PREFIX = "cxr-uploads-"
PARENT = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()).absolute()
FOLDER = PARENT / f"{PREFIX}{secrets.token_hex(8)}"
os.environ["GRADIO_TEMP_DIR"] = str(FOLDER)


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Makes FOLDER, and deletes those of Spaces that were killed."""
    PARENT.mkdir(parents=True, exist_ok=True)
    _delete_abandoned()
    unlocked = PARENT / f".{FOLDER.name}"  # under this name, no other Space takes it for abandoned
    unlocked.mkdir(mode=0o700)
    lock = os.open(unlocked, os.O_RDONLY)
    with suppress(OSError):  # a network disk without locks: there, no folder is seen as abandoned
        fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(FOLDER)
    tempfile.tempdir = str(FOLDER)
    threading.Thread(target=_sweep, daemon=True).start()
    try:
        yield
    finally:
        tempfile.tempdir = None
        shutil.rmtree(FOLDER, ignore_errors=True)
        os.close(lock)


def _delete_abandoned() -> None:
    """A Space locks its folder for as long as it lives, however it ends."""
    for folder in PARENT.glob(PREFIX + 16 * "[0-9a-f]"):
        with suppress(OSError):  # locked; or another user's, no folder, or gone by now
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _sweep() -> None:
    """Deletes what Gradio does not: what interrupted uploads and requests left, empty folders."""
    while True:
        time.sleep(SWEEP_SECONDS)
        oldest = time.time() - SWEPT_AGE
        for folder, folders, files in os.walk(FOLDER, topdown=False):
            for path in (Path(folder, name) for name in (*files, *folders)):
                with suppress(OSError):  # deleted at the same moment, or a folder in use
                    if path.stat().st_mtime < oldest:
                        path.rmdir() if path.is_dir() else path.unlink()

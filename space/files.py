"""Uploads and the files made of them: read, written and deleted without a trace of their names."""

import errno
import hashlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import numpy as np
from batch import MAX_FILE_BYTES, TOO_LARGE, Row, to_csv
from PIL import Image

UPLOAD_MINUTES = 10  # time to compare classes and methods
_SECRET = secrets.token_bytes(16)  # so that a picture's address cannot be told from the picture


def read_upload(upload: dict | None) -> bytes:
    """An upload's bytes.

    Args:
        upload: its "path" as Gradio checked it; by now the file may be gone.

    Raises:
        ValueError: there is none, it is gone, or it is too large.
    """
    if upload is None:
        raise ValueError("There is no image; give an image file.")
    try:
        with open(upload["path"], "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(
            f"The upload was deleted after {UPLOAD_MINUTES} minutes; repeat it."
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(TOO_LARGE)
    return content


def names_and_paths(uploads: list[dict] | None) -> list[tuple[str, str]]:
    """What `batch.read_uploads` takes.

    Raises:
        ValueError: there are no files.
    """
    if not uploads:
        raise ValueError("There are no files; give image files or a zip archive.")
    return [(file["orig_name"] or Path(file["path"]).name, file["path"]) for file in uploads]


@contextmanager
def _full_disk_as_a_sentence():
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError("The server's disk is full; try again in some minutes.") from error


@_full_disk_as_a_sentence()
def save_grey(content: bytes, pixels: np.ndarray, component: gr.HTML) -> str:
    """Writes an X-ray as a PNG at its own size, once for all that is drawn over it.

    Args:
        content: the file that it was read from.
        pixels: uint16 (h, w).
        component: where it is shown.

    Raises:
        ValueError: the disk is full; so do the other writers.
    """
    name = hashlib.sha256(_SECRET + content).hexdigest()
    path = Path(component.GRADIO_CACHE, name, "x-ray.png")
    component.temp_files.add(str(path))
    if path.is_file():
        os.utime(path)  # deleted that much later
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(secrets.token_hex(8))
    # Gradio's own PNG takes four times as long to write and is a tenth smaller.
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(unfinished, "PNG", compress_level=1)
    unfinished.replace(path)
    return str(path)


@_full_disk_as_a_sentence()
def save_picture(pixels: np.ndarray, component: gr.Image) -> str:
    path = _reserve(component, "overlay.png")
    Image.fromarray(pixels).save(path, compress_level=1)
    return path


@_full_disk_as_a_sentence()
def save_csv(rows: list[Row], component: gr.File | gr.DownloadButton) -> str:
    path = _reserve(component, "predictions.csv")
    Path(path).write_text(to_csv(rows), encoding="utf-8", newline="")
    return path


def _reserve(component, name):
    """A path where Gradio deletes a component's files, known to it before the file is there."""
    folder = Path(component.GRADIO_CACHE, secrets.token_hex(16))
    folder.mkdir(parents=True)
    component.temp_files.add(str(folder / name))
    return str(folder / name)


@contextmanager
def own_temporary_folder() -> Iterator[None]:
    """Gives Gradio a folder for all it writes: swept while it runs, gone when it ends."""
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="cxr-", dir=parent, ignore_cleanup_errors=True
    ) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        threading.Thread(target=_sweep, args=(folder,), daemon=True).start()
        yield


def _sweep(folder):
    """Deletes what Gradio does not: what interrupted uploads and requests left, empty folders."""
    while True:
        time.sleep(60)
        oldest = time.time() - 60 * (UPLOAD_MINUTES + 2)
        for path in sorted(Path(folder).rglob("*"), reverse=True):  # files before their folder
            try:
                if path.stat().st_mtime < oldest:
                    path.rmdir() if path.is_dir() else path.unlink()
            except OSError:
                continue  # deleted at the same moment, or a folder in use

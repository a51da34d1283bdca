"""Uploads and the files made of them: read, written and deleted without a trace of their names."""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from batch import MAX_FILE_BYTES, TOO_LARGE, Row, to_csv
from cleanup import UPLOAD_MINUTES
from doors import log_fault
from gradio import route_utils
from gradio.exceptions import InvalidPathError
from lanes import Lanes
from PIL import Image
from starlette.datastructures import FormData

_SECRET = secrets.token_bytes(16)  # so that a picture's address cannot be told from the picture


class Page(gr.Blocks):
    """A page with `Lanes` for a queue.

    It logs where an error arose and of what kind, but not its words: these, which Gradio would
    print, name uploads.
    """

    def queue(self, **options: Any) -> gr.Blocks:
        """As Gradio does, but for the kind of queue."""
        super().queue(**options)
        self._queue.__class__ = Lanes
        return self

    async def process_api(self, *args: Any, event_id: str | None = None, **kwargs: Any) -> Any:
        """As Gradio does, but for `Lanes.run`, and for what is logged and said of an error."""
        process = super().process_api
        try:
            return await self._queue.run(
                event_id, lambda: process(*args, event_id=event_id, **kwargs)
            )
        except gr.Error:
            raise
        except InvalidPathError:  # of the page as it was before a restart, or made up
            problem = "The upload is not on this server any more; repeat it."
        except Exception as error:
            log_fault(error)
            problem = "This could not be answered; check what is sent, or try again later."
        raise gr.Error(problem, print_exception=False)


class _Upload(route_utils.GradioUploadFile):
    """An upload that is hashed with something else than itself.

    Gradio names its folder by the hash: who has the same picture could test for the name that
    another gave it. What is called "..", Gradio would refuse but leave on the disk.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sha.update(secrets.token_bytes(16))
        if not re.search(r"\w", Path(self.filename or "").name):
            self.filename = None


class _Parser(route_utils.GradioMultiPartParser):
    """Takes files alone, and leaves none of an upload that fails.

    The text fields of a form would be kept in memory, whatever their size.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"max_fields": 0})

    async def parse(self) -> FormData:
        """As Gradio does, but for uploads that are cut off."""
        try:
            return await super().parse()
        except BaseException:
            for file in self._files_to_close_on_error:
                file.close()
                Path(file.name).unlink(missing_ok=True)
            raise


route_utils.GradioUploadFile, route_utils.GradioMultiPartParser = _Upload, _Parser


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
def _full_disk_as_a_sentence() -> Iterator[None]:
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
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(secrets.token_hex(8))
    # Gradio's own PNG takes four times as long to write and is a tenth smaller.
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(unfinished, "PNG", compress_level=1)
    unfinished.replace(path)
    return str(path)


@_full_disk_as_a_sentence()
def save_picture(pixels: np.ndarray, component: gr.Image) -> str:
    """Writes a picture, uint8 (h, w, 3), as a PNG; returns its path."""
    path = _reserve(component, "overlay.png")
    Image.fromarray(pixels).save(path, compress_level=1)
    return path


@_full_disk_as_a_sentence()
def save_csv(rows: list[Row], component: gr.File | gr.DownloadButton) -> str:
    """Writes a batch's table; returns its path."""
    path = _reserve(component, "predictions.csv")
    Path(path).write_text(to_csv(rows), encoding="utf-8", newline="")
    return path


def _reserve(component: gr.Component, name: str) -> str:
    """A path where Gradio deletes a component's files, known to it before the file is there."""
    folder = Path(component.GRADIO_CACHE, secrets.token_hex(16))
    folder.mkdir()  # not its parents: gone when the Space has ended
    component.temp_files.add(str(folder / name))
    return str(folder / name)

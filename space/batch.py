"""Many X-rays at once: files and zip archives in, a table and a contact sheet out.

An archive is read in memory, a member at a time; nothing is unpacked onto the disk.
"""

import csv
import io
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from models import Classifier

MEGABYTE = 2**20
MAX_FILES = 200
MAX_FILE_BYTES = 64 * MEGABYTE  # 16-bit, uncompressed, 5600 x 5600
MAX_TOTAL_BYTES = 1024 * MEGABYTE
MAX_RATIO = 200  # of a member's size to its compressed size; above it lies nothing but bombs
MAX_DIRECTORY_BYTES = MEGABYTE  # an archive's table of contents, a hundred bytes a member
MAX_SECONDS = 300
THUMBNAIL = 176  # longest side, pixels
LIMITS = (
    f"At most {MAX_FILES} files of {MAX_FILE_BYTES // MEGABYTE} MB, "
    f"{MAX_TOTAL_BYTES // MEGABYTE} MB in all, and {MAX_SECONDS // 60} minutes."
)

TOO_LARGE = f"The file is larger than {MAX_FILE_BYTES // MEGABYTE} MB."

_ARCHIVE = b"PK\x03\x04"
_EMPTY_ARCHIVE = b"PK\x05\x06"  # also the last record of any archive
_LOCATOR = b"PK\x06\x07"  # 20 bytes, right before that record
# What `zipfile` raises of archives that are damaged, lie, or are of a kind that it does not know.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class Entry(NamedTuple):
    """A file to assess: its name, and its bytes or what is wrong with it."""

    name: str
    content: bytes | None
    error: str | None = None


class Row(NamedTuple):
    """A file's answer.

    Attributes:
        cells: the row of `predict.py`'s table; None where there is no number.
        decision: see `Classifier.decision`; empty where there is no answer.
        thumbnail: a JPEG's bytes, the X-ray under its heatmap; None if it could not be read.
    """

    cells: dict
    decision: str = ""
    thumbnail: bytes | None = None


def read_uploads(uploads: list[tuple[str, str]]) -> Iterator[Entry]:
    """The files among uploads and in the archives among them.

    Args:
        uploads: (name, path) of each.
    """
    count, total = 0, 0
    for entry in _all_entries(uploads):
        count += 1
        total += len(entry.content or b"")
        limit = f"{MAX_FILES} files" if count > MAX_FILES else None
        limit = f"{MAX_TOTAL_BYTES // MEGABYTE} MB" if total > MAX_TOTAL_BYTES else limit
        if limit:
            yield Entry("(more)", None, f"There are more than {limit}; send the rest apart.")
            return
        yield entry


def _all_entries(uploads: list[tuple[str, str]]) -> Iterator[Entry]:
    for name, path in uploads:
        try:
            with open(path, "rb") as file:
                start = file.read(4)
                if start in (_ARCHIVE, _EMPTY_ARCHIVE):
                    yield from _members(file, harmless(name))
                else:
                    yield _file(harmless(name), start + file.read(MAX_FILE_BYTES))
        except FileNotFoundError:
            yield Entry(harmless(name), None, "The upload was deleted; repeat it.")


def _file(name: str, content: bytes) -> Entry:
    if len(content) > MAX_FILE_BYTES:
        return Entry(name, None, TOO_LARGE)
    return Entry(name, content)


def _members(file: BinaryIO, archive: str) -> Iterator[Entry]:
    problem = _directory_problem(file)
    if problem:
        yield Entry(archive, None, problem)
        return
    try:
        with zipfile.ZipFile(file) as opened:
            for info in opened.infolist():
                if not info.is_dir() and not _is_clutter(info.filename):
                    yield _member(opened, info, harmless(f"{archive}/{info.filename}"))
    except _DAMAGE:
        yield Entry(archive, None, "The archive is damaged.")


def _directory_problem(file: BinaryIO) -> str | None:
    """What a zip's last records say against reading its table of contents (APPNOTE 4.3.15, 16).

    `zipfile` would build an object for each of a million members before any could be counted.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - 65_557 - 20))
    tail = file.read()
    start = tail.rfind(_EMPTY_ARCHIVE)
    if start < 0 or len(tail) < start + 22:
        return "The archive is damaged."
    if tail[:start][-20:].startswith(_LOCATOR):
        return "The archive is of the kind for huge ones (ZIP64); pack the files anew."
    if struct.unpack_from("<I", tail, start + 12)[0] > MAX_DIRECTORY_BYTES:
        return f"The archive has far more than {MAX_FILES} members."
    return None


def _is_clutter(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "__MACOSX" or parts[-1].startswith(".")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Entry:
    if info.flag_bits & 1:
        return Entry(name, None, "It is encrypted; take the password off.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Of the others, `zipfile` decompresses a whole block at once: gigabytes out of 600 bytes.
        return Entry(name, None, "It is compressed in a way that is not read; make a usual zip.")
    if info.file_size > MAX_FILE_BYTES:
        return Entry(name, None, TOO_LARGE)
    if info.file_size > MAX_RATIO * max(info.compress_size, 1024):
        return Entry(name, None, f"It is compressed more than {MAX_RATIO}-fold, like a zip bomb.")
    try:
        with archive.open(info) as member:
            content = member.read(info.file_size + 1)  # the size that it states may be a lie
    except _DAMAGE:
        return Entry(name, None, "It is damaged and cannot be read.")
    if content.startswith(_ARCHIVE):
        return Entry(name, None, "An archive inside an archive is not opened.")
    return Entry(name, content)


def harmless(name: str) -> str:
    """A file's name for display: a relative path without `..`, control characters or a formula."""
    parts = re.sub(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", name)
    parts = [part for part in re.split(r"[\\/]", parts) if part not in ("", ".", "..")]
    cleaned = "/".join(parts)[-200:] or "(no name)"
    return f"'{cleaned}" if cleaned[0] in "=+-@" else cleaned  # a spreadsheet would run it


def assess_entries(
    classifier: "Classifier", entries: Iterator[Entry], thumbnails: bool = False
) -> Iterator[Row]:
    """A row a file, as they are done; after MAX_SECONDS the rest is left out, which a row says."""
    deadline = time.monotonic() + MAX_SECONDS
    for entry in entries:
        if time.monotonic() > deadline:
            reason = f"{MAX_SECONDS // 60} minutes are over; send this and what follows again."
            yield Row(classifier.row(entry.name, error=reason))
            return
        yield _assess(classifier, entry, thumbnails)


def _assess(classifier: "Classifier", entry: Entry, thumbnails: bool) -> Row:
    if entry.error:
        return Row(classifier.row(entry.name, error=entry.error))
    try:
        image = classifier.open(entry.content)
    except ValueError as error:
        return Row(classifier.row(entry.name, error=_own_words(error)))
    method = "grad_cam" if thumbnails else None
    assessment = classifier.assess(image, classifier.finding, method)
    thumbnail = _thumbnail(classifier, image, assessment) if thumbnails else None
    return Row(classifier.row(entry.name, assessment), classifier.decision(assessment), thumbnail)


def _own_words(error: Exception) -> str:
    return " ".join(str(error).removeprefix("the image: ").split())


def to_csv(rows: list[Row]) -> str:
    """The table, as RFC 4180 has it."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(rows[0].cells)
    writer.writerows(row.cells.values() for row in rows)
    return text.getvalue()


def _thumbnail(classifier: "Classifier", image: Any, assessment: Any) -> bytes:
    width, height = fit(image.pixels.shape, THUMBNAIL)
    grey = Image.fromarray((image.pixels >> 8).astype(np.uint8)).resize((width, height))
    heat = assessment.heat(classifier.processor, height, width)
    file = io.BytesIO()
    picture = classifier.processor.overlay(np.asarray(grey).astype(np.uint16) * 257, heat)
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return file.getvalue()


def fit(shape: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height of an image (h, w) made to fit into a square; never enlarged."""
    scale = min(1, longest / max(shape))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))

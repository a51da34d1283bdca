"""Decode a split once, into a memory-mapped array that later epochs and runs read again."""

import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from datasets import Dataset, Image
from filelock import FileLock
from tqdm.auto import tqdm

from datasets_scripts.perturb import NEEDS_LUNGS, RESHAPES, Sample, perturb, random_numbers
from datasets_scripts.schema import encoded_images
from modeling.reading_cxr import CxrImage, open_image, read_mask

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.01  # share of a split
ABANDONED_SECONDS = 3600  # without a write
NAMED = 10  # unreadable images named in a message
STORED = ("image", "lung_mask")  # columns that hold encoded images
T = TypeVar("T")


class Pixels:
    """Decoded images, uint16 (K, size, size), read from their file where they are asked for.

    The file holds 8 bits a pixel where that loses nothing: where all are 8-bit images that no
    resizing gave levels between.

    Args:
        stored: uint8 or uint16 (K, size, size).
    """

    dtype = np.dtype(np.uint16)

    def __init__(self, stored: np.memmap) -> None:
        self.stored, self.shape = stored, stored.shape

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: int | slice | list[int] | np.ndarray) -> np.ndarray:
        return _widen(self.stored[rows])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def _widen(pixels: np.ndarray) -> np.ndarray:
    """8 bits as 16 at full scale; 16 as they are."""
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * 257


class Decoded(NamedTuple):
    """What `read_pixels` gives.

    Attributes:
        pixels: uint16 (K, size, size), read-only.
        kept: int64 (K,), the rows of the split they come from.
        warnings: {what was noticed while reading, numbers left out: images}.
    """

    pixels: Pixels
    kept: np.ndarray
    warnings: dict[str, int]


def stored_rows(split: Dataset) -> Dataset:
    """The split with its images and masks as they are encoded."""
    for column in STORED:
        if column in split.features:
            split = split.cast_column(column, Image(decode=False))
    return split


def content(stored: dict) -> bytes | str:
    """An encoded image's bytes where they are embedded, else its path."""
    return stored["path"] if stored["bytes"] is None else stored["bytes"]


def open_row(
    row: dict, correct: bool = True, perturbation: str | None = None, seed: int = 0
) -> tuple[CxrImage, tuple[float, float] | None]:
    """A row's image as it is shown to a model, at its own size.

    Args:
        row: of `stored_rows`.
        correct: see `modeling.reading_cxr.open_image`.
        perturbation: applied to what is then left, see `perturb.PERTURBATIONS`.
        seed: of the perturbation.

    Returns:
        The image, and its height and width before it was stretched, where the row says so and the
        perturbation gave it no new shape.

    Raises:
        ValueError, OSError: the image or its mask cannot be read.
    """
    image = open_image(content(row["image"]), correct)
    original = row.get("original_height"), row.get("original_width")
    shape = None if None in original else image.part_of(original)
    if perturbation is None:
        return image, shape
    lungs = None
    if perturbation in NEEDS_LUNGS:
        lungs = read_mask(content(row["lung_mask"]), image)
        if not lungs.any():
            raise ValueError("its lung mask is empty.")
    sample = Sample(image.pixels, lungs, shape, random_numbers(seed, row["image_id"]))
    image = image._replace(pixels=perturb(perturbation, sample))
    return image, None if perturbation in RESHAPES else shape


def original_shapes(dataset: Dataset) -> list[tuple[int, int] | None]:
    """Height and width of each image before any resizing, None where the set does not say."""
    if not {"original_height", "original_width"} <= set(dataset.features):
        return [None] * len(dataset)
    pairs = zip(dataset["original_height"][:], dataset["original_width"][:])
    return [None if None in pair else pair for pair in pairs]


def fingerprint(dataset: Dataset, columns: Sequence[str] = ("image",)) -> str:
    """A hex digest of the images of a split, in order.

    It covers their names, original shapes, and embedded bytes, or path, size and times of files:
    that of modification, which programs may set back, and that of change, which the system alone
    sets.

    Args:
        dataset: the split.
        columns: those of `STORED` that count.

    Raises:
        OSError: a file is gone.
    """
    names = [dataset["image_id"][:], original_shapes(dataset)]
    digest = hashlib.sha256(str(names).encode())
    for images in zip(*(encoded_images(dataset, column) for column in columns)):
        for image in images:
            if isinstance(image, str):
                status = os.stat(image)
                stamp = status.st_size, status.st_mtime_ns, status.st_ctime_ns
                image = f"{image}\0{stamp}".encode()
            digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()[:32]


def report_unreadable(total: int, problems: list[str], max_unreadable: float) -> None:
    """Warn of unreadable images ("name: reason") up to the share `max_unreadable` of `total`.

    Raises:
        ValueError: there are more.
    """
    if not problems:
        return
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    named = "; ".join(problem.removesuffix(".") for problem in problems[:NAMED]) + more
    message = f"{len(problems)} of {total} images cannot be read ({named})"
    if len(problems) > max_unreadable * total or len(problems) == total:
        raise ValueError(
            f"{message}: more than the {max_unreadable:.1%} allowed; repair or remove them."
        )
    logger.warning("%s: they are left out.", message)


def read_pixels(
    dataset: Dataset,
    read: Callable[[dict], tuple[np.ndarray, Sequence[str]]],
    size: int,
    cache_file: str | Path,
    num_workers: int | None = None,
    max_unreadable: float = MAX_UNREADABLE,
    desc: str = "reading images",
) -> Decoded:
    """Every image decoded once into `cache_file`; where it is there already, nothing is decoded.

    Of several processes that want the same file one writes it and the others wait.

    Args:
        dataset: a split.
        read: turns a row of `stored_rows` into uint16 (size, size) and what was noticed, sentences;
            it runs in `num_workers` threads, as image decoders release the interpreter lock.
        size: pixels a side.
        cache_file: its name should carry `fingerprint(dataset)` and the settings of `read`.
        num_workers: None for the processor's cores.
        max_unreadable: images for which `read` raises ValueError or OSError are left out with one
            warning, up to this share.
        desc: what the progress bar says.

    Raises:
        ValueError: more images cannot be read.
        OSError: the cache cannot be written; no file is left behind.
    """
    cache_file = Path(cache_file)
    decoded = _reopen(cache_file, len(dataset), size)
    if decoded is not None:
        return decoded
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_file.with_name(f".{cache_file.name}.lock")):
            decoded = _reopen(cache_file, len(dataset), size)  # by whom this process waited for
            if decoded is None:
                if cache_file.is_file():
                    logger.warning(
                        "%s does not belong to these %d images: it is written again.",
                        cache_file,
                        len(dataset),
                    )
                _write(dataset, read, size, cache_file, num_workers, max_unreadable, desc)
                decoded = _reopen(cache_file, len(dataset), size)
    except OSError as error:
        need = len(dataset) * size * size * 2 / 1e6
        raise OSError(
            f"could not write the pixel cache {cache_file} of {need:.0f} MB ({error.strerror}): "
            "free space or choose another folder."
        ) from error
    return decoded


def _write(
    dataset: Dataset,
    read: Callable[[dict], tuple[np.ndarray, Sequence[str]]],
    size: int,
    cache_file: Path,
    num_workers: int | None,
    max_unreadable: float,
    desc: str,
) -> None:
    """Decodes every image into a file of its own name, which then becomes `cache_file`."""
    _remove_abandoned(cache_file.parent)
    stored = stored_rows(dataset)

    def attempt(row: int) -> tuple[np.ndarray, Sequence[str]] | str:
        entry = stored[row]
        try:
            pixels, warnings = read(entry)
        except (ValueError, OSError) as error:
            return f"{entry['image_id']}: {error}"
        if pixels.shape != (size, size) or pixels.dtype != np.uint16:
            raise TypeError(
                f"read gave {pixels.dtype} {pixels.shape}, not uint16 ({size}, {size})."
            )
        return pixels, warnings

    problems, left_out, noticed = [], [], Counter()
    # A lock may not reach the other containers that share a folder; a name of its own does.
    partial = cache_file.with_name(f"{cache_file.name}.{secrets.token_hex(8)}.partial")
    facts_partial = partial.with_name(f"{partial.name}.json")
    dtype = np.uint8  # until an image needs more
    try:
        # plain writes, not a writable map: a full disk is then an error and not a crash
        with (
            open(partial, "w+b") as file,
            ThreadPoolExecutor(num_workers or os.cpu_count()) as pool,
        ):
            results = in_order(pool, attempt, len(dataset))
            for row, result in enumerate(
                tqdm(results, total=len(dataset), desc=desc, unit="image")
            ):
                if isinstance(result, str):
                    problems.append(result)
                    left_out.append(row)
                    continue
                pixels = result[0]
                if dtype == np.uint8 and (pixels >> 8 != pixels & 255).any():
                    dtype = np.uint16
                    _widen_file(file, size * size)
                file.write(pixels.astype(dtype).tobytes())  # of the two equal bytes, one
                noticed.update({re.sub(r"\d[\d.,]*\b", "N", text) for text in result[1]})
            report_unreadable(len(dataset), problems, max_unreadable)
            file.flush()
            os.fsync(file.fileno())
        facts = {"images": len(dataset), "left_out": left_out, "warnings": dict(noticed)}
        facts["dtype"] = np.dtype(dtype).name
        with open(facts_partial, "w") as file:
            json.dump(facts, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(facts_partial, _facts_file(cache_file))
        os.replace(partial, cache_file)
    finally:
        partial.unlink(missing_ok=True)
        facts_partial.unlink(missing_ok=True)


def _widen_file(file: BinaryIO, size: int) -> None:
    """Makes images of `size` pixels, 8 bits each, ones of 16, from the last one to the first."""
    for number in reversed(range(file.tell() // size)):
        file.seek(number * size)
        pixels = np.frombuffer(file.read(size), np.uint8)
        file.seek(2 * number * size)
        file.write(_widen(pixels))
    file.seek(0, os.SEEK_END)


def _facts_file(cache_file: Path) -> Path:
    """Where it is kept what a cache holds."""
    return cache_file.with_name(f"{cache_file.name}.json")


def _remove_abandoned(folder: Path) -> None:
    """Removes what processes that were killed left of their caches."""
    for leftover in folder.glob("*.partial*"):
        try:
            if leftover.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                leftover.unlink()
        except FileNotFoundError:  # another process was faster
            continue


def _reopen(cache_file: Path, count: int, size: int) -> Decoded | None:
    """What is in a cache; None where it is not of `count` images of `size` pixels a side."""
    try:
        facts = json.loads(_facts_file(cache_file).read_text())
        length = cache_file.stat().st_size
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if facts["images"] != count:
        return None
    kept, dtype = np.setdiff1d(np.arange(count), facts["left_out"]), np.dtype(facts["dtype"])
    if length != len(kept) * size * size * dtype.itemsize:
        return None
    stored = np.memmap(cache_file, dtype, "r", shape=(len(kept), size, size))
    return Decoded(Pixels(stored), kept, facts["warnings"])


def in_order(pool: ThreadPoolExecutor, function: Callable[[int], T], count: int) -> Iterator[T]:
    """function(0), function(1), ..., computed by the pool.

    A bounded number is under way, so that waiting results never fill the memory.
    """
    waiting = []
    for row in range(count):
        waiting.append(pool.submit(function, row))
        if len(waiting) >= 256:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()

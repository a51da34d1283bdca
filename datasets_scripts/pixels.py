"""Decode a split once: every image as a row of a memory-mapped array that later epochs and runs
read again.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from datasets import Dataset, Image
from tqdm.auto import tqdm

from datasets_scripts.schema import encoded_images

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.01  # share of a split
NAMED = 10  # unreadable images named in a message
T = TypeVar("T")


def original_shapes(dataset: Dataset) -> list[tuple[int, int] | None]:
    """Height and width of each image before any resizing, None where the set does not say."""
    if not {"original_height", "original_width"} <= set(dataset.features):
        return [None] * len(dataset)
    pairs = zip(dataset["original_height"], dataset["original_width"])
    return [None if None in pair else pair for pair in pairs]


def fingerprint(dataset: Dataset) -> str:
    """A hex digest of the images of a split, in order: original shapes, and embedded bytes, or
    path, size and modification time of files.

    Raises OSError for a file that is gone.
    """
    digest = hashlib.sha256(str(original_shapes(dataset)).encode())
    for image in encoded_images(dataset):
        if isinstance(image, str):
            status = os.stat(image)
            image = f"{image}\0{status.st_size}\0{status.st_mtime_ns}".encode()
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()[:32]


def report_unreadable(total: int, problems: list[str], max_unreadable: float) -> None:
    """Warn of unreadable images ("name: reason") up to the share `max_unreadable` of `total`;
    ValueError beyond it.
    """
    if not problems:
        return
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    named = "; ".join(problems[:NAMED]) + more
    message = f"{len(problems)} of {total} images cannot be read ({named})"
    if len(problems) > max_unreadable * total or len(problems) == total:
        raise ValueError(
            f"{message}: more than the {max_unreadable:.1%} allowed, repair or remove them"
        )
    logger.warning("%s: they are left out", message)


def read_pixels(
    dataset: Dataset,
    read: Callable[[str | bytes, tuple[int, int] | None], np.ndarray],
    size: int,
    cache_file: str | Path,
    num_workers: int | None = None,
    max_unreadable: float = MAX_UNREADABLE,
    desc: str = "reading images",
) -> tuple[np.memmap, np.ndarray]:
    """(pixels, kept): uint16 (K, size, size), read-only, and the int64 (K,) rows of `dataset` they
    come from.

    `read` turns a path or bytes, and what `original_shapes` says, into uint16 (size, size), and
    runs in `num_workers` threads (default: the processor's cores; image decoders release the
    interpreter lock). Every image is decoded once into `cache_file`, whose name should carry
    `fingerprint(dataset)` and the settings of `read`; where it is there already, nothing is
    decoded. Images for which `read` raises
    ValueError or OSError are left out with one warning; ValueError where their share is above
    `max_unreadable`, OSError where the cache cannot be written, and then no file is left behind.
    """
    cache_file = Path(cache_file)
    mask_file = cache_file.with_name(cache_file.name + ".kept.npy")
    if cache_file.is_file() and mask_file.is_file():
        kept = _valid(cache_file, np.load(mask_file), len(dataset), size)
        if kept is not None:
            return np.memmap(cache_file, np.uint16, "r", shape=(len(kept), size, size)), kept
        logger.warning(
            "%s does not belong to these %d images: it is written again", cache_file, len(dataset)
        )

    stored = dataset.select_columns(["image", "image_id"]).cast_column("image", Image(decode=False))
    shapes = original_shapes(dataset)

    def attempt(row: int) -> np.ndarray | str:
        entry = stored[row]
        image = entry["image"]
        try:
            content = image["path"] if image["bytes"] is None else image["bytes"]
            pixels = read(content, shapes[row])
        except (ValueError, OSError) as error:
            return f"{entry['image_id']}: {error}"
        if pixels.shape != (size, size) or pixels.dtype != np.uint16:
            raise TypeError(f"read gave {pixels.dtype} {pixels.shape}, not uint16 ({size}, {size})")
        return pixels

    mask, problems = np.zeros(len(dataset), bool), []
    partial = cache_file.with_name(f"{cache_file.name}.{os.getpid()}.partial")
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file, ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
            # plain writes, not a writable map: a full disk is then an error and not a crash
            results = in_order(pool, attempt, len(dataset))
            for row, result in enumerate(
                tqdm(results, total=len(dataset), desc=desc, unit="image")
            ):
                if isinstance(result, str):
                    problems.append(result)
                else:
                    file.write(result.tobytes())
                    mask[row] = True
            report_unreadable(len(dataset), problems, max_unreadable)
            file.flush()
            os.fsync(file.fileno())
        with open(f"{partial}.kept", "wb") as file:
            np.save(file, mask)
        os.replace(f"{partial}.kept", mask_file)
        os.replace(partial, cache_file)
    except OSError as error:
        need = len(dataset) * size * size * 2 / 1e6
        raise OSError(
            f"could not write the pixel cache {cache_file} of {need:.0f} MB ({error.strerror}): "
            "free space or choose another folder"
        ) from error
    finally:
        for leftover in (partial, Path(f"{partial}.kept")):
            if leftover.exists():
                leftover.unlink()
    kept = np.flatnonzero(mask)
    return np.memmap(cache_file, np.uint16, "r", shape=(len(kept), size, size)), kept


def _valid(cache_file: Path, mask: np.ndarray, count: int, size: int) -> np.ndarray | None:
    """The rows kept, where mask and file size agree with `count` images of `size` pixels a side;
    else None.
    """
    kept = np.flatnonzero(mask)
    fits = mask.shape == (count,) and cache_file.stat().st_size == len(kept) * size * size * 2
    return kept if fits else None


def in_order(pool: ThreadPoolExecutor, function: Callable[[int], T], count: int) -> Iterator[T]:
    """function(0), function(1), ... with a bounded number under way, so that waiting results never
    fill the memory.
    """
    waiting = []
    for row in range(count):
        waiting.append(pool.submit(function, row))
        if len(waiting) >= 256:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()

"""Hashes of images and of names.

The SHA-256 of an image file is kept on disk and computed again only after the file changed.
"""

import hashlib
import hmac
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

CACHE_DIR = Path(os.environ.get("CXR_CACHE", "~/.cache/cxr-classification")).expanduser()
FileKey = tuple[str, int, int, int]  # path, size, times of modification and change
AT_ONCE = 500  # files looked up at once, or hashed between two writes: a stop loses no more


def hash_images(images: Iterable[bytes | str]) -> list[str]:
    """SHA-256 of each encoded image, given as its bytes or its path.

    The hash of a file is found again, in any process, by its path, size, and times of modification
    and change: programs may set back the first, the system alone sets the second.

    Raises:
        OSError: a file cannot be read, or its hash not be kept.
    """
    hashes: list[str] = []
    rows: dict[FileKey, list[int]] = {}
    for row, image in enumerate(images):
        if isinstance(image, bytes):
            hashes.append(hashlib.sha256(image).hexdigest())
            continue
        status = os.stat(image)
        key = (os.path.abspath(image), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        rows.setdefault(key, []).append(row)
        hashes.append("")
    if not rows:
        return hashes
    database = _database(os.getpid())
    known: dict[FileKey, str] = {}
    for keys in _parts(list(rows)):
        query = f"SELECT * FROM hashes WHERE path IN ({', '.join('?' * len(keys))})"
        paths = [path for path, *_ in keys]
        known |= {tuple(key): digest for *key, digest in database.execute(query, paths)}
    unknown = [key for key in rows if key not in known]
    bar = tqdm(total=len(unknown), desc="hashing files", unit="image", delay=1)
    with bar, ThreadPoolExecutor() as pool:
        for keys in _parts(unknown):
            new = dict(zip(keys, pool.map(_hash_file, (key[0] for key in keys))))
            _keep(database, new)
            known |= new
            bar.update(len(keys))
    for key, places in rows.items():
        for row in places:
            hashes[row] = known[key]
    return hashes


def _parts(keys: list[FileKey]) -> Iterator[list[FileKey]]:
    for start in range(0, len(keys), AT_ONCE):
        yield keys[start : start + AT_ONCE]


def _hash_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keep(database: sqlite3.Connection, hashes: dict[FileKey, str]) -> None:
    rows = [(*key, digest) for key, digest in hashes.items()]
    try:
        with database:
            database.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", rows)
    except sqlite3.Error as error:
        raise OSError(
            f"hashes of files cannot be written to {CACHE_DIR} ({error}): free space there."
        ) from error


@lru_cache(maxsize=1)
def _database(process: int) -> sqlite3.Connection:
    """The file of hashes, open in this process; one in memory where no file can be written."""
    file = CACHE_DIR / "hashes-2.sqlite"  # by the columns of its table
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        database = _open(str(file))
        database.execute("BEGIN IMMEDIATE")  # raises where it is read-only
        database.commit()
    except (OSError, sqlite3.Error) as error:
        logger.warning(
            "Hashes of files cannot be kept in %s (%s): the next run reads all images again.",
            file,
            error,
        )
        database = _open(":memory:")
    return database


def _open(name: str) -> sqlite3.Connection:
    database = sqlite3.connect(name, timeout=60, check_same_thread=False)
    with database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS hashes "
            "(path TEXT PRIMARY KEY, size INTEGER, modified INTEGER, changed INTEGER, sha256 TEXT)"
        )
    return database


def pseudonym(name: str, salt: bytes) -> str:
    """16 hex digits in place of a name, which cannot be tried out without the salt."""
    return hmac.new(salt, name.encode(), "sha256").hexdigest()[:16]

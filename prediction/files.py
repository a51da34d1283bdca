"""The files among paths and in their folders."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from modeling.own_files import is_own


def check_paths(paths: list[str]) -> None:
    """Refuses paths that would not be answered, or twice.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a path is named twice, or lies in another one.
    """
    missing = next((path for path in paths if not os.path.lexists(path)), None)
    if missing is not None:
        raise FileNotFoundError(f"{missing} does not exist; name files or folders.")
    # In this order, what lies in a folder comes right after it.
    order = sorted(Path(os.path.abspath(path)).parts for path in paths)
    for one, other in zip(order, order[1:]):
        if other[: len(one)] == one:
            raise ValueError(f"{Path(*other)} is named twice, or lies in {Path(*one)}.")


def find_files(
    paths: Iterable[str | os.PathLike], leave_out: Iterable[str | os.PathLike] = ()
) -> Iterator[str]:
    """The files among `paths` and in the folders among them, each folder's in order of name.

    Files that are not the user's own, see `modeling.own_files`, are left out of folders. Links to
    folders and folders that cannot be listed are not entered but given as if they were files, so
    that none is forgotten.

    Args:
        paths: of files and folders.
        leave_out: files and folders to pass over where they exist.
    """
    known = map(os.stat, filter(os.path.exists, leave_out))
    passed_over = {(found.st_dev, found.st_ino) for found in known}
    for path in map(os.fspath, paths):
        # Spreadsheets take such a beginning for a formula.
        start = f"./{path}" if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path
        stack = [start]
        while stack:
            place = stack.pop()
            try:
                found = os.stat(place)
                if (found.st_dev, found.st_ino) in passed_over:
                    continue
                enter = stat.S_ISDIR(found.st_mode) and (
                    place == start or not os.path.islink(place)
                )
                names = os.listdir(place) if enter else None
            except OSError:
                names = None  # whoever reads it is told why
            if names is None:
                yield place
                continue
            names = sorted(filter(is_own, names), reverse=True)
            stack += [os.path.join(place, name) for name in names]

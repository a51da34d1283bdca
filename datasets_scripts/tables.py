"""What a user's CSV file says of images: its rows, the files it names, its numbers."""

import csv
import math
import os
from pathlib import Path, PureWindowsPath


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a CSV file with a header line, and its rows with blanks around cells removed.

    Raises ValueError for a file that is not UTF-8, has no rows, names a column twice, or has a row
    that is longer than its header.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error}): save it as one") from error
    if not rows:
        raise ValueError(f"{path} has no rows: expected a header line and a row an image")
    if twice := {name for name in header if header.count(name) > 1}:
        raise ValueError(f"{path} names the column {min(twice)!r} twice: rename one")
    for number, row in enumerate(rows, 2):
        if None in row:
            raise ValueError(
                f"row {number} of {path} has more cells than the header has columns: put cells "
                "that hold a comma in quotes"
            )
    return header, [{name: cell.strip() for name, cell in row.items()} for row in rows]


def file_inside(folder: Path, name: str, table: Path) -> Path:
    """The file that `table` names, relative to `folder`, with / or \\ between folders.

    Raises ValueError where the name leads out of the folder, FileNotFoundError where nothing is
    there.
    """
    file = Path(os.path.normpath(folder / PureWindowsPath(name).as_posix()))
    if not file.is_relative_to(folder):
        raise ValueError(f"{table} lists {name!r}, which is outside {folder}: move the file inside")
    if not file.is_file():
        raise FileNotFoundError(f"{table} lists {name!r}, but no such file is under {folder}")
    return file


def number_or_none(text: str) -> float | None:
    """The finite number that a text holds, None where it holds none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def pixels_or_none(text: str, column: str, table: Path) -> int | None:
    """A whole number of pixels, None for an empty cell; ValueError for any other text."""
    if not text:
        return None
    number = number_or_none(text)
    if number is None or number < 1 or number % 1:
        raise ValueError(f"{table} gives the {column} {text!r}: a number of pixels is needed")
    return int(number)

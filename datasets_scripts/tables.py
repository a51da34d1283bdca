"""What a user's table says of images: its rows, the files it names, its optional columns."""

import csv
import gzip
import json
import logging
import math
import os
import re
from itertools import zip_longest
from pathlib import Path, PureWindowsPath
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from datasets_scripts.files import walk
from datasets_scripts.labels import read_column, text_of
from datasets_scripts.schema import OPTIONAL, REQUIRED

logger = logging.getLogger(__name__)

FILE_NAMES = ("file", "file_name", "filename", "path", "image")
LABEL_NAMES = ("label", "class", "labels")
PATIENT_NAMES = ("patient", "patient_id")
OPTIONAL_NAMES = {
    "subtype": ("subtype", "finding"),
    "view": ("view", "view_position"),
    "age": ("age", "patient_age"),
    "sex": ("sex", "gender", "patient_sex", "patient_gender"),
    "lung_mask": ("lung_mask", "lung_mask_file_name", "mask_file_name"),
    "original_width": ("original_width", "orig_w"),
    "original_height": ("original_height", "orig_h"),
    "weight": ("weight",),
}
MAX_AGE = 120  # years
# An age of DICOM (PS3.5, value representation AS), as 058Y: how many of its unit make a year.
DICOM_AGE = re.compile(r"(\d{1,3})([DWMY])", re.IGNORECASE)
PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}
# As imagefolder of `datasets`, and these packed or in their other usual forms.
METADATA = tuple(
    f"metadata{kind}"
    for kind in (".csv", ".jsonl", ".parquet", ".tsv", ".ndjson", ".csv.gz", ".tsv.gz")
)
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".xls", ".gz")


def read_table(path: Path) -> tuple[list[str], list[dict[str, object]]]:
    """The columns of a CSV, JSON lines or Parquet file, and its rows.

    Cells of a CSV file are text without blanks around it; its commas may be semicolons or tabs, and
    it may be packed, as .csv.gz.

    Raises:
        ValueError: a file that is not UTF-8 or not of its kind, has no rows, names a column twice,
            or has a row that is longer than its header.
    """
    kinds = {".jsonl": "JSON lines", ".ndjson": "JSON lines", ".parquet": "Parquet"}
    kind = kinds.get(path.suffix.lower(), "CSV")
    longer = []
    try:
        if kind == "Parquet":
            table = pq.read_table(path)
            header, rows = table.column_names, table.to_pylist()
        elif kind == "JSON lines":
            lines = path.read_text("utf-8-sig").split("\n")  # others may stand within a text
            rows = [json.loads(line) for line in lines if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object")
            header = list(dict.fromkeys(name for row in rows for name in row))
            rows = [{name: row.get(name) for name in header} for row in rows]
        else:
            with open_text(path) as file:
                delimiter = max(",;\t", key=file.readline().count)
                file.seek(0)
                # not DictReader, which takes four times as long
                lines = list(filter(None, csv.reader(file, delimiter=delimiter)))
            header = [name.strip() for name in lines.pop(0)] if lines else []
            rows = [dict(zip_longest(header, map(str.strip, line), fillvalue="")) for line in lines]
            longer = [n for n, line in enumerate(lines, 2) if len(line) > len(header)]
    except (ValueError, csv.Error, pa.ArrowException, gzip.BadGzipFile, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is no {kind} file in UTF-8 ({reason}): save it as one."
        ) from error
    if not rows:
        raise ValueError(f"{path} has no rows: expected the names of columns and a row an image.")
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise ValueError(f"{path} names the column {min(twice)!r} twice: rename one.")
    if longer:
        raise ValueError(
            f"row {longer[0]} of {path} has more cells than the header has columns: put cells that "
            "hold a comma in quotes."
        )
    return header, rows


def open_text(path: Path) -> TextIO:
    """A text file in UTF-8, packed where its name ends in .gz."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", newline="", encoding="utf-8-sig")


def read_header(path: Path) -> list[str]:
    """The columns of a CSV file; none where it is no text."""
    try:
        with open_text(path) as file:
            line = file.readline()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError):
        return []
    return [name.strip() for name in next(csv.reader([line]), [])]


def chosen_rows(
    rows: list[dict[str, object]], header: list[str], path: Path, where: str | None
) -> list[dict[str, object]]:
    """The rows in whose column the regular expression of `where`, column=regex, is found.

    Raises:
        ValueError: `where` is no such text, names no column, or fits no row.
    """
    if not where:
        return rows
    column, equals, regex = where.partition("=")
    if not equals or column not in header:
        raise ValueError(
            f"where {where!r} is not column=regex with a column of {path}: {', '.join(header)}."
        )
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ValueError(f"where {where!r} holds no regular expression: {error}.") from error
    kept = [row for row in rows if pattern.search(str(row[column]))]
    if not kept:
        raise ValueError(f"where {where!r} fits none of the {len(rows)} rows of {path}.")
    return kept


def extra_columns(columns: str | None, header: list[str], path: Path) -> list[str]:
    """The names of an option that asks for further columns, joined by commas.

    Raises:
        ValueError: a name that is no column, or one of the schema itself.
    """
    extra = [name.strip() for name in columns.split(",")] if columns else []
    for name in extra:
        if name not in header or name in (*REQUIRED, *OPTIONAL):
            wrong = "is a name of the schema itself" if name in header else "is not there"
            raise ValueError(
                f"columns {columns!r} asks for {name!r}, which {wrong}: the columns of {path} are "
                f"{', '.join(header)}."
            )
    return extra


def report_listed(found: int, listed: int, table: Path, root: Path) -> None:
    """Says how many of the images that a table lists are there; a part of them is normal.

    Raises:
        FileNotFoundError: none is.
    """
    if not found:
        raise FileNotFoundError(
            f"none of the {listed:,} images that {table} lists is under {root}: set images to the "
            "folder that holds them."
        )
    logger.info("%s of %s listed images found.", f"{found:,}", f"{listed:,}")


def usual_columns(header: list[str], names: tuple[str, ...]) -> list[str]:
    """The columns with one of the usual names, in the order of these names, whatever their case."""
    plain = {column.lower().replace(" ", "_"): column for column in header}
    return [plain[name] for name in names if name in plain]


def optional_columns(header: list[str], taken: tuple[str | None, ...]) -> dict[str, str]:
    """The column of each optional name of the schema that a table has, besides those `taken`."""
    found = {name: usual_columns(header, names) for name, names in OPTIONAL_NAMES.items()}
    return {name: usual[0] for name, usual in found.items() if usual and usual[0] not in taken}


def optional_value(name: str, cell: object, table: Path, root: Path) -> str | float | int | None:
    """A cell of an optional column as its type in the schema, None where it says nothing.

    Raises:
        ValueError: a size that is no number of pixels, a weight that is no number of 0 or more, or
            a file outside the folder.
        FileNotFoundError: a lung mask that is not there.
    """
    text = text_of(cell)
    if name == "age":
        return age_or_none(text)
    if name in ("original_width", "original_height"):
        return pixels_or_none(text, name, table)
    if name == "lung_mask" and text:
        return str(file_inside(root, text, table))
    if name == "weight":
        weight = number_or_none(text)
        if weight is None or weight < 0:
            raise ValueError(f"{table} gives the weight {text!r}: a number of 0 or more is needed.")
        return weight
    return text or None


def warn_of_ages(cells: list[object], table: Path) -> None:
    """One warning for ages that are no number of years of a person's life."""
    unclear = [age for cell in cells if (age := text_of(cell)) and age_or_none(age) is None]
    if unclear:
        logger.warning(
            "%s gives %d ages that are no number of years, as %r: they are left empty.",
            table,
            len(unclear),
            unclear[0],
        )


def read_metadata(root: Path) -> dict[Path, dict[str, object]]:
    """What the metadata files below a folder say of each image, by its file.

    That is the columns `label`, `unknown`, `patient_id`, `split` and optional ones of the schema,
    those that any of them has. They are the files of imagefolder of `datasets`, see `METADATA`, in
    any folder, their column file_name relative to it. A warning names tables of other names.

    Raises:
        ValueError: two of them in one folder, no column file_name or several files a row, labels in
            some of them alone, or a file named twice or outside the folder.
        FileNotFoundError: a file that is not there.
    """
    files = [file for file in walk(root) if file.suffix.lower() in TABLES]
    tables = [file for file in files if file.name.lower() in METADATA]
    if others := [file for file in files if file not in tables]:
        logger.warning(
            "%d tables under %s are not read, as %s: only those named metadata.csv, .tsv, .jsonl "
            "or .parquet are.",
            len(others),
            root,
            others[0].relative_to(root),
        )
    found: dict[Path, dict[str, object]] = {}
    columns: list[str] = []
    labelled: dict[bool, Path] = {}
    for table in tables:
        folder = table.parent
        if beside := [other for other in tables if other.parent == folder and other != table]:
            raise ValueError(f"{folder} holds {table.name} and {beside[0].name}: keep one.")
        header, rows = read_table(table)
        files = usual_columns(header, ("file_name", "image_file_name"))
        if not files:
            several = any(name.endswith("file_names") for name in header)
            reason = "lists several images a row" if several else "has no column file_name"
            raise ValueError(f"{table} {reason}: its columns are {', '.join(header)}.")
        known = {
            "label": usual_columns(header, LABEL_NAMES),
            "unknown": usual_columns(header, ("unknown",)),
            "patient_id": usual_columns(header, PATIENT_NAMES),
            "split": usual_columns(header, ("split",)),
        }
        known = {name: usual[0] for name, usual in known.items() if usual}
        labelled["label" in known] = table
        if len(labelled) == 2:
            raise ValueError(
                f"{labelled[False]} has no column of labels, but {labelled[True]} has one: give "
                "each such file one."
            )
        optional = optional_columns(header, (files[0], *known.values()))
        columns += [name for name in (*known, *optional) if name not in columns]
        for row in rows:
            file = file_inside(folder, text_of(row[files[0]]), table)
            if file in found:
                raise ValueError(f"{table} lists {row[files[0]]!r} twice: each file needs one row.")
            found[file] = {name: row[column] for name, column in known.items()}
            if known.get("label", "").lower() == "labels" and row[known["label"]] is not None:
                # a list, be it of one
                (found[file]["label"],) = read_column([row[known["label"]]], table)
            if "unknown" in known:
                (found[file]["unknown"],) = read_column([row[known["unknown"]]], table)
            found[file] |= {
                name: optional_value(name, row[column], table, folder)
                for name, column in optional.items()
            }
        if "age" in optional:
            warn_of_ages([row[optional["age"]] for row in rows], table)
    return {file: {name: row.get(name) for name in columns} for file, row in found.items()}


def file_inside(folder: Path, name: str, table: Path) -> Path:
    r"""The file that `table` names, relative to `folder`, with / or \ between folders.

    Raises:
        ValueError: the name leads out of the folder.
        FileNotFoundError: nothing is there.
    """
    file = Path(os.path.normpath(folder / PureWindowsPath(name).as_posix()))
    if not file.is_relative_to(folder):
        raise ValueError(
            f"{table} lists {name!r}, which is outside {folder}: move the file inside."
        )
    if not file.is_file():
        raise FileNotFoundError(f"{table} lists {name!r}, but no such file is under {folder}.")
    return file


def number_or_none(text: str) -> float | None:
    """The finite number that a text holds, None where it holds none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def age_or_none(text: str) -> float | None:
    """Years, of a number or an age of DICOM, as 58 or 058Y; None for what is no age of a person."""
    dicom = DICOM_AGE.fullmatch(text)
    age = int(dicom[1]) / PER_YEAR[dicom[2].upper()] if dicom else number_or_none(text)
    return age if age is not None and 0 <= age <= MAX_AGE else None


def pixels_or_none(text: str, column: str, table: Path) -> int | None:
    """A whole number of pixels, None for an empty cell; ValueError for any other text."""
    if not text:
        return None
    number = number_or_none(text)
    if number is None or number < 1 or number % 1:
        raise ValueError(f"{table} gives the {column} {text!r}: a number of pixels is needed.")
    return int(number)

"""The table of predictions, CSV or JSON lines: written row by row, and gone on with."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from modeling.answers_cxr import CxrAnswer, table_row

STATUSES = ("ok", "uncertain", "refused", "error")


class Prediction(NamedTuple):
    """What is known of one file.

    Attributes:
        file: its path; one found in a folder begins as the folder was given.
        answer: the model's; None where the file could not be read.
        error: why it could not be read, or its heatmap not be drawn; else None.
        heatmap: path of the drawn heatmap; None without one.
    """

    file: str
    answer: CxrAnswer | None = None
    error: str | None = None
    heatmap: str | None = None


def to_row(
    prediction: Prediction, names: list[str], constants: dict[str, str]
) -> dict[str, str | float | None]:
    """`answers_cxr.table_row` with the heatmap's columns and the constants.

    Args:
        prediction: of one file.
        names: of the classes.
        constants: `model`, with heatmaps `method` and `target`, with ten crops `views`: the columns
            that are the same in each row.
    """
    row = table_row(prediction.file, prediction.answer, prediction.error, names)
    if "method" in constants:
        answer = prediction.answer or CxrAnswer()
        row |= {"heatmap": prediction.heatmap or "", "explained": answer.explained or ""}
    return row | constants


def to_text(row: dict, form: str) -> str:
    """A row as it stands in the table: CSV as RFC 4180 has it, or a line of JSON."""
    if form == "jsonl":
        return json.dumps(row) + "\n"
    text = io.StringIO()
    csv.writer(text).writerow(row.values())
    return text.getvalue()


def reopen(path: Path, columns: list[str], constants: dict[str, str], form: str) -> dict[str, str]:
    """The status of every file in a table, from which a last row that is not whole is cut off.

    All paths are held in memory, some 20 MB for 100,000 files.

    Raises:
        ValueError: it is no table of this format and of these constants.
    """
    start = to_text(dict(zip(columns, columns)), form) if form == "csv" else '{"file": "'
    statuses, read, whole, ended = {}, 0, 0, False

    def lines() -> Iterator[str]:
        nonlocal read, ended
        for line in file:
            if line.endswith(b"\n"):
                read += len(line)
                yield line.decode("utf-8", "surrogateescape")
        ended = True

    with path.open("r+b") as file:
        if not start.encode().startswith(file.read(len(start.encode()))):
            raise ValueError(f"{path} is no {form} table of this model; name another --output.")
        file.seek(0)
        rows = csv.DictReader(lines(), strict=True) if form == "csv" else map(json.loads, lines())
        try:
            for row in rows:
                if list(row) != columns or row["status"] not in STATUSES:
                    raise ValueError(f"{path}: row {len(statuses) + 1} has other columns.")
                for name, value in constants.items():
                    if row[name] != value:
                        raise ValueError(
                            f"{path} was written with {name} {row[name]}, not {value}; name "
                            "another --output."
                        )
                statuses[row["file"]] = row["status"]
                whole = read
        except (csv.Error, json.JSONDecodeError) as error:
            if not ended:  # otherwise the last row's closing quote is missing
                raise ValueError(
                    f"{path} is damaged after row {len(statuses)} ({error}); repair it, or name "
                    "another --output."
                ) from None
        file.truncate(whole)
    return statuses

"""One CSV file with a row an image, the commonest form of a hospital export.

Paths are relative to its folder, or to the `root` given. Columns are found by their usual names,
whatever the case:

    file, file_name, filename, path, image    the image
    label, class, labels                      its class; several are joined by | or ;, or a list,
                                              or mapped to 0 or 1
    unknown                                   classes that may be there or not, joined alike
    patient, patient_id                       empty: the file is its own patient
    split                                     train, validation, test, or other usual names of
                                              these; unlabelled
    source                                    where the image comes from
    subtype, finding                          } text
    view, sex, gender                         }
    age                                       years, as 58 or 058Y
    orig_w, original_width; orig_h, ...       size before any resizing, pixels: an image that was
                                              stretched since gets its proportions back
    weight                                    how often training draws it, beside the others
    lung_mask                                 a file, white where there is lung
"""

from collections import Counter
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from datasets_scripts.labels import holds_lists, read_labels, text_of
from datasets_scripts.schema import Source, assemble
from datasets_scripts.splits import read_splits
from datasets_scripts.tables import (
    FILE_NAMES,
    LABEL_NAMES,
    PATIENT_NAMES,
    chosen_rows,
    extra_columns,
    file_inside,
    optional_columns,
    optional_value,
    read_table,
    usual_columns,
    warn_of_ages,
)

SOURCE = Source(
    name="manifest",
    title="images that `{path}` lists",
    path_help="a CSV file with a row an image",
)


def _find_column(
    header: list[str], path: Path, given: str | None, option: str, names: tuple[str, ...]
) -> str | None:
    """The column that an option names, else the one with a usual name, None where there is none."""
    found = [given] if given else usual_columns(header, names)
    if given and given not in header:
        raise ValueError(f"{path} has no column {given!r}: its columns are {', '.join(header)}.")
    if len(found) > 1:
        raise ValueError(f"{path} has the columns {' and '.join(found)}: set {option} to one.")
    return found[0] if found else None


def _splits(rows: list[dict], header: list[str], path: Path) -> list[str] | None:
    """The split of each row; None where the file has no column for it."""
    columns = usual_columns(header, ("split",))
    if not columns:
        return None
    names = {row[columns[0]] for row in rows}
    known = read_splits(names) | {
        name: "unlabelled" for name in names if name.casefold() in ("unlabelled", "unlabeled")
    }
    for name in sorted(names):
        if not known[name]:
            raise ValueError(
                f"{path} gives the split {name!r}: use train, validation, test or unlabelled, or "
                "leave rows out with where."
            )
    return [known[row[columns[0]]] for row in rows]


def load(
    path: str | Path,
    *,
    file_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    where: str | None = None,
    columns: str | None = None,
    root: str | None = None,
    test_share: float | None = None,
    **options: Any,
) -> DatasetDict:
    """The images that a CSV file lists, in the one schema.

    Without a split column all are the test split, to validate on, unless `test_share` is given: all
    are split then. The set is multi-label where a label of the file is a list, or where there is a
    column `unknown`; no label then means no finding. Classes are those of the rows kept. Images of
    the split unlabelled have no label, and are for `train.py --teacher`.

    Args:
        path: of the file.
        file_column: column with the images' paths, if it has no usual name
        label_column: column with the labels, if it has no usual name
        patient_column: column with the patients, if it has no usual name
        where: column=regex: rows to keep, those in which the regular expression is found
        columns: further columns to keep as text, joined by commas
        root: folder that files are relative to, if not the CSV file's own
        test_share: share of the images for the test split, in a file without splits
        **options: of `assemble`.

    Raises:
        ValueError: a column that is missing or not clear, an empty label (or one in the split
            unlabelled), a split of another name, a file that is listed twice or outside the folder,
            a size that is no number of pixels, or a weight that is no number of 0 or more.
        FileNotFoundError: a file that is missing.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"{path} is a folder: give the CSV file in it, or use --dataset folder.")
    root = Path(root).expanduser().resolve() if root else path.parent
    header, all_rows = read_table(path)
    file_column = _find_column(header, path, file_column, "file_column", FILE_NAMES)
    label_column = _find_column(header, path, label_column, "label_column", LABEL_NAMES)
    patient_column = _find_column(header, path, patient_column, "patient_column", PATIENT_NAMES)
    for option, column in (("file_column", file_column), ("label_column", label_column)):
        if not column:
            raise ValueError(
                f"{path} has no column with a usual name for the {option.removesuffix('_column')}: "
                f"set {option} to one of {', '.join(header)}."
            )
    extra = extra_columns(columns, header, path)
    rows = chosen_rows(all_rows, header, path, where)
    files = [file_inside(root, row[file_column], path) for row in rows]
    if len(set(files)) < len(files):
        twice = Counter(files).most_common(1)[0][0].relative_to(root)
        raise ValueError(f"{path} lists {str(twice)!r} twice: each file needs one row.")
    unknown = next(iter(usual_columns(header, ("unknown",))), None)
    multi_label = unknown is not None or holds_lists(row[label_column] for row in all_rows)
    splits = _splits(rows, header, path) or [None if test_share else "test"] * len(rows)
    for row, split in zip(rows, splits):
        if split == "unlabelled" and (read_labels(row[label_column]) or multi_label):
            raise ValueError(
                f"{path} has {row[file_column]!r} in the split unlabelled: that is for images "
                "without a label, in a set of one label an image."
            )
    optional = optional_columns(header, (file_column, label_column, patient_column))
    sources = usual_columns(header, ("source",))
    records = [
        {
            "image": str(file),
            "label": row[label_column],
            "unknown": read_labels(row[unknown]) if unknown else [],
            "name": file.name,
            "path": file.relative_to(root).as_posix(),
            "split": split,
            "patient_id": text_of(row[patient_column]) if patient_column else "",
            "source": (text_of(row[sources[0]]) if sources else "") or root.name,
            **{
                name: optional_value(name, row[column], path, root)
                for name, column in optional.items()
            },
            **{name: row[name] or None for name in extra},
        }
        for row, file, split in zip(rows, files, splits)
    ]
    if "age" in optional:
        warn_of_ages([row[optional["age"]] for row in rows], path)
    if test_share is not None:
        options["test_share"] = test_share
    return assemble(records, str(path), multi_label, **options)


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)

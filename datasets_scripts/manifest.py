"""One CSV file with a row an image, the commonest form of a hospital export; paths are relative to
its folder, or to the `root` given.

Columns are found by their usual names, whatever the case:

    file, file_name, filename, path, image    the image
    label, class, labels                      its class; several are joined by |
    patient, patient_id                       empty: the file is its own patient
    split                                     train, val or validation, test, unlabelled
    source                                    where the image comes from
    subtype, finding                          } text
    view, sex                                 }
    age                                       years
    orig_w, original_width; orig_h, ...       size before any resizing, pixels: an image that was
                                              stretched since gets its proportions back
    weight                                    how often training draws it, beside the others
    lung_mask                                 a file, white where there is lung
"""

import logging
import re
from collections import Counter
from pathlib import Path

from datasets import DatasetDict

from .schema import OPTIONAL, REQUIRED, SPLIT_NAMES, UNLABELLED, build, make_features
from .splits import complete_splits, content_hash, group_ids
from .tables import file_inside, number_or_none, pixels_or_none, read_table

logger = logging.getLogger(__name__)

FILE_NAMES = ("file", "file_name", "filename", "path", "image")
LABEL_NAMES = ("label", "class", "labels")
PATIENT_NAMES = ("patient", "patient_id")
OPTIONAL_NAMES = {
    "subtype": ("subtype", "finding"),
    "view": ("view",),
    "age": ("age",),
    "sex": ("sex",),
    "lung_mask": ("lung_mask",),
    "original_width": ("original_width", "orig_w"),
    "original_height": ("original_height", "orig_h"),
    "weight": ("weight",),
}


def _usual(header: list[str], names: tuple[str, ...]) -> list[str]:
    """The columns with one of the usual names, in the order of these names."""
    plain = {column.lower().replace(" ", "_"): column for column in header}
    return [plain[name] for name in names if name in plain]


def _find_column(
    header: list[str], path: Path, given: str | None, option: str, names: tuple[str, ...]
) -> str | None:
    """The column that an option names, else the one with a usual name, None where there is none."""
    found = [given] if given else _usual(header, names)
    if given and given not in header:
        raise ValueError(f"{path} has no column {given!r}: its columns are {', '.join(header)}")
    if len(found) > 1:
        raise ValueError(f"{path} has the columns {' and '.join(found)}: set {option} to one")
    return found[0] if found else None


def _chosen(
    rows: list[dict[str, str]], header: list[str], path: Path, where: str | None
) -> list[dict[str, str]]:
    """The rows in whose column the regular expression of `where`, column=regex, is found."""
    if not where:
        return rows
    column, equals, regex = where.partition("=")
    if not equals or column not in header:
        raise ValueError(
            f"where {where!r} is not column=regex with a column of {path}: {', '.join(header)}"
        )
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ValueError(f"where {where!r} holds no regular expression: {error}") from error
    kept = [row for row in rows if pattern.search(row[column])]
    if not kept:
        raise ValueError(f"where {where!r} fits none of the {len(rows)} rows of {path}")
    return kept


def _splits(rows: list[dict[str, str]], header: list[str], path: Path) -> list[str]:
    """The split of each row; all are `test` where the file has no column for it."""
    columns = _usual(header, ("split",))
    if not columns:
        return ["test"] * len(rows)
    known = {**SPLIT_NAMES, "unlabelled": "unlabelled"}
    names = [row[columns[0]] for row in rows]
    for name in names:
        if name.lower() not in known:
            raise ValueError(f"{path} gives the split {name!r}: use {', '.join(known)}")
    return [known[name.lower()] for name in names]


def load(
    path: str | Path,
    file_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    where: str | None = None,
    columns: str | None = None,
    validation_share: float = 0.1,
    seed: int = 42,
    root: str | None = None,
) -> DatasetDict:
    """The images that a CSV file lists, in the one schema.

    Without a split column all are the test split, to validate on. A train split gives
    `validation_share` of its images, by patient and with `seed`, where no row is of validation.
    `file_column`, `label_column` and `patient_column` name columns that have no usual name. `where`
    is column=regex and keeps the rows in which the regular expression is found. `columns` names
    further columns, joined by commas, that are kept as text. The set is multi-label where a label
    of the file holds a |; no label then means no finding. Classes are those of the rows kept.
    Images of the split unlabelled have no label, and are for `train.py --teacher`. `root` is the
    folder that files are relative to, the CSV file's own if not given.

    Raises ValueError or OSError with one sentence for a column that is missing or not clear, an
    empty label (or one in the split unlabelled), a split of another name, a file that is missing,
    listed twice or outside the folder, a size that is no number of pixels, and a weight that is no
    number of 0 or more.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"{path} is a folder: give the CSV file in it, or use --dataset folder")
    root = Path(root).expanduser().resolve() if root else path.parent
    header, all_rows = read_table(path)
    file_column = _find_column(header, path, file_column, "file_column", FILE_NAMES)
    label_column = _find_column(header, path, label_column, "label_column", LABEL_NAMES)
    patient_column = _find_column(header, path, patient_column, "patient_column", PATIENT_NAMES)
    for option, column in (("file_column", file_column), ("label_column", label_column)):
        if not column:
            raise ValueError(
                f"{path} has no column with a usual name for the {option.removesuffix('_column')}: "
                f"set {option} to one of {', '.join(header)}"
            )
    extra = [name.strip() for name in columns.split(",")] if columns else []
    for name in extra:
        if name not in header or name in (*REQUIRED, *OPTIONAL):
            wrong = "is a name of the schema itself" if name in header else "is not there"
            raise ValueError(
                f"columns {columns!r} asks for {name!r}, which {wrong}: the columns of {path} are "
                f"{', '.join(header)}"
            )
    rows = _chosen(all_rows, header, path, where)
    files = [file_inside(root, row[file_column], path) for row in rows]
    if len(set(files)) < len(files):
        twice = Counter(files).most_common(1)[0][0].relative_to(root)
        raise ValueError(f"{path} lists {str(twice)!r} twice: each file needs one row")
    multi_label = any("|" in row[label_column] for row in all_rows)
    labels = [[n for n in map(str.strip, row[label_column].split("|")) if n] for row in rows]
    named_splits = _splits(rows, header, path)
    for row, names, split in zip(rows, labels, named_splits):
        if split == "unlabelled" and (names or multi_label):
            raise ValueError(
                f"{path} has {row[file_column]!r} in the split unlabelled: that is for images "
                "without a label, in a set of one label an image"
            )
        if not names and not multi_label and split != "unlabelled":
            raise ValueError(
                f"{path} gives {row[file_column]!r} no {label_column}: give each image one, or "
                "leave rows out with where"
            )
    classes = sorted({name for names in labels for name in names})
    found = {name: _usual(header, names) for name, names in OPTIONAL_NAMES.items()}
    taken = (file_column, label_column, patient_column)
    optional = {name: usual[0] for name, usual in found.items() if usual and usual[0] not in taken}
    unique = len({file.name for file in files}) == len(files)
    entries = []
    sources = _usual(header, ("source",))
    for row, file, names in zip(rows, files, labels):
        inside = file.relative_to(root).as_posix()
        indices = [classes.index(name) for name in names]
        label = indices[0] if indices else UNLABELLED
        entries.append(
            {
                "image": str(file),
                **({"labels": indices} if multi_label else {"label": label}),
                "image_id": file.name if unique else inside,
                "patient_id": (row[patient_column] if patient_column else "") or inside,
                "source": (row[sources[0]] if sources else "") or root.name,
                **{
                    name: _value(name, row[column], path, root) for name, column in optional.items()
                },
                **{name: row[name] or None for name in extra},
            }
        )
    _warn(rows, path, patient_column, optional.get("age"))
    groups = group_ids(
        [entry["patient_id"] for entry in entries], [content_hash(str(file)) for file in files]
    )
    label_sets = [tuple(classes.index(name) for name in names) for names in labels]
    splits = complete_splits(named_splits, groups, label_sets, validation_share, seed=seed)
    return build(entries, splits, make_features(classes, multi_label, (*optional, *extra)))


def _value(name: str, text: str, path: Path, root: Path) -> str | float | int | None:
    """A cell of an optional column as its type in the schema, None where it says nothing."""
    if name == "age":
        return number_or_none(text)
    if name in ("original_width", "original_height"):
        return pixels_or_none(text, name, path)
    if name == "lung_mask" and text:
        return str(file_inside(root, text, path))
    if name == "weight":
        weight = number_or_none(text)
        if weight is None or weight < 0:
            raise ValueError(f"{path} gives the weight {text!r}: a number of 0 or more is needed")
        return weight
    return text or None


def _warn(
    rows: list[dict[str, str]], path: Path, patient_column: str | None, age_column: str | None
) -> None:
    """One warning each for images without a patient and for ages that are no number."""
    alone = sum(not (patient_column and row[patient_column]) for row in rows)
    if alone:
        logger.warning(
            "%s names no patient for %d of %d images: each of these counts as its own patient",
            path,
            alone,
            len(rows),
        )
    ages = [row[age_column] for row in rows if age_column and row[age_column]]
    unclear = [age for age in ages if number_or_none(age) is None]
    if unclear:
        logger.warning(
            "%s gives %d ages that are no number of years, as %r: they are left empty",
            path,
            len(unclear),
            unclear[0],
        )


if __name__ == "__main__":
    from .cli import main

    main("manifest")

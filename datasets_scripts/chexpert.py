"""CheXpert of Stanford Hospital, as it is downloaded, small or full, or a part of it.

224,316 X-rays of 65,240 patients with 13 findings that a program read from reports (Irvin et al.
2019, AAAI). In the folder are train.csv and, where they were kept, tables of what radiologists say:
valid.csv or CheXlocalize's val_labels.csv, and test.csv, CheXlocalize's test_labels.csv, or
groundtruth.csv of github.com/rajpurkarlab/cheXpert-test-set-labels, whose rows are studies: all
images of one have its labels.

A column a finding says 1, 0, -1 or nothing, see `label_policy`. An image is found by the last parts
of its path, patient, study and view. A report of No Finding denies all findings of which it does
not speak, but for Support Devices.
"""

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import DatasetDict

from datasets_scripts.files import DICOM_SUFFIXES, IMAGE_SUFFIXES, find_listed, walk
from datasets_scripts.label_policy import parse_policy, read_cells
from datasets_scripts.schema import Source, assemble
from datasets_scripts.tables import (
    age_or_none,
    chosen_rows,
    extra_columns,
    read_header,
    read_table,
    report_listed,
    warn_of_ages,
)

logger = logging.getLogger(__name__)

NO_FINDING, DEVICES = "No Finding", "Support Devices"
FINDINGS = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", DEVICES),
)
SOURCE = Source(
    name="chexpert",
    title="CheXpert, Stanford AIMI, https://aimi.stanford.edu/datasets/chexpert-chest-x-rays",
    path_help="the folder with train.csv, valid.csv or test.csv, or a table of the set",
    classes=FINDINGS,
    citation="Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and "
    "Expert Comparison, AAAI 2019, https://arxiv.org/abs/1901.07031",
    population="X-rays of in- and outpatients of one hospital in Stanford, USA, 2002 to 2017",
    limits=(
        "A program read the training labels from reports, and leaves open what they hedge or do "
        "not mention; radiologists read the validation and test images.",
        "All images come from one hospital, most of them AP views of the bedridden.",
    ),
    out_of_scope=("Children: the set holds next to none.",),
    ages=(18.0, 90.0),
)
# The tables of each split, of which the first that is there counts.
SPLITS = {
    "train": ("train",),
    "validation": ("valid", "val_labels"),
    "test": ("test", "test_labels", "groundtruth"),
}
PATH, SIDE, VIEW, STUDY = "Path", "Frontal/Lateral", "AP/PA", "Study"


def _is_table(path: Path) -> bool:
    header = read_header(path) if path.is_file() and path.suffix.lower() in (".csv", ".gz") else []
    radiologists = {PATH, STUDY} & set(header) and {NO_FINDING, *FINDINGS} <= set(header)
    return {PATH, SIDE, VIEW} <= set(header) or bool(radiologists)


def _tables(path: Path) -> list[Path]:
    there = [
        [file for name in names if _is_table(file := path / f"{name}.csv")]
        for names in SPLITS.values()
    ]
    return [files[0] for files in there if files]


def _split(table: Path) -> str | None:
    name = table.name.split(".")[0]
    return next((split for split, names in SPLITS.items() if name in names), None)


def _of_images(rows: list[dict], root: Path) -> list[dict]:
    """A row an image of a table with a row a study; a study without one keeps its row."""
    studies = {"/".join(PurePosixPath(row[STUDY]).parts[-2:]): row for row in rows}
    found: dict[str, list[dict]] = {study: [] for study in studies}
    for file in walk(root):
        study = "/".join(file.parts[-3:-1])
        if study in studies and file.suffix.casefold() in (*IMAGE_SUFFIXES, *DICOM_SUFFIXES):
            found[study].append({**studies[study], PATH: "/".join(file.parts[-3:])})
    for study, images in found.items():
        images += [] if images else [{**studies[study], PATH: studies[study][STUDY]}]
    return [row for images in found.values() for row in images]


def recognise(path: Path) -> bool:
    """Whether it is a folder with CheXpert's tables, or one of them."""
    return bool(_tables(path)) if path.is_dir() else _is_table(path)


def _key(path: Path | PurePosixPath) -> str:
    """Patient, study and view: patient00001/study1/view1_frontal."""
    return "/".join((*path.parts[-3:-1], path.stem))


def load(
    path: str | Path,
    *,
    policy: str | dict[str, str] = "ignore",
    blank: str | dict[str, str] = "ignore",
    views: str = "frontal",
    images: str | None = None,
    where: str | None = None,
    columns: str | None = None,
    **options: Any,
) -> DatasetDict:
    """The images that are there, those of each table in its split.

    A part of train is held out where there is no table of validation.

    Args:
        path: folder, or one table.
        policy: what a label of -1 becomes: ignore, unknown; zeros, absent; ones, present; or one a
            finding, as {Atelectasis: ones, Edema: zeros}
        blank: what a label of which a report does not speak becomes, likewise; CheXpert's authors
            take zeros
        views: frontal, or all for lateral ones too
        images: folder with the images, if not the tables' own
        where: column=regex: rows to keep, those in which the regular expression is found
        columns: further columns to keep as text, joined by commas
        **options: of `assemble`.

    Raises:
        ValueError: a table without findings or with other cells, or options that do not fit.
        FileNotFoundError: no image is there.
    """
    path = Path(path).resolve()
    tables = _tables(path) if path.is_dir() else [path] if _is_table(path) else []
    if not tables:
        raise ValueError(
            f"{path} is no table of {PATH}, {SIDE}, {VIEW} and findings, nor a folder with "
            f"{', '.join(f'{name}.csv' for names in SPLITS.values() for name in names)}."
        )
    if views not in ("frontal", "all"):
        raise ValueError(f"views {views!r} is none of frontal and all.")
    root = Path(images).expanduser().resolve() if images else tables[0].parent
    listed, rows, findings = [], [], []
    for table in tables:
        header, found = read_table(table)
        if PATH not in header:
            found, header = _of_images(found, root), [PATH, *header]
        for row in found:  # the radiologists' tables say neither
            view = PurePosixPath(row[PATH]).stem
            row.setdefault(SIDE, "Lateral" if view.endswith("lateral") else "Frontal")
            for column in (VIEW, "Age", "Sex"):
                row.setdefault(column, "")
        findings += [name for name in FINDINGS if name in header and name not in findings]
        rows += [(row, _split(table)) for row in chosen_rows(found, header, table, where)]
        listed += found
    if not findings:
        raise ValueError(f"{tables[0]} has no column of a finding, as {', '.join(FINDINGS[:3])}.")
    keys = {row[PATH]: _key(PurePosixPath(row[PATH])) for row in listed}
    files = find_listed(root, set(keys.values()), _key)
    report_listed(len(files), len(keys), tables[0], root)
    extra = extra_columns(columns, header, tables[0])
    rows = [(row, split) for row, split in rows if keys[row[PATH]] in files]
    if views == "frontal":
        kept = [(row, split) for row, split in rows if row[SIDE].casefold() == "frontal"]
        if len(kept) < len(rows):
            logger.info(
                "%d lateral images are left out: views=all keeps them.", len(rows) - len(kept)
            )
        rows = kept
    if not rows:
        raise ValueError(f"no image of {path} is left by views {views} and where {where}.")
    for row, _ in rows:
        for finding in findings:
            row.setdefault(finding, "")
        if row.get(NO_FINDING) in ("1", "1.0"):
            row.update({name: row[name] or "0" for name in findings if name != DEVICES})
    warn_of_ages([row["Age"] for row, _ in rows], tables[0])
    chosen = [
        parse_policy(text, findings, name) for text, name in ((policy, "policy"), (blank, "blank"))
    ]
    cells = read_cells([row for row, _ in rows], findings, *chosen, tables[0])
    records = []
    for (row, split), (present, unknown) in zip(rows, cells):
        file = files[keys[row[PATH]]]
        records.append(
            {
                "image": str(file),
                "label": present,
                "unknown": unknown,
                "name": "/".join(PurePosixPath(row[PATH]).parts[-3:]),
                "path": row[PATH],
                "split": split,
                "patient_id": PurePosixPath(row[PATH]).parts[-3],
                "source": SOURCE.name,
                "view": (row[VIEW] or None) if row[SIDE].casefold() == "frontal" else "LATERAL",
                "age": age_or_none(row["Age"]),
                "sex": row["Sex"] or None,
                **{column: row.get(column) or None for column in extra},
            }
        )
    return assemble(records, str(path), True, findings, **options)


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)

"""PadChest of the Hospital San Juan, as it is downloaded, or a part of it.

160,861 X-rays of 67,000 patients, with what their reports name in 174 terms; physicians read a
quarter of the reports, a program the others (Bustos et al. 2020). In the folder are the table,
PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv or packed, and the images, whatever their
folders.
"""

import logging
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from datasets_scripts.files import find_listed
from datasets_scripts.labels import plain_words, read_labels, split_option, text_of
from datasets_scripts.schema import Source, assemble
from datasets_scripts.tables import (
    age_or_none,
    chosen_rows,
    extra_columns,
    number_or_none,
    read_header,
    read_table,
    report_listed,
)

logger = logging.getLogger(__name__)

FINDINGS = (
    *("air trapping", "alveolar pattern", "aortic atheromatosis", "aortic elongation"),
    *("atelectasis", "bronchiectasis", "cardiomegaly", "consolidation"),
    *("costophrenic angle blunting", "emphysema", "flattened diaphragm", "fracture", "granuloma"),
    *("hemidiaphragm elevation", "hiatal hernia", "hilar enlargement", "infiltrates"),
    *("interstitial pattern", "nodule", "pacemaker", "pleural effusion", "pleural thickening"),
    *("pneumonia", "pneumothorax", "pulmonary edema", "pulmonary fibrosis", "pulmonary mass"),
    *("scoliosis", "tuberculosis"),
)
SOURCE = Source(
    name="padchest",
    title="PadChest, BIMCV, https://bimcv.cipf.es/bimcv-projects/padchest",
    path_help="the folder with the table of the labels, or that table",
    classes=FINDINGS,
    citation="Bustos et al., PadChest: A large chest x-ray image dataset with multi-label "
    "annotated reports, Medical Image Analysis 66, 2020, https://doi.org/10.1016/j.media.2020.101797",
    population="X-rays of patients of one hospital in Alicante, Spain, mostly adults, 2009 to 2017",
    limits=(
        "Labels are what reports name: a program read three quarters of them, and what a report "
        "does not mention counts as absent.",
        "All images come from one hospital.",
    ),
    out_of_scope=("Findings that are none of the classes.",),
    ages=(0.0, 105.0),
)
COLUMNS = ("ImageID", "PatientID", "PatientBirth", "StudyDate_DICOM", "Projection", "Labels")
FRONTAL = ("PA", "AP", "AP_horizontal")
LEFT_OUT = "exclude"  # the label of images that are none
SAYS_NOTHING = {"unchanged", "suboptimal study"}  # on findings, if it is alone


def _is_table(path: Path) -> bool:
    return path.is_file() and set(COLUMNS) <= set(read_header(path))


def _tables(path: Path) -> list[Path]:
    found = [file for kind in ("csv", "csv.gz") for file in sorted(path.glob(f"PADCHEST*.{kind}"))]
    return [file for file in found if _is_table(file)]


def recognise(path: Path) -> bool:
    """Whether it is a folder with PadChest's table, or that table."""
    if path.is_dir():
        return bool(_tables(path))
    return path.suffix.lower() in (".csv", ".gz") and _is_table(path)


def load(
    path: str | Path,
    *,
    findings: str | None = None,
    views: str = "frontal",
    images: str | None = None,
    where: str | None = None,
    columns: str | None = None,
    **options: Any,
) -> DatasetDict:
    """The images that are there; they are split by patient.

    A label that ends in a finding's words is that finding: laminar atelectasis is atelectasis.
    Images that are labelled exclude, or not labelled, are left out.

    Args:
        path: folder, or table.
        findings: the classes, joined by commas, of the terms that the table uses
        views: frontal, or all for lateral ones too
        images: folder with the images, if not the table's own
        where: column=regex: rows to keep, those in which the regular expression is found
        columns: further columns to keep as text, joined by commas
        **options: of `assemble`.

    Raises:
        ValueError: a table with other columns, a finding that it does not use, or options that do
            not fit.
        FileNotFoundError: no image is there.
    """
    path = Path(path).resolve()
    tables = _tables(path) if path.is_dir() else [path] if _is_table(path) else []
    if not tables:
        raise ValueError(f"{path} is no table of {', '.join(COLUMNS)}, nor a folder with one.")
    if views not in ("frontal", "all"):
        raise ValueError(f"views {views!r} is none of frontal and all.")
    table = tables[0]
    root = Path(images).expanduser().resolve() if images else table.parent
    header, listed = read_table(table)
    files = find_listed(root, {Path(row["ImageID"]).stem for row in listed})
    report_listed(len(files), len(listed), table, root)
    extra = extra_columns(columns, header, table)
    terms = {
        cell: list(map(plain_words, read_labels(cell)))
        for cell in {row["Labels"] for row in listed}
    }
    classes = list(map(plain_words, split_option(findings))) or list(FINDINGS)
    used = {term for names in terms.values() for term in names}
    if findings and (unknown := [name for name in classes if not any(_is(t, name) for t in used)]):
        raise ValueError(f"findings names {unknown[0]!r}, which {table} never uses.")
    means = {
        cell: [name for name in classes if any(_is(term, name) for term in names)]
        for cell, names in terms.items()
    }
    there = chosen_rows(
        [row for row in listed if Path(row["ImageID"]).stem in files], header, table, where
    )
    rows = [row for row in there if set(terms[row["Labels"]]) - SAYS_NOTHING]
    rows = [row for row in rows if LEFT_OUT not in terms[row["Labels"]]]
    rows = [row for row in rows if views == "all" or row["Projection"] in FRONTAL]
    if not rows:
        raise ValueError(f"no image of {path} is left by views {views} and where {where}.")
    if len(rows) < len(there):
        logger.info(
            "%d images are left out: they are labelled %s or not at all, or not frontal.",
            len(there) - len(rows),
            LEFT_OUT,
        )
    records = [
        {
            "image": str(files[Path(row["ImageID"]).stem]),
            "label": means[row["Labels"]],
            "name": row["ImageID"],
            "path": files[Path(row["ImageID"]).stem].relative_to(root).as_posix(),
            "split": None,
            "patient_id": row["PatientID"],
            "source": SOURCE.name,
            "view": row["Projection"] or None,
            "age": _age(row),
            "sex": text_of(row.get("PatientSex_DICOM", "")) or None,
            **{column: row[column] or None for column in extra},
        }
        for row in rows
    ]
    return assemble(records, str(path), True, classes, **options)


def _is(term: str, finding: str) -> bool:
    return term == finding or term.endswith(f" {finding}")


def _age(row: dict[str, str]) -> float | None:
    """Years between the year of birth and that of the image."""
    born, taken = number_or_none(row["PatientBirth"]), row["StudyDate_DICOM"][:4]
    return age_or_none(str(int(taken) - born)) if born and taken.isdecimal() else None


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)

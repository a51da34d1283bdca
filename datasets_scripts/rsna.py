"""The RSNA Pneumonia Detection Challenge of 2018, as Kaggle has it, or a part of it.

26,684 frontal X-rays of ChestX-ray14 in which radiologists boxed opacities that may be pneumonia
(Shih et al. 2019). In the folder are stage_2_train_labels.csv, a row a box, the images, DICOM or
converted, and, where they were kept,

    stage_2_detailed_class_info.csv                 what an image without an opacity shows
    pneumonia-challenge-dataset-mappings_2018.json  of the RSNA: the image of ChestX-ray14 that each
                                                    is, and so its patient

View, age and sex are those of the DICOM headers. The images of stage_2_test have no labels.
"""

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import pydicom
from datasets import DatasetDict
from pydicom.errors import InvalidDicomError
from tqdm.auto import tqdm

from datasets_scripts.boxes import fit_boxes, stored_size
from datasets_scripts.files import DICOM_SUFFIXES, find_listed
from datasets_scripts.schema import Source, assemble
from datasets_scripts.tables import (
    age_or_none,
    number_or_none,
    read_header,
    read_table,
    report_listed,
)

logger = logging.getLogger(__name__)

CLASSES = ("No Lung Opacity", "Lung Opacity")
SOURCE = Source(
    name="rsna",
    title="RSNA Pneumonia Detection Challenge 2018, "
    "https://www.rsna.org/artificial-intelligence/ai-image-challenge/"
    "RSNA-Pneumonia-Detection-Challenge-2018",
    path_help="the folder with stage_2_train_labels.csv, or that file",
    classes=CLASSES,
    citation="Shih et al., Augmenting the National Institutes of Health Chest Radiograph Dataset "
    "with Expert Annotations of Possible Pneumonia, Radiology: Artificial Intelligence 1(1), 2019, "
    "https://doi.org/10.1148/ryai.2019180041",
    population="frontal X-rays of ChestX-ray14, from a research hospital in Bethesda, USA, mostly "
    "of adults",
    limits=(
        "Radiologists marked opacities that may be pneumonia from the image alone, without the "
        "patient's record.",
        "All images come from one centre.",
    ),
    out_of_scope=("Findings other than lung opacities, and lateral views.",),
    ages=(1.0, 95.0),
    patients_of="chestxray14",
)
TABLE, DETAILS = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
SIDE = 1024  # pixels, of the images as they are downloaded
HEADER = ("PatientAge", "PatientSex", "ViewPosition", "Columns", "Rows")


def recognise(path: Path) -> bool:
    """Whether it is the table of the challenge, or a folder with it."""
    table = path / TABLE if path.is_dir() else path
    return (
        table.is_file()
        and table.suffix.lower() == ".csv"
        and set(COLUMNS) <= set(read_header(table))
    )


def read_boxes(rows: list[dict], table: Path) -> dict[str, list[list[float]]]:
    """The boxes of each image, [x, y, width, height] in pixels; none where there is no opacity.

    Raises:
        ValueError: a Target that is neither 0 nor 1, or a box without four numbers or, of an image
            without an opacity, at all.
    """
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows:
        name, *cells, target = (row[column] for column in COLUMNS)
        numbers = [number_or_none(cell) for cell in cells]
        given = any(cells)
        if target not in ("0", "1") or given != (target == "1") or (given and None in numbers):
            raise ValueError(
                f"{table} gives {name} the box {' '.join(cells)!r} and Target {target!r}: four "
                "numbers and 1, or nothing and 0, are needed."
            )
        boxes[name] += [numbers] if given else []
    return boxes


def read_patients(path: Path) -> dict[str, str]:
    """The patient of ChestX-ray14 of each image, by the RSNA's mapping; empty without the file.

    Raises:
        ValueError: it is no such mapping.
    """
    if not path.is_file():
        return {}
    try:
        return {
            row["subset_img_id"]: str(int(row["img_id"].split("_")[0]))
            for row in json.loads(path.read_text("utf-8"))
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no list of subset_img_id and img_id ({error}): download it again."
        ) from error


def _header(file: Path) -> tuple[dict[str, float | str | None], tuple[int, int] | None]:
    """View, age in years and sex, and width and height in pixels; None what it does not say."""
    if file.suffix.casefold() not in DICOM_SUFFIXES:
        return dict.fromkeys(("view", "age", "sex")), None
    try:
        found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER))
    except InvalidDicomError as error:
        raise ValueError(f"{file} is no DICOM file: download it again.") from error
    age, sex, view = (str(found.get(name) or "") for name in HEADER[:3])
    told = {"view": view or None, "age": age_or_none(age), "sex": sex or None}
    size = found.get("Columns"), found.get("Rows")
    return told, None if None in size else size


def load(path: str | Path, *, images: str | None = None, **options: Any) -> DatasetDict:
    """The images that are there, with their boxes; they are split by patient.

    Args:
        path: folder, or table.
        images: folder with the images, if not the table's own
        **options: of `assemble`.

    Raises:
        ValueError: a table with other columns or cells, or a box outside its image.
        FileNotFoundError: no image is there.
    """
    path = Path(path).resolve()
    if not recognise(path):
        raise ValueError(f"{path} is no table of {', '.join(COLUMNS)}, nor a folder with {TABLE}.")
    table = path / TABLE if path.is_dir() else path
    root = Path(images).expanduser().resolve() if images else table.parent
    boxes = read_boxes(read_table(table)[1], table)
    details = table.parent / DETAILS
    shows = {}
    if details.is_file():
        shows = {row["patientId"]: row["class"] for row in read_table(details)[1]}
    patients = read_patients(table.parent / MAPPING)
    files = find_listed(root, boxes)
    report_listed(len(files), len(boxes), table, root)
    if not patients:
        logger.warning(
            "%s does not say which images are of one patient: put %s, of the RSNA, beside it.",
            table,
            MAPPING,
        )
    records = []
    for name, file in tqdm(files.items(), desc="reading headers", unit="image", delay=1):
        told, size = _header(file)
        drawn = []
        if boxes[name]:
            drawn = fit_boxes(boxes[name], SIDE, size or stored_size(file), file.name, table)
        records.append(
            {
                "image": str(file),
                "label": CLASSES[bool(drawn)],
                "name": name,
                "path": file.relative_to(root).as_posix(),
                "split": None,
                "patient_id": patients.get(name, name),
                "source": SOURCE.name,
                "subtype": shows.get(name),
                **told,
                "objects": {"bbox": drawn, "category": [CLASSES[1]] * len(drawn)},
            }
        )
    return assemble(records, str(path), order=CLASSES, **options)


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)

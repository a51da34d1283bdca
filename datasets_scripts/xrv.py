"""Data sets of TorchXRayVision's classes, as objects: their images, labels and unknown cells.

Any object with `pathologies`, `labels` and `csv`, whose items are dicts with `img` from -1024 to
1024, is one (Cohen et al. 2022, arXiv 2111.00595). The package itself is not needed.
"""

import io
from typing import Any

import numpy as np
import pandas as pd
from datasets import DatasetDict
from PIL import Image

from datasets_scripts.schema import assemble
from modeling.reading_cxr import FULL_SCALE

RANGE = 1024.0
SEXES = {"sex_male": "M", "sex_female": "F"}


def is_xrv(source: Any) -> bool:
    """Whether it looks like one of TorchXRayVision's data sets."""
    return all(hasattr(source, name) for name in ("pathologies", "labels", "csv", "__getitem__"))


def load(source: Any, **options: Any) -> DatasetDict:
    """Its images, held in memory as 16-bit PNG, in splits that are drawn by patient.

    Args:
        source: see above; its labels are 1, 0 and NaN for what is unknown.
        **options: of `assemble`.

    Raises:
        ValueError: labels of another shape or value, no patients, or images beyond -1024 to 1024.
    """
    name = type(source).__name__
    labels = np.asarray(source.labels, float)
    findings, table = list(source.pathologies), source.csv.reset_index(drop=True)
    if labels.shape != (len(table), len(findings)):
        raise ValueError(
            f"{name} has labels of shape {labels.shape} for {len(table)} rows and {len(findings)} "
            "findings: a row an image and a column a finding are needed."
        )
    known = ~np.isnan(labels)
    if not np.isin(labels[known], (0, 1)).all():
        raise ValueError(f"{name} has labels other than 1, 0 and NaN: map them first.")
    if "patientid" not in table:
        raise ValueError(f"{name} has no column patientid: without patients no split is fair.")
    records = []
    for row in range(len(table)):
        facts = table.loc[row]
        record = {
            "image": {"path": None, "bytes": _png(source[row]["img"], name, row)},
            "label": [finding for finding, cell in zip(findings, labels[row]) if cell == 1],
            "unknown": [finding for finding, there in zip(findings, known[row]) if not there],
            "name": f"{name}-{row:07d}",
            "path": f"{name}/{row:07d}",
            "split": None,
            "patient_id": str(facts["patientid"]),
            "source": name,
        }
        if "view" in table:
            record["view"] = None if pd.isna(facts["view"]) else str(facts["view"])
        if "age_years" in table:
            record["age"] = None if pd.isna(facts["age_years"]) else float(facts["age_years"])
        if set(SEXES) <= set(table):
            record["sex"] = next((sex for column, sex in SEXES.items() if facts[column]), None)
        records.append(record)
    return assemble(records, name, True, findings, **options)


def _png(image: np.ndarray, name: str, row: int) -> bytes:
    grey = (np.squeeze(np.asarray(image, np.float64)) / RANGE + 1) / 2
    if grey.ndim != 2 or not (grey.min() >= -1e-3 and grey.max() <= 1 + 1e-3):
        raise ValueError(
            f"image {row} of {name} has shape {np.shape(image)} and values from {np.min(image)} to "
            f"{np.max(image)}: a grey image from -1024 to 1024 is needed."
        )
    stored = io.BytesIO()
    pixels = (grey.clip(0, 1) * FULL_SCALE).round().astype(np.uint16)
    Image.fromarray(pixels).save(stored, "PNG")
    return stored.getvalue()

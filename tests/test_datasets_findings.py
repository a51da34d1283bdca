"""Tables of findings: policies for what is left open, CheXpert, the RSNA's boxes, PadChest."""

import json
import logging

import numpy as np
import pytest
from datasets_trees import write_image
from dicom_files import dicom

from datasets_scripts import check_leaks, class_names, label_sets, load_cxr_dataset, unknown_sets
from datasets_scripts.cli import main

CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Fracture,Support Devices"
# No Finding, Edema, Fracture, Support Devices -> present, unknown
CHEXPERT_CELLS = {
    "1.0,,,": ("", "Support Devices"),
    ",1.0,-1.0,": ("Edema", "Fracture|Support Devices"),
    ",0.0,1.0,1.0": ("Fracture|Support Devices", ""),
    ",-1.0,,0.0": ("", "Edema|Fracture"),
}


def write_chexpert(root, patients=20, tables=("train",), lateral=True):
    """Each patient with a study a kind of cells, and a lateral view of the first."""
    seed = 0
    for table in tables:
        lines = [CHEXPERT]
        for patient in range(patients):
            views = [(study, "frontal", cells) for study, cells in enumerate(CHEXPERT_CELLS, 1)]
            views += [(1, "lateral", next(iter(CHEXPERT_CELLS)))] if lateral else []
            for study, view, cells in views:
                seed += 1
                path = f"{table}/patient{seed // 100 + patient:05d}{table}/study{study}"
                path += f"/view1_{view}.jpg"
                write_image(root / path, seed)
                kind = "Frontal,AP" if view == "frontal" else "Lateral,"
                lines.append(f"CheXpert-v1.0-small/{path},Female,63,{kind},{cells}")
        (root / f"{table}.csv").write_text("\n".join(lines) + "\n")
    return root


def cells_of(dataset):
    """(present, unknown) names of each image, by its name."""
    found = {}
    for part in dataset.values():
        names = class_names(part)
        for image, *rows in zip(part["image_id"], label_sets(part), unknown_sets(part)):
            found[image] = tuple("|".join(sorted(names[i] for i in row)) for row in rows)
    return found


def by_study(dataset):
    """The cells of the studies, which are those of `CHEXPERT_CELLS` in turn."""
    found = {}
    for image, cells in cells_of(dataset).items():
        found.setdefault(image.split("/")[1], set()).add(cells)
    return [found[f"study{number}"] for number in range(1, 5)]


def test_chexpert_leaves_open_what_its_table_leaves_open(tmp_path, caplog):
    root = write_chexpert(tmp_path / "CheXpert-v1.0-small")
    with caplog.at_level(logging.INFO):
        dataset = load_cxr_dataset(str(root))
    assert "100 of 100 listed images found." in caplog.text
    assert "20 lateral images are left out: views=all keeps them." in caplog.text
    assert {split: len(part) for split, part in dataset.items()} == {"train": 72, "validation": 8}
    check_leaks(dataset)
    assert by_study(dataset) == [{cells} for cells in CHEXPERT_CELLS.values()]
    row = dataset["validation"][0]
    assert row["patient_id"] == row["image_id"].split("/")[0]
    assert (row["view"], row["age"], row["sex"], row["source"]) == ("AP", 63, "Female", "chexpert")
    assert len(row["image_id"].split("/")) == 3


@pytest.mark.parametrize(
    ("options", "cells"),
    [
        ({"policy": "zeros"}, ["|Support Devices", "Edema|Support Devices", None, "|Fracture"]),
        ({"policy": "ones"}, [None, "Edema|Fracture|Support Devices", None, "Edema|Fracture"]),
        ({"blank": "zeros"}, ["|", "Edema|Fracture", None, "|Edema"]),
        (
            {"policy": {"Edema": "ones", "Fracture": "zeros"}, "blank": "zeros"},
            ["|", "Edema|", None, "Edema|"],
        ),
        ({"policy": "{fracture: ones}"}, [None, "Edema Fracture|Support Devices", None, None]),
    ],
)
def test_policies_decide_on_open_labels(tmp_path, options, cells):
    dataset = load_cxr_dataset(str(write_chexpert(tmp_path, lateral=False)), **options)
    usual = list(CHEXPERT_CELLS.values())
    if options == {"policy": "ones"}:
        cells[1], cells[3] = "Edema Fracture|Support Devices", "Edema|Fracture"
    expected = [
        {usual[i] if cell is None else tuple(c.replace(" F", "|F") for c in cell.split("|"))}
        for i, cell in enumerate(cells)
    ]
    assert by_study(dataset) == expected

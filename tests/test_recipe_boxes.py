"""The study of boxes: what it fits and judges on, and that its page says what it measured."""

import json
import shutil

import numpy as np
import pytest
from conftest import REPO

from evaluation.detection import BoxedImage, read_detection
from recipes.boxes.measure import read_boxed
from recipes.boxes.results import chosen, write_results

RESULTS = REPO / "results" / "boxes"


def test_boxes_of_the_chosen_findings_count_as_one_class():
    image = BoxedImage(
        *("a", "p", np.array([[0.0, 0, 9, 9], [5, 5, 9, 9]]), np.array(["Pneumonia", "Mass"])),
        *(np.array([[1.0, 1, 8, 8]]), np.array([0.5]), np.array(["found"])),
    )
    other = image._replace(image_id="b", true_labels=np.array(["Mass", "Nodule"]))
    (kept,) = chosen([image, other], ("Pneumonia", "Infiltration"))
    assert kept.image_id == "a" and kept.true_boxes.tolist() == [[0, 0, 9, 9]]
    assert set(kept.true_labels) == set(kept.labels)
    assert [len(image.true_boxes) for image in chosen([image, other], None)] == [2, 2]


def test_the_study_states_what_its_tables_give(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "boxes")
    write_results(tmp_path / "boxes")
    for name in ("boxes.json", "boxes.md"):
        assert (tmp_path / "boxes" / name).read_text() == (RESULTS / name).read_text()
    found = json.loads((RESULTS / "boxes.json").read_text())
    assert found["heat"]["all"]["boxes"] == found["detector"]["all"]["boxes"] == 31


def test_the_study_fits_on_other_patients_than_it_judges():
    for method in ("heat", "detector"):
        fitted, judged = (
            {image.patient_id for image in read_detection(RESULTS / f"{method}_{name}.csv")}
            for name in ("fit", "test")
        )
        assert fitted and judged and not fitted & judged


@pytest.mark.slow
def test_the_tables_hold_the_boxes_of_the_data(cxr_data):
    parts = read_boxed(str(cxr_data / "chestxray14"))
    for name, rows in parts.items():
        images = read_detection(RESULTS / f"heat_{name}.csv")
        assert [image.image_id for image in images] == [row["image_id"] for row in rows]
        for image, row in zip(images, rows):
            boxes = np.array(row["objects"]["bbox"])
            np.testing.assert_allclose(image.true_boxes[:, :2], boxes[:, :2])
            assert image.true_labels.tolist() == row["labels"]

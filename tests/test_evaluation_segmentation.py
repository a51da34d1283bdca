"""Overlap and surface distance on masks small enough to do by hand, and means over patients."""

import math

import numpy as np
import pytest

from evaluation.segmentation import (
    COLUMNS,
    compare_masks,
    measure_masks,
    read_segmentation,
    summarize_segmentation,
    write_segmentation,
)


def box(top, left, bottom, right, size=(20, 20)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_square_moved_by_two_pixels():
    found = compare_masks(box(5, 7, 15, 17), box(5, 5, 15, 15))
    assert found["dice"] == pytest.approx(2 * 80 / 200)
    assert found["iou"] == pytest.approx(80 / 120)
    assert found["surface_distance_95"] == 2


def test_the_distance_is_the_95th_percentile_of_both_surfaces_pooled():
    # One pixel against two, 6 apart: distances 0 from the one, 0 and 6 from the other.
    one, two = box(5, 5, 6, 6), box(5, 5, 6, 6) | box(5, 11, 6, 12)
    # Nine tenths of the way from the second to the third of them.
    assert compare_masks(one, two)["surface_distance_95"] == pytest.approx(5.4)
    assert compare_masks(two, one)["surface_distance_95"] == pytest.approx(5.4)
    # 41 distances, of which one is large: the percentile leaves it out, a maximum would not.
    line, spur = box(10, 0, 11, 20), box(10, 0, 11, 20) | box(0, 0, 1, 1)
    assert compare_masks(line, spur)["surface_distance_95"] == 0


def test_a_surface_is_the_rim_and_not_the_inside():
    # A hole in the middle of a large mask: its rim alone is far from the other's surface.
    whole, hollow = box(0, 0, 20, 20), box(0, 0, 20, 20) & ~box(9, 9, 10, 10)
    distances = [0.0] * 76 * 2 + [8.0, 8.0, 9.0, 9.0]  # the rims, and four neighbours of the hole
    expected = np.percentile(distances, 95)
    assert compare_masks(hollow, whole)["surface_distance_95"] == expected
    assert compare_masks(hollow, whole)["dice"] == pytest.approx(2 * 399 / 799)


def test_masks_that_agree_and_masks_that_are_empty():
    mask, empty = box(5, 5, 15, 15), box(0, 0, 0, 0)
    assert compare_masks(mask, mask) == {"dice": 1, "iou": 1, "surface_distance_95": 0}
    for pair in ((mask, empty), (empty, mask)):
        assert compare_masks(*pair) == {"dice": 0, "iou": 0, "surface_distance_95": None}
    assert set(compare_masks(empty, empty).values()) == {None}


@pytest.mark.parametrize("other", [np.zeros((20, 21), bool), np.zeros((20, 20))])
def test_masks_that_cannot_be_compared_are_one_sentence(other):
    with pytest.raises(ValueError, match=r"both must be bool \(height, width\) of one shape\.$"):
        compare_masks(other, box(0, 0, 2, 2))


def test_the_left_half_is_judged_by_itself():
    right_lung, left_lung = box(5, 2, 15, 8), box(5, 12, 15, 18)
    found = measure_masks(right_lung, right_lung | left_lung)
    assert set(found) == set(COLUMNS)
    assert found["left_half_dice"] == 1 and found["left_half_surface_distance_95"] == 0
    assert found["whole_dice"] == pytest.approx(2 / 3)


def rows(*measures):
    """A row for each (patient, Dice)."""
    return [
        {
            "image_id": f"{k}.png",
            "patient_id": patient,
            **dict.fromkeys(COLUMNS),
            "whole_dice": dice,
        }
        for k, (patient, dice) in enumerate(measures)
    ]


def test_a_file_gives_back_its_numbers_and_nothing_else(tmp_path):
    written = rows(("a", 0.1 + 0.2), ("b", None))
    write_segmentation(tmp_path / "x.csv", written)
    assert read_segmentation(tmp_path / "x.csv") == written
    (tmp_path / "x.csv").write_text("image_id,patient_id\na,b\n")
    with pytest.raises(ValueError, match="has a row without 'whole_dice'"):
        read_segmentation(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text(
        ",".join(("image_id", "patient_id", *COLUMNS)) + "\na,b,x,,,,,\n"
    )
    with pytest.raises(ValueError, match=r"'a' has a cell that is no number\.$"):
        read_segmentation(tmp_path / "x.csv")


def test_the_interval_resamples_patients_and_not_images():
    rng = np.random.default_rng(0)
    dice = rng.uniform(0.8, 1, 40)
    alone = summarize_segmentation(rows(*((str(k), value) for k, value in enumerate(dice))))
    # Nine more copies of each image tell nothing new.
    many = rows(*((str(k), value) for k, value in enumerate(dice) for _ in range(10)))
    copied = summarize_segmentation(many)["whole"]["dice"]
    single = alone["whole"]["dice"]
    assert copied["value"] == pytest.approx(single["value"]) == pytest.approx(dice.mean())
    assert copied["low"] == pytest.approx(single["low"])
    # Close to the mean and its standard error.
    error = dice.std(ddof=1) / math.sqrt(40)
    assert single["high"] - single["value"] == pytest.approx(2.02 * error, rel=0.1)


def test_an_image_without_a_measure_does_not_count():
    found = summarize_segmentation(rows(("a", 0.8), ("b", 1.0), ("c", None)))["whole"]
    assert found["dice"]["value"] == pytest.approx(0.9) and found["dice"]["n"] == 2
    assert found["iou"] == {"value": None, "reason": "undefined in every image", "n": 0}
    with pytest.raises(ValueError, match="no segmentation was measured"):
        summarize_segmentation([])

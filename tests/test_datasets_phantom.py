"""Phantoms: the same for everyone, true masks and boxes."""

import hashlib

import numpy as np
import pytest

from datasets_scripts import check_leaks, class_names, load_cxr_dataset
from datasets_scripts.phantom import OPACITY_COUNT, generate

SAMPLE = [generate(index) for index in range(200)]


def test_golden_phantom():
    phantom = SAMPLE[7]
    assert phantom.image.shape == phantom.lung_mask.shape == (128, 128)
    assert (phantom.image.dtype, phantom.lung_mask.dtype) == (np.uint8, bool)
    greys = phantom.image[[16, 64, 112]][:, [8, 40, 64, 88, 120]].astype(int)
    golden = [[4, 74, 211, 65, 4], [22, 93, 249, 52, 48], [30, 240, 249, 236, 86]]
    assert np.abs(greys - golden).max() <= 1  # libraries may differ in the last bit
    assert abs(phantom.lung_mask.sum() - 6799) <= 4
    assert phantom.boxes == [[82, 17, 19, 20], [19, 56, 33, 23], [90, 67, 23, 20]]


def test_a_phantom_depends_on_seed_and_index_alone(run_python):
    code = """
import hashlib
from datasets_scripts.phantom import generate
for index in (40, 7):
    print(hashlib.sha256(generate(index, seed=3).image.tobytes()).hexdigest())
"""
    here = [hashlib.sha256(generate(i, seed=3).image.tobytes()).hexdigest() for i in (40, 7)]
    assert run_python(code).stdout.split() == here
    assert (generate(7, seed=3).image != generate(7, seed=4).image).any()
    assert (generate(7).image != generate(9).image).any()


def test_every_second_phantom_has_opacities():
    assert [bool(phantom.boxes) for phantom in SAMPLE] == [False, True] * 100
    numbers = [len(phantom.boxes) for phantom in SAMPLE[1::2]]
    assert set(numbers) == {1, 2, 3}
    assert np.bincount(numbers)[1:] / 100 == pytest.approx(OPACITY_COUNT, abs=0.15)


def test_boxes_lie_in_the_lung_and_are_brighter_than_without_an_opacity():
    normal = np.mean([phantom.image for phantom in SAMPLE[::2]], axis=0)
    gains = []
    for phantom in SAMPLE:
        for x0, y0, width, height in phantom.boxes:
            x1, y1 = x0 + width, y0 + height
            assert 0 <= x0 < x1 <= 128 and 0 <= y0 < y1 <= 128
            inside = phantom.lung_mask[y0:y1, x0:x1]
            assert inside.mean() > 0.85
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            middle = (slice((3 * y0 + y1) // 4, (y0 + 3 * y1) // 4 + 1), slice(x0, x1))
            gains.append((phantom.image - normal)[middle].mean())
    assert np.mean(gains) > 8


def test_lungs_are_two_dark_fields_in_a_bright_body():
    for phantom in SAMPLE[:40]:
        mask, grey = phantom.lung_mask, phantom.image.astype(float)
        assert 0.25 < mask.mean() < 0.55
        assert mask[:, :64].sum() > 1000 and mask[:, 64:].sum() > 1000
        assert not mask[:4].any() and not mask[-4:].any()
        below = grey[-12:, 40:88]
        assert grey[mask].mean() + 60 < below.mean()
        assert np.median(grey[:, :64][mask[:, :64]]) < 128


def test_the_heart_lies_to_the_left_of_the_patient():
    mean = np.mean([phantom.image for phantom in SAMPLE], axis=0)
    assert mean[60:90, 66:96].mean() > mean[60:90, 32:62].mean() + 20  # image right


def test_sizes_show_the_same_patient():
    small, large = generate(11, size=64), generate(11, size=256)
    assert large.image.shape == (256, 256)
    shrunk = large.image.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    assert np.corrcoef(shrunk.ravel(), small.image.ravel())[0, 1] > 0.98
    overlap = (large.lung_mask[2::4, 2::4] & small.lung_mask).sum() / small.lung_mask.sum()
    assert overlap > 0.98
    assert np.array(small.boxes) * 4 == pytest.approx(np.array(large.boxes), abs=6)


def test_the_set_follows_the_schema():
    dataset = load_cxr_dataset(
        "phantom", num_train=20, num_validation=6, num_test=10, image_size=64
    )
    assert {split: len(part) for split, part in dataset.items()} == {
        "train": 20,
        "validation": 6,
        "test": 10,
    }
    assert class_names(dataset["train"]) == ["NORMAL", "OPACITY"]
    for part in dataset.values():
        assert part["label"][:].count(1) * 2 == len(part)
        for row in part:
            phantom = generate(int(row["image_id"].split("-")[2][:7]), size=64)
            assert (np.asarray(row["image"]) == phantom.image).all()
            assert (np.asarray(row["lung_mask"]) == phantom.lung_mask).all()
            assert row["objects"]["bbox"] == phantom.boxes
            assert row["objects"]["category"] == [1] * len(phantom.boxes)
            assert row["subtype"] == ("none", "single", "multiple", "multiple")[len(phantom.boxes)]
    check_leaks(dataset)
    larger = load_cxr_dataset("phantom", num_train=22, num_validation=6, num_test=4, image_size=64)
    assert larger["train"][:20]["image_id"] == dataset["train"]["image_id"][:]
    assert larger["test"]["image_id"][:] == dataset["test"]["image_id"][:4]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": 8}, "image_size 8 is too small for a phantom: use 32 or more"),
        ({"num_test": -1}, "num_test -1 is negative: use 0 for no test split"),
        ({"num_validation": 1}, "split 'validation' of phantom has 1 image"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        load_cxr_dataset(
            "phantom", **{"num_train": 4, "num_validation": 2, "num_test": 2, **options}
        )

"""Perturbed images, to the pixel: what is hidden, what stays, and one perturbation an image."""

import io
import logging

import numpy as np
import pytest
from datasets import Dataset, Image
from dicom_files import dicom
from PIL import Image as PillowImage

from datasets_scripts import PERTURBATIONS, load_cxr_dataset, open_row
from datasets_scripts.perturb import (
    Sample,
    drop_columns,
    perturb,
    random_numbers,
    select_rows,
    shift_lungs,
)
from datasets_scripts.pixels import stored_rows
from datasets_scripts.schema import make_features

NOISE = np.random.default_rng(0).integers(1, 256, (50, 100), np.uint8)


def png(array):
    buffer = io.BytesIO()
    PillowImage.fromarray(array).save(buffer, "PNG")
    return {"path": None, "bytes": buffer.getvalue()}


def make_split(images, masks=None, sizes=None, ids=None):
    count = len(images)
    ids = ids or [f"{row}.png" for row in range(count)]
    columns = {
        "image": [png(image) for image in images],
        "label": [row % 2 for row in range(count)],
        "image_id": ids,
        "patient_id": ids,
        "source": ["made"] * count,
    }
    if masks:
        columns["lung_mask"] = [None if mask is None else png(mask) for mask in masks]
        columns["objects"] = [{"bbox": [[1, 2, 3, 4]], "category": [1]}] * count
    if sizes:
        columns["original_width"], columns["original_height"] = map(list, zip(*sizes))
    features = make_features(["a", "b"], optional=tuple(list(columns)[5:]))
    return Dataset.from_dict(columns, features=features)


def perturbed(split, name, seed=0, correct=False):
    """Pixels of all rows that have what is needed, each uint16 (h, w)."""
    rows = stored_rows(select_rows(split, name))
    return [open_row(row, correct, name, seed)[0].pixels for row in rows]


def altered(name, image, mask=None, size=None, **options):
    split = make_split([image], mask is not None and [mask], size and [size])
    (pixels,) = perturbed(split, name, **options)
    assert pixels.dtype == np.uint16
    return pixels / 257  # 8 bits of 16


def box_mask(top, bottom, left, right):
    mask = np.zeros(NOISE.shape, np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def test_borders_are_a_tenth_of_each_side():
    expected = np.zeros_like(NOISE)
    expected[5:45, 10:90] = NOISE[5:45, 10:90]
    assert np.array_equal(altered("borders", NOISE), expected)


def test_corners_are_squares_of_a_fifth_of_the_shorter_side():
    expected = NOISE.copy()
    for rows in (slice(0, 10), slice(40, 50)):
        for columns in (slice(0, 10), slice(90, 100)):
            expected[rows, columns] = 0
    assert np.array_equal(altered("corners", NOISE), expected)


def test_no_lungs_hides_the_lungs_grown_by_two_hundredths_of_the_longer_side():
    expected = NOISE.copy()
    expected[8:32, 18:42] = 0
    assert np.array_equal(altered("no_lungs", NOISE, box_mask(10, 30, 20, 40)), expected)
    at_the_edge = NOISE.copy()
    at_the_edge[:7, 93:] = 0
    assert np.array_equal(altered("no_lungs", NOISE, box_mask(0, 5, 95, 100)), at_the_edge)


def test_only_lungs_keeps_their_pixels_and_puts_their_mean_elsewhere():
    expected = np.full(NOISE.shape, NOISE[8:32, 18:42].mean())
    expected[8:32, 18:42] = NOISE[8:32, 18:42]
    result = altered("only_lungs", NOISE, box_mask(10, 30, 20, 40))
    np.testing.assert_allclose(result, expected, atol=0.5 / 257)


def test_only_lungs_and_no_lungs_are_complements():
    mask = box_mask(10, 30, 20, 40)
    shown = altered("no_lungs", NOISE, mask) == NOISE
    kept = altered("only_lungs", NOISE, mask) == NOISE
    assert (shown | kept).all() and (~shown).sum() == 24 * 24


def test_a_mask_of_another_size_is_stretched_over_its_image():
    mask = box_mask(10, 30, 20, 40)
    large, large_mask = (np.repeat(np.repeat(image, 2, 0), 2, 1) for image in (NOISE, mask))
    expected = altered("no_lungs", large, large_mask)
    assert np.array_equal(altered("no_lungs", large, mask), expected)


@pytest.mark.parametrize("value", [1, 2, 128, 255, 65535])
def test_a_mask_may_write_its_inside_as_any_number(value):
    mask = box_mask(10, 30, 20, 40)
    numbered = np.where(mask, value, 0).astype(np.uint16 if value > 255 else np.uint8)
    expected = altered("no_lungs", NOISE, mask)
    assert np.array_equal(altered("no_lungs", NOISE, numbered), expected)


def test_a_mask_is_cut_with_the_frame_around_its_image():
    chest = np.random.default_rng(0).integers(100, 200, (300, 360), np.uint8)
    mask = np.zeros_like(chest)
    mask[100:200, 50:120] = 255
    frame = ((60, 40), (90, 150))
    canvas, canvas_mask = np.pad(chest, frame, constant_values=255), np.pad(mask, frame)
    plain = perturbed(make_split([chest], [mask]), "no_lungs", correct=True)[0]
    framed = perturbed(make_split([canvas], [canvas_mask]), "no_lungs", correct=True)[0]
    assert plain.shape == chest.shape and not plain[100:200, 50:120].any()
    assert np.array_equal(framed, plain)


def test_lungs_cuts_their_box_and_a_margin_to_a_square():
    # 5 % of 100 and of 50 pixels: 5 and 2 (the nearest even number to 2.5)
    grey = np.zeros((50, 100), np.uint8)
    grey[8:42, 15:45] = 200
    mask = box_mask(10, 40, 20, 40)
    result = altered("lungs", grey, mask)
    assert result.shape == (100, 100) and (result == 200).all()
    grey[8:42, 15] = grey[8, 15:45] = 100
    result = altered("lungs", grey, mask)
    assert (result[:, 0] < 150).all() and (result[0] < 150).all()
    assert (result[5:, 5:] == 200).all()


def test_padded_gives_back_the_aspect_ratio_on_black():
    white = np.full((60, 60), 255, np.uint8)
    wide = altered("padded", white, size=(2000, 1000))
    assert np.array_equal(wide[15:45], np.full((30, 60), 255))
    assert wide.shape == (60, 60) and wide.sum() == 255 * 30 * 60
    tall = altered("padded", white, size=(500, 1500))
    assert (tall[:, 20:40] == 255).all() and tall.sum() == 255 * 20 * 60
    noise = NOISE[:50, :50]
    assert np.array_equal(altered("padded", noise, size=(700, 700)), noise)


def test_squashed_fills_the_square_that_padded_leaves_black():
    result = altered("squashed", np.full((50, 100), 99, np.uint8))
    assert result.shape == (100, 100) and (result == 99).all()
    assert np.array_equal(altered("squashed", NOISE[:, :50]), NOISE[:, :50])


def test_exposure_is_one_increasing_curve_that_keeps_the_order_of_greys():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (32, 1))
    means = []
    for seed in range(40):
        result = altered("exposure", ramp, seed=seed)
        assert (result == result[0]).all() and (np.diff(result[0]) >= 0).all()
        means.append(result.mean())
    # gamma 2 and 1/2 give means of 255/3 and 255 * 2/3; contrast about the mean leaves it there
    assert 80 < min(means) < 95 and 160 < max(means) < 175


def test_exposure_recovers_its_gamma_and_contrast():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (32, 1))
    rows = []
    for seed in range(30):
        curve = altered("exposure", ramp, seed=seed)[0] / 255
        middle = np.flatnonzero((curve > 0.01) & (curve < 0.99))
        fits = []
        for gamma in np.geomspace(0.5, 2, 141):
            powers = (np.arange(256) / 255) ** gamma
            slope, offset = np.polyfit(powers[middle], curve[middle], 1)
            error = np.abs(slope * powers[middle] + offset - curve[middle]).max()
            fits.append((error, gamma, slope, offset - powers.mean() * (1 - slope)))
        rows.append(min(fits))
    error, gammas, contrasts, offsets = map(np.array, zip(*rows))
    assert error.max() < 0.01 and np.abs(offsets).max() < 0.02
    assert gammas.min() < 0.6 and gammas.max() > 1.7
    assert 0.64 < contrasts.min() < 0.75 and 1.35 < contrasts.max() < 1.53


def test_shift_crops_by_up_to_15_percent():
    half = 80
    y, x = np.mgrid[-half:half, -half:half] + 0.5
    ring = (255 * (np.hypot(x, y) < 40)).astype(np.uint8)
    rows = []
    for seed in range(40):
        result = altered("shift", ring, seed=seed)
        bright = result > (result.min() + result.max()) / 2
        rows.append((bright.sum() / (np.pi * 40**2), *np.argwhere(bright).mean(0) - half))
    zoom, down, right = np.array(rows).T
    assert zoom.min() > 0.98 and 1.3 < zoom.max() < 1.4  # 1 / 0.85^2 = 1.38
    # a window of 0.85 that touches an edge moves the centre by 0.075 / 0.85 of the side
    assert 5 < np.abs(down).max() < 16 and 5 < np.abs(right).max() < 16


def test_shift_blurs_by_up_to_a_two_hundredth_of_the_side():
    step = np.zeros((400, 400), np.uint8)
    step[:, 200:] = 255
    steepest = []
    for seed in range(30):
        rows = altered("shift", step, seed=seed)[190:210]
        steepest.append(np.diff(rows, axis=1).max() / np.ptp(rows))
    # a step blurred by sigma rises by 1 / (sigma sqrt(2 pi)) a pixel: 0.2 for 2 pixels
    assert 0.18 < min(steepest) < 0.26 and max(steepest) > 0.7


def test_shift_turns_by_up_to_five_degrees():
    line = np.zeros((200, 200), np.uint8)
    line[:, 95:105] = 255
    angles = []
    for seed in range(30):
        result = altered("shift", line, seed=seed) - 0.0
        result = np.where(result > (result.min() + result.max()) / 2, 1.0, 0.0)[30:170]
        centres = (result * np.arange(200)).sum(1) / result.sum(1)
        angles.append(np.degrees(np.arctan(np.polyfit(np.arange(140), centres, 1)[0])))
    assert -5.2 < min(angles) < -3.5 and 3.5 < max(angles) < 5.2


@pytest.mark.parametrize("seed", range(3))
def test_lungs_shift_as_their_image_does(seed):
    lungs = np.zeros((60, 80), bool)
    lungs[15:50, 10:35] = lungs[12:48, 45:70] = True
    pixels = np.where(lungs, 40000, 20000).astype(np.uint16)

    def sample():
        return Sample(pixels, lungs, None, random_numbers(seed, "x.png"))

    image, moved = perturb("shift", sample()), shift_lungs(sample())
    inner = image[5:-5, 5:-5].astype(float)
    bright = inner > (inner[moved[5:-5, 5:-5]].mean() + inner[~moved[5:-5, 5:-5]].mean()) / 2
    assert (bright == moved[5:-5, 5:-5]).mean() > 0.98
    assert (moved != lungs).mean() > 0.02


@pytest.mark.parametrize("name", ["exposure", "shift"])
def test_an_image_is_altered_by_its_id_and_the_seed_alone(name):
    images = [np.roll(NOISE, row, 0) for row in range(4)]
    ids = [f"x{row}" for row in range(4)]
    full = perturbed(make_split(images, ids=ids), name)
    other = make_split(images[::-1], ids=ids[::-1]).select([2, 0])
    assert np.array_equal(perturbed(other, name), [full[1], full[3]])
    again = perturbed(make_split(images, ids=ids), name, seed=1)
    assert not any(np.array_equal(one, two) for one, two in zip(again, full))
    assert not np.array_equal(*perturbed(make_split([NOISE, NOISE]), name))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_rows_and_columns_stay_but_what_no_longer_fits(name):
    masks = [box_mask(10, 30, 20, 40), None, box_mask(0, 0, 0, 0), box_mask(1, 9, 1, 9)]
    split = make_split([NOISE] * 4, masks, [(200, 100), (200, 100), (None, 5), (100, 200)])
    result = drop_columns(select_rows(split, name), name)
    kept = [0, 3] if "lungs" in name else [0, 1, 3] if name == "padded" else [0, 1, 2, 3]
    gone = ["lung_mask", "objects"] if name in ("squashed", "padded", "lungs", "shift") else []
    if name in ("squashed", "padded", "lungs"):
        gone += ["original_width", "original_height"]
    columns = [column for column in split.features if column not in gone]
    assert result.features == {column: split.features[column] for column in columns}
    for column in set(columns) - {"image", "lung_mask"}:
        assert result[column][:] == [split[column][row] for row in kept]
    if "lung_mask" in columns:
        stored = [part.cast_column("lung_mask", Image(decode=False)) for part in (result, split)]
        assert stored[0]["lung_mask"][:] == [stored[1]["lung_mask"][row] for row in kept]


def test_a_warning_counts_the_rows_left_out(caplog):
    split = make_split([NOISE] * 3, [None, box_mask(1, 9, 1, 9), None])
    with caplog.at_level(logging.WARNING):
        select_rows(split, "borders")
        select_rows(split, "lungs")
    assert [record.getMessage() for record in caplog.records] == [
        "Perturbation lungs leaves out 2 of 3 images without a lung mask."
    ]


@pytest.mark.parametrize(
    "name, message",
    [
        ("lung", "unknown perturbation 'lung': use borders, corners"),
        ("lungs", "'lungs' needs a lung mask, which none of the 2 images has"),
        ("padded", "'padded' needs original_width and original_height, which none of the"),
    ],
)
def test_wrong_perturbations_are_one_sentence(name, message):
    with pytest.raises(ValueError, match=message):
        select_rows(make_split([NOISE] * 2), name)


def test_a_damaged_mask_is_named():
    split = make_split([NOISE] * 2, [box_mask(10, 30, 20, 40)] * 2)
    columns = stored_rows(split).to_dict()
    columns["lung_mask"][1]["bytes"] = b"no image"
    split = Dataset.from_dict(columns, features=split.features)
    with pytest.raises(ValueError, match="the lung mask of 1.png cannot be read .*; repair or"):
        select_rows(split, "lungs")


@pytest.mark.parametrize("name", ["corners", "shift", "no_lungs"])
def test_dicom_files_of_twelve_bits_are_perturbed_as_they_are_read(name):
    levels = np.kron(NOISE.astype(np.uint16), np.ones((2, 2), np.uint16)) * 16
    split = make_split([NOISE], [box_mask(10, 30, 20, 40)])
    columns = stored_rows(split).to_dict()
    columns["image"] = [{"path": None, "bytes": dicom(levels, 12)}]
    split = Dataset.from_dict(columns, features=split.features)
    plain = open_row(stored_rows(split)[0], correct=False)[0].pixels
    (pixels,) = perturbed(split, name)
    assert pixels.shape == plain.shape == (100, 200) and not np.array_equal(pixels, plain)
    if name != "shift":
        hidden = pixels != plain
        assert not pixels[hidden].any()
        inside = np.s_[16:64, 36:84] if name == "no_lungs" else np.s_[20:80]
        assert np.array_equal(pixels[inside], plain[inside]) == (name == "corners")


def test_a_new_shape_replaces_the_original_one():
    split = make_split([NOISE], [box_mask(10, 30, 20, 40)], [(300, 100)])
    row = stored_rows(split)[0]
    for name in PERTURBATIONS:
        expected = None if name in ("squashed", "padded", "lungs") else (100, 300)
        assert open_row(row, False, name)[1] == expected
    assert open_row(row)[1] == (100, 300)


def test_real_images_keep_what_is_not_hidden(cxr_data):
    extra = str(cxr_data / "kermany_extra")
    test = load_cxr_dataset("kermany", cxr_data / "chest_xray/test", extra=extra)["test"]
    part = test.select(range(0, 624, 39))
    before = [open_row(row)[0].pixels for row in stored_rows(part)]
    for name in ("borders", "corners", "only_lungs", "no_lungs"):
        for row, pixels in enumerate(perturbed(part, name, correct=True)):
            lung = np.asarray(part[row]["lung_mask"]) > 0
            seen = {
                "borders": np.s_[22:202, 22:202],
                "corners": np.s_[45:179],
                "only_lungs": lung,
                "no_lungs": np.s_[:0],
            }[name]
            assert np.array_equal(pixels[seen], before[row][seen])
            if name == "no_lungs":
                assert not pixels[lung].any()
                assert (pixels == before[row]).mean() > 0.3
    shapes = zip(part["original_width"], part["original_height"], perturbed(part, "padded"))
    for width, height, pixels in shapes:
        assert pixels.shape == (224, 224)
        rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
        assert np.ptp(rows) + 1 <= round(224 * height / max(width, height))
        assert np.ptp(columns) + 1 <= round(224 * width / max(width, height))
    assert {pixels.shape for pixels in perturbed(part, "lungs")} == {(224, 224)}

"""Altered images, to the pixel: what is hidden, what stays, and one alteration an image."""

import io
import logging

import numpy as np
import pytest
from datasets import Dataset, Image
from PIL import Image as PillowImage

from datasets_scripts import VARIANTS, load_cxr_dataset, make_variant
from datasets_scripts.schema import encoded_images, make_features
from modeling import CxrImageProcessor

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
        columns["boxes"] = [[[1, 2, 3, 4]]] * count
    if sizes:
        columns["original_width"], columns["original_height"] = map(list, zip(*sizes))
    features = make_features(["a", "b"], optional=tuple(list(columns)[5:]))
    return Dataset.from_dict(columns, features=features)


def altered(name, image, mask=None, size=None, **options):
    split = make_split([image], mask is not None and [mask], size and [size])
    return np.array(make_variant(split, name, **options)[0]["image"]).astype(int)


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
    expected = np.full(NOISE.shape, round(NOISE[8:32, 18:42].mean()))
    expected[8:32, 18:42] = NOISE[8:32, 18:42]
    assert np.array_equal(altered("only_lungs", NOISE, box_mask(10, 30, 20, 40)), expected)


def test_only_lungs_and_no_lungs_are_complements():
    mask = box_mask(10, 30, 20, 40)
    shown = altered("no_lungs", NOISE, mask) == NOISE
    kept = altered("only_lungs", NOISE, mask) == NOISE
    assert (shown | kept).all() and (~shown).sum() == 24 * 24


def test_a_mask_of_another_size_is_stretched_over_its_image():
    mask = box_mask(10, 30, 20, 40)
    small = mask[::2, ::2]
    assert np.array_equal(altered("no_lungs", NOISE, small), altered("no_lungs", NOISE, mask))


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


@pytest.mark.parametrize("name", ["exposure", "shift"])
def test_an_image_is_altered_by_its_id_and_the_seed_alone(name):
    images = [np.roll(NOISE, row, 0) for row in range(4)]
    ids = [f"x{row}" for row in range(4)]
    full = list(encoded_images(make_variant(make_split(images, ids=ids), name)))
    other = make_split(images[::-1], ids=ids[::-1]).select([2, 0])
    assert list(encoded_images(make_variant(other, name))) == [full[1], full[3]]
    again = list(encoded_images(make_variant(make_split(images, ids=ids), name, seed=1)))
    assert not set(again) & set(full)
    same = make_variant(make_split([NOISE, NOISE]), name)
    assert len(set(encoded_images(same))) == 2


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_and_columns_stay_but_what_no_longer_fits(name):
    masks = [box_mask(10, 30, 20, 40), None, box_mask(0, 0, 0, 0), box_mask(1, 9, 1, 9)]
    split = make_split([NOISE] * 4, masks, [(200, 100), (200, 100), (None, 5), (100, 200)])
    result = make_variant(split, name)
    kept = [0, 3] if "lungs" in name else [0, 1, 3] if name == "padded" else [0, 1, 2, 3]
    gone = ["lung_mask", "boxes"] if name in ("squashed", "padded", "lungs", "shift") else []
    if name in ("squashed", "padded", "lungs"):
        gone += ["original_width", "original_height"]
    columns = [column for column in split.features if column not in gone]
    assert result.features == {column: split.features[column] for column in columns}
    for column in set(columns) - {"image", "lung_mask"}:
        assert result[column][:] == [split[column][row] for row in kept]
    if "lung_mask" in columns:
        stored = [part.cast_column("lung_mask", Image(decode=False)) for part in (result, split)]
        assert stored[0]["lung_mask"][:] == [stored[1]["lung_mask"][row] for row in kept]
    assert all(image.startswith(b"\x89PNG") for image in encoded_images(result))
    assert all(row["image"].mode == "L" for row in result)


def test_a_warning_counts_the_rows_left_out(caplog):
    split = make_split([NOISE] * 3, [None, box_mask(1, 9, 1, 9), None])
    with caplog.at_level(logging.WARNING):
        make_variant(split, "borders")
        make_variant(split, "lungs")
    assert [record.getMessage() for record in caplog.records] == [
        "variant lungs leaves out 2 of 3 images without a lung mask"
    ]


@pytest.mark.parametrize(
    "name, message",
    [
        ("lung", "unknown variant 'lung': use borders, corners"),
        ("lungs", "variant 'lungs' needs a lung mask, which none of the 2 images has"),
        ("padded", "variant 'padded' needs original_width and original_height, which none of the"),
    ],
)
def test_wrong_variants_are_one_sentence(name, message):
    with pytest.raises(ValueError, match=message):
        make_variant(make_split([NOISE] * 2), name)


def test_a_damaged_image_is_named():
    split = make_split([NOISE] * 2)
    split = split.cast_column("image", Image(decode=False)).to_dict()
    split["image"][1]["bytes"] = split["image"][1]["bytes"][:90]
    split = Dataset.from_dict(split, features=make_split([NOISE]).features)
    with pytest.raises(ValueError, match="image 1.png cannot be read .*: repair or remove it"):
        make_variant(split, "borders")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "1"])
def test_every_kind_of_image_is_read_as_the_image_processor_reads_it(mode):
    if mode == "I;16":
        image = PillowImage.fromarray(NOISE.astype(np.uint16) * 16)  # 12 of 16 bits
    else:
        colours = np.stack([NOISE, np.roll(NOISE, 1, 0), np.roll(NOISE, 1, 1)], -1)
        image = PillowImage.fromarray(colours).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    processor = CxrImageProcessor(64)
    split = make_split([NOISE])
    columns = split.cast_column("image", Image(decode=False)).to_dict()
    columns["image"] = [{"path": None, "bytes": buffer.getvalue()}]
    result = make_variant(Dataset.from_dict(columns, features=split.features), "corners")
    ours = processor.load(next(encoded_images(result)))[10:40].astype(int)
    expected = processor.load(buffer.getvalue())[10:40].astype(int)
    assert np.abs(ours - expected).max() <= (129 if mode == "I;16" else 0)  # half of 1/255


def test_real_images_keep_what_is_not_hidden(cxr_data):
    extra = str(cxr_data / "kermany_extra")
    test = load_cxr_dataset("kermany", cxr_data / "chest_xray/test", extra=extra)["test"]
    part = test.select(range(0, 624, 39))
    processor = CxrImageProcessor(224)
    before = [processor.load(image) for image in encoded_images(part)]
    for name in ("borders", "corners", "only_lungs", "no_lungs"):
        variant = make_variant(part, name)
        assert variant["image_id"][:] == part["image_id"][:]
        for row, image in enumerate(encoded_images(variant)):
            pixels = processor.load(image, correct=False)
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
    shapes = zip(part["original_width"], part["original_height"], make_variant(part, "padded"))
    for width, height, row in shapes:
        rows = np.flatnonzero(np.asarray(row["image"]).any(1))
        columns = np.flatnonzero(np.asarray(row["image"]).any(0))
        assert row["image"].size == (224, 224)
        assert np.ptp(rows) + 1 <= round(224 * height / max(width, height))
        assert np.ptp(columns) + 1 <= round(224 * width / max(width, height))
    for row in make_variant(part, "lungs"):
        assert row["image"].size == (224, 224)

"""Saliency measures on heatmaps small enough to do by hand, and on models whose score is known."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from evaluation.saliency import (
    COLUMNS,
    MEASURES,
    boxes_mask,
    compare_saliency,
    deletion_insertion,
    measure_heatmap,
    randomization_check,
    read_saliency,
    summarize_saliency,
    write_saliency,
)

HEAT = np.array([[0.1, 0.2, 0.0, 0.0], [0.3, 1.0, 0.4, 0.0]])
MASK = np.array([[0, 1, 1, 0], [0, 1, 0, 0]], dtype=bool)


def row(model, number, patient=None, **numbers):
    image_id = f"{number}.png"
    return {"model": model, "image_id": image_id, "patient_id": str(patient or number)} | numbers


def test_measures_of_a_heatmap_done_by_hand():
    found = measure_heatmap(HEAT, MASK)
    assert found["energy_in_lungs"] == pytest.approx(1.2 / 2.0)
    assert found["lung_area"] == 3 / 8
    assert found["pointing"] == 1
    # The three hottest are 1.0, 0.4 and 0.3; one of them is in the mask of three.
    assert found["iou"] == pytest.approx(1 / 5)


def test_a_perfect_heatmap_reaches_one_and_its_opposite_zero():
    perfect = measure_heatmap(MASK.astype(float), MASK)
    assert (perfect["energy_in_lungs"], perfect["pointing"], perfect["iou"]) == (1, 1, 1)
    opposite = measure_heatmap((~MASK).astype(float), MASK)
    assert (opposite["energy_in_lungs"], opposite["pointing"], opposite["iou"]) == (0, 0, 0)


def test_pixels_tied_at_the_cut_count_by_their_share_in_the_mask():
    heat = np.array([[1.0, 0.0, 0.0, 0.0]])
    mask = np.array([[True, True, False, False]])
    # The hottest pixel is in; the second is one of three equal ones, of which one is in.
    overlap = 1 + 1 / 3
    assert measure_heatmap(heat, mask)["iou"] == pytest.approx(overlap / (4 - overlap))


def test_the_pointing_game_takes_its_tolerance_in_pixels_and_shares_ties():
    heat, mask = np.zeros((8, 8)), np.zeros((8, 8), dtype=bool)
    heat[2, 2], mask[5, 6] = 1, True  # 3 rows and 4 columns: 5 pixels away
    assert measure_heatmap(heat, mask, tolerance=4.9)["pointing"] == 0
    assert measure_heatmap(heat, mask, tolerance=5)["pointing"] == 1
    heat[5, 6] = 1
    assert measure_heatmap(heat, mask)["pointing"] == 0.5


def test_what_has_no_answer_is_none_and_never_nan():
    empty, zeros, flat = np.zeros_like(MASK), np.zeros_like(HEAT), np.full_like(HEAT, 0.5)
    assert set(measure_heatmap(HEAT, empty).values()) == {None}
    nothing = dict.fromkeys(("energy_in_lungs", "pointing", "iou"))
    assert measure_heatmap(zeros, MASK) == nothing | {"lung_area": 3 / 8}
    # A uniform heatmap has the mask's share of energy, and points nowhere.
    assert measure_heatmap(flat, MASK) == nothing | {"energy_in_lungs": 3 / 8, "lung_area": 3 / 8}
    undefined = {"deletion": None, "insertion": None}
    assert deletion_insertion(None, np.ones((2, 4)), flat, steps=2) == undefined


def test_shuffled_cells_have_the_masks_energy_at_any_resolution():
    rng = np.random.default_rng(0)
    mask = boxes_mask([[8, 6, 16, 44], [40, 6, 16, 44]], 64, 64)
    for cells in (4, 8):
        tile = np.ones((64 // cells, 64 // cells))
        heats = [np.kron(rng.random((cells, cells)) ** 4, tile) for _ in range(300)]
        energies = [measure_heatmap(heat, mask)["energy_in_lungs"] for heat in heats]
        assert np.mean(energies) == pytest.approx(mask.mean(), abs=0.01)


def test_boxes_are_rounded_to_pixels_and_may_overlap():
    mask = boxes_mask([[0, 0, 2, 1], [1, 0, 2, 2]], height=2, width=4)
    assert mask.tolist() == [[True, True, True, False], [False, True, True, False]]
    rounded = boxes_mask([[0.4, 0, 1.7, 1.0001], [0.6, 0, 2, 2.0001]], height=2, width=4)
    assert np.array_equal(rounded, mask)
    assert not boxes_mask([], 2, 4).any()


def test_deletion_and_insertion_areas_of_scores_known_in_closed_form():
    # The model reads the quarter of the image that the heatmap shows hottest, and its score is the
    # share of that quarter left as it was: a straight line over the first quarter, then flat.
    rng = np.random.default_rng(0)
    image = rng.random((16, 16))
    heat = rng.permutation(256).reshape(16, 16) / 256
    read = heat >= 0.75

    def score(batch):
        return (batch == image)[:, read].mean(axis=1)

    found = deletion_insertion(score, image, heat, steps=16)
    assert found == pytest.approx({"deletion": 1 / 8, "insertion": 7 / 8})
    misled = deletion_insertion(score, image, heat.max() - heat, steps=16)
    assert misled == pytest.approx({"deletion": 7 / 8, "insertion": 1 / 8})


def test_deletion_puts_the_images_mean_in_the_place_of_a_pixel():
    # Bright rows are the hotter half: as they go, their mean falls from 1 to the image's 1/2.
    image = np.repeat([1.0, 0.0], 8).reshape(4, 4)
    heat = np.linspace(1, 0, 16).reshape(4, 4)
    found = deletion_insertion(lambda batch: batch[:, :2].mean(axis=(1, 2)), image, heat, steps=16)
    assert found["deletion"] == pytest.approx(0.5 * 0.75 + 0.5 * 0.5)


def test_insertion_starts_blurred_and_ends_at_the_image():
    rng = np.random.default_rng(0)
    image = rng.random((3, 32, 32)).astype(np.float32)
    batches = []

    def score(batch):
        batches.append(batch)
        return np.zeros(len(batch))

    found = deletion_insertion(score, image, rng.random((32, 32)), steps=4)
    assert found == {"deletion": 0, "insertion": 0}
    (batch,) = batches
    assert batch.shape == (10, 3, 32, 32) and batch.dtype == np.float32
    np.testing.assert_array_equal(batch[0], image)
    means = np.broadcast_to(image.mean(axis=(1, 2), keepdims=True), image.shape)
    np.testing.assert_allclose(batch[4], means, rtol=1e-5)
    np.testing.assert_array_equal(batch[9], image)
    # White noise is smoothed nearly away, and its mean is kept.
    assert batch[5].std() < 0.2 * image.std()
    assert batch[5].mean() == pytest.approx(image.mean(), abs=0.02)
    replaced = (batch[:5] != image).any(axis=1).sum(axis=(1, 2))
    assert replaced.tolist() == [0, 256, 512, 768, 1024]


def test_a_constant_image_is_not_changed_by_blur_or_mean():
    image = np.full((16, 16), 0.25)
    heat = np.linspace(0, 1, 256).reshape(16, 16)
    found = deletion_insertion(lambda batch: batch.mean(axis=(1, 2)), image, heat)
    assert found == pytest.approx({"deletion": 0.25, "insertion": 0.25})


def test_randomization_is_spearmans_correlation_with_ties():
    rng = np.random.default_rng(0)
    before = np.maximum(rng.random((12, 6, 6)) - 0.5, 0)  # as ReLU leaves it: many zeros
    reversed_order, unrelated = before.max() - before, np.maximum(rng.random((12, 6, 6)) - 0.5, 0)
    dead = unrelated.copy()
    dead[3:] = 0
    patients = np.repeat(np.arange(6), 2).astype(str)
    after = np.stack([before**2, reversed_order, unrelated, dead, 0 * dead])
    same, opposite, chance, partly, none = randomization_check(before, after, patients, 200)
    assert same["value"] == pytest.approx(1) and opposite["value"] == pytest.approx(-1)
    expected = [spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(before, unrelated)]
    assert chance["value"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert chance["low"] < chance["value"] < chance["high"] and chance["n"] == 12
    assert partly["n"] == 3 and partly["value"] == pytest.approx(np.mean(expected[:3]))
    assert none["value"] is None and none["n"] == 0 and "undefined" in none["reason"]


def test_a_file_reads_back_to_the_same_numbers(tmp_path):
    found = measure_heatmap(HEAT, MASK) | {"deletion": 1 / 3, "insertion": None}
    rows = [row("a", 1, **found), row('b, "c"', 1, **dict.fromkeys(COLUMNS)), row("a", 2, iou=0)]
    write_saliency(tmp_path / "saliency.csv", rows)
    header = (tmp_path / "saliency.csv").read_text().splitlines()[0]
    assert header == (
        "model,image_id,patient_id,energy_in_lungs,lung_area,pointing,iou,deletion,insertion"
    )
    back = read_saliency(tmp_path / "saliency.csv")
    assert back[:2] == rows[:2]
    assert back[2] == dict.fromkeys(COLUMNS) | rows[2]
    assert summarize_saliency(back, 50) == summarize_saliency(rows, 50)


def test_the_summary_is_the_mean_over_images_that_have_the_measure():
    rows = [
        row("a", 1, energy_in_lungs=0.5, lung_area=0.3, pointing=1),
        row("a", 2, energy_in_lungs=0.4, lung_area=0.4, pointing=0),
        row("a", 3, energy_in_lungs=None, lung_area=0.2, pointing=None),
        row("b", 1, energy_in_lungs=0.9, lung_area=0.3),
    ]
    summary = summarize_saliency(rows, num_resamples=200)
    assert list(summary) == ["a", "b"] and set(summary["a"]) == set(MEASURES)
    gain = summary["a"]["energy_gain"]
    assert gain["value"] == pytest.approx(0.1) and gain["n"] == 2
    assert gain["low"] < 0.1 < gain["high"]
    assert summary["a"]["lung_area"]["n"] == 3
    assert summary["a"]["iou"]["value"] is None and summary["a"]["iou"]["n"] == 0
    alone = summary["b"]["energy_in_lungs"]
    assert alone["value"] == 0.9 and alone["low"] is None and "two patients" in alone["reason"]


def test_the_comparison_pairs_images_whatever_their_order():
    rows = [row("a", n, energy_in_lungs=n / 10, lung_area=0.1) for n in range(1, 6)]
    rows += [row("b", n, energy_in_lungs=n / 20, lung_area=0.1) for n in range(5, 0, -1)]
    rows[0]["energy_in_lungs"] = None
    found = compare_saliency(rows, "a", "b", num_resamples=300)
    assert found["energy_in_lungs"]["value"] == pytest.approx(np.mean([2, 3, 4, 5]) / 20)
    assert found["energy_in_lungs"]["n"] == 4
    assert found["energy_gain"] == pytest.approx(found["energy_in_lungs"])
    assert "lung_area" not in found and found["iou"]["value"] is None
    other_way = compare_saliency(rows, "b", "a", num_resamples=300)
    assert other_way["energy_in_lungs"]["low"] == pytest.approx(-found["energy_in_lungs"]["high"])


def test_the_paired_interval_covers_the_true_difference():
    # Images of a patient share the effect, and both models the image's difficulty: an interval
    # that took images for independent would be too narrow, an unpaired one far too wide.
    rng = np.random.default_rng(0)
    covered, widths, trials, truth = 0, [], 300, 0.03
    patients = np.repeat(np.arange(60), 4)
    for _ in range(trials):
        difficulty = rng.normal(0.5, 0.2, size=240)
        effect = truth + rng.normal(0, 0.05, size=60)[patients] + rng.normal(0, 0.03, size=240)
        rows = [row("a", n, p, iou=difficulty[n] + effect[n]) for n, p in enumerate(patients)]
        rows += [row("b", n, p, iou=difficulty[n]) for n, p in enumerate(patients)]
        entry = compare_saliency(rows, "a", "b", num_resamples=200)["iou"]
        covered += entry["low"] <= truth <= entry["high"]
        widths.append(entry["high"] - entry["low"])
    assert 0.90 <= covered / trials <= 0.98
    standard_error = math.sqrt((0.05**2 + 0.03**2 / 4) / 60)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * standard_error, rel=0.08)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmap": HEAT * 2}, r"spans 0.0 to 2.0; it must lie in \[0, 1\]"),
        ({"heatmap": HEAT * np.nan}, "spans nan"),
        ({"heatmap": HEAT[0]}, r"\(4,\); it must be \(height, width\)"),
        ({"mask": MASK.astype(int)}, "mask is int64"),
        ({"mask": MASK[:, :2]}, r"\(2, 2\); needed: bool \(2, 4\)"),
    ],
)
def test_a_heatmap_or_mask_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        measure_heatmap(**{"heatmap": HEAT, "mask": MASK} | change)


@pytest.mark.parametrize("box", [[0, 0, 5, 1], [1, 0, 0, 2], [-1, 0, 2, 2], [2, 1, 2, 1.6]])
def test_a_box_outside_its_image_is_refused(box):
    with pytest.raises(ValueError, match="does not fit an image 4 x 2"):
        boxes_mask([box], 2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0; give 1 to 8"),
        ({"steps": 9}, "steps is 9"),
        ({"image": np.ones((3, 3))}, "must fit it"),
        ({"score": lambda batch: np.full(len(batch), np.nan)}, "one finite number"),
        ({"score": lambda batch: np.ones((len(batch), 2))}, r"gave \(6, 2\) for 6 images"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(change, message):
    given = {"score": len, "image": np.ones((2, 4)), "heatmap": HEAT, "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        deletion_insertion(**given)


def test_randomised_heatmaps_must_be_of_the_same_images():
    heats = np.random.default_rng(0).random((2, 3, 4, 4))
    for before, after, patients in (
        (heats[0], heats[:, :2], "abc"),
        (heats[0], heats, "ab"),
        (heats[0], heats[:0], "abc"),
        (heats[0], heats[0], "abc"),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            randomization_check(before, after, np.array(list(patients)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no saliency was measured"),
        ([row("a", 1), row("a", 1)], "'1.png' appears twice for the model 'a'"),
        ([row("", 1)], "lacks one of"),
        ([row("a", 1, iou=math.nan)], "has the iou nan; leave it empty"),
        ([row("a", 1, energy=0.5)], r"unknown columns \['energy'\]"),
    ],
)
def test_rows_that_make_no_sense_are_not_written(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_saliency(tmp_path / "saliency.csv", rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("iou", "IoU", "has no column 'iou'"),
        ("0.25", "a quarter", "'a quarter' where iou is a number or empty"),
        (",0.25,,", ",0.25,", "has a row with other than 9 cells"),
        ("0.25", "nan", "saliency.csv: image '1.png' has the iou nan"),
        ("a,1.png,1,,,,0.25,,\n", "", "no saliency was measured"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, old, new, message):
    path = tmp_path / "saliency.csv"
    write_saliency(path, [row("a", 1, iou=0.25)])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_saliency(path)


def test_models_that_cannot_be_compared_are_refused():
    rows = [row("a", 1, iou=0.1), row("b", 2, iou=0.2), row("c", 1, patient="p", iou=0.3)]
    with pytest.raises(ValueError, match="no saliency of the model 'd'; there is a, b, c"):
        compare_saliency(rows, "a", "d")
    with pytest.raises(ValueError, match="different images: 2 differ, such as '1.png'"):
        compare_saliency(rows, "a", "b")
    with pytest.raises(ValueError, match="different images"):
        compare_saliency(rows, "a", "c")

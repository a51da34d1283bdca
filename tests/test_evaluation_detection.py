"""The scores of boxes, each against an example worked by hand, and their file."""

import numpy as np
import pytest

from evaluation.detection import (
    AP,
    BoxedImage,
    _match_all,
    average_precision,
    fit_heatmap_threshold,
    fit_threshold,
    froc,
    heatmap_boxes,
    localization,
    match,
    overlaps,
    read_detection,
    rsna_scores,
    summarize_detection,
    weighted_precision,
    write_detection,
)

# 10 x 10 at the origin, and the same moved to the right: IoU (10 - k) / (10 + k)
SQUARE = (0, 0, 10, 10)
HALF = (0, 0, 10, 5)  # IoU 1/2, IoBB 1
FAR = (50, 50, 60, 60)


def moved(k, box=SQUARE):
    return (box[0] + k, box[1], box[2] + k, box[3])


def boxed(name, true=(), found=(), patient=None, true_labels=None, labels=None):
    """`found` is ((box, score), ...); all of class A unless labels say otherwise."""
    return BoxedImage(
        name,
        patient or name,
        np.array(true, np.float64).reshape(-1, 4),
        np.array(true_labels or ["A"] * len(true), str),
        np.array([box for box, _ in found], np.float64).reshape(-1, 4),
        np.array([score for _, score in found], np.float64),
        np.array(labels or ["A"] * len(found), str),
    )


def test_overlaps_are_those_of_the_definition():
    found = np.array([SQUARE, HALF, (5, 5, 15, 15), FAR], float)
    iou, inside = overlaps(found, np.array([SQUARE], float))
    np.testing.assert_allclose(iou[:, 0], [1, 1 / 2, 25 / 175, 0])
    np.testing.assert_allclose(inside[:, 0], [1, 1, 1 / 4, 0])


@pytest.mark.parametrize("box", [(3, 3, 3, 9), (9, 0, 3, 9), (0, 0, float("nan"), 9)])
def test_a_box_without_area_is_refused(box):
    with pytest.raises(ValueError, match=r"^the box \[.*\] has no area; give left.*\.$"):
        overlaps(np.array([SQUARE, box], float), np.array([SQUARE], float))


def test_a_true_box_is_hit_once_by_the_surest_and_each_box_takes_the_one_it_fits_best():
    # the first fits both and takes the second; the next finds it taken and takes the first
    iou = np.array([[0.6, 0.8], [0.5, 0.9], [0.9, 0.9]])
    assert match(iou, 0.5).tolist() == [True, True, False]
    assert match(iou, 0.85).tolist() == [False, True, True]
    assert match(np.zeros((2, 0)), 0.5).tolist() == [False, False]


def test_average_precision_is_that_of_the_curve_by_hand():
    images = [
        boxed("a", [SQUARE, FAR], [(SQUARE, 0.9), (moved(30), 0.8), (FAR, 0.7)]),
        boxed("b", [SQUARE], []),
        boxed("c", [], [(SQUARE, 0.1)]),
    ]
    # hits by falling score: yes, no, yes, no, of 3 true boxes: precision 1 up to recall 1/3 (34 of
    # the 101 recalls), 2/3 up to 2/3 (33 more), 0 beyond
    expected = (34 * 1 + 33 * 2 / 3) / 101
    assert average_precision(images)["A"] == pytest.approx(dict.fromkeys(AP, expected))


def test_an_iou_between_two_thresholds_counts_at_the_lower_ones_alone():
    # IoU 7/13 = .538: a hit at .4 and .5, not at .55 to .95
    images = [boxed("a", [SQUARE], [(moved(3), 0.9)]), boxed("b")]
    assert average_precision(images)["A"] == pytest.approx({"ap": 0.1, "ap50": 1, "ap40": 1})
    # IoU 6/14 = .429
    images = [boxed("a", [SQUARE], [(moved(4), 0.9)]), boxed("b")]
    assert average_precision(images)["A"] == pytest.approx({"ap": 0, "ap50": 0, "ap40": 1})


def test_a_box_of_another_class_hits_nothing_and_a_class_without_true_boxes_has_no_precision():
    images = [boxed("a", [SQUARE], [(SQUARE, 0.9)], labels=["B"])]
    assert average_precision(images) == {"A": dict.fromkeys(AP, 0.0)}


def drawn(count=40, seed=0):
    """Random images of two classes, patients of two images each."""
    rng = np.random.default_rng(seed)
    images = []
    for k in range(count):
        corners = rng.uniform(0, 50, (rng.integers(3), 2))
        true = np.hstack([corners, corners + rng.uniform(10, 40, corners.shape)])
        near = true + rng.normal(0, 4, true.shape)
        corners = rng.uniform(0, 60, (rng.integers(5), 2))
        found = np.vstack([near, np.hstack([corners, corners + 20])])
        scores = rng.uniform(0, 1, len(found)).round(2)
        names = rng.choice(["A", "B"], len(true)).astype(str)
        labels = np.append(names, rng.choice(["A", "B"], len(corners))).astype(str)
        images.append(BoxedImage(f"{k}.png", f"p{k // 2}", true, names, found, scores, labels))
    return images


def test_the_precision_of_resamples_is_that_of_torchmetrics_where_each_image_counts_once():
    images = drawn()
    for name, values in average_precision(images).items():
        for key, ious in AP.items():
            own = [
                weighted_precision(_match_all(images, name, iou), np.ones(len(images)))
                for iou in ious
            ]
            assert np.mean(own) == pytest.approx(values[key], abs=1e-9)
    twice = np.repeat([2.0, 0.0], 20)
    copies = [
        image._replace(image_id=f"{image.image_id}{k}") for image in images[:20] for k in "ab"
    ]
    expected = average_precision(copies)["A"]["ap50"]
    found = weighted_precision(_match_all(images, "A", 0.5), twice)
    assert found == pytest.approx(
        expected, abs=0.02
    )  # copies of a score have an order of their own


def test_the_rsna_s_score_by_hand():
    images = [
        boxed("hit", [SQUARE], [(SQUARE, 0.9)]),
        # one of two found, and one box too many: 1 / 3
        boxed("half", [SQUARE, FAR], [(SQUARE, 0.9), (moved(20), 0.8)]),
        # IoU 7/13 = .538: hits at .40, .45 and .50, of 8 thresholds
        boxed("near", [SQUARE], [(moved(3), 0.7)]),
        boxed("missed", [SQUARE]),
        boxed("false", [], [(SQUARE, 0.6)]),
        boxed("nothing"),
    ]
    expected = [1, 1 / 3, 3 / 8, 0, 0, np.nan]
    np.testing.assert_allclose(rsna_scores(images, 0.5), expected)
    # without the boxes below .75 the near one is missed and nothing false is found
    np.testing.assert_allclose(rsna_scores(images, 0.75), [1, 1 / 3, 0, 0, np.nan, np.nan])


def test_the_rsna_asks_for_more_than_the_threshold():
    # IoU exactly 1/2: above .40 and .45 alone
    assert rsna_scores([boxed("a", [SQUARE], [(HALF, 0.9)])], 0.5) == pytest.approx(2 / 8)


def test_the_threshold_is_the_one_of_the_best_score():
    images = [
        boxed("a", [SQUARE], [(SQUARE, 0.6), (FAR, 0.3)]),
        boxed("b", [SQUARE], [(SQUARE, 0.4)]),
        boxed("c", [], [(SQUARE, 0.35)]),
    ]
    # .6 finds one of two (1/2); .4 both (1); .35 adds a false one (2/3)
    assert fit_threshold(images) == 0.4
    assert fit_threshold([boxed("a", [SQUARE])]) == 1.0


def test_the_free_response_curve_by_hand():
    images = [
        boxed("a", [SQUARE, FAR], [(SQUARE, 0.9), (moved(1), 0.85), (moved(30), 0.8), (FAR, 0.7)]),
        boxed("b", [SQUARE], [(moved(20), 0.6), (SQUARE, 0.5)]),
        *(boxed(f"{k}") for k in range(6)),
    ]
    # 8 images, 3 true boxes, found at .9, .7 and .5; false positives at .8 and .6. A second hit of
    # the same box (.85) is none. 1/8 an image is one: all above .6; 1/4 is two: everything.
    expected = {"1/8": 2 / 3} | dict.fromkeys(("1/4", "1/2", "1", "2", "4", "8"), 1.0)
    assert froc(images) == pytest.approx({**expected, "mean": (2 / 3 + 6) / 7})
    # of 6 images one is more than 1/8: only what is above the first false positive counts
    assert froc(images[:6])["1/8"] == pytest.approx(1 / 3)


def test_localisation_by_hand():
    images = [
        boxed("a", [SQUARE], [((0, 0, 5, 5), 0.9), (FAR, 0.9)]),  # IoU 1/4, IoBB 1
        boxed("b", [SQUARE], [((0, 0, 20, 20), 0.9)]),  # IoU and IoBB 1/4
        boxed("c", [SQUARE], [(SQUARE, 0.2)]),
        boxed("d", [SQUARE], [(SQUARE, 0.9)], labels=["B"]),
    ]
    found = localization(images, 0.5, num_resamples=50)
    values = {
        (name, cut): (of["accuracy"]["value"], of["false_positives"]["value"])
        for name, cuts in found.items()
        for cut, of in cuts.items()
    }
    assert values["iou", "0.1"] == (2 / 4, 2 / 4)  # FAR, and the box of another class
    assert values["iou", "0.3"] == (0, 4 / 4)
    assert values["iobb", "0.3"] == (1 / 4, 3 / 4)
    assert values["iobb", "0.9"] == (1 / 4, 3 / 4)
    assert found["iou"]["0.1"]["accuracy"]["n"] == 4
    assert len(found["iobb"]) == 9


def test_localisation_asks_for_more_than_t():
    found = localization([boxed("a", [SQUARE], [(HALF, 0.9)])], 0.5, num_resamples=0)
    assert found["iou"]["0.4"]["accuracy"]["value"] == 1
    assert found["iou"]["0.5"]["accuracy"]["value"] == 0


def test_a_summary_has_intervals_over_patients_around_each_value():
    images = drawn()
    found = summarize_detection(images, 0.5, num_resamples=100)
    precision = average_precision(images)
    for key in AP:
        entry = found[key]
        assert entry["value"] == pytest.approx(np.mean([of[key] for of in precision.values()]))
        assert 0 < entry["low"] < entry["value"] < entry["high"] < 1 and entry["n"] == 40
    assert found["classes"]["A"]["ap50"]["value"] == pytest.approx(precision["A"]["ap50"])
    scores = rsna_scores(images, 0.5)
    assert found["rsna"]["value"] == pytest.approx(np.nanmean(scores))
    assert found["rsna"]["n"] == np.isfinite(scores).sum()
    assert found["froc"]["mean"]["value"] == pytest.approx(froc(images)["mean"])
    assert found["boxes"] == sum(len(image.true_boxes) for image in images)
    # images of one patient move together: two copies of each narrow nothing
    copies = [image._replace(image_id=f"{image.image_id}{k}") for image in images for k in "ab"]
    again = summarize_detection(copies, 0.5, num_resamples=100)["froc"]["mean"]
    assert again["high"] - again["low"] > 0.8 * (
        found["froc"]["mean"]["high"] - found["froc"]["mean"]["low"]
    )


def test_a_sensitivity_of_0_that_resamples_exceed_has_an_interval():
    # a false positive stands above all: 0 where it is one of few images, 1 where it is not drawn
    images = [boxed("a", [], [(FAR, 0.9)])]
    images += [boxed(f"{k}", [SQUARE], [(SQUARE, 0.8)]) for k in range(5)]
    entry = summarize_detection(images, 0.5, num_resamples=200)["froc"]["1/8"]
    assert (entry["value"], entry["low"], entry["high"]) == (0, 0, 1)


def test_where_nothing_is_found_every_score_is_0():
    images = [boxed("a", [SQUARE]), boxed("b", [SQUARE]), boxed("c")]
    found = summarize_detection(images, 0.5, num_resamples=20)
    entries = [found["ap"], found["ap50"], found["rsna"], found["froc"]["mean"]]
    assert [entry["value"] for entry in entries] == [0, 0, 0, 0]


def test_images_without_any_true_box_are_refused():
    images = [boxed("a", [], [(SQUARE, 0.9)]), boxed("b")]
    for score in (average_precision, froc, fit_threshold, lambda images: localization(images, 0.5)):
        with pytest.raises(ValueError, match=r"^none of the 2 images has a true box; give a set"):
            score(images)


def test_the_file_gives_back_every_number(tmp_path):
    images = [*drawn(5), boxed("nothing, here")]
    write_detection(tmp_path / "boxes.csv", images)
    for image, read in zip(images, read_detection(tmp_path / "boxes.csv"), strict=True):
        for name in BoxedImage._fields:
            np.testing.assert_array_equal(getattr(read, name), getattr(image, name))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a,p,seen,A,,0,0,1,1", "has a row of kind 'seen'; it is image, true, found."),
        ("b,p,true,A,,0,0,1,1", "has a box of 'b' before its row of kind 'image'."),
        ("a,p,true,A,,0,0,1,x", "a box of 'a' has a cell that is no number."),
        ("a,p,true", "has a row without 'label'; train_detector.py writes it."),
    ],
)
def test_a_damaged_file_is_one_sentence(line, sentence, tmp_path):
    write_detection(tmp_path / "boxes.csv", [boxed("a", patient="p")])
    with open(tmp_path / "boxes.csv", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError) as caught:
        read_detection(tmp_path / "boxes.csv")
    assert str(caught.value).endswith(sentence)


# ------------------------------------------------------------------------------- boxes of heatmaps


def heat(*regions, size=(40, 60)):
    """A heatmap of (top, left, bottom, right, heat)."""
    drawn = np.zeros(size, np.float32)
    for top, left, bottom, right, value in regions:
        drawn[top:bottom, left:right] = value
    return drawn


def test_the_largest_regions_above_the_threshold_become_boxes():
    heatmap = heat((2, 3, 12, 23, 0.5), (20, 30, 26, 36, 0.9), (30, 5, 32, 7, 1.0))
    boxes, scores = heatmap_boxes(heatmap, 0.4, largest=2)
    assert boxes.tolist() == [[3, 2, 23, 12], [30, 20, 36, 26]]
    np.testing.assert_allclose(scores, [0.5, 0.9])
    boxes, scores = heatmap_boxes(heatmap, 0.6)
    assert boxes.tolist() == [[30, 20, 36, 26]]
    boxes, scores = heatmap_boxes(heat(), 0.1)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_the_threshold_of_heat_is_the_one_whose_boxes_fit():
    rings = heat((0, 0, 40, 60, 0.2), (5, 10, 25, 40, 0.5), (10, 20, 15, 25, 0.9))
    assert fit_heatmap_threshold([rings], [np.array([[10.0, 5, 40, 25]])]) == 0.25
    assert fit_heatmap_threshold([rings], [np.array([[20.0, 10, 25, 15]])]) == 0.55
    with pytest.raises(ValueError, match=r"^none of the 1 images has a true box to fit on\.$"):
        fit_heatmap_threshold([rings], [np.zeros((0, 4))])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold": 0.5, "largest": 0}, "largest is 0; it is 1 or more."),
        ({"threshold": 0.0}, "threshold is 0.0; it lies above 0 and up to 1."),
    ],
)
def test_regions_that_cannot_be_are_one_sentence(options, sentence):
    with pytest.raises(ValueError) as caught:
        heatmap_boxes(heat(), **options)
    assert str(caught.value) == sentence

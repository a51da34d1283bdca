"""Subgroups against metrics of the subset, cases against a sort by hand, and the pictures drawn."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from evaluation.cases import choose_cases
from evaluation.figures import draw_case
from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions
from evaluation.subgroups import SUBGROUP_METRICS, subgroups


def make(labels, log_odds, extra=None, thresholds=None, ids=None, names=("NORMAL", "PNEUMONIA")):
    """Binary predictions of these log-odds; log_odds (N, K) are logits."""
    log_odds = np.asarray(log_odds, dtype=np.float64)
    if log_odds.ndim == 1:
        log_odds = np.stack([np.zeros(len(log_odds)), log_odds], axis=1)
    labels = np.asarray(labels)
    ids = np.array([f"{i:03d}.png" for i in range(len(labels))] if ids is None else ids)
    return Predictions(
        image_id=ids,
        patient_id=np.array([f"p{i // 2:03d}" for i in range(len(labels))]),
        labels=labels,
        logits=log_odds,
        class_names=names,
        split="test",
        multi_label=labels.ndim == 2,
        thresholds=thresholds,
        extra={name: np.asarray(cells, dtype=str) for name, cells in (extra or {}).items()},
    )


def sample(num_images=120, seed=0, **extra):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=num_images)
    return make(labels, rng.normal(size=num_images) + labels, extra)


def by_value(rows, column):
    return {row["value"]: row for row in rows if row["column"] == column}


def test_a_group_has_the_metrics_of_its_images_alone():
    views = np.repeat(["PA", "AP"], 60)
    predictions = sample(view=views)
    rows = subgroups(predictions, num_resamples=100, seed=3)
    assert [(row["column"], row["value"], row["n"]) for row in rows] == [
        ("view", "AP", 60),
        ("view", "PA", 60),
    ]
    own = views == "AP"
    alone = make(
        predictions.labels[own],
        predictions.log_odds[own, 1],
        ids=predictions.image_id[own],
    )
    expected = compute_metrics(alone, num_resamples=100, seed=3)
    assert rows[0]["metrics"] == {name: expected[name] for name in SUBGROUP_METRICS}
    assert rows[0]["patients"] == 30 and "against" not in rows[0]
    json.dumps(rows, allow_nan=False)


def test_the_operating_point_holds_in_every_group():
    labels, log_odds = np.tile([0, 1], 20), np.tile([-3.0, -1.0], 20)
    extra = {"sex": np.repeat(["F", "M"], 20)}
    plain = subgroups(make(labels, log_odds, extra), num_resamples=0)
    assert plain[0]["metrics"]["sensitivity"]["value"] == 0
    tuned = subgroups(make(labels, log_odds, extra, thresholds=(0.2,)), num_resamples=0)
    assert [row["metrics"]["sensitivity"]["value"] for row in tuned] == [1, 1]


def test_a_subtype_is_compared_with_every_image_of_the_other_class():
    predictions = sample()
    subtype = np.where(predictions.labels == 0, "normal", "bacteria")
    positives = np.flatnonzero(predictions.labels)
    subtype[positives[:20]] = "virus"
    predictions = make(predictions.labels, predictions.log_odds[:, 1], {"subtype": subtype})
    found = by_value(subgroups(predictions, num_resamples=200), "subtype")
    normals = (predictions.labels == 0).sum()
    virus = found["virus"]
    compared = (subtype == "virus") | (predictions.labels == 0)
    scores = predictions.log_odds[:, 1]
    expected = roc_auc_score(predictions.labels[compared], scores[compared])
    assert virus["metrics"]["auroc"]["value"] == pytest.approx(expected)
    assert virus["metrics"]["auroc"]["low"] < expected < virus["metrics"]["auroc"]["high"]
    assert virus["against"] == f"all {normals} images of NORMAL" and virus["n"] == 20
    # What it is compared with does not enter its own rates.
    sensitivity = np.mean(scores[subtype == "virus"] > 0)
    assert virus["metrics"]["sensitivity"]["value"] == pytest.approx(sensitivity)
    assert virus["metrics"]["accuracy"]["value"] == pytest.approx(sensitivity)
    assert virus["metrics"]["specificity"]["value"] is None
    assert "without PNEUMONIA" in virus["metrics"]["specificity"]["reason"]
    overall = compute_metrics(predictions, 0)["auroc"]["value"]
    assert found["normal"]["metrics"]["auroc"]["value"] == pytest.approx(overall)


def test_numbers_are_cut_into_thirds_at_the_bounds_that_are_stated():
    ages = np.arange(1, 121).astype(str)
    ages[:15] = ""
    found = by_value(subgroups(sample(kg=ages), num_resamples=0), "kg")
    # 105 ages from 16 to 120: a third of them below 50.67, two thirds below 85.33.
    assert {value: row["n"] for value, row in found.items()} == {
        "up to 50.67": 35,
        "50.67 to 85.33": 35,
        "above 85.33": 35,
        "unknown": 15,
    }


def test_ages_are_cut_into_bands_of_twenty_years_and_children_into_thirds():
    ages = np.where(np.arange(120) < 110, np.arange(120) % 88 + 0.5, np.nan)
    cells = np.where(np.isnan(ages), "", ages.astype(str))
    found = by_value(subgroups(sample(age=cells), num_resamples=0), "age")
    assert {value: row["n"] for value, row in found.items()} == {
        "0 to 19": 40,
        "20 to 39": 22,
        "40 to 59": 20,
        "60 to 79": 20,
        "unknown": 10,
        "left out: 1 of 6 groups": 8,
    }
    children = by_value(subgroups(sample(age=np.arange(120) / 10), num_resamples=0), "age")
    assert [row["n"] for row in children.values()] == [40, 40, 40]


def test_a_gap_is_the_difference_to_the_largest_group():
    predictions = sample(400, view=np.repeat(["AP", "PA", "lateral"], [150, 200, 50]))
    found = by_value(subgroups(predictions, num_resamples=500), "view")
    assert "gap" not in found["PA"]
    ap, pa = found["AP"]["metrics"]["auroc"], found["PA"]["metrics"]["auroc"]
    gap = found["AP"]["gap"]
    assert gap["against"] == found["lateral"]["gap"]["against"] == "PA"
    assert gap["metrics"]["auroc"]["value"] == pytest.approx(ap["value"] - pa["value"])
    # Independent groups: the squares of the half widths add up, but for the scale of each.
    half, *parts = ((e["high"] - e["low"]) / 2 for e in (gap["metrics"]["auroc"], ap, pa))
    assert half == pytest.approx(np.hypot(*parts), rel=0.15)
    assert gap["metrics"]["ece"]["low"] is None
    # Nothing is compared with images of which the group is not known.
    views = np.repeat(["", "PA", "AP"], [60, 40, 20])
    found = by_value(subgroups(sample(view=views), num_resamples=0), "view")
    assert {value: row.get("gap", {}).get("against") for value, row in found.items()} == {
        "AP": "PA",
        "PA": None,
        "unknown": None,
    }


def test_a_gap_holds_a_difference_that_is_there():
    rng = np.random.default_rng(1)
    labels, good = rng.integers(2, size=2000), np.repeat([True, False], 1000)
    predictions = make(labels, rng.normal(size=2000) + 2 * labels * good, {"view": good})
    (row,) = (one for one in subgroups(predictions, num_resamples=200) if "gap" in one)
    auroc = row["gap"]["metrics"]["auroc"]
    assert 0 < auroc["low"] * auroc["high"] and abs(auroc["value"]) > 0.3


def test_sides_become_pixels_and_few_numbers_stay_categories_in_order():
    widths, heights = np.repeat([1000, 2000, 3000], 40), np.arange(120) + 1000
    predictions = sample(
        original_width=widths, original_height=heights, grade=np.tile([10, 9, 2], 40)
    )
    rows = subgroups(predictions, num_resamples=0)
    assert [row["value"] for row in rows if row["column"] == "grade"] == ["2", "9", "10"]
    assert {row["column"] for row in rows} == {"grade", "original_pixels"}
    pixels = widths * heights
    values = {row["value"]: row["n"] for row in rows if row["column"] == "original_pixels"}
    assert list(values.values()) == [40, 40, 40]
    low = float(list(values)[0].removeprefix("up to ").replace(",", ""))
    assert (pixels <= low).sum() == 40


def test_columns_that_tell_nothing_apart_are_left_aside():
    predictions = sample(
        source=np.full(120, "kermany"),
        note=[f"text {i}" for i in range(120)],
        empty=np.full(120, ""),
    )
    assert subgroups(predictions, num_resamples=0) == []
    (row,) = subgroups(predictions, columns=["source"], num_resamples=0)
    assert row["n"] == 120
    for column in ("note", "empty"):
        with pytest.raises(ValueError, match=f"'{column}' is empty or free text"):
            subgroups(predictions, columns=[column])
    with pytest.raises(ValueError, match=r"no column 'view' .* there is \['empty'"):
        subgroups(predictions, columns=["view"])


def test_small_groups_are_left_out_and_counted():
    view = np.repeat(["PA", "AP", "lateral", ""], [100, 9, 8, 3])
    rows = subgroups(sample(view=view), num_resamples=0)
    assert [(row["value"], row["n"]) for row in rows] == [
        ("PA", 100),
        ("left out: 3 of 4 groups", 20),
    ]
    assert rows[1]["patients"] == 10
    for entry in rows[1]["metrics"].values():
        assert entry == {"value": None, "reason": "fewer than 10 images a group"}


@pytest.mark.parametrize("multi_label", [False, True])
def test_tasks_of_several_classes_report_what_they_have(multi_label):
    rng = np.random.default_rng(0)
    labels = rng.random((60, 3)) < 0.5 if multi_label else rng.integers(3, size=60)
    extra = {"view": np.repeat(["PA", "AP"], 30)}
    predictions = make(labels, rng.normal(size=(60, 3)), extra, names=("A", "B", "C"))
    rows = subgroups(predictions, num_resamples=50)
    assert [row["n"] for row in rows] == [30, 30]
    for row in rows:
        assert set(row["metrics"]) == set(SUBGROUP_METRICS)
        assert 0 < row["metrics"]["auroc"]["value"] < 1
        classes = [one["auroc"]["value"] for one in row["classes"].values()]
        assert row["metrics"]["auroc"]["value"] == pytest.approx(np.mean(classes))
        assert all("value" in entry for entry in row["metrics"].values())
    json.dumps(rows, allow_nan=False)


def test_cases_are_confident_mistakes_then_the_least_certain():
    labels = [0, 0, 0, 1, 1, 1, 1, 0]
    a = make(labels, [4.0, -3.0, 0.5, 2.0, -6.0, 0.1, 3.0, -5.0])
    b = make(labels, [5.0, -3.0, -2.0, 0.2, 2.0, 4.0, 3.0, -0.3])
    cases = choose_cases({"a": a, "b": b}, count=6)
    # Wrong: image 0 (a at 4, b at 5), 2 (a at 0.5), 4 (a at -6).
    assert [(case["kind"], case["index"]) for case in cases] == [
        ("confident mistake", 4),
        ("confident mistake", 0),
        ("confident mistake", 2),
        ("least certain", 5),
        ("least certain", 3),
        ("least certain", 7),
    ]
    assert [case["wrong"] for case in cases] == [["a"], ["a", "b"], ["a"], [], [], []]
    first = cases[0]
    assert first["image_id"] == "004.png" and first["truth"] == "PNEUMONIA"
    assert first["probabilities"]["a"]["NORMAL"] == pytest.approx(1 / (1 + np.exp(-6)))
    assert set(first["probabilities"]) == {"a", "b"}
    json.dumps(cases, allow_nan=False)


def test_cases_know_the_threshold_and_saturated_probabilities():
    labels, log_odds = [0, 0, 0, 1, 1], [-2.0, -0.4, 60.0, 50.0, -1.5]
    predictions = make(labels, log_odds, thresholds=(1 / (1 + np.e),))  # decided at log-odds of -1
    cases = choose_cases({"m": predictions}, count=4)
    # p = 1 for both 60 and 50; image 1 is a mistake by its threshold alone, sure of only 0.40.
    # Image 4 is missed with p(NORMAL) = 0.82, so a surer mistake than image 1.
    assert [case["index"] for case in cases] == [2, 4, 1, 0]
    assert [case["kind"] for case in cases] == ["confident mistake"] * 2 + ["least certain"] * 2
    assert [case["wrong"] for case in cases] == [["m"], ["m"], ["m"], []]


def test_ties_are_ordered_by_image_id_and_places_are_filled():
    ids = ["d", "b", "a", "c", "e"]
    predictions = make([0, 0, 0, 1, 1], [2.0, 2.0, -1.0, 1.0, 1.0], ids=ids)
    cases = choose_cases({"m": predictions}, count=12)
    assert [case["image_id"] for case in cases] == ["b", "d", "a", "c", "e"]
    assert choose_cases({"m": predictions}, count=0) == []


def test_cases_of_several_classes():
    predictions = make([0, 1, 2], [[3, 0, 2.9], [0, 0, 4], [0, 1, 3]], names=("A", "B", "C"))
    cases = choose_cases({"m": predictions}, count=2)
    assert [(case["kind"], case["index"]) for case in cases] == [
        ("confident mistake", 1),
        ("least certain", 0),
    ]
    labels = np.array([[True, True, False], [False, False, False], [True, False, True]])
    logits = [[2, -5, -3], [-4, -4, -0.5], [1, -1, 2]]
    thresholds = (0.5, 0.5, 1 / (1 + np.e))
    predictions = make(labels, logits, names=("A", "B", "C"), thresholds=thresholds)
    cases = choose_cases({"m": predictions}, count=3)
    # Image 0 misses B, sure at 5; image 1 finds C at -0.5, past its boundary of -1.
    assert [(case["index"], case["truth"]) for case in cases] == [
        (0, "A|B"),
        (1, "none"),
        (2, "A|C"),
    ]


def test_models_of_different_images_have_no_common_cases():
    a, b = make([0, 1], [1.0, 2.0]), make([0, 1], [1.0, 2.0], ids=["x", "y"])
    with pytest.raises(ValueError, match="a and b have different image_id"):
        choose_cases({"a": a, "b": b})
    with pytest.raises(ValueError, match="have different labels"):
        choose_cases({"a": a, "b": make([1, 1], [1.0, 2.0])})
    with pytest.raises(ValueError, match="0 models and count 12"):
        choose_cases({})
    with pytest.raises(ValueError, match="count -1"):
        choose_cases({"a": a}, count=-1)


CASE = {
    "image_id": "IM-0001-0001.jpeg",
    "truth": "NORMAL",
    "probabilities": {"baseline": {"PNEUMONIA": 0.9}, "densenet121": {"PNEUMONIA": 0.1}},
    "wrong": ["baseline"],
}
TARGETS = {"baseline": "PNEUMONIA", "densenet121": "PNEUMONIA"}


def test_heat_is_drawn_in_the_probabilitys_own_scale(tmp_path):
    image = np.full((120, 100), 128, dtype=np.uint8)
    heat = np.zeros((120, 100))
    heat[:60] = 1
    path = tmp_path / "case.jpg"
    draw_case(image, {"baseline": heat, "densenet121": heat}, CASE, TARGETS, path)
    assert path.stat().st_size < 60_000
    drawn = np.asarray(Image.open(path)).astype(int)
    assert drawn.shape[1] == 3 * 312 + 12
    # Panels of 300 x 360 from (60, 12), 312 apart: a pixel of the hot and of the cold half of each.
    hot, cold = drawn[150, [162, 474, 786]], drawn[330, [162, 474, 786]]
    assert np.abs(cold - 128).max() < 4 and np.abs(hot[0] - 128).max() < 4
    red, pale = (pixel[0] - pixel[2] for pixel in hot[1:])
    assert red > 60 and 5 < pale < 30


def test_a_case_is_written_in_letters_that_its_font_has(tmp_path):
    image, written = np.full((40, 40), 128, dtype=np.uint8), []
    for name, truth in enumerate(("正常", "ZhengChang")):
        path = tmp_path / f"{name}.jpg"
        draw_case(image, {}, CASE | {"truth": truth}, {}, path)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_a_real_sized_case_is_small_and_many_models_wrap(tmp_path):
    rng = np.random.default_rng(0)
    noise = np.asarray(Image.fromarray(rng.random((9, 9)).astype(np.float32)).resize((256, 200)))
    image, heat = (noise * 255).clip(0, 255).astype(np.uint8), noise.clip(0, 1)
    names = [f"densenet121-of-a-very-long-name-indeed-seed-{k}" for k in range(5)]
    case = CASE | {"probabilities": {name: {"A": 0.99999} for name in names}, "wrong": names}
    path = tmp_path / "case.jpg"
    draw_case(image, dict.fromkeys(names, heat), case, dict.fromkeys(names, "A"), path)
    assert Image.open(path).size[0] == 3 * 312 + 12  # six panels in two rows
    draw_case(image, {}, CASE, {}, path)
    assert Image.open(path).size[0] == 312 + 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((4, 4))}, "image is float64"),
        ({"heatmaps": {"baseline": np.zeros((4, 5))}}, "'baseline' is .4, 5."),
        ({"heatmaps": {"baseline": np.full((4, 4), 2.0)}}, "2.0 to 2.0"),
        ({"heatmaps": {"baseline": np.full((4, 4), np.nan)}}, "nan to nan"),
        ({"heatmaps": {"other": np.zeros((4, 4))}}, "no probability of None by the model 'other'"),
        ({"targets": {"baseline": "EDEMA"}}, "no probability of 'EDEMA'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, change, message):
    given = {
        "image": np.zeros((4, 4), dtype=np.uint8),
        "heatmaps": {"baseline": np.zeros((4, 4))},
        "case": CASE,
        "targets": TARGETS,
        "path": tmp_path / "case.jpg",
    }
    with pytest.raises(ValueError, match=message):
        draw_case(**given | change)
    assert not list(tmp_path.iterdir())

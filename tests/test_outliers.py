"""What is no chest X-ray: drawn outliers, the detector, its threshold, its way with the model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image
from sklearn.datasets import load_sample_images

from datasets_scripts.phantom import generate
from modeling import CxrImageProcessor, create_model, load_model
from modeling.image_cxr import CxrImage
from modeling.outlier_cxr import OutlierDetector
from modeling.pipeline_cxr import CxrImageClassificationPipeline
from predict import predict
from recipes.kermany.outliers import flagged_share, flagged_table, read_scores
from training import outliers
from training.half import save_half
from training.outlier_images import DRAWN, draw_outliers

REPO = Path(__file__).parent.parent
CHECKPOINTS = [REPO / "checkpoints" / name for name in ("cxr-densenet121", "cxr-baseline")]


@pytest.fixture(scope="module")
def phantoms():
    """uint16 (300, 64, 64)."""
    return (
        np.stack([generate(index, size=64).image for index in range(300)]).astype(np.uint16) * 257
    )


@pytest.fixture(scope="module")
def fitted(phantoms):
    """A detector of phantoms, and its threshold."""
    processor = CxrImageProcessor(64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outliers, "LEAST_SHOWN", 15)
        return outliers.fit_outlier_detector(phantoms[:200], phantoms[200:250], processor, seed=0)


def test_drawn_outliers_are_varied_and_the_same_for_a_seed(phantoms):
    drawn = draw_outliers(phantoms, 200, seed=1)
    assert drawn.shape == (200, 128, 128) and drawn.dtype == np.uint16
    np.testing.assert_array_equal(drawn[:50], draw_outliers(phantoms, 50, seed=1))
    assert len({image.tobytes() for image in drawn}) == 200
    assert len({image.tobytes() for image in draw_outliers(phantoms, 50, seed=2)[:5]}) == 5


@pytest.mark.parametrize("draw", dict.fromkeys(DRAWN), ids=lambda draw: draw.__name__)
def test_each_kind_of_outlier_is_a_finite_image(draw):
    for seed in range(20):
        image = draw(np.random.default_rng(seed))
        assert image.shape == (128, 128)
        assert np.isfinite(image).all()


@torch.no_grad()
def test_a_detector_passes_its_kind_and_flags_others(fitted, phantoms):
    detector, threshold = fitted
    normalize = CxrImageProcessor(64).normalize
    known = detector(normalize(phantoms[250:]))
    unknown = detector(normalize(draw_outliers(phantoms, 100, seed=9)))
    assert (known > threshold).float().mean() <= 0.04
    assert (unknown > threshold).float().mean() >= 0.8
    brighter = normalize(phantoms[250:]).repeat(1, 3, 1, 1) + 5
    torch.testing.assert_close(detector(brighter) > threshold, known > threshold)


def test_the_threshold_is_a_quantile_of_the_scores_that_the_model_gives(phantoms, monkeypatch):
    monkeypatch.setattr(outliers, "_vary", lambda pixels: pixels.float() / 65535)
    model, processor = create_model("baseline", ["NORMAL", "PNEUMONIA"], 64, hidden_sizes=[8])
    detector, threshold = outliers.fit_outlier_detector(
        phantoms[:200], phantoms[200:250], processor, seed=0
    )
    model.eval().set_outlier_detector(detector, threshold)
    with torch.no_grad():
        scores = model(processor.normalize(phantoms[200:250])).outlier_score
    assert threshold == pytest.approx(scores.quantile(0.99).item(), abs=1e-4)


@pytest.mark.filterwarnings("error")
def test_the_budget_does_not_grow_with_the_set(phantoms, monkeypatch):
    counts = []

    def draw(xrays, count, seed):
        counts.append(count)
        return draw_outliers(xrays, count, seed)

    def progress(steps, **_):
        counts.append(len(steps))
        return steps

    monkeypatch.setattr(outliers, "MAX_XRAYS", 64)
    monkeypatch.setattr(outliers, "MAX_VALIDATION", 8)
    monkeypatch.setattr(outliers, "draw_outliers", draw)
    monkeypatch.setattr(outliers, "tqdm", progress)
    fixed = phantoms.copy()
    fixed.setflags(write=False)  # as a memory map of the cache is
    for train in (fixed[:64], fixed[:250]):
        outliers.fit_outlier_detector(train, fixed[250:], CxrImageProcessor(64), seed=0)
    shown = 64 * outliers.MOST_SHOWN
    assert counts == 2 * [shown * outliers.DRAWN_SHARE, shown / outliers.BATCH_SIZE]


def test_a_refused_image_gets_no_probability_and_the_rest_do(fitted):
    model, processor = create_model("baseline", ["NORMAL", "PNEUMONIA"], 64, hidden_sizes=[8])
    model.eval()
    xray = CxrImage(generate(3, size=200).image.astype(np.uint16) * 257)
    page = CxrImage(np.tile(np.repeat([0, 65535], 20), (200, 5)).astype(np.uint16))
    plain = model.assess([xray, page], processor)
    assert [answer.outlier_score for answer in plain] == [None, None]
    assert all(answer.probabilities for answer in plain)
    model.set_outlier_detector(*fitted)
    known, refused = model.assess([xray, page], processor, method="grad_cam")
    assert known.refusal is None and known.heatmap.shape == (64, 64)
    assert known.probabilities == pytest.approx(plain[0].probabilities)
    assert "not look like a chest X-ray" in refused.refusal
    assert not refused.probabilities and not refused.logits and refused.heatmap is None
    assert not refused.decided and not refused.uncertain
    assert known.outlier_score < fitted[1] < refused.outlier_score
    heat = known.heat(processor, 100, 100)
    assert heat.shape == (100, 100)
    assert heat.max() == pytest.approx(known.probabilities[known.explained], abs=0.02)
    assert (refused.heat(processor, 100, 50) == np.zeros((100, 50))).all()


def test_what_is_refused_costs_no_heatmap(fitted, monkeypatch):
    model, processor = create_model("baseline", ["NORMAL", "PNEUMONIA"], 64, hidden_sizes=[8])
    model.eval().set_outlier_detector(*fitted)
    monkeypatch.setattr(model, "network", None)
    page = CxrImage(np.tile(np.repeat([0, 65535], 20), (200, 5)).astype(np.uint16))
    (refused,) = model.assess([page], processor, method="score_cam")
    assert refused.refusal is not None and refused.heatmap is None
    with pytest.raises(ValueError, match="method is 'magic'"):
        model.assess([page], processor, method="magic")


def test_a_drawing_is_refused_whatever_its_score(fitted, tmp_path):
    model, processor = create_model("baseline", ["NORMAL", "PNEUMONIA"], 64, hidden_sizes=[8])
    model.eval().set_outlier_detector(fitted[0], threshold=1e9)
    noise = np.random.default_rng(0).integers(0, 9, (200, 200))
    page = np.where(generate(3, size=200).image > 80, 60000, 30000)
    for name, pixels in (("drawn", page), ("grainy", page + noise)):
        Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / f"{name}.png")
    # Once through the model, once through predict.py, which keeps small copies alone.
    images = [processor.open(tmp_path / name) for name in ("drawn.png", "grainy.png")]
    rows = [row.answer for row in predict([tmp_path], model, processor)]
    for drawn, grainy in (model.assess(images, processor), rows):
        assert "of exactly one grey" in drawn.refusal and not drawn.probabilities
        assert grainy.refusal is None


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_the_detector_travels_with_the_model(half, fitted, tmp_path, run_python):
    model, processor = create_model("densenet121", ["A", "B"], 64, block_config=[1, 1])
    model.set_outlier_detector(*fitted)
    save_half(model, tmp_path) if half else model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.save(inputs, tmp_path / "input.pt")
    code = f"""
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
print(model(torch.load({str(tmp_path / "input.pt")!r})).outlier_score.tolist())
print(model.config.outlier_threshold)
"""
    printed = run_python(code, env={"HF_HUB_OFFLINE": "1"}, isolated=True)
    scores, threshold = map(json.loads, printed.stdout.splitlines())
    expected = model.eval()(inputs).outlier_score.tolist()
    assert scores == pytest.approx(expected, abs=0.1 if half else 1e-4)
    assert threshold == model.config.outlier_threshold
    tuned, _ = create_model(str(tmp_path), ["A", "B"])
    assert tuned.outlier_detector is None and tuned.config.outlier_threshold is None


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("outlier_threshold", float("nan"), "outlier_threshold is nan"),
        ("age_range", [5, 1], r"age_range is \[5, 1\]"),
        ("age_range", [1], r"age_range is \[1\]"),
    ],
)
def test_a_configuration_refuses_what_makes_no_sense(field, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_model("baseline", ["A", "B"], 64, **{field: value})


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (3, None),
        (None, "does not say how old"),
        (40, "of an adult"),
        (9, "of a child"),
        (0.1, "of a child"),
    ],
)
def test_an_age_the_model_was_not_trained_on_is_said(age, words):
    model, processor = create_model("baseline", ["A", "B"], 64, hidden_sizes=[8], age_range=[1, 5])
    image = CxrImage(np.zeros((64, 64), np.uint16), ("a warning of the reader",), age)
    (answer,) = model.eval().assess([image], processor)
    assert answer.warnings[0] == "a warning of the reader"
    assert len(answer.warnings) == (1 if words is None else 2)
    if words:
        assert words in answer.warnings[1] and "1 to 5 years" in answer.warnings[1]


# --------------------------------------------------------------------------- the models that ship


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_a_shipped_model_refuses_as_many_real_x_rays_as_its_scores_say(folder, cxr_data):
    model, processor = load_model(str(folder))
    stated = read_scores(REPO / "results" / "kermany" / "outliers")
    stated = {row["image"]: row[folder.name] for row in stated if row["xray"] == "1"}
    files = {path.name: path for path in cxr_data.glob("chest_xray/test/*/*")}
    files |= {path.name: path for path in cxr_data.glob("external/*/[NP]*/*")}
    most = {"chest_xray": 0.02, "actualmed": 0.06, "covid_cxnet": 0.1, "openist": 0.06}
    for name, share in most.items():
        chosen = sorted(file for file, path in files.items() if name in path.parts)[::4]
        answers = [model.assess([processor.open(files[file])], processor)[0] for file in chosen]
        assert len(chosen) >= 11
        for file, answer in zip(chosen, answers):
            assert answer.outlier_score == pytest.approx(float(stated[file]), abs=1e-2)
        refused = sum(answer.refusal is not None for answer in answers)
        assert refused <= max(1, share * len(chosen))


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_a_shipped_model_refuses_photographs(folder):
    model, processor = load_model(str(folder))
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        photographs = [*load_sample_images().images, np.asarray(Image.open(file))]
    pieces = [photo[:400, left : left + 400] for photo in photographs for left in (0, 100)]
    for piece in pieces:
        (answer,) = model.assess([processor.open(piece)], processor)
        assert answer.refusal is not None


def test_the_pipeline_and_assess_refuse_the_same_images(fitted, tmp_path):
    model, processor = create_model("baseline", ["NORMAL", "PNEUMONIA"], 64, hidden_sizes=[8])
    model.eval().set_outlier_detector(*fitted)
    xray = generate(3, size=200).image
    pictures = {
        "xray": xray,
        "drawn": np.where(xray > 80, 200, 100).astype(np.uint8),
        "stripes": np.tile(np.repeat([0, 255], 20), (200, 5)).astype(np.uint8),
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    classify = CxrImageClassificationPipeline(model=model, image_processor=processor)
    for batch_size in (1, 3):
        files = [str(tmp_path / f"{name}.png") for name in pictures]
        given = [rows[0]["outlier"] for rows in classify(files, batch_size=batch_size)]
        assert given == [False, True, True]
    answers = model.assess([processor.open(file) for file in files], processor)
    assert [answer.refusal is not None for answer in answers] == given


def test_the_committed_scores_were_made_at_the_shipped_thresholds():
    folder = REPO / "results" / "kermany" / "outliers"
    thresholds = json.loads((folder / "thresholds.json").read_text())
    for checkpoint in CHECKPOINTS:
        config = json.loads((checkpoint / "config.json").read_text())
        assert thresholds[checkpoint.name] == config["outlier_threshold"]


def test_flagged_shares_are_counted_by_set(tmp_path):
    header = ["set", "xray", "image", "cluster", "net"]
    rows = [["a", 1, f"{i}", f"p{i // 2}", "-1.0"] for i in range(8)]
    rows += [["b", 1, "8", "p8", "2.5"], ["b", 1, "9", "p9", "0.1"]]
    rows += [
        ["text", 0, "t", "book", "3.0"],
        ["text", 0, "u", "file", "too small for a chest X-ray"],
    ]
    with open(tmp_path / "scores.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    (tmp_path / "thresholds.json").write_text('{"net": 2.0}')
    cells = {}
    for line in flagged_table(tmp_path).splitlines()[2:]:
        title, count, share = (cell.strip() for cell in line.strip("|").split("|"))
        cells[title] = (count, share.split(" ")[0])
    assert cells["**X-rays, all**"] == ("10", "0.100")
    assert cells["**X-rays, other hospitals**"] == ("10", "0.100")
    assert cells["X-rays: a"] == ("8", "0.000")
    assert cells["X-rays: b"] == ("2", "0.500")
    assert cells["**Other images, all**"] == ("2", "1.000")


def test_where_none_is_flagged_the_interval_is_that_of_the_clusters():
    rows = [{"cluster": f"p{i // 3}", "net": "-1"} for i in range(30)]
    share = flagged_share(rows, "net", 0)
    assert share["value"] == 0 and share["low"] == 0
    assert share["high"] == pytest.approx(1 - 0.025 ** (1 / 10))  # exact, 0 of 10 patients


def test_a_detector_weighs_little():
    assert sum(weight.numel() for weight in OutlierDetector().parameters()) == 61_425

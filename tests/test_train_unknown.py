"""Findings that are unknown of some images, through train.py and validate.py."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import REPO
from PIL import Image
from transformers import Trainer, TrainingArguments

from datasets_scripts import load_cxr_dataset, unknown_sets
from datasets_scripts.phantom import generate
from evaluation.metrics import compute_metrics
from evaluation.predictions import read_predictions, read_predictions_by_model
from modeling import create_model
from train import balanced_weights
from training.arguments import parse_args
from training.data import PixelDataset
from training.inference import to_predictions

COUNTS = {"train": 32, "validation": 24, "test": 24}
NAMES = ["Edema", "Mass", "Nodule"]
RECIPE = [
    *("--model", "baseline", "--model_options", "hidden_sizes=[4,8]", "--image_size", "48"),
    *("--per_device_train_batch_size", "8", "--num_train_epochs", "1"),
    *("--class_weights", "balanced", "--outlier_detector", "none"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV of two sources: a knows Edema and Mass, b Mass and Nodule."""
    folder, rows = tmp_path_factory.mktemp("set"), []
    for split, count in COUNTS.items():
        for k in range(count):
            number, source = len(rows), "ab"[k % 2]
            Image.fromarray(generate(number, size=64).image).save(folder / f"{number}.png")
            first, second = ("Edema", "Mass") if source == "a" else ("Mass", "Nodule")
            found = [first] * (k % 4 < 2) + [second] * (k % 8 < 4)
            rows.append(
                {
                    "file": f"{number}.png",
                    "labels": "|".join(found),
                    "unknown": "Nodule" if source == "a" else "Edema",
                    "patient": f"p{number}",
                    "split": split,
                    "source": source,
                    "sex": "FM"[k // 2 % 2],
                    "age": 30 + number % 50,
                    "view": "PA",
                }
            )
    path = folder / "set.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def run(table, train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = train("--dataset", table, *RECIPE, "--output_dir", folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_an_unknown_cell_is_nan_in_tensors_and_neither_in_predictions(table):
    split = load_cxr_dataset(str(table))["train"]
    pixels = PixelDataset(split, np.zeros((len(split), 8, 8), np.uint16))
    known = np.array([[k not in row for k in range(3)] for row in unknown_sets(split)])
    np.testing.assert_array_equal(np.isnan(pixels.labels), ~known)
    batch = pixels.__getitems__([0, 1])["labels"]
    assert batch[0, 2].isnan() and batch[1, 0].isnan() and batch.isnan().sum() == 2
    predictions = to_predictions(pixels, torch.zeros(len(split), 3), "train")
    np.testing.assert_array_equal(predictions.known, known)
    assert predictions.labels[known].sum() == np.nansum(pixels.labels)


def test_balanced_weights_are_absent_over_present_among_known(table):
    train = load_cxr_dataset(str(table))["train"]
    # Of 16 images of a source, 8 have each finding; Mass is known of both sources' 32.
    assert balanced_weights(train, NAMES) == [1, 1, 1]
    one = train.select([0, 1, 2, 3, 6])  # a: Edema|Mass, none, Mass?; b: Mass|Nodule, none
    counts = {name: [0, 0] for name in NAMES}
    for labels, unknown in zip(one["labels"], one["unknown"]):
        for k, name in enumerate(NAMES):
            if k not in unknown:
                counts[name][k in labels] += 1
    expected = [absent / present for absent, present in counts.values()]
    assert balanced_weights(one, NAMES) == expected and len(set(expected)) > 1


def test_a_run_scores_what_is_known(run):
    predictions = read_predictions(run / "predictions_test.csv")
    assert predictions.known.sum(axis=0).tolist() == [12, 24, 12]
    metrics = json.loads((run / "metrics.json").read_text())
    classes = metrics["test"]["classes"]
    assert [classes[name]["n"] for name in NAMES] == [12, 24, 12]
    raw = metrics["uncalibrated_test"]["classes"]["Edema"]["auroc"]["value"]
    alone = predictions.take(predictions.known[:, 0])
    found = compute_metrics(alone, num_resamples=0)["classes"]["Edema"]["auroc"]["value"]
    assert raw == found
    summary = json.loads((run / "dataset.json").read_text())["splits"]["train"]
    assert summary["known"] == {"Edema": 16, "Mass": 32, "Nodule": 16}
    assert "8 (50.0% of 16 known)" in (run / "README.md").read_text()
    config = json.loads((run / "config.json").read_text())
    assert config["class_weights"] == [1, 1, 1]
    rows = {row["value"]: row["classes"] for row in metrics["subgroups"]}
    assert [rows["b"][name]["n"] for name in NAMES] == [0, 12, 12]
    assert "Test: each class by source" in (run / "README.md").read_text()
    history = (run / "history.csv").read_text()
    assert "nan" not in history.lower()


def test_a_report_breaks_findings_down_by_set_sex_and_age(run, table, run_python, tmp_path):
    flags = ["--model", run, "--dataset", table, "--output_dir", tmp_path / "report"]
    flags += ["--cache_dir", tmp_path, "--skip_heatmaps", "--num_resamples", "50"]
    result = run_python([REPO / "validate.py", *flags], cwd=REPO)
    assert result.returncode == 0, result.stderr
    (predictions,) = read_predictions_by_model(tmp_path / "report/predictions.csv").values()
    assert {"source", "sex", "age", "view"} <= set(predictions.extra)
    np.testing.assert_array_equal(
        predictions.logits, read_predictions(run / "predictions_test.csv").logits
    )
    report = json.loads((tmp_path / "report/metrics.json").read_text())
    assert report["dataset"]["source"] == "a, b"
    (model,) = report["models"].values()
    rows = {(row["column"], row["value"]): row for row in model["subgroups"]}
    assert rows["source", "a"]["classes"]["Nodule"]["n"] == 0
    assert rows["source", "b"]["classes"]["Nodule"]["n"] == 12
    assert ("sex", "F") in rows and ("age", "40 to 59") in rows
    assert rows["sex", "M"]["gap"]["against"] == "F"
    text = (tmp_path / "report/report.md").read_text()
    assert "each class by source, images that have it and AUROC" in text


def test_a_model_of_more_findings_is_scored_on_those_that_the_data_know(
    run_python, table, tmp_path
):
    model, processor = create_model(
        "baseline",
        ["Hernia", *NAMES],
        48,
        problem_type="multi_label_classification",
        hidden_sizes=[4, 8],
    )
    model.save_pretrained(tmp_path / "four")
    processor.save_pretrained(tmp_path / "four")
    flags = ["--model", tmp_path / "four", "--dataset", table, "--output_dir", tmp_path / "report"]
    flags += ["--cache_dir", tmp_path, "--skip_heatmaps", "--num_resamples", "0"]
    result = run_python([REPO / "validate.py", *flags], cwd=REPO)
    assert result.returncode == 0, result.stderr
    (predictions,) = read_predictions_by_model(tmp_path / "report/predictions.csv").values()
    assert predictions.class_names == ("Hernia", *NAMES)
    assert predictions.known.sum(axis=0).tolist() == [0, 12, 24, 12]
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())["models"]["four"][
        "metrics"
    ]
    assert metrics["auroc"]["without"] == ["Hernia"]


def test_the_trainer_of_transformers_learns_from_what_is_known(tmp_path):
    torch.manual_seed(0)
    model, _ = create_model(
        "baseline", NAMES, 48, problem_type="multi_label_classification", hidden_sizes=[4, 8]
    )
    labels = torch.full((8, 3), torch.nan)
    labels[:, 0] = torch.tensor([0.0, 1.0] * 4)
    labels[0] = torch.nan
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(torch.rand(8, 1, 48, 48), labels)]
    arguments = TrainingArguments(
        tmp_path / "run",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        weight_decay=0.0,
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    assert np.isfinite(trainer.train().training_loss)
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    after = trainer.model.state_dict()
    head = next(name for name in after if after[name].shape[:1] == (3,) and name.endswith("weight"))
    changed = (after[head] != before[head]).flatten(1).any(1)
    assert changed.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--dataset", "a"], ("a", None)),
        (["--dataset", "a", "--dataset_path", "x"], ("a", "x")),
        (["--dataset", "a", "b"], (["a", "b"], None)),
        (["--dataset", "a", "b", "--dataset_path", "x", "-"], (["a", "b"], ["x", None])),
    ],
)
def test_one_set_is_named_alone_and_several_are_lists(flags, expected):
    args = parse_args(flags)
    assert (args.dataset, args.dataset_path) == expected


def test_a_yaml_file_may_list_sets(tmp_path):
    (tmp_path / "run.yaml").write_text("dataset: [a, b]\ndataset_options: {a.root: 1, seed: 2}\n")
    args = parse_args(["--config", str(tmp_path / "run.yaml")])
    assert args.dataset == ["a", "b"]
    assert args.dataset_options == {"a.root": 1, "seed": 2}


def test_two_paths_for_one_set_are_refused():
    with pytest.raises(ValueError, match="gives 2 paths for the one set a; give one, or name"):
        parse_args(["--dataset", "a", "--dataset_path", "x", "y"])

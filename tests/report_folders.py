"""Run and report folders with made-up numbers, as `train.py` and `validate.py` lay them out."""

import json

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions, read_predictions, write_predictions

NAMES = ("NORMAL", "PNEUMONIA")
AWKWARD = "a<b & c|d_*e*"
MODELS = ("cxr-densenet121", AWKWARD)
FIGURES = ("roc", "pr_curve", "reliability_cxr-densenet121", "forest_subgroups", "oddity")


def entry(value, half=0.02):
    return {"value": value, "low": value - half, "high": value + half}


def metrics_of(seed, names=NAMES, multi_label=False, n=120):
    rng = np.random.default_rng(seed)
    truth = np.eye(len(names))[np.arange(n) % len(names)]
    labels = truth.argmax(axis=1)
    if multi_label:
        labels = truth = rng.random((n, len(names))) < 0.4
    predictions = Predictions(
        image_id=np.arange(n).astype(str),
        patient_id=(np.arange(n) // 2).astype(str),
        labels=labels,
        logits=rng.normal(size=truth.shape) + 1.5 * truth,
        class_names=tuple(names),
        split="test",
        multi_label=multi_label,
    )
    return compute_metrics(predictions, num_resamples=50)


def content(names=NAMES, multi_label=False, models=MODELS):
    """metrics.json of a report."""
    report = {
        "title": f"Validation on {AWKWARD}",
        "command": "python validate.py --model a b --dataset 'x & <y>' --split test",
        "dataset": {
            "name": "chest_xray",
            "source": "kermany",
            "split": "test",
            "variant": None,
            "n": 120,
            "patients": 60,
            "classes": dict.fromkeys(names, 120 // len(names)),
            "fingerprint": "5f" * 16,
        },
        "models": {},
        "comparisons": [],
        "saliency_comparisons": [],
    }
    for k, name in enumerate(models):
        metrics = metrics_of(k, names, multi_label)
        report["models"][name] = {
            "id": f"org/{name}",
            "weights_sha256": f"{k}a" * 32,
            "num_parameters": 6949634,
            "operation": None,
            "metrics": metrics,
            "uncalibrated": metrics_of(k + 9, names, multi_label),
            "abstention": None,
            "subgroups": [],
            "saliency": None,
        }
    return report


def full_content():
    """A binary report with every section."""
    report = content()
    report["dataset"]["variant"] = "lung box"
    fixed = {
        "sensitivity_at_specificity": {"0.9": entry(0.81)},
        "specificity_at_sensitivity": {"0.95": entry(0.62)},
        "ppv_at_prevalence": {"0.1": entry(0.31)},
        "npv_at_prevalence": {"0.1": {"value": None, "reason": "needs a negative decision"}},
    }
    calibrations = (
        {"method": "temperature", "temperature": 1.5},
        {"method": "platt", "scale": [1.25], "bias": [-0.5]},
    )
    for model, calibration in zip(report["models"].values(), calibrations):
        model["operation"] = {
            "calibration": calibration,
            "thresholds": [0.4235],
            "abstention": [[0.3, 0.6125]],
            "prevalence": [0.257, 0.743],
        }
        model["metrics"] |= fixed
        model["prevalence"] = {
            "true": {"prevalence": [0.5, 0.5], "accuracy": entry(0.876), "ece": entry(0.0654)},
            "em": {"prevalence": [0.41, 0.59], "accuracy": entry(0.8), "ece": entry(0.06)},
            "stated 0.1": {"prevalence": [0.9, 0.1], "accuracy": entry(0.5), "ece": entry(0.3)},
        }
        model["abstention"] = {"coverage": entry(0.912), "accuracy": entry(0.955)}
        groups = [("subtype", "bacteria"), ("original_width", "<= 1,024"), ("subtype", "")]
        model["subgroups"] = [
            {
                "column": column,
                "value": value,
                "n": 40,
                "patients": 33,
                "metrics": {
                    "auroc": {"value": None, "reason": "needs images with and without PNEUMONIA"},
                    "sensitivity": entry(0.9137),
                },
            }
            for column, value in groups
        ]
        model["subgroups"][0]["metrics"]["auroc"] = entry(0.83)
        model["subgroups"][0]["against"] = "all 60 images of NORMAL"
        model["saliency"] = {"energy_in_lungs": entry(0.587), "lung_area": entry(0.31)}
    report["models"][AWKWARD]["uncalibrated"]["log_loss"] = entry(0.1)
    a, b = MODELS
    report["comparisons"] = [
        {
            "a": a,
            "b": b,
            "n": 120,
            "patients": 60,
            "delong": {"difference": 0.031, "low": 0.012, "high": 0.05, "z": 3.2, "p": 0.0014},
            "delong_clustered": {"difference": 0.031, "low": 0.004, "z": 2.3, "p": 0.021},
            "differences": {"sensitivity": entry(0.031), "ece": entry(-0.011)},
        }
    ]
    report["saliency_comparisons"] = [
        {"a": a, "b": b, "energy_in_lungs": entry(0.05), "pointing": entry(0.001)}
    ]
    return report


def make_folder(folder, report, gallery=True, figures=FIGURES):
    (folder / "figures").mkdir(parents=True)
    (folder / "gallery").mkdir()
    (folder / "metrics.json").write_text(json.dumps(report))
    for stem in figures:
        figure = Figure(figsize=(5, 4))
        figure.subplots().plot([0, 1], label=stem)
        for suffix in ("png", "svg"):
            figure.savefig(folder / "figures" / f"{stem}.{suffix}", dpi=60)
    cases = []
    for k, kind in enumerate(["confident mistake", "confident mistake", "least certain"]):
        picture = np.random.default_rng(k).integers(0, 255, (96, 288, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "gallery" / f"case {k}.jpg")
        cases.append(
            {
                "kind": kind,
                "image_id": f"person_{k} & <{'long' * 20}>.jpeg",
                "truth": "NORMAL",
                "probabilities": {
                    MODELS[0]: {"NORMAL": 0.018, "PNEUMONIA": 0.982},
                    AWKWARD: {"NORMAL": 0.00001, "PNEUMONIA": 0.99999},
                },
                "wrong": list(MODELS[:1]),
                "images": [f"gallery/case {k}.jpg"],
            }
        )
    if gallery:
        (folder / "gallery.json").write_text(json.dumps(cases))
    return folder


def make_run(run, names=NAMES, multi_label=False, source="kermany", dataset="Kermany 2018"):
    (run / "figures").mkdir(parents=True)
    (run / "figures" / "roc.png").write_bytes(b"")
    rng = np.random.default_rng(0)
    metrics = {"best_epoch": 4, "train_seconds": 905.4, "num_parameters": 1234567, "device": "cpu"}
    splits = {}
    for split, n in (("validation", 80), ("test", 120)):
        labels = rng.integers(len(names), size=n)
        truth = np.eye(len(names))[labels]
        if multi_label:
            labels = truth = rng.random((n, len(names))) < 0.4
        logits = rng.normal(size=truth.shape) + truth
        path = run / f"predictions_{split}.csv"
        patients = rng.integers(n // 2, size=n)
        write_predictions(path, range(n), patients, labels, logits, names, split, multi_label)
        metrics[split] = compute_metrics(read_predictions(path), num_resamples=100)
        classes = dict(zip(names, truth.sum(axis=0).astype(int).tolist()))
        splits[split] = {"images": n, "unique_images": n - 1, "patients": 33, "classes": classes}
    files = {
        "metrics": metrics,
        "dataset": {"source": source, "name": dataset, "splits": splits},
        "config": {
            "model_type": "cxr-densenet",
            "image_size": 128,
            "num_channels": 1,
            "id2label": {str(k): name for k, name in enumerate(names)},
        },
        "training_args": {"model": "densenet121", "learning_rate": 0.0005, "note": "a|b"},
    }
    for name, content in files.items():
        (run / f"{name}.json").write_text(json.dumps(content))
    return files

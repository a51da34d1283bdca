"""A report folder from its predictions: metrics.json, figures, report.html and report.md.

Nothing here needs a model or an image, so that anyone can score the files again.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluation.bootstrap import interval, resample_weights
from evaluation.calibration import (
    NO_OPERATION,
    abstained,
    adjust_prevalence,
    apply_operation,
    estimate_prevalence,
)
from evaluation.compare import align, compare_bootstraps
from evaluation.curves import curve_bands
from evaluation.figures import (
    plot_confusion_matrix,
    plot_decision_curve,
    plot_forest,
    plot_pr,
    plot_reliability,
    plot_roc,
    plot_scores,
    plot_threshold_sweep,
)
from evaluation.metrics import Bootstrap, bootstrap_statistics, compute_metrics, metrics_of
from evaluation.pages.report import write_report
from evaluation.predictions import Predictions, read_predictions_by_model, write_text
from evaluation.saliency import compare_saliency, read_saliency, summarize_saliency
from evaluation.subgroups import subgroups
from evaluation.table import read_json


def score_report(folder: str | Path, num_resamples: int = 2000, seed: int = 0) -> dict:
    """Compute everything in a report folder from its predictions.csv.

    Read are predictions.csv and context.json, which says what was validated and holds each model's
    operation, and saliency.csv where it is there.

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: a file that is damaged or does not fit the others.
        OSError: a file is missing or cannot be written.
    """
    folder = Path(folder)
    context = read_json(folder / "context.json", ("title", "command", "dataset", "models"))
    raw = read_predictions_by_model(folder / "predictions.csv")
    first = next(iter(raw.values()))
    if not first.known.any():
        raise ValueError(
            f"{folder / 'predictions.csv'} knows of no image whether it has a class; metrics need "
            "labels."
        )
    raw = {name: align(first, predictions) for name, predictions in raw.items()}
    rows = None
    if (folder / "saliency.csv").is_file():
        rows = read_saliency(folder / "saliency.csv")
    stages = {}
    if (folder / "randomization.json").is_file():
        stages = read_json(folder / "randomization.json", (), "validate.py")
    _check_names(list(raw), context["models"], {row["model"] for row in rows or []} | set(stages))
    operations = {name: context["models"][name]["operation"] or NO_OPERATION for name in raw}
    operated = {name: apply_operation(part, operations[name]) for name, part in raw.items()}
    bootstraps = {
        name: bootstrap_statistics(predictions, num_resamples, seed)
        for name, predictions in operated.items()
    }
    report = {**context, "num_resamples": num_resamples, "seed": seed, "models": {}}
    for name, predictions in operated.items():
        operation = operations[name]
        report["models"][name] = {
            **context["models"][name],
            "metrics": metrics_of(bootstraps[name]),
            "uncalibrated": _uncalibrated(raw[name], operation, bootstraps[name]),
            "prevalence": _under_prevalences(
                predictions, operation, context.get("prevalence"), num_resamples, seed
            ),
            "abstention": _abstaining(predictions, operation, num_resamples, seed),
            "subgroups": subgroups(predictions, num_resamples=num_resamples, seed=seed),
            "saliency": None,
        }
    names = list(operated)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    report["comparisons"] = [
        {"a": a, "b": b, **compare_bootstraps(bootstraps[a], bootstraps[b])} for a, b in pairs
    ]
    report["saliency_comparisons"] = []
    if rows is not None:
        for name, measures in summarize_saliency(rows, num_resamples, seed).items():
            report["models"][name]["saliency"] = measures
        report["saliency_comparisons"] = [
            {"a": a, "b": b, **compare_saliency(rows, a, b, num_resamples, seed)}
            for a, b in pairs
            if report["models"][a]["saliency"] and report["models"][b]["saliency"]
        ]
    for name, entries in stages.items():
        report["models"][name]["randomization"] = entries
    write_text(folder / "metrics.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    _draw(folder / "figures", operated, report)
    write_report(folder)
    return report


def _uncalibrated(raw: Predictions, operation: dict, operated: Bootstrap) -> dict:
    """Metrics of the raw logits, which are at hand where nothing was fitted."""
    if operation["calibration"] is operation["thresholds"] is None:
        return metrics_of(operated)
    return compute_metrics(raw, operated.num_resamples, operated.seed)


def _check_names(names: list[str], described: dict[str, dict], looked_at: set[str]) -> None:
    """Refuses files of a report folder that do not speak of the same models."""
    for name in names:
        if name not in described:
            raise ValueError(f"predictions.csv has the model {name!r}, context.json has not.")
        if "/" in name:
            raise ValueError(f"the model name {name!r} cannot name a figure; leave out the slash.")
    if looked_at - set(names):
        other = sorted(looked_at - set(names))[0]
        raise ValueError(f"heatmaps were measured for {other!r}, which predictions.csv lacks.")


def bare_context(predictions_csv: Path, command: str) -> dict:
    """The context of a predictions file that comes alone: nothing is known but its content."""
    models = read_predictions_by_model(predictions_csv)
    first = next(iter(models.values()))
    return {
        "title": f"Scores of {predictions_csv.name}",
        "command": command,
        "dataset": describe_predictions(first, predictions_csv.name),
        "models": {
            name: {"id": name, "weights_sha256": None, "num_parameters": None, "operation": None}
            for name in models
        },
    }


def describe_predictions(predictions: Predictions, name: str) -> dict:
    """The `dataset` entry of context.json, as far as predictions tell.

    Where some are unknown, `known` has the number of images for which each class is not.
    """
    names, known = predictions.class_names, predictions.known.sum(axis=0)
    told = (
        {"known": dict(zip(names, known.tolist()))}
        if (known < len(predictions.known)).any()
        else {}
    )
    return {
        "name": name,
        "source": "unknown",
        "split": predictions.split,
        "variant": None,
        "n": len(predictions.labels),
        "patients": len(np.unique(predictions.patient_id)),
        "classes": dict(zip(names, predictions.truth.sum(axis=0).tolist())),
        **told,
        "fingerprint": "unknown",
    }


def _under_prevalences(
    predictions: Predictions,
    operation: dict,
    stated: float | None,
    num_resamples: int,
    seed: int,
) -> dict[str, dict] | None:
    """Accuracy and ECE at p = 0.5 as calibrated, and corrected to other prevalences."""
    if predictions.multi_label or operation["prevalence"] is None:
        return None
    old = operation["prevalence"]
    counts = np.bincount(predictions.labels, minlength=len(predictions.class_names))
    shares = {"validation": old, "em": estimate_prevalence(predictions, old).tolist()}
    if counts.min() > 0:
        shares["true"] = (counts / counts.sum()).tolist()
    if stated is not None:
        shares[f"stated {stated:g}"] = [1 - stated, stated]
    found = {}
    for name, new in shares.items():
        adjusted = replace(adjust_prevalence(predictions, old, new), thresholds=None)
        metrics = compute_metrics(adjusted, num_resamples, seed)
        found[name] = {"prevalence": new}
        found[name] |= {key: metrics[key] for key in ("accuracy", "ece") if key in metrics}
    return found


def _abstaining(
    predictions: Predictions, operation: dict, num_resamples: int, seed: int
) -> dict[str, dict] | None:
    """Coverage, and metrics over the images outside the abstention band; binary tasks."""
    if operation["abstention"] is None or predictions.multi_label:
        return None
    kept = ~abstained(predictions, operation)
    weights = np.concatenate(
        list(resample_weights(predictions.patient_id, num_resamples, seed))
        or [np.empty((0, len(kept)))]
    )
    coverage = weights @ kept / weights.sum(axis=1)
    patients = len(np.unique(predictions.patient_id))
    share = float(kept.mean())
    found = {"coverage": {"value": share, **interval(share, coverage, patients, "logit")}}
    if not kept.any():
        return found
    metrics = compute_metrics(predictions.take(kept), num_resamples, seed)
    return found | {key: metrics[key] for key in ("accuracy", "sensitivity", "specificity")}


def _draw(folder: Path, models: dict[str, Predictions], report: dict) -> None:
    folder.mkdir(exist_ok=True)
    metrics = {name: model["metrics"] for name, model in report["models"].items()}
    bands = {
        name: curve_bands(predictions, report["num_resamples"], report["seed"])
        for name, predictions in models.items()
    }
    plot_roc(models, metrics, folder / "roc.png", bands)
    plot_pr(models, metrics, folder / "pr.png", bands)
    plot_reliability(models, metrics, folder / "reliability.png")
    plot_decision_curve(models, folder / "decision_curve.png")
    for name, predictions in models.items():
        plot_confusion_matrix(predictions, folder / f"confusion_matrix_{name}.png")
        plot_scores(predictions, folder / f"scores_{name}.png")
        if predictions.multi_label or len(predictions.class_names) == 2:
            plot_threshold_sweep(predictions, folder / f"threshold_sweep_{name}.png")
        rows = [
            (f"{group['column']}: {group['value']}", group["metrics"]["auroc"], group["n"])
            for group in report["models"][name]["subgroups"]
            if "auroc" in group["metrics"]
        ]
        if rows:
            whole = report["models"][name]["metrics"]
            rows = [("all images", whole["auroc"], whole["n"]), *rows]
            plot_forest(rows, folder / f"forest_{name}.png", f"{name}: subgroups", "AUROC")
        stages = report["models"][name].get("randomization", [])
        rows = [(f"down to {stage['layers']}", stage, stage["n"]) for stage in stages]
        if rows:
            path = folder / f"saliency_randomisation_{name}.png"
            plot_forest(rows, path, f"{name}: heatmaps after randomisation", "Rank correlation")

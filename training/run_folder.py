"""What a run leaves behind: the model repository."""

import csv
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from evaluation.calibration import apply_operation, fit_operation
from evaluation.curves import curve_bands
from evaluation.figures import plot_confusion_matrix, plot_roc, plot_training_curves
from evaluation.metrics import compute_metrics
from evaluation.pages.model_card import write_model_card
from evaluation.predictions import read_predictions, write_predictions
from evaluation.subgroups import subgroups
from modeling import CxrImageProcessor
from modeling.modeling_cxr import CxrClassifier
from training.arguments import recipe
from training.data import PixelDataset
from training.half import save_half


def write_run(
    folder: Path,
    model: CxrClassifier,
    processor: CxrImageProcessor,
    splits: dict[str, PixelDataset],
    logits: dict[str, torch.Tensor],
    progress: dict,
    args: Namespace,
    dataset: dict,
    device: str,
) -> dict:
    """Writes model, code, predictions, metrics, figures and card.

    Calibration, threshold and abstention band are fitted on the split "operation", or on
    validation where there is none, and saved in the configuration; the metrics of every split are
    at that operating point. Where images come from several sources, the predictions say which, and
    the metrics of the last split are also told a source.

    Args:
        folder: to make and fill.
        model: with its final weights; its configuration gets the operating point.
        processor: the model's.
        splits: the images of each name in `logits`.
        logits: float32 (N, K) of "validation", perhaps "operation" (validation images altered), and
            "test" unless the run skipped it.
        progress: `best_epoch`, `seconds` and `history` of the loop.
        args: of train.py.
        dataset: the summary of `training.data.summarize`.
        device: what the run was trained on, for the card.

    Returns:
        What metrics.json holds.

    Raises:
        OSError: a file cannot be written.
    """
    (folder / "figures").mkdir(parents=True)
    read = {}
    for name in logits:
        split, path = splits[name], folder / f"predictions_{name}.csv"
        write_predictions(
            path,
            split.image_ids,
            split.patient_ids,
            split.labels,
            logits[name].numpy(),
            split.class_names,
            name,
            split.multi_label,
            {"source": split.sources} if len(np.unique(split.sources)) > 1 else {},
        )
        read[name] = read_predictions(path)
    fitted_on = "operation" if "operation" in read else "validation"
    operation = fit_operation(
        read[fitted_on], args.threshold_rule, args.target_sensitivity, args.abstain_share
    )
    model.config.set_operation(operation)
    save_half(model, folder) if args.half else model.save_pretrained(folder)
    processor.save_pretrained(folder)
    metrics = {
        "best_epoch": progress["best_epoch"],
        "train_seconds": progress["seconds"],
        "num_parameters": sum(weight.numel() for weight in model.network.parameters()),
        "device": device,
    }
    operated = {name: apply_operation(raw, operation) for name, raw in read.items()}
    for name, raw in read.items():
        metrics[name] = compute_metrics(operated[name], seed=args.seed)
        metrics[f"uncalibrated_{name}"] = compute_metrics(raw, seed=args.seed)
    last = "test" if "test" in operated else "validation"
    shown = operated[last]
    if "source" in shown.extra:
        metrics["subgroups"] = subgroups(shown, ["source"], seed=args.seed)
    figures, title = folder / "figures", Path(args.output_dir).resolve().name
    plot_confusion_matrix(shown, figures / "confusion_matrix.png")
    bands = {title: curve_bands(shown, seed=args.seed)}
    plot_roc({title: shown}, {title: metrics[last]}, figures / "roc.png", bands)
    with open(folder / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, progress["history"][0])
        writer.writeheader()
        writer.writerows(progress["history"])
    plot_training_curves({title: folder / "history.csv"}, figures / "training_curves.png")
    contents = {"metrics": metrics, "training_args": recipe(args), "dataset": dataset}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    write_model_card(folder, args.hub_model_id or title)
    return metrics

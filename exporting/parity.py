"""Whether an exported model is still the same: both on the same images."""

from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from evaluation.bootstrap import mean_entries
from evaluation.compare import compare_bootstraps
from evaluation.metrics import bootstrap_statistics, metrics_of
from evaluation.predictions import Predictions
from modeling.calibration_cxr import decide
from modeling.exported_cxr import ExportedClassifier
from modeling.image_processing_cxr import CxrImageProcessor
from modeling.modeling_cxr import CxrClassifier

REFUSED = -2  # beside the classes and -1, what a model decides that does not know the image
Outputs = dict[str, np.ndarray]


@torch.no_grad()
def run_both(
    model: CxrClassifier,
    exported: ExportedClassifier,
    processor: CxrImageProcessor,
    pixels: np.ndarray,
    batch_size: int,
) -> tuple[Outputs, Outputs]:
    """What the model and its export answer.

    Args:
        model: in evaluation mode, on the CPU.
        exported: the same, exported.
        processor: the model's.
        pixels: uint16 (N, H, W), as `processor.prepare` gives them.
        batch_size: images at a time.

    Returns:
        Of each `logits` and `probabilities`, float32 (N, K), and `outlier_score`, float32 (N,),
        where there is one. The export's have `heatmap_difference`, float32 (N,), too, the largest
        between its heatmaps of the class that the model predicts and the model's own, where it has
        any.
    """
    rows: tuple[list, list] = ([], [])
    for start in tqdm(range(0, len(pixels), batch_size), desc="compare", unit="batch"):
        pixel_values = processor.normalize(np.array(pixels[start : start + batch_size]))
        found = exported.run(pixel_values.numpy())
        heatmaps = found.pop("heatmap", None)
        output = model(pixel_values) if heatmaps is None else model.explain(pixel_values)
        own = {name: output[name].numpy() for name in found}
        if heatmaps is not None:
            explained = heatmaps[np.arange(len(heatmaps)), own["logits"].argmax(1)]
            difference = np.abs(explained - output.heatmaps.numpy())
            found["heatmap_difference"] = difference.max((1, 2))
        rows[0].append(own)
        rows[1].append(found)
    own, found = ({k: np.concatenate([row[k] for row in part]) for k in part[0]} for part in rows)
    return own, found


def compare(
    predictions: Predictions,
    own: Outputs,
    found: Outputs,
    config: dict,
    num_resamples: int,
    seed: int,
) -> dict:
    """The differences between a model and its export, ready for JSON.

    Args:
        predictions: the model's, with its logits.
        own: see `run_both`.
        found: the export's.
        config: the fields of the model's config.json.
        num_resamples: of the patients; 0 leaves intervals out.
        seed: of the resamples.

    Returns:
        `largest_difference`: of logits, probabilities, outlier scores and heatmaps. `auroc`: of the
        `model`, of the `export`, and their `difference`, export less model, each with its interval.
        `changed`: the share of decisions that are other ones, of several labels one a label, and
        its interval; abstaining and refusing are decisions.
    """
    largest = {name: float(np.abs(own[name] - found[name]).max()) for name in own}
    if "heatmap_difference" in found:
        largest["heatmap"] = float(found["heatmap_difference"].max())
    exported = replace(predictions, logits=found["logits"].astype(np.float64))
    of_export, of_model = (
        bootstrap_statistics(one, num_resamples, seed, micro=False)
        for one in (exported, predictions)
    )
    changed = _decisions(own, config) != _decisions(found, config)
    changed = changed.reshape(len(changed), -1).mean(1, keepdims=True)
    (share,) = mean_entries(changed, predictions.patient_id, num_resamples, seed)
    return {
        "images": len(changed),
        "patients": len(np.unique(predictions.patient_id)),
        "largest_difference": largest,
        "auroc": {
            "model": metrics_of(of_model)["auroc"],
            "export": metrics_of(of_export)["auroc"],
            "difference": compare_bootstraps(of_export, of_model)["differences"]["auroc"],
        },
        "changed": share,
    }


def _decisions(outputs: Outputs, config: dict) -> np.ndarray:
    """int64 (N,), or (N, K) of several labels: see `calibration_cxr.decide`, and `REFUSED`."""
    multi_label = config.get("problem_type") == "multi_label_classification"
    thresholds, abstention = config.get("thresholds"), config.get("abstention")
    decisions = decide(outputs["probabilities"], thresholds, abstention, multi_label)
    if "outlier_score" in outputs:
        decisions[outputs["outlier_score"] > config["outlier_threshold"]] = REFUSED
    return decisions


def refuse_loss(
    parity: dict, max_logit_difference: float | None, max_auroc_drop: float, max_changed: float
) -> None:
    """Refuses an export that is another model.

    Args:
        parity: see `compare`.
        max_logit_difference: None for any, as of int8.
        max_auroc_drop: of the model's AUROC less the export's.
        max_changed: share of the decisions.

    Raises:
        ValueError: one of them is passed, or an output is no number, or there is no AUROC.
    """
    largest = parity["largest_difference"]
    broken = [name for name, value in largest.items() if not np.isfinite(value)]
    if broken:
        raise ValueError(f"the export answers {broken[0]} that are no numbers.")
    if max_logit_difference is not None and largest["logits"] > max_logit_difference:
        raise ValueError(
            f"the export's logits differ from the model's by up to {largest['logits']:.2g}; the "
            f"limit is --max_logit_difference {max_logit_difference:g}."
        )
    difference = parity["auroc"]["difference"]
    if difference["value"] is None:
        raise ValueError(
            f"AUROC cannot be compared on these images ({difference['reason']}); give others."
        )
    lost, changed = -difference["value"], parity["changed"]["value"]
    if lost > max_auroc_drop or changed > max_changed:
        raise ValueError(
            f"the export loses {max(lost, 0):.4f} of AUROC and changes {changed:.1%} of the "
            f"decisions; the limits are --max_auroc_drop {max_auroc_drop:g} and --max_changed "
            f"{max_changed:g}."
        )

"""`compute_metrics` as a module of the Hugging Face library `evaluate`; works offline."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions

DESCRIPTION = """\
Classification metrics for chest X-rays (AUROC, AUPRC, accuracy, sensitivity, specificity, PPV, NPV,
F1, Matthews correlation, Brier score, calibration error, log loss), each with a 95 % interval from
a bootstrap over patients."""

INPUTS = """
Args:
    predictions: logits, not probabilities (which round to 0 and 1): a list of floats an image, one
        a class; for two classes, also the one logit of class 1.
    references: the class index of each image; with the configuration "multilabel", 0 or 1 a class,
        NaN or None where it is unknown.
    patient_ids: the patient of each image (str); where unknown, a different one an image.
    class_names: the classes' names in the order of the logits; "0", "1", ... by default.
    thresholds: operating point on the probability: [of class 1] for two classes, one a class for
        "multilabel"; the larger probability, or 0.5, by default.
    split: a name to carry into the result.
    num_resamples, seed, specificities, sensitivities, prevalences: as in
        `evaluation.metrics.compute_metrics`.

Returns:
    the dictionary of `evaluation.metrics.compute_metrics`.

Raises:
    ValueError: what `Predictions` and `compute_metrics` refuse.

Example:
    >>> metric = evaluate.load("evaluation/cxr_metrics")
    >>> result = metric.compute(
    ...     predictions=[[2.0, -1.0], [0.5, 0.2], [-1.0, 1.5], [-0.5, 0.1]],
    ...     references=[0, 0, 1, 1],
    ...     patient_ids=["a", "a", "b", "c"],
    ... )
    >>> result["auroc"]["value"]
    1.0
"""


class CXRMetrics(evaluate.Metric):
    """Configurations: "default" (one class an image) and "multilabel"."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", "multilabel"):
            raise ValueError(
                f"{self.config_name!r} is no configuration of cxr_metrics; "
                "take 'default' or 'multilabel'."
            )
        multi_label = self.config_name == "multilabel"
        label = datasets.Value("float64" if multi_label else "int64")  # NaN is a float
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.List(label) if multi_label else label,
                    "patient_ids": datasets.Value("string"),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[int] | list[list[float | None]],
        patient_ids: list[str],
        class_names: Sequence[str] | None = None,
        thresholds: Sequence[float] | None = None,
        split: str = "test",
        **options: int | Sequence[float],
    ) -> dict:
        logits = _table(predictions, "predictions")
        multi_label = self.config_name == "multilabel"
        if logits.shape[1] == 1 and not multi_label:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        labels = _table(references, "references") if multi_label else np.array(references)
        unknown = np.isnan(labels) if multi_label else None
        if multi_label and not np.isin(labels[~unknown], (0, 1)).all():
            raise ValueError("multilabel references must all be 0, 1, or NaN for unknown.")
        names = class_names or [str(k) for k in range(logits.shape[1])]
        table = Predictions(
            image_id=np.arange(len(logits)).astype(str),
            patient_id=np.array(patient_ids, dtype=str),
            labels=labels == 1 if multi_label else labels.astype(np.int64),
            logits=logits,
            class_names=tuple(names),
            split=split,
            multi_label=multi_label,
            thresholds=None if thresholds is None else tuple(thresholds),
            unknown=unknown,
        )
        return compute_metrics(table, **options)


def _table(rows: list[list[float | None]], name: str) -> np.ndarray:
    """float64 (N, K), NaN for None."""
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ValueError(f"{name} have rows of {lengths} numbers; give one a class in each.")
    return np.array(rows, dtype=np.float64)

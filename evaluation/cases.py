"""The cases that a reader should look at: confident mistakes, and the least certain."""

import math
from collections.abc import Mapping

import numpy as np

from evaluation.predictions import Predictions


def choose_cases(models: Mapping[str, Predictions], count: int = 12) -> list[dict]:
    """The cases to look at: half of them confident mistakes, the others the least certain.

    - "confident mistake": a wrong decision of any model, ordered by the probability, in log-odds,
      that the model gives to what it decided.
    - "least certain": the images nearest to a decision's boundary in any model, in log-odds: to the
      threshold, or between the two leading classes of more than two.

    No image is chosen twice; with few mistakes, least certain cases fill the places. Equal cases
    are ordered by image id.

    Args:
        models: name -> predictions, of the same images in the same order.
        count: cases in all, 0 or more; fewer where the images are fewer.

    Returns:
        A dict a case: `kind`, `index` (row of the image), `image_id`, `truth` (class names joined
        by "|", or "none", and those unknown), `probabilities` {model: {class: p}} and `wrong` (the
        models that err).

    Raises:
        ValueError: no model, a negative count, or models of different images, labels or classes.
    """
    if not models or count < 0:
        raise ValueError(f"{len(models)} models and count {count}; give a model and 0 or more.")
    name, first = next(iter(models.items()))
    for other, predictions in models.items():
        for field in ("image_id", "labels", "class_names"):
            if not np.array_equal(getattr(first, field), getattr(predictions, field)):
                raise ValueError(
                    f"{name} and {other} have different {field}; cases are chosen among the same "
                    "images, in the same order, with the same labels."
                )
    parts = [_certainty(predictions) for predictions in models.values()]
    # Of each model and image, (M, N): how sure of a mistake, -inf where there is none.
    mistaken = np.stack([np.where(wrong, sure, -np.inf).max(axis=1) for sure, _, wrong in parts])
    distance = np.stack([distance.min(axis=1) for _, distance, _ in parts]).min(axis=0)
    erring = mistaken > -np.inf
    mistakes = np.lexsort((first.image_id, -mistaken.max(axis=0)))
    mistakes = mistakes[: min(erring.any(axis=0).sum(), math.ceil(count / 2))]
    uncertain = np.lexsort((first.image_id, distance))
    uncertain = uncertain[~np.isin(uncertain, mistakes)][: count - len(mistakes)]
    chosen = [("confident mistake", i) for i in mistakes] + [
        ("least certain", i) for i in uncertain
    ]
    probabilities = {name: predictions.probabilities for name, predictions in models.items()}
    return [
        {
            "kind": kind,
            "index": int(i),
            "image_id": str(first.image_id[i]),
            "truth": _truth(first, i),
            "probabilities": {
                name: dict(zip(first.class_names, p[i].tolist()))
                for name, p in probabilities.items()
            },
            "wrong": [name for name, errs in zip(models, erring[:, i]) if errs],
        }
        for kind, i in chosen
    ]


def _certainty(predictions: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How sure a model is of its decisions, how near their boundary it is, and whether it errs.

    Each (N, D), for the D decisions on an image (K if multi-label, else 1): the log-odds of what
    was decided, its distance from the boundary in log-odds, and bool, whether it is wrong. Where a
    finding is unknown, the distance is infinite, and nothing is wrong.
    """
    log_odds, decided = predictions.log_odds, predictions.decisions
    with np.errstate(divide="ignore"):
        thresholds = np.array(predictions.thresholds or (0.5,))
        boundary = np.log(thresholds) - np.log1p(-thresholds)
    if predictions.multi_label:
        confidence = np.where(decided, log_odds, -log_odds)
        distance = np.where(predictions.known, np.abs(log_odds - boundary), np.inf)
        return confidence, distance, (decided != predictions.labels) & predictions.known
    confidence = np.take_along_axis(log_odds, decided[:, None], axis=1)
    wrong = (decided != predictions.labels)[:, None]
    if len(predictions.class_names) == 2:
        return confidence, np.abs(log_odds[:, 1:] - boundary), wrong
    ordered = np.sort(predictions.logits, axis=1)
    return confidence, ordered[:, -1:] - ordered[:, -2:-1], wrong


def _truth(predictions: Predictions, index: int) -> str:
    if not predictions.multi_label:
        return predictions.class_names[predictions.labels[index]]
    present, unknown = (
        "|".join(np.array(predictions.class_names)[row])
        for row in (predictions.labels[index], ~predictions.known[index])
    )
    return (present or "none") + (f" (unknown: {unknown})" if unknown else "")

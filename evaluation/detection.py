"""Boxes against boxes: what a detector found, what is there, and the field's scores of both.

What was found and what is there go to a CSV file; every score and interval is computed from that
file alone.
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torchmetrics.detection import MeanAveragePrecision

from evaluation.bootstrap import interval, mean_entries, resample_weights
from evaluation.predictions import write_text

COLUMNS = ("image_id", "patient_id", "kind", "label", "score", "left", "top", "right", "bottom")
KINDS = ("image", "true", "found")  # a row an image, a row a box

COCO_IOUS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
VINDR_IOU = 0.4
RSNA_IOUS = tuple(round(0.4 + 0.05 * k, 2) for k in range(8))
RECALLS = np.linspace(0, 1, 101)  # where COCO reads a curve of precision
FROC_IOU = 0.4
FROC_RATES = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2, "1": 1.0, "2": 2.0, "4": 4.0, "8": 8.0}
WANG_OVERLAPS = tuple(round(0.1 * k, 1) for k in range(1, 10))
AP = {"ap": COCO_IOUS, "ap50": (0.5,), "ap40": (VINDR_IOU,)}
HEAT_THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))


class BoxedImage(NamedTuple):
    """What is boxed in an image, and what was found in it.

    Boxes are left, top, right, bottom, in pixels of any frame that both share.

    Attributes:
        image_id: unique.
        patient_id: whose it is.
        true_boxes: float64 (n, 4).
        true_labels: str (n,), the class of each.
        boxes: float64 (m, 4).
        scores: float64 (m,), higher where it is surer.
        labels: str (m,).
    """

    image_id: str
    patient_id: str
    true_boxes: np.ndarray
    true_labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


# ------------------------------------------------------------------------------------------ overlap


def overlaps(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU, and the share of the found box that lies in the true one (IoBB, Wang et al. 2017).

    Args:
        found: float (m, 4), left, top, right, bottom.
        true: float (n, 4).

    Returns:
        Two float64 (m, n) in [0, 1].

    Raises:
        ValueError: a box without area, or with a corner that is no finite number.
    """
    areas = []
    for boxes in (found, true):
        sides = boxes[:, 2:] - boxes[:, :2]
        if not (np.isfinite(boxes).all() and (sides > 0).all()):
            odd = boxes[~(np.isfinite(boxes).all(1) & (sides > 0).all(1))][0]
            raise ValueError(
                f"the box {odd.tolist()} has no area; give left, top, right and bottom, with right "
                "beyond left and bottom beyond top."
            )
        areas.append(sides.prod(1))
    corner = np.maximum(found[:, None, :2], true[None, :, :2])
    opposite = np.minimum(found[:, None, 2:], true[None, :, 2:])
    both = (opposite - corner).clip(0).prod(2)
    return both / (areas[0][:, None] + areas[1] - both), both / areas[0][:, None]


def match(iou: np.ndarray, threshold: float) -> np.ndarray:
    """Which found boxes are hits: each true box counts once, for the best-scored box that fits it.

    As COCO matches: boxes are taken by falling score, each with the true box of largest IoU that is
    not taken yet.

    Args:
        iou: float (m, n), the found boxes by falling score.
        threshold: the least IoU.

    Returns:
        bool (m,).
    """
    hits, free = np.zeros(len(iou), bool), np.ones(iou.shape[1], bool)
    for row, values in enumerate(iou):
        values = np.where(free, values, -1.0)
        if values.size and values.max() >= threshold:
            free[values.argmax()] = False
            hits[row] = True
    return hits


def _beyond(threshold: float) -> float:
    """For rules that ask for more than a threshold, where `match` takes the threshold, too."""
    return math.nextafter(threshold, math.inf)


class _Matches(NamedTuple):
    """The found boxes of one class at one IoU, of all images, by falling score."""

    rows: np.ndarray  # int64 (M,), of the images
    scores: np.ndarray  # float64 (M,)
    hits: np.ndarray  # bool (M,)
    counts: np.ndarray  # int64 (N,), true boxes of the class in each image


def _match_all(images: Sequence[BoxedImage], label: str, threshold: float) -> _Matches:
    rows, scores, hits = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, bool)]
    for row, image in enumerate(images):
        order = np.argsort(-image.scores, kind="stable")
        order = order[image.labels[order] == label]
        true = image.true_boxes[image.true_labels == label]
        hits.append(match(overlaps(image.boxes[order], true)[0], threshold))
        scores.append(image.scores[order])
        rows.append(np.full(len(order), row))
    row, score, hit = (np.concatenate(part) for part in (rows, scores, hits))
    order = np.argsort(-score, kind="stable")
    counts = np.array([(image.true_labels == label).sum() for image in images])
    return _Matches(row[order], score[order], hit[order], counts)


# -------------------------------------------------------------------------------- average precision


def average_precision(images: Sequence[BoxedImage]) -> dict[str, dict[str, float]]:
    """COCO's average precision of each class that has a true box, by torchmetrics.

    Precision is read at 101 recalls. `ap` is its mean over the IoUs .50 to .95, `ap50` that at IoU
    .5, and `ap40` that at .4, the measure of the VinBigData challenge (Nguyen et al. 2022).

    Raises:
        ValueError: no image has a true box; see `overlaps`.
    """
    classes = true_classes(images)
    for image in images:
        overlaps(image.boxes, image.true_boxes)  # refuses odd boxes
    index = {name: k for k, name in enumerate(dict.fromkeys(classes))}
    for image in images:
        for name in image.labels:
            index.setdefault(str(name), len(index))
    ious = sorted({iou for values in AP.values() for iou in values})
    most = max(100, *(len(image.scores) for image in images))
    metric = MeanAveragePrecision(
        iou_thresholds=ious, max_detection_thresholds=[1, 10, most], extended_summary=True
    )
    metric.warn_on_many_detections = False
    found, true = [], []
    for image in images:
        found.append(_tensors(image.boxes, image.labels, index))
        found[-1]["scores"] = torch.from_numpy(image.scores.astype(np.float64))
        true.append(_tensors(image.true_boxes, image.true_labels, index))
    metric.update(found, true)
    computed = metric.compute()
    place = {int(k): row for row, k in enumerate(computed["classes"].reshape(-1))}
    # (IoUs, recalls, classes), boxes of all sizes and as many as there are
    precision = computed["precision"][..., 0, -1].double().mean(1).numpy()
    return {
        name: {
            key: float(np.mean([precision[ious.index(iou), place[index[name]]] for iou in values]))
            for key, values in AP.items()
        }
        for name in classes
    }


def _tensors(
    boxes: np.ndarray, labels: np.ndarray, index: dict[str, int]
) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.from_numpy(boxes.astype(np.float64)).reshape(-1, 4),
        "labels": torch.tensor([index[str(name)] for name in labels], dtype=torch.int64),
    }


def weighted_precision(found: _Matches, weights: np.ndarray) -> float:
    """COCO's average precision with each image counted so many times; NaN without true boxes.

    torchmetrics does not weigh images, and its COCO code takes too long for resamples; with weights
    of 1 both agree.
    """
    positives = weights @ found.counts
    if positives == 0:
        return math.nan
    weight = weights[found.rows]
    hits, total = np.cumsum(weight * found.hits), np.cumsum(weight)
    precision = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / positives, RECALLS - 1e-12, side="left")
    return float(np.append(precision, 0.0)[places].mean())


# ------------------------------------------------------------------------------------ RSNA's score


def rsna_scores(images: Sequence[BoxedImage], threshold: float) -> np.ndarray:
    """The RSNA Pneumonia Detection Challenge's score of each image.

    It is the mean over the IoUs .40 to .75 of TP / (TP + FP + FN), where a hit has an IoU above
    that, and boxes count as `match` says, within a class. An image with nothing to find scores 0
    where something is found, and is left out where nothing is.

    Args:
        images: with all that was found.
        threshold: the least score of a box that counts.

    Returns:
        float64 (N,) in [0, 1], NaN for what is left out.
    """
    return _rsna(_rsna_matches(images), len(images), threshold)


def _rsna_matches(images: Sequence[BoxedImage]) -> list[list[_Matches]]:
    names = sorted({str(name) for image in images for name in (*image.true_labels, *image.labels)})
    return [[_match_all(images, name, _beyond(iou)) for name in names] for iou in RSNA_IOUS]


def _rsna(matches: list[list[_Matches]], count: int, threshold: float) -> np.ndarray:
    means = np.zeros(count)
    for classes in matches:
        hits, found, true = np.zeros(count), np.zeros(count), np.zeros(count)
        for one in classes:
            kept = one.scores >= threshold  # what is left keeps its matches: they go by score
            found += np.bincount(one.rows[kept], minlength=count)
            hits += np.bincount(one.rows[kept], one.hits[kept], minlength=count)
            true += one.counts
        size = found + true - hits
        share = np.divide(hits, size, out=np.full(count, math.nan), where=size > 0)
        means += share / len(matches)
    return means


def fit_threshold(images: Sequence[BoxedImage]) -> float:
    """The score from which boxes count that gives the highest mean of `rsna_scores`.

    Of several the highest; 1, which shows nothing, where nothing was found.

    Raises:
        ValueError: no image has a true box.
    """
    true_classes(images)
    matches = _rsna_matches(images)
    scores = np.unique(np.concatenate([image.scores for image in images]))
    if len(scores) > 200:
        scores = np.quantile(scores, np.linspace(0, 1, 200), method="nearest")
    values = [(np.nanmean(_rsna(matches, len(images), score)), score) for score in scores]
    return float(max(values, default=(0.0, 1.0))[1])


# --------------------------------------------------------------------------------------------- FROC


class _Marks(NamedTuple):
    """What a free-response ROC curve is made of."""

    lesion_rows: np.ndarray  # int64 (L,), the image of each true box
    lesion_scores: np.ndarray  # float64 (L,), of the surest box that hits it; -inf without one
    false_rows: np.ndarray  # int64 (F,), the image of each found box that hits nothing
    false_scores: np.ndarray  # float64 (F,), falling


def _marks(images: Sequence[BoxedImage]) -> _Marks:
    lesion_rows, lesion_scores, false_rows, false_scores = [], [], [], []
    for row, image in enumerate(images):
        hit = overlaps(image.boxes, image.true_boxes)[0] >= FROC_IOU
        hit &= image.labels[:, None] == image.true_labels
        scores = np.where(hit, image.scores[:, None], -math.inf)
        lesion_scores.append(scores.max(0, initial=-math.inf))
        lesion_rows.append(np.full(len(image.true_boxes), row))
        false_scores.append(image.scores[~hit.any(1)])
        false_rows.append(np.full(len(false_scores[-1]), row))
    false = np.concatenate(false_scores)
    order = np.argsort(-false, kind="stable")
    return _Marks(
        np.concatenate(lesion_rows),
        np.concatenate(lesion_scores),
        np.concatenate(false_rows)[order],
        false[order],
    )


def _sensitivities(marks: _Marks, weights: np.ndarray) -> np.ndarray:
    """At each of `FROC_RATES`, float64 (7,); NaN without true boxes."""
    lesions = weights[marks.lesion_rows]
    false = np.cumsum(weights[marks.false_rows])
    found = []
    for rate in FROC_RATES.values():
        within = np.searchsorted(false, rate * weights.sum() + 1e-9, side="right")
        beyond = marks.false_scores[within] if within < len(false) else -math.inf
        found.append(lesions[marks.lesion_scores > beyond].sum())
    return np.divide(found, lesions.sum()) if lesions.sum() else np.full(len(found), math.nan)


def froc(images: Sequence[BoxedImage]) -> dict[str, float]:
    """Sensitivity at 1/8 to 8 false positives an image, and `mean`, their mean.

    The score of the LUNA16 challenge (Setio et al. 2017), for boxes: a true box is found by one of
    its class with an IoU of .4 or more; one that hits no true box is a false positive, and a second
    hit of the same true box is neither. Of the thresholds that leave so many false positives an
    image or fewer, the lowest counts, without a line between two of them.

    Raises:
        ValueError: no image has a true box; see `overlaps`.
    """
    true_classes(images)
    values = _sensitivities(_marks(images), np.ones(len(images)))
    return {**dict(zip(FROC_RATES, values.tolist())), "mean": float(values.mean())}


# --------------------------------------------------------------------------- localisation accuracy


def localization(
    images: Sequence[BoxedImage], threshold: float, num_resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, dict]]:
    """Accuracy and false positives of Wang et al. 2017 (ChestX-ray8, section 4.2).

    A true box is localised where a found one of its class overlaps it by more than T, in IoU, or in
    IoBB, the share of the found box that lies in the true one. A found box that so overlaps no true
    one is a false positive.

    Args:
        images: with all that was found.
        threshold: the least score of a box that counts.
        num_resamples: of patients; 0 leaves the intervals out.
        seed: of the resamples.

    Returns:
        For `iou` and `iobb` {T: {"accuracy": entry, "false_positives": entry}}, T from "0.1" to
        "0.9": the share of true boxes, and the number of found ones an image. Entries as
        `evaluation.bootstrap.mean_entries` gives them.

    Raises:
        ValueError: no image has a true box; see `overlaps`.
    """
    true_classes(images)
    localised: dict[str, list[np.ndarray]] = {"iou": [], "iobb": []}
    false: dict[str, list[np.ndarray]] = {"iou": [], "iobb": []}
    cuts = np.array(WANG_OVERLAPS)
    for image in images:
        kept = image.scores >= threshold
        alike = image.labels[kept][:, None] == image.true_labels
        for name, values in zip(localised, overlaps(image.boxes[kept], image.true_boxes)):
            values = np.where(alike, values, 0.0)
            localised[name].append(values.max(0, initial=0.0)[:, None] > cuts)
            false[name].append((values.max(1, initial=0.0)[:, None] <= cuts).sum(0))
    patients = np.array([image.patient_id for image in images])
    owners = np.repeat(patients, [len(image.true_boxes) for image in images])
    answer: dict[str, dict[str, dict]] = {}
    for name, found in localised.items():
        shares = mean_entries(np.concatenate(found).astype(np.float64), owners, num_resamples, seed)
        rates = mean_entries(np.array(false[name], np.float64), patients, num_resamples, seed)
        answer[name] = {
            f"{cut:g}": {"accuracy": share, "false_positives": rate}
            for cut, share, rate in zip(WANG_OVERLAPS, shares, rates)
        }
    return answer


# -------------------------------------------------------------------------------------- all of them


def true_classes(images: Sequence[BoxedImage]) -> list[str]:
    """The classes that have a true box, sorted.

    Raises:
        ValueError: there is none.
    """
    classes = sorted({str(name) for image in images for name in image.true_labels})
    if not classes:
        raise ValueError(
            f"none of the {len(images)} images has a true box; give a set in which something is "
            "boxed."
        )
    return classes


def summarize_detection(
    images: Sequence[BoxedImage], threshold: float, num_resamples: int = 1000, seed: int = 0
) -> dict:
    """Every score of a split.

    Args:
        images: with all that was found, boxes of low scores, too.
        threshold: the least score of a box that counts for `rsna` and `localization`.
        num_resamples: of patients; 0 leaves the intervals out.
        seed: of the resamples.

    Returns:
        `images`, `boxes`, `threshold`; `ap`, `ap50` and `ap40`, means over the classes, and in
        `classes` those of each, see `average_precision`; `rsna`, see `rsna_scores`; `froc`, see
        `froc`; `localization`, see there. Entries are `{"value", "low", "high", "n"}` with the 95 %
        interval of a bootstrap over patients, n the number of images.

    Raises:
        ValueError: no image has a true box; see `overlaps`.
    """
    patients = np.array([image.patient_id for image in images])
    count = len(images)

    def entries(
        values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], scale: str
    ) -> list[dict]:
        """Of values (S,), which `statistic` gives of the images' weights."""
        resampled = [np.zeros((0, len(values)))]
        for weights in resample_weights(patients, num_resamples, seed):
            resampled.append(np.array([statistic(row) for row in weights]))
        drawn, people = np.concatenate(resampled), len(np.unique(patients))
        return [
            {"value": float(value), **interval(value, drawn[:, k], people, scale), "n": count}
            for k, value in enumerate(values)
        ]

    precision = average_precision(images)
    ious = sorted({iou for of in AP.values() for iou in of})
    matches = [[_match_all(images, name, iou) for iou in ious] for name in precision]
    width = len(AP)

    def precisions(weights: np.ndarray) -> np.ndarray:
        """Each of `AP`, of each class, then their means over the classes."""
        each = np.array([[weighted_precision(one, weights) for one in row] for row in matches])
        means = np.stack(
            [each[:, [ious.index(iou) for iou in of]].mean(1) for of in AP.values()], axis=1
        )
        known = means[~np.isnan(means).any(1)]  # a resample may have drawn no box of a class
        mean = known.mean(0) if len(known) else np.full(width, math.nan)
        return np.append(means.ravel(), mean)

    each = np.array([[of[key] for key in AP] for of in precision.values()])
    found = entries(np.append(each.ravel(), each.mean(0)), precisions, "logit")
    classes = {
        name: dict(zip(AP, found[width * k : width * (k + 1)])) for k, name in enumerate(precision)
    }
    marks, curve = _marks(images), froc(images)

    def curves(weights: np.ndarray) -> np.ndarray:
        values = _sensitivities(marks, weights)
        return np.append(values, values.mean())

    rsna = rsna_scores(images, threshold)[:, None]
    return {
        "images": count,
        "boxes": sum(len(image.true_boxes) for image in images),
        "threshold": threshold,
        **dict(zip(AP, found[-width:])),
        "classes": classes,
        "rsna": mean_entries(rsna, patients, num_resamples, seed)[0],
        # read off a curve at a fixed rate, and so 0 or 1 here where a resample may have another
        "froc": dict(zip(curve, entries(np.array(list(curve.values())), curves, "percentile"))),
        "localization": localization(images, threshold, num_resamples, seed),
    }


# --------------------------------------------------------------------------------------------- file


def write_detection(path: str | Path, images: Sequence[BoxedImage]) -> None:
    """Write a row an image and a row a box, true or found; see `COLUMNS`.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for image in images:
        keys = image.image_id, image.patient_id
        writer.writerow((*keys, "image", *[""] * 6))
        for box, label in zip(image.true_boxes.tolist(), image.true_labels):
            writer.writerow((*keys, "true", label, "", *box))
        for box, score, label in zip(image.boxes.tolist(), image.scores.tolist(), image.labels):
            writer.writerow((*keys, "found", label, score, *box))
    write_text(path, text.getvalue())


def read_detection(path: str | Path) -> list[BoxedImage]:
    """Read what `write_detection` wrote, to the same numbers.

    Raises:
        ValueError: a missing column, an unknown kind of row, a box of no image, or a cell that is
            no number.
        OSError: the file cannot be read.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images: dict[str, dict] = {}
    for row in rows:
        if missing := [name for name in COLUMNS if row.get(name) is None]:
            raise ValueError(
                f"{path} has a row without {missing[0]!r}; train_detector.py writes it."
            )
        name, kind = row["image_id"], row["kind"]
        if kind not in KINDS:
            raise ValueError(f"{path} has a row of kind {kind!r}; it is {', '.join(KINDS)}.")
        if kind == "image":
            images[name] = {"patient_id": row["patient_id"], "true": [], "found": []}
            continue
        if name not in images:
            raise ValueError(f"{path} has a box of {name!r} before its row of kind 'image'.")
        cells = [row[column] for column in COLUMNS[5:]] + [row["score"]] * (kind == "found")
        try:
            images[name][kind].append(([float(cell) for cell in cells], row["label"]))
        except ValueError as error:
            raise ValueError(f"{path}: a box of {name!r} has a cell that is no number.") from error
    made = []
    for name, one in images.items():
        true = np.array([box for box, _ in one["true"]], np.float64).reshape(-1, 4)
        found = np.array([box for box, _ in one["found"]], np.float64).reshape(-1, 5)
        labels = (np.array([label for _, label in one[kind]], str) for kind in ("true", "found"))
        true_labels, found_labels = labels
        boxes, scores = found[:, :4], found[:, 4]
        made.append(
            BoxedImage(name, one["patient_id"], true, true_labels, boxes, scores, found_labels)
        )
    return made


# ------------------------------------------------------------------------------- boxes of heatmaps


def heatmap_boxes(
    heatmap: np.ndarray, threshold: float, largest: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes around the largest connected regions of heat, as Wang et al. 2017 draw them.

    Args:
        heatmap: float (H, W) in [0, 1].
        threshold: the least heat of a region; pixels that share a side are connected.
        largest: how many regions at most, by their pixels.

    Returns:
        float64 (k, 4), left, top, right, bottom in pixels, the largest first; and float64 (k,), the
        highest heat in each. k is 0 where nothing is so hot.

    Raises:
        ValueError: `largest` below 1, or a threshold outside (0, 1].
    """
    if largest < 1:
        raise ValueError(f"largest is {largest}; it is 1 or more.")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it lies above 0 and up to 1.")
    regions, count = ndimage.label(heatmap >= threshold)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    chosen = np.argsort(-sizes, kind="stable")[:largest]
    places = ndimage.find_objects(regions)
    boxes = [
        (columns.start, rows.start, columns.stop, rows.stop)
        for rows, columns in (places[k] for k in chosen)
    ]
    scores = [heatmap[regions == k + 1].max() for k in chosen]
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64)


def fit_heatmap_threshold(
    heatmaps: Sequence[np.ndarray], true_boxes: Sequence[np.ndarray], largest: int = 1
) -> float:
    """The threshold of `heatmap_boxes`, of .05 to .95, whose boxes fit the true ones best.

    Best is the highest mean, over the true boxes, of the IoU with the best of an image's boxes; of
    several thresholds the lowest.

    Args:
        heatmaps: float (H, W) each.
        true_boxes: float (n, 4) each, in pixels of its heatmap.
        largest: see `heatmap_boxes`.

    Raises:
        ValueError: no true box; see `overlaps`.
    """
    if not sum(map(len, true_boxes)):
        raise ValueError(f"none of the {len(heatmaps)} images has a true box to fit on.")

    def fit(threshold: float) -> float:
        ious = [
            overlaps(heatmap_boxes(heatmap, threshold, largest)[0], boxes)[0].max(0, initial=0.0)
            for heatmap, boxes in zip(heatmaps, true_boxes)
        ]
        return float(np.concatenate(ious).mean())

    return max(HEAT_THRESHOLDS, key=fit)

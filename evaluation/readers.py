"""A model beside human readers: the F1 protocol of CheXNet (Rajpurkar et al. 2017, section 3.1).

    python -m evaluation.readers readers.csv --model cxr-densenet121

The file has a row an image: `image_id`, perhaps `patient_id`, and a column of 0 and 1 a reader, of
which one is the model's decision. No label is the truth: each one, the model's too, is scored
against each of the others, and its F1 is the mean over them.
"""

import argparse
import csv
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from evaluation.bootstrap import interval, resample_weights
from evaluation.metrics import format_metric

IDS = ("image_id", "patient_id")


def read_readers(path: str | Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A file of readers' labels.

    Returns:
        patient_id, str (N,), the image's own where the file names none; and the labels of each
        reader by the column's name, bool (N,).

    Raises:
        ValueError: no image or a double one, fewer than two readers, or a cell that is not 0 or 1.
        OSError: the file cannot be read.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns, rows = reader.fieldnames or [], list(reader)
    if "image_id" not in columns or not rows:
        raise ValueError(f"{path} needs a column image_id and a row an image.")
    image, count = Counter(row["image_id"] for row in rows).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path} has the image {image!r} {count} times; give each image one row.")
    names = [column for column in columns if column not in IDS]
    for row in rows:
        for name in names:
            if row[name] not in ("0", "1"):
                raise ValueError(
                    f"{path} gives {row['image_id']!r} the label {row[name]!r} of {name}; each "
                    "reader labels each image with 0 or 1."
                )
    patients = np.array([row.get("patient_id") or row["image_id"] for row in rows], str)
    return patients, {name: np.array([row[name] == "1" for row in rows]) for name in names}


def compare_readers(
    labels: dict[str, np.ndarray],
    model: str,
    patient_ids: np.ndarray,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> dict:
    """The mean F1 of each reader and of the model, and how far the model is above the readers.

    Args:
        labels: bool (N,) of each reader and of the model.
        model: which of these names is the model.
        patient_ids: str (N,), the unit that intervals resample; CheXNet had one image a patient.
        num_resamples: bootstrap resamples; CheXNet's number is the default.
        seed: of the resamples.

    Returns:
        `n`, `patients`, `f1` (an entry a name), `readers` (the mean over the readers) and
        `difference` (the model's F1 less that mean), ready for JSON. An entry is `{"value", "low",
        "high"}` with the 2.5th and 97.5th percentile of the resamples; `{"value": None, "reason"}`
        where two labellers found nothing, as their F1 is then 0 / 0.

    Raises:
        ValueError: no such model, fewer than two readers beside it, or labels of another length.
    """
    if model not in labels:
        raise ValueError(f"{model!r} is none of the readers {', '.join(labels)}.")
    readers = [name for name in labels if name != model]
    if len(readers) < 2:
        raise ValueError(f"{model!r} needs two readers beside it, not {len(readers)}.")
    if lengths := {len(column) for column in labels.values()} - {len(patient_ids)}:
        raise ValueError(f"there are {len(patient_ids)} patient ids for {lengths.pop()} labels.")
    marks = np.stack([labels[name] for name in [*readers, model]], axis=1).astype(np.float64)
    whole = _statistics(marks, np.ones((1, len(marks))))[0]
    blocks = [_statistics(marks, w) for w in resample_weights(patient_ids, num_resamples, seed)]
    resampled = np.concatenate(blocks) if blocks else np.empty((0, len(whole)))
    patients = len(np.unique(patient_ids))
    entries = [
        {"value": None, "reason": "two labellers found nothing"}
        if np.isnan(value)
        else {"value": float(value), **interval(value, drawn, patients, "percentile")}
        for value, drawn in zip(whole, resampled.T)
    ]
    return {
        "n": len(marks),
        "patients": patients,
        "model": model,
        "f1": dict(zip([*readers, model], entries)),
        "readers": entries[-2],
        "difference": entries[-1],
        "num_resamples": num_resamples,
        "seed": seed,
    }


def _statistics(marks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean F1 of each column of marks (N, M), the model's the last, and what follows of them.

    float64 (R, M + 2) for weights (R, N): then the mean over the readers and the difference.
    """
    count = marks.shape[1]
    both = (marks[:, :, None] * marks[:, None, :]).reshape(len(marks), -1)
    both = (weights @ both).reshape(len(weights), count, count)
    found = weights @ marks
    total = found[:, :, None] + found[:, None, :]
    f1 = np.divide(2 * both, total, out=np.full_like(total, np.nan), where=total > 0)
    f1[:, np.arange(count), np.arange(count)] = 0
    means = f1.sum(axis=2) / (count - 1)
    readers = means[:, :-1].mean(axis=1)
    return np.column_stack([means, readers, means[:, -1] - readers])


def main(argv: list[str]) -> None:
    """Prints the comparison, or writes it as JSON."""
    parser = argparse.ArgumentParser(description="A model beside readers, by F1 as in CheXNet.")
    parser.add_argument("readers", metavar="CSV", help="image_id, patient_id, a column a reader")
    parser.add_argument("--model", required=True, metavar="COLUMN", help="the model's column")
    parser.add_argument("--output", metavar="JSON", help="also write the result there")
    parser.add_argument("--num_resamples", type=int, default=10_000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    patients, labels = read_readers(args.readers)
    result = compare_readers(labels, args.model, patients, args.num_resamples, args.seed)
    for name, entry in result["f1"].items():
        print(f"{name}: F1 {format_metric(entry)}")
    print(f"mean of the readers: F1 {format_metric(result['readers'])}")
    print(f"{args.model} less the readers: {format_metric(result['difference'])}")
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"evaluation.readers: error: {error}")

"""The predictions file: the one table that every metric and figure is computed from."""

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Predictions:
    """One model's logits on one split, checked when built.

    Attributes:
        image_id: str (N,), unique.
        patient_id: str (N,), never empty; the unit that intervals resample.
        labels: int64 (N,) class indices, or bool (N, K) when `multi_label`.
        logits: float64 (N, K), finite.
        class_names: the K class names, in the order of the logits.
        split: name of the split, e.g. "test".
        multi_label: whether an image may have any number of the classes.

    Raises:
        ValueError: shapes that disagree, no image, a duplicate image id, an empty patient id, a
            logit that is not finite, or a label outside the classes.
    """

    image_id: np.ndarray
    patient_id: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    class_names: tuple[str, ...]
    split: str
    multi_label: bool = False

    def __post_init__(self):
        num_images, num_classes = len(self.image_id), len(self.class_names)
        if num_images == 0:
            raise ValueError(f"split {self.split!r} has no predictions; give at least one image.")
        if num_classes < (1 if self.multi_label else 2):
            raise ValueError(
                f"classes {self.class_names} are too few; a single-label task needs 2."
            )
        if len(set(self.class_names)) < num_classes or "" in self.class_names:
            raise ValueError(f"classes {self.class_names} must be different, non-empty names.")
        shapes = {
            "patient_id": (self.patient_id, (num_images,)),
            "logits": (self.logits, (num_images, num_classes)),
            "labels": (
                self.labels,
                (num_images, num_classes) if self.multi_label else (num_images,),
            ),
        }
        for name, (array, shape) in shapes.items():
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape} where {shape} is needed.")
        if len(np.unique(self.image_id)) < num_images:
            image_id, count = Counter(self.image_id.tolist()).most_common(1)[0]
            raise ValueError(
                f"image id {image_id!r} appears {count} times; give each image one prediction."
            )
        self._refuse(self.patient_id == "", "has no patient id; repeat its image id where unknown")
        self._refuse(~np.isfinite(self.logits).all(axis=1), "has a logit that is NaN or infinite")
        if not self.multi_label:
            unknown = (self.labels < 0) | (self.labels >= num_classes)
            self._refuse(unknown, f"has a label index outside 0..{num_classes - 1}")

    def _refuse(self, bad: np.ndarray, why: str):
        if bad.any():
            image_id = str(self.image_id[bad][0])
            raise ValueError(
                f"image {image_id!r} {why} ({bad.sum()} of {len(bad)} images like it)."
            )

    @property
    def log_odds(self) -> np.ndarray:
        """float64 (N, K): each class's probability as a logit, which orders images beyond p = 1."""
        if self.multi_label:
            return self.logits
        log_odds = np.empty_like(self.logits)
        for k in range(len(self.class_names)):
            rest = np.delete(self.logits, k, axis=1)
            log_odds[:, k] = self.logits[:, k] - np.logaddexp.reduce(rest, axis=1)
        return log_odds

    @property
    def probabilities(self) -> np.ndarray:
        """float64 (N, K) in [0, 1]: sigmoid when `multi_label`, else softmax."""
        if self.multi_label:
            return np.exp(-np.logaddexp(0, -self.logits))
        return np.exp(self.logits - np.logaddexp.reduce(self.logits, axis=1, keepdims=True))

    @property
    def decisions(self) -> np.ndarray:
        """int64 (N,): the class of largest probability; bool (N, K) p > 0.5 when `multi_label`."""
        return self.logits > 0 if self.multi_label else self.logits.argmax(axis=1)


def write_predictions(
    path: str | Path,
    image_ids: Sequence[str],
    patient_ids: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
    split: str,
    multi_label: bool = False,
) -> None:
    """Write a predictions CSV, whole or not at all.

    The columns are `image_id,patient_id,label,logit_<CLASS>...,split`, `label` being the class
    name. In a multi-label file that column is called `labels`, as in the dataset, and holds the
    names joined by `|`, "" for none; the column's name is what tells the two kinds apart. Logits
    are float32, printed in the fewest digits that read back as the same float32.

    Args:
        labels: int (N,) class indices, or bool / 0-1 (N, K) when `multi_label`.
        logits: (N, K), stored as float32.

    Raises:
        ValueError: see `Predictions`; labels that are not class indices, or when `multi_label` not
            0 and 1; a multi-label class name with `|`.
        OSError: the file cannot be written.
    """
    labels = np.asarray(labels)
    if multi_label and not np.isin(labels, (0, 1)).all():
        raise ValueError("multi-label labels must all be 0 or 1.")
    if not multi_label and labels.size and labels.dtype.kind not in "iu":
        raise ValueError(f"single-label labels must be class indices, not {labels.dtype}.")
    if multi_label and any("|" in name for name in class_names):
        raise ValueError(f"a multi-label class name may not contain '|': {list(class_names)}.")
    stored = np.asarray(logits, dtype=np.float32)
    predictions = Predictions(
        image_id=np.array([str(i) for i in image_ids], dtype=str),
        patient_id=np.array([str(i) for i in patient_ids], dtype=str),
        labels=labels.astype(bool if multi_label else np.int64),
        logits=stored.astype(np.float64),
        class_names=tuple(class_names),
        split=split,
        multi_label=multi_label,
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    label_column = "labels" if multi_label else "label"
    logit_columns = [f"logit_{name}" for name in class_names]
    writer.writerow(["image_id", "patient_id", label_column, *logit_columns, "split"])
    rows = zip(predictions.image_id, predictions.patient_id, predictions.labels, stored)
    for image_id, patient_id, label, row in rows:
        if multi_label:
            name = "|".join(name for name, present in zip(class_names, label) if present)
        else:
            name = class_names[label]
        writer.writerow([image_id, patient_id, name, *map(str, row), split])
    write_text(path, text.getvalue())


def read_predictions(path: str | Path) -> Predictions:
    """Read what `write_predictions` wrote; columns it does not know are left aside.

    Logits are float64 of the printed text: whoever reads the file computes with the same numbers.

    Raises:
        ValueError: an empty file, a missing column, an unknown class, a logit that is not a number,
            two splits, or what `Predictions` refuses.
        OSError: the file cannot be read.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns, rows = reader.fieldnames, list(reader)
    if not columns or not rows:
        raise ValueError(f"{path} is empty; a predictions file has a header and a row an image.")
    multi_label = "labels" in columns
    for column in ("image_id", "patient_id", "labels" if multi_label else "label", "split"):
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}; its columns are {columns}.")
    names = tuple(c.removeprefix("logit_") for c in columns if c.startswith("logit_"))
    if not names:
        raise ValueError(f"{path} has no column 'logit_<CLASS>'; its columns are {columns}.")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"{path} has a row ({number}) with other than {len(columns)} cells.")
    splits = sorted({row["split"] for row in rows})
    if len(splits) > 1:
        raise ValueError(f"{path} mixes the splits {splits}; keep one split a file.")
    read_labels = _read_multi_label if multi_label else _read_label
    try:
        return Predictions(
            image_id=np.array([row["image_id"] for row in rows], dtype=str),
            patient_id=np.array([row["patient_id"] for row in rows], dtype=str),
            labels=np.array([read_labels(row, names) for row in rows]),
            logits=np.array([[_read_logit(row, name) for name in names] for row in rows]),
            class_names=names,
            split=splits[0],
            multi_label=multi_label,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_label(row: dict[str, str], class_names: tuple[str, ...]) -> int:
    return _class_index(row, row["label"], class_names)


def _read_multi_label(row: dict[str, str], class_names: tuple[str, ...]) -> np.ndarray:
    labels = np.zeros(len(class_names), dtype=bool)
    for name in row["labels"].split("|") if row["labels"] else []:
        labels[_class_index(row, name, class_names)] = True
    return labels


def _class_index(row: dict[str, str], name: str, class_names: tuple[str, ...]) -> int:
    if name not in class_names:
        raise ValueError(
            f"image {row['image_id']!r} has the unknown class {name!r}; "
            f"the logit columns name {', '.join(class_names)}."
        )
    return class_names.index(name)


def _read_logit(row: dict[str, str], name: str) -> float:
    text = row[f"logit_{name}"]
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"image {row['image_id']!r} has {text!r} where logit_{name} is a number."
        ) from None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` through a temporary file beside `path`, so no reader finds half of it.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full; `path` is then
            as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

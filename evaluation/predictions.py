"""The predictions file: the one table that every metric and figure is computed from."""

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        thresholds: operating point on the probability: of class 1 in a binary task, of each class
            when `multi_label`; None decides for the larger probability, or p > 0.5.
        extra: further columns of the file, each str (N,), such as "subtype" or "view".
        unknown: bool (N, K), the findings that nobody annotated, whose `labels` are False and count
            nowhere; None where all are known. When `multi_label` only.

    Raises:
        ValueError: shapes that disagree, no image, a duplicate image id, an empty patient id, a
            logit that is not finite, a label outside the classes, a finding that is present and
            unknown, or thresholds that do not fit.
    """

    image_id: np.ndarray
    patient_id: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    class_names: tuple[str, ...]
    split: str
    multi_label: bool = False
    thresholds: tuple[float, ...] | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    unknown: np.ndarray | None = None

    def __post_init__(self) -> None:
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
            **{name: (column, (num_images,)) for name, column in self.extra.items()},
        }
        if self.unknown is not None:
            if not self.multi_label:
                raise ValueError("unknown findings are for a multi-label task.")
            shapes["unknown"] = (self.unknown, (num_images, num_classes))
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
        if self.unknown is not None:
            both = (self.truth & self.unknown).any(axis=1)
            self._refuse(both, "has a finding that is present and unknown")

        if self.thresholds is not None:
            needed = num_classes if self.multi_label else 1
            if not self.multi_label and num_classes != 2:
                raise ValueError("thresholds are for two classes or a multi-label task.")
            in_range = all(0 <= threshold <= 1 for threshold in self.thresholds)
            if len(self.thresholds) != needed or not in_range:
                raise ValueError(
                    f"thresholds are {self.thresholds}; {needed} in [0, 1] are needed."
                )

    def _refuse(self, bad: np.ndarray, why: str) -> None:
        if bad.any():
            image_id = str(self.image_id[bad][0])
            raise ValueError(
                f"image {image_id!r} {why} ({bad.sum()} of {len(bad)} images like it)."
            )

    def take(self, rows: np.ndarray) -> "Predictions":
        """The predictions of some images, by bool (N,) or by int (M,) row numbers in their order.

        Raises:
            ValueError: no row, or one twice.
        """
        return replace(
            self,
            image_id=self.image_id[rows],
            patient_id=self.patient_id[rows],
            labels=self.labels[rows],
            logits=self.logits[rows],
            extra={name: column[rows] for name, column in self.extra.items()},
            unknown=None if self.unknown is None else self.unknown[rows],
        )

    @property
    def known(self) -> np.ndarray:
        """The classes of which it is known whether an image has them: bool (N, K)."""
        if self.unknown is None:
            return np.ones(self.logits.shape, dtype=bool)
        return ~self.unknown

    @property
    def truth(self) -> np.ndarray:
        """The classes of each image: bool (N, K)."""
        if self.multi_label:
            return self.labels.astype(bool)
        return self.labels[:, None] == np.arange(len(self.class_names))

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
        """int64 (N,) class indices, or bool (N, K) when `multi_label`; see `thresholds`."""
        if self.thresholds is None:
            return self.logits > 0 if self.multi_label else self.logits.argmax(axis=1)
        if self.multi_label:
            return self.probabilities >= np.array(self.thresholds)
        return (self.probabilities[:, 1] >= self.thresholds[0]).astype(np.int64)


def write_predictions(
    path: str | Path,
    image_ids: Sequence[str],
    patient_ids: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
    split: str,
    multi_label: bool = False,
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a predictions CSV, whole or not at all.

    The columns are `image_id,patient_id,label,logit_<CLASS>...,split`, `label` being the class
    name. In a multi-label file that column is called `labels`, as in the dataset, and holds the
    names joined by `|`, "" for none; the column's name is what tells the two kinds apart. Where
    some are unknown, the column `unknown` beside it holds these alike. Logits are float32, printed
    in the fewest digits that read back as the same float32.

    Args:
        path: of the CSV.
        image_ids: N names, each unique.
        patient_ids: the patient of each image.
        labels: int (N,) class indices; when `multi_label` (N, K) of 1, 0 and, for what is unknown,
            NaN.
        logits: (N, K), stored as float32.
        class_names: K names, in the order of the logits.
        split: name of the split, e.g. "test".
        multi_label: whether an image may have any number of the classes.
        extra: further columns, see `Predictions`.

    Raises:
        ValueError: see `Predictions`; labels that are not class indices, or when `multi_label` not
            0, 1 or NaN; a multi-label class name with `|`.
        OSError: the file cannot be written.
    """
    labels = np.asarray(labels)
    unknown = np.isnan(labels) if multi_label else None
    if multi_label and not np.isin(labels[~unknown], (0, 1)).all():
        raise ValueError("multi-label labels must all be 0 or 1, or NaN for what is unknown.")
    if not multi_label and labels.size and labels.dtype.kind not in "iu":
        raise ValueError(f"single-label labels must be class indices, not {labels.dtype}.")
    if multi_label and any("|" in name for name in class_names):
        raise ValueError(f"a multi-label class name may not contain '|': {list(class_names)}.")
    stored = np.asarray(logits, dtype=np.float32)
    predictions = Predictions(
        image_id=np.array([str(i) for i in image_ids], dtype=str),
        patient_id=np.array([str(i) for i in patient_ids], dtype=str),
        labels=(labels == 1) if multi_label else labels.astype(np.int64),
        logits=stored.astype(np.float64),
        class_names=tuple(class_names),
        split=split,
        multi_label=multi_label,
        extra=dict(extra or {}),
        unknown=unknown,
    )
    write_text(path, _table({None: predictions}))


def write_predictions_by_model(path: str | Path, models: dict[str, Predictions]) -> None:
    """Write several models' predictions as one CSV.

    The columns are `model`, those of `write_predictions`, and those of `extra`.

    Raises:
        ValueError: classes, task, split or extra columns that differ between the models.
        OSError: the file cannot be written.
    """
    first, *others = models.values()
    for other in others:
        for name in ("class_names", "multi_label", "split"):
            if getattr(first, name) != getattr(other, name):
                raise ValueError(f"the models disagree in {name}; write one file for each.")
        if list(first.extra) != list(other.extra):
            raise ValueError("the models' predictions have different extra columns.")
    write_text(path, _table(models))


def _table(models: dict[str | None, Predictions]) -> str:
    """The CSV of some models; the name None leaves the model column out."""
    first = next(iter(models.values()))
    names, multi_label = first.class_names, first.multi_label
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["image_id", "patient_id", "labels" if multi_label else "label"]
    any_unknown = any(not predictions.known.all() for predictions in models.values())
    head += [
        *["unknown"] * any_unknown,
        *(f"logit_{name}" for name in names),
        "split",
        *first.extra,
    ]
    writer.writerow(head if None in models else ["model", *head])
    for model, predictions in models.items():
        stored = predictions.logits.astype(np.float32)
        columns = [predictions.image_id, predictions.patient_id]
        columns.append([_joined(names, row) for row in predictions.truth])
        columns += [[_joined(names, row) for row in ~predictions.known]] * any_unknown
        extra = zip(*predictions.extra.values()) if first.extra else [()] * len(stored)
        for head, row, more in zip(zip(*columns), stored, extra):
            cells = [*head, *map(str, row), predictions.split, *more]
            writer.writerow(cells if model is None else [model, *cells])
    return text.getvalue()


def _joined(names: Sequence[str], chosen: np.ndarray) -> str:
    return "|".join(name for name, there in zip(names, chosen) if there)


def read_predictions(path: str | Path) -> Predictions:
    """Read what `write_predictions` wrote; columns it does not know become `extra`.

    Logits are float64 of the printed text: whoever reads the file computes with the same numbers.

    Raises:
        ValueError: an empty file, a missing column, an unknown class, a logit that is not a number,
            two splits, several models, or what `Predictions` refuses.
        OSError: the file cannot be read.
    """
    models = read_predictions_by_model(path)
    if len(models) > 1:
        raise ValueError(f"{path} holds the models {', '.join(models)}; one is needed here.")
    return next(iter(models.values()))


def read_predictions_by_model(path: str | Path) -> dict[str, Predictions]:
    """Read a file of one or more models by its `model` column.

    Without that column, the file's stem names the model.

    Errors are those of `read_predictions`.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns, rows = reader.fieldnames, list(reader)
    if not columns or not rows:
        raise ValueError(f"{path} is empty; a predictions file has a header and a row an image.")
    for column in ("image_id", "patient_id", "labels" if "labels" in columns else "label", "split"):
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}; its columns are {columns}.")
    if not any(column.startswith("logit_") for column in columns):
        raise ValueError(f"{path} has no column 'logit_<CLASS>'; its columns are {columns}.")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"{path} has a row ({number}) with other than {len(columns)} cells.")
    by_model: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_model.setdefault(row.get("model", Path(path).stem), []).append(row)
    try:
        return {name: _from_rows(part, columns) for name, part in by_model.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _from_rows(rows: list[dict[str, str]], columns: Sequence[str]) -> Predictions:
    splits = sorted({row["split"] for row in rows})
    if len(splits) > 1:
        raise ValueError(f"it mixes the splits {splits}; keep one split a file.")
    multi_label = "labels" in columns
    names = tuple(c.removeprefix("logit_") for c in columns if c.startswith("logit_"))
    known = {"model", "image_id", "patient_id", "label", "labels", "split"}
    if has_unknown := multi_label and "unknown" in columns:
        known.add("unknown")
    extra = [c for c in columns if c not in known and not c.startswith("logit_")]
    if multi_label:
        labels = [_read_classes(row, "labels", names) for row in rows]
    else:
        labels = [_class_index(row, row["label"], names) for row in rows]
    unknown = [_read_classes(row, "unknown", names) for row in rows] if has_unknown else None
    return Predictions(
        image_id=np.array([row["image_id"] for row in rows], dtype=str),
        patient_id=np.array([row["patient_id"] for row in rows], dtype=str),
        labels=np.array(labels),
        logits=np.array([[_read_logit(row, name) for name in names] for row in rows]),
        class_names=names,
        split=splits[0],
        multi_label=multi_label,
        extra={c: np.array([row[c] for row in rows], dtype=str) for c in extra},
        unknown=np.array(unknown) if has_unknown else None,
    )


def _read_classes(row: dict[str, str], column: str, class_names: tuple[str, ...]) -> np.ndarray:
    """The classes that a cell names: bool (K,)."""
    named = np.zeros(len(class_names), dtype=bool)
    for name in row[column].split("|") if row[column] else []:
        named[_class_index(row, name, class_names)] = True
    return named


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

"""Scores that others published, joined with the labels of a source: predictions to report on."""

import gzip
import logging
import re
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from datasets_scripts import kermany, label_key
from datasets_scripts.labels import is_negative, order_classes, read_labels
from datasets_scripts.splits import read_splits
from datasets_scripts.tables import FILE_NAMES, LABEL_NAMES, PATIENT_NAMES, usual_columns
from evaluation.predictions import Predictions

logger = logging.getLogger(__name__)

# Columns in lower case, _ for blanks; ChestX-ray14's own are image_index, finding_labels, ...
ID_NAMES = ("image_id", *FILE_NAMES, "image_name", "image_index", "name", "id")
COLUMNS = {
    "label": (*LABEL_NAMES, "finding_labels"),
    "patient_id": PATIENT_NAMES,
    "split": ("split",),
    "subtype": ("subtype",),
    "view": ("view", "view_position"),
    "age": ("age", "patient_age"),
    "sex": ("sex", "patient_sex", "patient_gender"),
}
EXTRA = ("subtype", "view", "age", "sex")
SCORE = re.compile(r"(logit|prob|probability|score|pred|prediction)(?:[ _-](.+))?", re.IGNORECASE)
SUFFIX = re.compile(r"\.(png|jpe?g|webp|tiff?|bmp|dcm|dicom|np[yz])$", re.IGNORECASE)
# The least and greatest probabilities of float64 whose logits are finite.
SMALLEST, LARGEST = np.nextafter(0, 1), np.nextafter(1, 0)


def join_scores(scores: str | Path, labels: str, split: str) -> Predictions:
    """The scores of a CSV file beside the labels, patients and subgroups that another one gives.

    Images are matched by their names, whatever their folder and suffix. A column of scores is named
    by its finding, as `Edema`, `prob_Edema` or `logit_Edema`; a single one may be called
    `prediction`, say, and is that of the finding of two classes. Scores in [0, 1] are
    probabilities, others logits; the log says which.

    Args:
        scores: .csv or .csv.gz.
        labels: likewise, with columns of the usual names (image, label, patient, split, view, age,
            sex) or those of ChestX-ray14's Data_Entry_2017.csv; or "kermany", where the names of
            the images say it all.
        split: of the splits that the labels name, or "all"; labels without splits are of one.

    Raises:
        ValueError: a file that is no such table, an image twice or without a label, a score that is
            none, or findings that the labels do not speak of.
        OSError: a file cannot be read.
    """
    table = _read(scores)
    ids = table.pop(_columns(table, {"image": ID_NAMES}, ("image",), scores)["image"])
    keys = ids.map(_key)
    known = _read_names(ids, scores) if labels == kermany.SOURCE.name else _read_labels(labels)
    named = {name for row in known["label"] for name in row}
    findings = {label_key(name): name for name in sorted(named)}
    unlisted = ids[~keys.isin(known.index)]
    if len(unlisted):
        raise ValueError(
            f"{labels} does not list {len(unlisted)} of the {len(ids)} images of {scores}, as "
            f"{unlisted.iloc[0]!r}; give the labels of that set."
        )
    twice = known.index[known.index.duplicated() & known.index.isin(keys)]
    if len(twice):
        raise ValueError(f"{labels} has the image {twice[0]!r} twice; leave one.")
    known = known.loc[keys].set_index(table.index)
    if "split" in known and split != "all":
        splits = read_splits(known["split"].unique())
        rows = known["split"].map(splits) == split
        if not rows.any():
            raise ValueError(
                f"{labels} has none of these images in the split {split!r}, but in "
                f"{', '.join(splits)}; choose one with --split, or all."
            )
        ids, table, known = ids[rows], table[rows], known[rows]
    if "patient_id" not in known:
        logger.warning("%s names no patients: each image counts as its own.", labels)
        known["patient_id"] = ids
    task = _task(table, ids, known["label"], findings, scores, labels)
    extra = {name: known[name].to_numpy(str) for name in EXTRA if name in known}
    patients = known["patient_id"].to_numpy(str)
    return Predictions(ids.to_numpy(str), patients, **task, split=split, extra=extra)


def _read(file: str | Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file} is no CSV file in UTF-8 ({reason}).") from error


def _columns(
    table: pd.DataFrame,
    names: dict[str, tuple[str, ...]],
    needed: tuple[str, ...],
    file: str | Path,
) -> dict[str, str]:
    """{what: the column of a usual name}, of what the table has."""
    usual = {what: usual_columns(list(table), known) for what, known in names.items()}
    for what in needed:
        if not usual[what]:
            raise ValueError(
                f"{file} has no column of the {what}s, as {names[what][0]}; its columns are "
                f"{', '.join(table)}."
            )
    return {what: found[0] for what, found in usual.items() if found}


def _key(image: str) -> str:
    return SUFFIX.sub("", PurePosixPath(image).name)


def _read_labels(file: str) -> pd.DataFrame:
    """A row an image under its key: what there is of `COLUMNS`, each `label` a list of names."""
    table = _read(file)
    found = _columns(table, {"image": ID_NAMES, **COLUMNS}, ("image", "label"), file)
    table = table.set_index(table[found.pop("image")].map(_key))[list(found.values())]
    table.columns = list(found)
    cells = {cell: read_labels(cell) for cell in table["label"].unique()}
    table["label"] = table["label"].map(cells)
    return table


def _read_names(ids: pd.Series, scores: str | Path) -> pd.DataFrame:
    """The same of what the names of Kermany's images say."""
    rows = [kermany.read_name(image) for image in ids]
    if None in rows:
        raise ValueError(
            f"{scores} has {ids.iloc[rows.index(None)]!r}, which is not named like an image of "
            "Kermany et al. below train or test; give a CSV file as --labels."
        )
    table = pd.DataFrame(rows, index=ids.map(_key))
    table["label"] = [[label] for label in table["label"]]
    return table


def _task(
    table: pd.DataFrame,
    ids: pd.Series,
    label_sets: pd.Series,
    findings: dict[str, str],
    scores: str | Path,
    labels: str,
) -> dict:
    """`labels`, `logits`, `class_names` and `multi_label` of the predictions."""
    columns, left_aside = {}, []
    for column in table:
        word, name = (SCORE.fullmatch(column) or re.match("()(.*)", column)).groups()
        if name is not None and label_key(name) not in findings:
            if word:
                raise ValueError(
                    f"{scores} scores {name!r}, of which {labels} says nothing; it speaks of "
                    f"{', '.join(sorted(findings.values()))}."
                )
            left_aside.append(column)
            continue
        finding = None if name is None else findings[label_key(name)]
        if finding in columns:
            raise ValueError(f"{scores} has two columns like {column!r}; keep one.")
        columns[finding] = column
    if left_aside:
        logger.info("%s: the columns %s are no scores.", scores, ", ".join(map(repr, left_aside)))
    if not columns:
        raise ValueError(
            f"{scores} has no column of scores, as prediction, prob_<FINDING> or logit_<FINDING>; "
            f"its columns are {', '.join(table)}."
        )
    log_odds = dict(zip(columns, _log_odds(table[list(columns.values())], ids, scores)))
    one_each = (label_sets.map(len) == 1).all()
    if one_each and len(findings) == 2 and len(log_odds) == 1:
        ((positive, values),) = log_odds.items()
        names = order_classes(set(findings.values()), (), [], positive, False, labels)
        truth = label_sets.map(lambda row: names.index(findings[label_key(row[0])]))
        logits = np.stack([np.zeros_like(values), values], axis=1)
        return {
            "labels": truth.to_numpy(np.int64),
            "logits": logits,
            "class_names": tuple(names),
            "multi_label": False,
        }
    if None in log_odds:
        raise ValueError(
            f"{scores} does not name the finding that it scores, and {labels} has "
            f"{', '.join(sorted(findings.values()))}; call the column prob_<FINDING>."
        )
    unscored = [
        name for name in findings.values() if name not in log_odds and not is_negative(name)
    ]
    if unscored:
        logger.info("%s does not score %s.", scores, ", ".join(unscored))
    present = {
        cell: [name in {findings[label_key(one)] for one in cell} for name in log_odds]
        for cell in set(map(tuple, label_sets))
    }
    return {
        "labels": np.array([present[tuple(row)] for row in label_sets]),
        "logits": np.stack(list(log_odds.values()), axis=1),
        "class_names": tuple(log_odds),
        "multi_label": True,
    }


def _log_odds(table: pd.DataFrame, ids: pd.Series, scores: str | Path) -> list[np.ndarray]:
    """Each column of scores as logits, float64 (N,)."""
    values = table.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    rows, columns = np.nonzero(~np.isfinite(values.to_numpy()))
    if len(rows):
        raise ValueError(
            f"{scores} scores {ids.iloc[rows[0]]!r} with {table.iloc[rows[0], columns[0]]!r} as "
            f"{table.columns[columns[0]]}; a finite number is needed."
        )
    low, high = values.min(axis=None), values.max(axis=None)
    shares, first = low >= 0 and high <= 1, table.columns[0].lower()
    if first.startswith("prob") and not shares:
        raise ValueError(
            f"{scores} has scores of {low:g} to {high:g}, but calls them probabilities, as "
            f"{table.columns[0]}; call logits logit_<FINDING>."
        )
    probabilities = shares and not first.startswith("logit")
    what = "probabilities" if probabilities else "logits"
    logger.info("%s: scores of %g to %g, taken for %s.", scores, low, high, what)
    values = values.to_numpy().T
    if not probabilities:
        return list(values)
    values = values.clip(SMALLEST, LARGEST)
    return list(np.log(values) - np.log1p(-values))

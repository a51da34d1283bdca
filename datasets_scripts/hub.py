"""Any image-classification set of the Hub, e.g. `keremberke/chest-xray-classification`."""

import logging
import re
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Image,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
)
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from datasets_scripts.kermany import patient_key
from datasets_scripts.labels import holds_lists, text_of
from datasets_scripts.schema import OPTIONAL, SPLITS, UNLABELLED, Source, assemble
from datasets_scripts.splits import read_splits

logger = logging.getLogger(__name__)

SOURCE = Source(
    name="hub",
    title="the data set `{path}` of the Hub; its terms of use hold",
    path_help="the id of a data set on the Hub, org/name",
    remote=True,
)
PARQUET_COPY = "refs/convert/parquet"  # the revision with the Hub's own Parquet copy of a set
NAME_COLUMNS = ("image_file_path", "image_path", "file_name", "filename", "path")
KAGGLE_VALIDATION = 16  # images of the Kaggle folder's `val`, which are training data


def _download(repo_id: str, config_name: str | None, revision: str | None) -> DatasetDict:
    """The set as the Hub has it.

    Raises:
        FileNotFoundError: there is no such set, or it has a loading script and no Parquet copy.
        OSError: the Hub refuses the set, or cannot be reached.
        ValueError: the set cannot be read.
    """
    try:
        try:
            return load_dataset(repo_id, config_name, revision=revision)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return _parquet_copy(repo_id, config_name)
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"data set {repo_id!r} has a loading script, which is never run, and no revision "
            f"{PARQUET_COPY}: convert it to Parquet first."
        ) from error
    except (DatasetNotFoundError, RepositoryNotFoundError) as error:
        where = f"{repo_id!r} at revision {revision!r}" if revision else repr(repo_id)
        raise FileNotFoundError(
            f"there is no data set {where} on the Hub, or it is private: check the id, or log in "
            "with `hf auth login`."
        ) from error
    except HfHubHTTPError as error:
        raise OSError(
            f"the Hub refused data set {repo_id!r} ({str(error).splitlines()[-1]})."
        ) from error
    except (ConnectionError, LocalEntryNotFoundError, HTTPError) as error:
        raise ConnectionError(
            f"the Hub cannot be reached for data set {repo_id!r}: check the network, or give a "
            "folder on disk."
        ) from error
    except DatasetsError as error:
        raise ValueError(
            f"data set {repo_id!r} cannot be read ({str(error).splitlines()[0]})."
        ) from error


def _parquet_copy(repo_id: str, config_name: str | None) -> DatasetDict:
    """The Hub's Parquet copy, CONFIG/SPLIT/0000.parquet, of a set that has a loading script."""
    files = HfApi().list_repo_files(repo_id, repo_type="dataset", revision=PARQUET_COPY)
    configs = sorted({file.split("/")[0] for file in files if file.endswith(".parquet")})
    if config_name is None and len(configs) == 1:
        config_name = configs[0]
    if config_name not in configs:
        asked = f"no config_name {config_name!r}" if config_name else "several configurations"
        raise ValueError(
            f"data set {repo_id!r} has {asked}: set config_name to {' or '.join(configs)}."
        )
    folder = snapshot_download(
        repo_id,
        repo_type="dataset",
        revision=PARQUET_COPY,
        allow_patterns=f"{config_name}/*.parquet",
    )
    by_split: dict[str, list[str]] = {}
    for file in sorted(Path(folder, config_name).rglob("*.parquet")):
        words = re.split(r"[/.-]", file.relative_to(Path(folder, config_name)).as_posix())
        split = next(filter(None, read_splits(words).values()), words[0])
        by_split.setdefault(split, []).append(str(file))
    return load_dataset("parquet", data_files=by_split)


def _find_columns(
    part: Dataset, repo_id: str, image: str | None, label: str | None
) -> tuple[str, str]:
    """The image and the label column: those given, else the only ones that can be meant."""
    there = ", ".join(part.features)
    for given in (image, label):
        if given and given not in part.features:
            raise ValueError(
                f"data set {repo_id!r} has no column {given!r}: its columns are {there}."
            )
    images = [name for name, kind in part.features.items() if isinstance(kind, Image)]
    if image and image not in images:
        raise ValueError(
            f"column {image!r} of {repo_id!r} holds no images: choose "
            f"{' or '.join(images) or 'another'}."
        )
    image = image or ("image" if "image" in images else images[0] if len(images) == 1 else None)
    classes = [name for name, kind in part.features.items() if isinstance(kind, ClassLabel)]
    usual = [name for name in ("label", "labels") if name in part.features]
    label = label or next(iter(usual or (classes if len(classes) == 1 else [])), None)
    if not image or not label:
        missing = "label_column" if image else "image_column"
        raise ValueError(
            f"the {missing} of data set {repo_id!r} is not clear: set it to one of {there}."
        )
    return image, label


def _labels(
    parts: dict[str, Dataset], column: str, repo_id: str
) -> tuple[dict[str, list], list[str], bool]:
    """The labels of each split, the classes, and whether the set is multi-label.

    Class indices become names, other labels stay as they are. The classes are in the column's
    order, none where it has no order.
    """
    feature = next(iter(parts.values())).features[column]
    inner = feature.feature if isinstance(feature, List) else feature
    if not isinstance(inner, ClassLabel | Value):
        raise ValueError(
            f"column {column!r} of {repo_id!r} holds no class: choose another label_column."
        )
    values = {split: list(part[column]) for split, part in parts.items()}
    for split, cells in values.items():
        missing = (None, UNLABELLED) if isinstance(inner, ClassLabel) else (None,)
        if any(cell in missing for cell in cells):
            raise ValueError(
                f"split '{split}' of {repo_id!r} has images without a label in column {column!r}."
            )
        if isinstance(inner, ClassLabel):
            values[split] = [
                [inner.names[index] for index in (cell if isinstance(cell, list) else [cell])]
                for cell in cells
            ]
    several = isinstance(feature, List) or (
        isinstance(inner, Value) and any(map(holds_lists, values.values()))
    )
    return values, inner.names if isinstance(inner, ClassLabel) else [], several


def _image_ids(part: Dataset, image_column: str, split: str) -> list[str]:
    """Original file names: a column image_id, the images' own, a column of names, split-number."""
    text = [name for name, kind in part.features.items() if kind == Value("string")]
    if "image_id" in text:
        return list(part["image_id"])
    stored = part.select_columns([image_column]).cast_column(image_column, Image(decode=False))
    candidates = [[row[image_column]["path"] for row in stored]]
    candidates += [list(part[column]) for column in NAME_COLUMNS if column in text]
    for names in candidates:
        if all(names):
            return [PurePosixPath(name).name for name in names]
    return [f"{split}-{row:06d}" for row in range(len(part))]


def load(
    path: str,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    **options: Any,
) -> DatasetDict:
    """The set with the id `path` in the one schema.

    Splits stay as they are; train gives a part by patient where validation is missing; a set with
    train alone is split by both shares. The 16 images that the Kaggle folder calls `val` are
    training data here too.

    Args:
        path: the id.
        config_name: configuration of the data set on the Hub
        revision: branch, tag or commit on the Hub
        image_column: column with the images, if it is not clear
        label_column: column with the labels, if it is not clear
        **options: of `assemble`.

    Raises:
        ValueError: a configuration, column or split that is missing or not clear, or an image
            without a label.
        OSError: no such set, or no Hub.
    """
    raw = _download(path, config_name, revision)
    splits = read_splits(raw)
    if odd := [name for name in raw if not splits[name]]:
        raise ValueError(f"split {odd[0]!r} of {path!r} is none of train, validation and test.")
    parts = {name: raw[name] for split in SPLITS for name in raw if splits[name] == split}
    first = next(iter(parts.values()))
    image_column, label_column = _find_columns(first, path, image_column, label_column)
    labels, classes, multi_label = _labels(parts, label_column, path)
    doubted = "unknown" in first.features and multi_label
    unknown = _labels(parts, "unknown", path)[0] if doubted else {}
    ids = {name: _image_ids(part, image_column, name) for name, part in parts.items()}
    keys = [patient_key(PurePosixPath(name).name) for found in ids.values() for name in found]
    validation = sum(len(part) for name, part in parts.items() if splits[name] == "validation")
    if all(keys) and validation == KAGGLE_VALIDATION and "train" in splits.values():
        logger.info(
            "The %d validation images are Kaggle's `val`: they are training data.", validation
        )
        splits = {
            name: "train" if split == "validation" else split for name, split in splits.items()
        }
    alone = set(splits.values()) == {"train"}
    optional = [name for name, kind in OPTIONAL.items() if first.features.get(name) == kind]
    has_source = first.features.get("source") == Value("string")
    records, stored = [], []
    for name, part in parts.items():
        known = part.select_columns([image_column, *optional])
        stored.append(
            known if image_column == "image" else known.rename_column(image_column, "image")
        )
        nothing = [None] * len(part)
        patients = part["patient_id"] if "patient_id" in part.features else nothing
        sources = part["source"] if has_source else nothing
        rows = zip(labels[name], unknown.get(name, nothing), ids[name], patients, sources)
        records += [
            {
                "label": label,
                "unknown": unsure,
                "name": image_id,
                "path": f"{name}-{row:06d}/{image_id}",
                "split": None if alone else splits[name],
                "patient_id": text_of(patient),
                "source": source or path,
            }
            for row, (label, unsure, image_id, patient, source) in enumerate(rows)
        ]
    if all(keys):
        for record, key in zip(records, keys):
            record["patient_id"] = record["patient_id"] or key[0]
    return assemble(records, path, multi_label, classes, concatenate_datasets(stored), **options)


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)

"""Any image-classification set of the Hub, e.g. `keremberke/chest-xray-classification`."""

import logging
import re
from pathlib import Path, PurePosixPath

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

from .folder import patient_finder
from .kermany import patient_key
from .schema import OPTIONAL, SPLIT_NAMES, SPLITS, encoded_images, label_sets, make_features
from .splits import complete_splits, content_hash, group_ids

logger = logging.getLogger(__name__)

PARQUET_COPY = "refs/convert/parquet"  # the revision with the Hub's own Parquet copy of a set
NAME_COLUMNS = ("image_file_path", "image_path", "file_name", "filename", "path")
KAGGLE_VALIDATION = 16  # images of the Kaggle folder's `val`, which are training data


def _download(repo_id: str, config_name: str | None, revision: str | None) -> DatasetDict:
    """The set as the Hub has it; one sentence for an id that is not there and for a Hub that cannot
    be reached.
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
            f"{PARQUET_COPY}: convert it to Parquet first"
        ) from error
    except (DatasetNotFoundError, RepositoryNotFoundError) as error:
        where = f"{repo_id!r} at revision {revision!r}" if revision else repr(repo_id)
        raise FileNotFoundError(
            f"there is no data set {where} on the Hub, or it is private: check the id, or log in "
            "with `hf auth login`"
        ) from error
    except HfHubHTTPError as error:
        raise OSError(
            f"the Hub refused data set {repo_id!r} ({str(error).splitlines()[-1]})"
        ) from error
    except (ConnectionError, LocalEntryNotFoundError, HTTPError) as error:
        raise ConnectionError(
            f"the Hub cannot be reached for data set {repo_id!r}: check the network, or give a "
            "folder on disk"
        ) from error
    except DatasetsError as error:
        raise ValueError(
            f"data set {repo_id!r} cannot be read ({str(error).splitlines()[0]})"
        ) from error


def _parquet_copy(repo_id: str, config_name: str | None) -> DatasetDict:
    """A set whose repository has a loading script, from the Hub's Parquet copy:
    CONFIG/SPLIT/0000.parquet.
    """
    files = HfApi().list_repo_files(repo_id, repo_type="dataset", revision=PARQUET_COPY)
    configs = sorted({file.split("/")[0] for file in files if file.endswith(".parquet")})
    if config_name is None and len(configs) == 1:
        config_name = configs[0]
    if config_name not in configs:
        asked = f"no config_name {config_name!r}" if config_name else "several configurations"
        raise ValueError(
            f"data set {repo_id!r} has {asked}: set config_name to {' or '.join(configs)}"
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
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), words[0])
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
                f"data set {repo_id!r} has no column {given!r}: its columns are {there}"
            )
    images = [name for name, kind in part.features.items() if isinstance(kind, Image)]
    if image and image not in images:
        raise ValueError(
            f"column {image!r} of {repo_id!r} holds no images: choose "
            f"{' or '.join(images) or 'another'}"
        )
    image = image or ("image" if "image" in images else images[0] if len(images) == 1 else None)
    classes = [name for name, kind in part.features.items() if isinstance(kind, ClassLabel)]
    usual = [name for name in ("label", "labels") if name in part.features]
    label = label or next(iter(usual or (classes if len(classes) == 1 else [])), None)
    if not image or not label:
        missing = "label_column" if image else "image_column"
        raise ValueError(
            f"the {missing} of data set {repo_id!r} is not clear: set it to one of {there}"
        )
    return image, label


def _labels(
    parts: dict[str, Dataset], column: str, repo_id: str
) -> tuple[dict[str, list], list[str], bool]:
    """Class indices for each split (lists of them if multi-label), the class names, and whether it
    is multi-label.
    """
    feature = next(iter(parts.values())).features[column]
    multi_label = isinstance(feature, List)
    inner = feature.feature if multi_label else feature
    values = {split: list(part[column]) for split, part in parts.items()}
    for split, column_values in values.items():
        if any(value is None or value == -1 for value in column_values):
            raise ValueError(
                f"split '{split}' of {repo_id!r} has images without a label in column {column!r}"
            )
    if isinstance(inner, ClassLabel):
        return values, inner.names, multi_label
    if not isinstance(inner, Value):
        raise ValueError(
            f"column {column!r} of {repo_id!r} holds no class: choose another label_column"
        )
    flat = [value for column_values in values.values() for value in column_values]
    known = sorted({label for value in flat for label in value} if multi_label else set(flat))
    index = {value: position for position, value in enumerate(known)}
    coded = {
        split: [
            [index[label] for label in value] if multi_label else index[value]
            for value in column_values
        ]
        for split, column_values in values.items()
    }
    return coded, [str(value) for value in known], multi_label


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


def _patients(
    ids: dict[str, list[str]], repo_id: str, patient_regex: str | None
) -> dict[str, list[str]]:
    """A patient for each image, from the regular expression, from Kermany's names, or one for each
    image.
    """
    names_of = {
        split: [PurePosixPath(image_id).name for image_id in found] for split, found in ids.items()
    }
    if patient_regex:
        find = patient_finder(patient_regex)
        return {split: [find(name) for name in names] for split, names in names_of.items()}
    keys = {split: [patient_key(name) for name in names] for split, names in names_of.items()}
    if all(key for found in keys.values() for key in found):
        return {split: [key[0] for key in found] for split, found in keys.items()}
    logger.warning(
        "%s names no patients: each image counts as its own patient (set patient_regex where names "
        "carry one)",
        repo_id,
    )
    return {split: [f"{split}/{name}" for name in names] for split, names in ids.items()}


def load(
    path: str,
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    patient_regex: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.2,
    seed: int = 42,
) -> DatasetDict:
    """The set with the id `path` in the one schema. Splits stay as they are; train gives
    `validation_share` by patient where validation is missing; a set with train alone is split by
    both shares. The 16 images that the Kaggle folder calls `val` are training data here too.
    """
    raw = _download(path, config_name, revision)
    parts: dict[str, Dataset] = {}
    for name, part in raw.items():
        if name.lower() not in SPLIT_NAMES:
            raise ValueError(f"split {name!r} of {path!r} is none of {', '.join(SPLIT_NAMES)}")
        parts[SPLIT_NAMES[name.lower()]] = part
    first = next(iter(parts.values()))
    image_column, label_column = _find_columns(first, path, image_column, label_column)
    labels, classes, multi_label = _labels(parts, label_column, path)
    ids = {split: _image_ids(part, image_column, split) for split, part in parts.items()}
    names = [name for found in ids.values() for name in found]
    if len(set(names)) < len(names):
        ids = {
            split: [f"{split}-{row:06d}/{name}" for row, name in enumerate(found)]
            for split, found in ids.items()
        }
    if "patient_id" in first.features and not patient_regex:
        patients = {split: list(map(str, part["patient_id"])) for split, part in parts.items()}
    else:
        patients = _patients(ids, path, patient_regex)
    optional = tuple(name for name, kind in OPTIONAL.items() if first.features.get(name) == kind)
    features = make_features(classes, multi_label, optional)
    for split, part in parts.items():
        known = part.select_columns([image_column, *optional])
        if image_column != "image":
            known = known.rename_column(image_column, "image")
        kept_source = first.features.get("source") == Value("string")
        columns = {
            "labels" if multi_label else "label": labels[split],
            "image_id": ids[split],
            "patient_id": patients[split],
            "source": list(part["source"]) if kept_source else [path] * len(part),
        }
        for column, values in columns.items():
            known = known.add_column(column, values, feature=features[column])
        parts[split] = known.select_columns(list(features)).cast_column("image", Image())
    return _with_splits(parts, patients, validation_share, test_share, seed)


def _with_splits(
    parts: dict[str, Dataset],
    patients: dict[str, list[str]],
    validation_share: float,
    test_share: float,
    seed: int,
) -> DatasetDict:
    """The splits in their order; validation, and test beside train alone, drawn if missing."""
    ordered = [split for split in SPLITS if split in parts]
    given = [split for split in ordered for _ in range(len(parts[split]))]
    ids = [name for split in ordered for name in parts[split]["image_id"]]
    kaggle = given.count("validation") == KAGGLE_VALIDATION and all(map(patient_key, ids))
    if kaggle and "train" in parts:
        logger.info(
            "the %d validation images are Kaggle's `val`: they are training data", KAGGLE_VALIDATION
        )
        given = ["train" if split == "validation" else split for split in given]
    if "train" not in given or "validation" in given:
        return DatasetDict({split: parts[split] for split in ordered})
    pooled = concatenate_datasets([parts[split] for split in ordered])
    keys = [patient for split in ordered for patient in patients[split]]
    groups = group_ids(keys, [content_hash(image) for image in encoded_images(pooled)])
    alone = set(given) == {"train"}
    drawn = complete_splits(
        None if alone else given, groups, label_sets(pooled), validation_share, test_share, seed
    )
    rows = {split: [row for row, name in enumerate(drawn) if name == split] for split in SPLITS}
    return DatasetDict({split: pooled.select(chosen) for split, chosen in rows.items() if chosen})


if __name__ == "__main__":
    from .cli import main

    main("hub")

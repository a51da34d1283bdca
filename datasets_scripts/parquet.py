"""A converted set as Parquet shards with a data card, in a folder or on the Hub."""

import logging
import os
import secrets
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, DatasetInfo, load_dataset
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCardData, HfApi
from huggingface_hub.errors import HTTPError
from tqdm.auto import tqdm

from datasets_scripts.hashes import pseudonym
from datasets_scripts.leaks import check_leaks, describe
from datasets_scripts.pixels import (
    MAX_UNREADABLE,
    STORED,
    content,
    in_order,
    report_unreadable,
    stored_rows,
)
from datasets_scripts.registry import known_sources, sources
from datasets_scripts.schema import REQUIRED, Source, class_names, encoded_images
from modeling.reading_cxr import is_dicom, open_image

logger = logging.getLogger(__name__)

SHARD_BYTES = 400_000_000
ROWS_AT_ONCE = 100
TAG = "cxr-classification"
SOURCE = Source(
    name="parquet",
    title="the data set of the folder `{path}`",
    path_help="a folder that --output wrote",
)


def recognise(path: Path) -> bool:
    """Whether it is a folder that `write` wrote."""
    card = path / "README.md"
    return (
        path.is_dir()
        and any(path.glob("data/*.parquet"))
        and card.is_file()
        and TAG in card.read_text("utf-8")
    )


def load(path: str | Path) -> DatasetDict:
    """The set that `write` put into a folder, with the same features."""
    loaded = load_dataset(str(path))
    there = set(next(iter(loaded.values())).features)
    if missing := {"image", "image_id", "patient_id", "source"} - there:
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}: export it again.")
    return loaded


def drop_unreadable(dataset: DatasetDict, max_unreadable: float = MAX_UNREADABLE) -> DatasetDict:
    """The set without unreadable images: one warning a split, ValueError beyond the share."""

    def problem(stored: Dataset, row: int) -> str | None:
        try:
            open_image(content(stored[row]["image"]), correct=False)
        except (ValueError, OSError) as error:
            return str(error)
        return None

    readable = {}
    with ThreadPoolExecutor() as pool:
        for split, part in dataset.items():
            stored = stored_rows(part.select_columns(["image"]))
            results = in_order(pool, partial(problem, stored), len(part))
            bar = tqdm(results, total=len(part), desc=f"checking {split}", unit="image")
            found = list(bar)
            named = [f"{name}: {text}" for name, text in zip(part["image_id"], found) if text]
            report_unreadable(len(part), named, max_unreadable)
            kept = [row for row, text in enumerate(found) if not text]
            readable[split] = part.select(kept) if named else part
    return DatasetDict(readable)


def _write_split(part: Dataset, split: str, folder: Path) -> SplitInfo:
    """The shards data/SPLIT-00000-of-0000N.parquet, with images embedded as they are encoded."""
    sizes = (
        len(image) if isinstance(image, bytes) else os.path.getsize(image)
        for image in encoded_images(part)
    )
    count = 1 + sum(sizes) // SHARD_BYTES
    total = 0
    for index in range(count):
        shard = part.shard(count, index, contiguous=True).with_format("arrow")
        file = folder / f"{split}-{index:05d}-of-{count:05d}.parquet"
        with pq.ParquetWriter(file, part.features.arrow_schema) as writer:
            for start in range(0, len(shard), ROWS_AT_ONCE):
                table = _name_images(embed_table_storage(shard[start : start + ROWS_AT_ONCE]))
                total += table.nbytes
                writer.write_table(table)
    return SplitInfo(name=split, num_bytes=total, num_examples=len(part))


def _name_images(table: pa.Table) -> pa.Table:
    """The rows with their image_id as the name that goes with embedded bytes, too."""
    ids = table["image_id"].combine_chunks()
    for column in set(STORED) & set(table.column_names):
        images = table[column].combine_chunks()
        images = pa.StructArray.from_arrays(
            [images.field("bytes"), ids], ["bytes", "path"], mask=images.is_null()
        )
        index = table.column_names.index(column)
        table = table.set_column(index, table.schema.field(column), images)
    return table


def data_card(
    dataset: DatasetDict, source: str, path: str, infos: list[SplitInfo], stored: int
) -> str:
    """The text of README.md.

    Front matter that `load_dataset` reads, then source, licence, splits, the leak statement and the
    columns. `stored` is the size of the Parquet files in bytes.
    """
    features = next(iter(dataset.values())).features
    known, unknown = known_sources(dataset)
    about = [] if sources()[source] in known else [sources()[source].title.format(path=path)]
    about += [". ".join(filter(None, (one.title, one.citation))) for one in known]
    licences = {None for _ in unknown} | {one.licence for one in known}
    licence = licences.pop() if len(licences) == 1 else None
    info = DatasetInfo(features=features, splits=SplitDict({info.name: info for info in infos}))
    info.download_size, info.dataset_size = stored, sum(info.num_bytes for info in infos)
    front = DatasetCardData(
        license=licence, task_categories=["image-classification"], tags=["chest-x-ray", TAG]
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(front)
    files = [{"split": info.name, "path": f"data/{info.name}-*"} for info in infos]
    front["configs"] = [{"config_name": "default", "data_files": files}]
    names, table = class_names(next(iter(dataset.values()))), describe(dataset)
    kind = "`labels` (any number an image)" if "labels" in features else "`label`"
    if "unknown" in features:
        kind += "; `unknown`, the classes that are not annotated for an image"
    return f"""---
{front.to_yaml()}
---

# Chest X-rays: {", ".join(names)}

Source: {"; ".join(about)}.

Licence: {licence or "not stated by the source"}.

## Splits

```
{table}
```

No patient and no identical image (SHA-256 of the file) stands in two splits; this was checked when
the set was written. Image bytes are those of the source, unchanged.

## Columns

`image`; {kind}; `image_id`, the original file name; `patient_id`;
`source`{_optional_text(features)}.

For research only: not a medical device, and not for diagnosis.
"""


def _optional_text(features: dict) -> str:
    texts = {
        "lung_mask": "`lung_mask`, an image, white where rays cross lung",
        "objects": "`objects`, boxes as `bbox`, [x, y, width, height] in pixels, and `category`",
    }
    there = [name for name in features if name not in REQUIRED]
    return "".join("; " + texts.get(name, f"`{name}`") for name in there)


def write(dataset: DatasetDict, output: str | Path, source: str, path: str = "") -> Path:
    """Write Parquet shards and a data card into the new folder `output`.

    It appears only once it is complete. The card names `source` and, for a Hub id or folder,
    `path`.

    Raises:
        LeakError: a patient or an identical image stands in two splits.
        ValueError: the folder holds anything.
        OSError: it cannot be written.
    """
    output = Path(output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ValueError(f"output {output} exists and is not an empty folder: choose a new one.")
    check_leaks(dataset)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.partial")
    data = unfinished / "data"
    try:
        data.mkdir(parents=True)
        infos = [_write_split(part, split, data) for split, part in dataset.items()]
        stored = sum(file.stat().st_size for file in data.iterdir())
        card = data_card(dataset, source, path, infos, stored)
        (unfinished / "README.md").write_text(card, "utf-8")
        os.replace(unfinished, output)
    except OSError as error:
        raise OSError(f"could not write {output} ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return output


def push(
    dataset: DatasetDict,
    repo_id: str,
    source: str,
    path: str = "",
    private: bool = False,
    publish_ids: bool = False,
) -> str:
    """Uploads Parquet and card in one commit; a new repository is created.

    Args:
        dataset: the set.
        repo_id: org/name.
        source: its source's name, for the card.
        path: its Hub id or folder's name, for the card.
        private: whether the repository must be a private one.
        publish_ids: whether file names and patient ids stay, which may be those of people; else
            each is replaced by a hash under a salt that is thrown away.

    Returns:
        The repository's address.

    Raises:
        ValueError: it is to be private and is there already as a public one; or a DICOM file, the
            header of which may name its patient, is to be pushed without `publish_ids`.
        OSError: the Hub refuses or cannot be reached.
    """
    if not publish_ids:
        dataset = without_names(dataset)
    api = HfApi()
    try:
        address = api.create_repo(
            repo_id, repo_type="dataset", private=private or None, exist_ok=True
        )
        is_private = api.repo_info(repo_id, repo_type="dataset").private
        if private and not is_private:
            raise ValueError(
                f"data set {repo_id} is public, against --private; change that on the Hub, or name "
                "another."
            )
        logger.info(
            "%s is %s: pushed will be the images as they are, with %s%s.",
            repo_id,
            "private" if is_private else "public",
            ", ".join(name for name in next(iter(dataset.values())).features if name != "image"),
            "" if publish_ids else "; names of files and patients are salted hashes",
        )
        with tempfile.TemporaryDirectory() as folder:
            api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=write(dataset, Path(folder) / "export", source, path),
                delete_patterns="data/*.parquet",
                commit_message="Upload converted data set",
            )
    except (HTTPError, ConnectionError) as error:
        reason = str(error).splitlines()[-1]
        raise OSError(f"could not push to data set {repo_id!r} ({reason}).") from error
    return str(address)


def without_names(dataset: DatasetDict) -> DatasetDict:
    """The set with a salted hash in place of each file name and patient id.

    Raises:
        ValueError: an image is a DICOM file.
    """
    salt, hashed = secrets.token_bytes(32), {}
    for split, part in dataset.items():
        for column in set(STORED) & set(part.features):
            for row in stored_rows(part.select_columns(["image_id", column])):
                if row[column] is not None and _is_dicom(content(row[column])):
                    raise ValueError(
                        f"{row['image_id']} is a DICOM file, the header of which may name its "
                        "patient; convert it to PNG, or give --publish_ids."
                    )
        columns = part.column_names
        for column in ("image_id", "patient_id"):
            names = [pseudonym(name, salt) for name in part[column]]
            part = part.remove_columns(column).add_column(column, names)
        hashed[split] = part.select_columns(columns)
    return DatasetDict(hashed)


def _is_dicom(image: bytes | str) -> bool:
    if isinstance(image, bytes):
        return is_dicom(image)
    with open(image, "rb") as file:
        return is_dicom(file.read(2048))

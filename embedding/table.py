"""Embeddings on disk: Parquet parts of some hundred images each, and a JSON file that names them.

A part is written whole or not at all, so that a run that was stopped goes on with the next one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.predictions import write_text
from evaluation.table import read_json

FACTS = "embeddings.json"
# What makes a part of another run unfit to stand beside those of this one.
KEYS = (
    *("encoder", "own", "revision", "weights", "pooling", "tokens"),
    *("classes", "task", "fingerprints"),
)


@dataclass
class Embeddings:
    """Those of one split, in memory.

    Attributes:
        image_id: str (N,).
        patient_id: str (N,).
        labels: bool (N, K).
        unknown: bool (N, K).
        vectors: float32 (N, T, D), T tokens an image, mostly one.
    """

    image_id: np.ndarray
    patient_id: np.ndarray
    labels: np.ndarray
    unknown: np.ndarray
    vectors: np.ndarray

    def take(self, rows: np.ndarray) -> "Embeddings":
        """Those of some rows, int (n,)."""
        return Embeddings(**{name: column[rows] for name, column in vars(self).items()})

    def of_patients(self, patients: np.ndarray) -> "Embeddings":
        """Those of all images of some patients, str (n,)."""
        return self.take(np.flatnonzero(np.isin(self.patient_id, patients)))


def settle(folder: Path, facts: dict) -> None:
    """Says in a folder what its parts are of, or checks that it is said already.

    Args:
        folder: made where it is not there.
        facts: what KEYS name.

    Raises:
        ValueError: the folder holds embeddings of another encoder or other images.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FACTS
    if not path.is_file():
        write_text(path, json.dumps(facts, indent=2) + "\n")
        return
    found = read_json(path, KEYS, "embed.py")
    if other := [key for key in KEYS if found[key] != facts[key]]:
        raise ValueError(
            f"{folder} holds embeddings of another run ({', '.join(other)} differ); name another "
            "--output_dir."
        )


def write_part(path: Path, rows: Sequence[dict], vectors: np.ndarray) -> None:
    """Writes the part of some images, whole.

    Args:
        path: of the file.
        rows: image_id, patient_id, labels and unknown (names of classes) of each image.
        vectors: float32 (N, T, D).

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    columns = {
        "image_id": pa.array([row["image_id"] for row in rows], pa.string()),
        "patient_id": pa.array([row["patient_id"] for row in rows], pa.string()),
        "labels": pa.array([row["labels"] for row in rows], pa.list_(pa.string())),
        "unknown": pa.array([row["unknown"] for row in rows], pa.list_(pa.string())),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors[0].size),
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(pa.table(columns), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_embeddings(folder: str | Path) -> tuple[dict, dict[str, Embeddings]]:
    """What embed.py wrote: its facts, see `settle`, and each split.

    Raises:
        ValueError: it is no such folder, a part is damaged, or widths are mixed.
        OSError: a file cannot be read.
    """
    folder = Path(folder)
    if not (folder / FACTS).is_file():
        raise ValueError(f"{folder} holds no {FACTS}; embed.py makes such folders.")
    facts = read_json(folder / FACTS, KEYS, "embed.py")
    parts: dict[str, list[pa.Table]] = {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is no Parquet file; delete it and run embed.py.") from error
        parts.setdefault(path.name.rpartition("-")[0], []).append(table)
    widths = {table["embedding"].type.list_size for found in parts.values() for table in found}
    if len(widths) != 1:
        told = f"of {', '.join(map(str, sorted(widths)))} numbers" if widths else "none"
        raise ValueError(f"{folder} holds embeddings {told}; all need one width.")
    names = list(facts["classes"])
    tokens = facts["tokens"]
    return facts, {split: _join(found, names, tokens) for split, found in parts.items()}


def _join(tables: list[pa.Table], names: list[str], tokens: int) -> Embeddings:
    table = pa.concat_tables(tables).combine_chunks()
    vectors = table["embedding"].combine_chunks()
    return Embeddings(
        np.array(table["image_id"].to_pylist()),
        np.array(table["patient_id"].to_pylist()),
        _cells(table["labels"].to_pylist(), names),
        _cells(table["unknown"].to_pylist(), names),
        vectors.flatten().to_numpy().reshape(len(table), tokens, -1),
    )


def _cells(rows: list[list[str]], names: list[str]) -> np.ndarray:
    return np.array([[name in row for name in names] for row in rows])

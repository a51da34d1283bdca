"""Embeddings that others made: CXR Foundation's files, and Parquet.

Sellergren et al., Radiology 305, 2022 (version 1: TFRecord files of tf.Example, 1,376 numbers
an image) and Xu et al., arXiv 2308.01317 (version 2: an .npz file an image). Neither TensorFlow nor
its protocol classes are needed to read them.
"""

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TFRECORDS = (".tfrecord", ".tfrecords")
# The arrays of version 2, the first that is there: language-aligned before general.
ARRAYS = ("all_contrastive_img_emb", "contrastive_img_emb", "general_img_emb", "img_emb")
ROWS_AT_ONCE = 1000


def read_precomputed(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and tokens, float32 (T, D), of each image in a file or a folder of files.

    A TFRecord's record names its image, `image/id`; an .npz file is of the image that it is called
    after, and has 32 tokens or one; a Parquet file has columns image_id and embedding.

    Raises:
        ValueError: a file is damaged or none of these, or widths are mixed.
        OSError: a file cannot be read.
    """
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if _is_known(file)) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no .tfrecord, .npz or .parquet file.")
    shape = None
    for file in files:
        for name, tokens in _read(file):
            shape = shape or tokens.shape
            if tokens.shape != shape:
                raise ValueError(
                    f"{file} gives {name} {_told(tokens.shape)}, others before it {_told(shape)}: "
                    "give embeddings of one kind."
                )
            yield name, tokens


def _told(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]} numbers"


def _is_known(file: Path) -> bool:
    return file.suffix in (".npz", ".parquet") or any(end in file.name for end in TFRECORDS)


def _read(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    if file.suffix == ".npz":
        yield file.stem, _from_npz(file)
    elif file.suffix == ".parquet":
        yield from _from_parquet(file)
    else:
        yield from _from_tfrecord(file)


def _from_npz(file: Path) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = next((arrays[name] for name in ARRAYS if name in arrays), None)
            names = list(arrays)
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file} is no .npz file of arrays.") from error
    if found is None:
        raise ValueError(f"{file} has {', '.join(names)}; one of {', '.join(ARRAYS)} is needed.")
    return np.asarray(found, np.float32).reshape(-1, found.shape[-1])


def _from_parquet(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        table = pq.ParquetFile(file)
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=["image_id", "embedding"]):
            for name, values in zip(*(batch[column].to_pylist() for column in batch.schema.names)):
                yield name, np.array([values], np.float32)
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(
            f"{file} is no Parquet file with the columns image_id and embedding."
        ) from error


def _from_tfrecord(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The framing: length (8 bytes), its checksum (4), the record, its checksum (4)."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        while head := stream.read(12):
            try:
                (length,) = struct.unpack("<Q", head[:8])
                if stream.tell() + length + 4 > size:
                    raise ValueError
                record = stream.read(length + 4)
                example = _example(memoryview(record)[:length])
                name, vector = example["image/id"], example["embedding"]
            except (struct.error, ValueError, IndexError, KeyError, OverflowError) as error:
                raise ValueError(
                    f"{file} has a record without image/id and embedding, or is cut off."
                ) from error
            yield bytes(name).decode(), vector[None]


def _example(record: memoryview) -> dict:
    """The features of a tf.Example: bytes, or float32 (D,); see tensorflow/core/example.

    Example { Features features = 1 }, Features { map<string, Feature> feature = 1 }, a map's entry
    { key = 1, value = 2 }, Feature { BytesList = 1 | FloatList = 2 }, each { repeated value = 1 }.
    """
    found = {}
    for features in _fields(record, 1):
        for entry in _fields(features, 1):
            (key,), (feature,) = _fields(entry, 1), _fields(entry, 2)
            name = bytes(key).decode()
            for values in _fields(feature, 1):
                found[name] = b"".join(map(bytes, _fields(values, 1)))
            for values in _fields(feature, 2):
                packed = b"".join(map(bytes, _fields(values, 1)))
                found[name] = np.frombuffer(packed, "<f4").astype(np.float32)
    return found


def _fields(message: memoryview, number: int) -> list[memoryview]:
    """The contents of a protocol message's fields of one number; numbers are left packed."""
    found, place = [], 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 2:
            length, place = _varint(message, place)
        elif kind == 0:
            start = place
            _, place = _varint(message, place)
            length, place = place - start, start
        else:
            length = {1: 8, 5: 4}[kind]
        if place + length > len(message):
            raise ValueError
        if tag >> 3 == number:
            found.append(message[place : place + length])
        place += length
    return found


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place

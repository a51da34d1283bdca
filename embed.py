"""Turn X-rays into embeddings: one vector an image, in Parquet files.

    python embed.py --encoder checkpoints/cxr-densenet121 --dataset phantom --output_dir embeddings
    python embed.py --encoder facebook/dinov2-small --dataset kermany --dataset_path chest_xray
    python embed.py --precomputed elixr/ --dataset kermany --dataset_path chest_xray

The same command again goes on where a run was stopped; under `accelerate launch` the processes
share the work. What stands in the folder says `embedding.table`; probe.py learns from it.
"""

import argparse
import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from datasets import Dataset, DatasetDict

from datasets_scripts import (
    class_names,
    fingerprint,
    label_sets,
    load_cxr_dataset,
    open_row,
    unknown_sets,
)
from datasets_scripts.pixels import report_unreadable, stored_rows
from embedding.encoders import Encoder, load_encoder
from embedding.precomputed import read_precomputed
from embedding.table import FACTS, settle, write_part
from modeling.modeling_cxr import CxrClassifier
from training.arguments import add_dataset, check_ranges, settle_dataset
from training.launch import make_accelerator

logger = logging.getLogger("embed")
PART = 512  # images a file: what a run that is stopped loses, at most
RANGES = {"max_unreadable": (0, 1), "batch_size": (1, 10**6)}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The flags of embed.py; ends the program where one is wrong."""
    parser = argparse.ArgumentParser(
        description="Turn chest X-rays into embeddings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    what("--encoder", metavar="PATH_OR_ID", help="of this project, transformers, timm:, open_clip:")
    what("--precomputed", metavar="PATH", help="embeddings of others, see embedding.precomputed")
    add("--output_dir", default="embeddings", help="the folder of Parquet files")
    add_dataset(add)
    add("--batch_size", type=int, default=32, help="images a forward pass")
    add("--max_unreadable", type=float, default=0.01, help="share of damaged images to put up with")
    parser.set_defaults(report_to="none", seed=0)
    args = parser.parse_args(argv)
    check_ranges(parser, args, RANGES)
    settle_dataset(args)
    return args


def describe(dataset: DatasetDict) -> dict:
    """What the folder's JSON file says of the images."""
    first = next(iter(dataset.values()))
    return {
        "classes": class_names(first),
        "task": "multi_label" if "labels" in first.features else "single_label",
        "fingerprints": {name: fingerprint(split) for name, split in dataset.items()},
    }


def rows_of(split: Dataset) -> list[dict]:
    """What is written beside each image's vector."""
    names = class_names(split)
    columns = (split["image_id"][:], split["patient_id"][:], label_sets(split), unknown_sets(split))
    return [
        {
            "image_id": image,
            "patient_id": patient,
            "labels": [names[k] for k in labels],
            "unknown": [names[k] for k in unknown],
        }
        for image, patient, labels, unknown in zip(*columns)
    ]


def weights_digest(encoder: Encoder) -> str:
    """Hex digest of an encoder's weights: which they are, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def embed_part(
    encoder: Encoder, stored: Dataset, batch_size: int, pool: ThreadPoolExecutor
) -> tuple[list[int], np.ndarray | None, list[str]]:
    """The rows that could be read, their vectors (N, 1, D) or None, and what could not be read."""

    def read(row: dict) -> torch.Tensor | str:
        try:
            return encoder.prepare(*open_row(row, encoder.correct))
        except (ValueError, OSError) as error:
            return f"{row['image_id']}: {error}"

    kept, vectors, problems = [], [], []
    for start in range(0, len(stored), batch_size):
        numbers = range(start, min(start + batch_size, len(stored)))
        found = list(pool.map(read, (stored[row] for row in numbers)))
        problems += [text for text in found if isinstance(text, str)]
        prepared = [tensor for tensor in found if not isinstance(tensor, str)]
        kept += [row for row, tensor in zip(numbers, found) if not isinstance(tensor, str)]
        if prepared:
            vectors.append(encoder(prepared))
    return kept, np.concatenate(vectors)[:, None] if vectors else None, problems


def embed_split(
    encoder: Encoder, name: str, split: Dataset, args: argparse.Namespace, accelerator: Accelerator
) -> None:
    """Writes this process's share of a split's parts, those that are not there.

    Raises:
        ValueError: too many images cannot be read.
        OSError: a part cannot be written.
    """
    rows, stored = rows_of(split), stored_rows(split)
    parts = range(accelerator.process_index, -(-len(split) // PART), accelerator.num_processes)
    files = {part: Path(args.output_dir) / f"{name}-{part:05d}.parquet" for part in parts}
    missing = [part for part, file in files.items() if not file.is_file()]
    problems: list[str] = []
    with ThreadPoolExecutor() as pool:
        for part in tqdm(missing, desc=name, unit="part"):
            numbers = range(part * PART, min((part + 1) * PART, len(split)))
            kept, vectors, unread = embed_part(
                encoder, stored.select(numbers), args.batch_size, pool
            )
            problems += unread
            if vectors is not None:
                write_part(files[part], [rows[numbers[row]] for row in kept], vectors)
    report_unreadable(len(split), problems, args.max_unreadable)


def take_precomputed(
    path: str, found: Iterable[tuple[str, np.ndarray]], dataset: DatasetDict, folder: Path
) -> None:
    """Writes the vectors of a set's images that others made, joined by name without suffix.

    Args:
        path: where they are from, for errors.
        found: see `read_precomputed`.
        dataset: in the dataset schema.
        folder: for the parts.

    Raises:
        ValueError: no name is in the set, one has two vectors, or a file is damaged.
        OSError: a file cannot be read or written.
    """
    places = {}
    for name, split in dataset.items():
        for row in rows_of(split):
            places[PurePosixPath(row["image_id"]).stem] = name, row
    waiting: dict[str, list] = {name: [] for name in dataset}
    parts, met, strange = Counter(), set(), 0

    def flush(name: str) -> None:
        rows, vectors = zip(*waiting[name])
        write_part(folder / f"{name}-{parts[name]:05d}.parquet", rows, np.stack(vectors))
        parts[name] += 1
        waiting[name].clear()

    for image, vector in found:
        stem = PurePosixPath(image).stem
        if stem not in places:
            strange += 1
            continue
        if stem in met:
            raise ValueError(f"{path} has two vectors of {image}; give one an image.")
        met.add(stem)
        name, row = places[stem]
        waiting[name].append((row, vector))
        if len(waiting[name]) == PART:
            flush(name)
    if not met:
        raise ValueError(
            f"none of the {strange:,} names in {path} is an image of the set, as "
            f"{next(iter(places))!r} is: give the set that it was made of."
        )
    for name in (name for name, rows in waiting.items() if rows):
        flush(name)
    if strange or len(met) < len(places):
        logger.warning(
            "%d vectors are of no image of the set; %d images have none and are left out.",
            strange,
            len(places) - len(met),
        )


def main(argv: list[str]) -> None:
    """Embeds every split, or takes what others made."""
    args = parse_args(argv)
    accelerator = make_accelerator(args)
    dataset = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    folder = Path(args.output_dir)
    if args.precomputed:
        if (folder / FACTS).is_file():
            raise ValueError(f"{folder} holds embeddings already; name another --output_dir.")
        found = read_precomputed(args.precomputed)
        first = next(found)
        origin = {"encoder": Path(args.precomputed).name, "own": False, "revision": None}
        origin |= {"weights": None, "pooling": "as published", "tokens": len(first[1])}
        settle(folder, {**origin, **describe(dataset)})
        take_precomputed(args.precomputed, chain([first], found), dataset, folder)
        return
    encoder = load_encoder(args.encoder)
    if accelerator.is_main_process:
        own = isinstance(encoder.network, CxrClassifier)
        origin = {"encoder": args.encoder, "own": own, "revision": encoder.revision}
        origin |= {"weights": weights_digest(encoder), "pooling": encoder.pooling, "tokens": 1}
        settle(folder, {**origin, **describe(dataset)})
    accelerator.wait_for_everyone()
    encoder.network.to(accelerator.device)
    for name, split in dataset.items():
        embed_split(encoder, name, split, args, accelerator)
    accelerator.wait_for_everyone()
    logger.info("Written to %s", folder)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"embed.py: error: {error}")

"""Splits by patient: grouping, stratified assignment, the leak check and its repair, and the table
of a set.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from .schema import class_names, encoded_images, label_sets

DEFAULT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


class LeakError(ValueError):
    """A patient or an identical image stands in two splits."""


@lru_cache(maxsize=1_000_000)
def _file_hash(path: str, size: int, modified: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def content_hash(image: bytes | str) -> str:
    """SHA-256 of an encoded image, given as its bytes or its path. A file is read again only after
    it changed.
    """
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    status = Path(image).stat()
    return _file_hash(image, status.st_size, status.st_mtime_ns)


def group_ids(*keys: Sequence[Hashable]) -> np.ndarray:
    """Group numbers, int64 (N,): two rows share one where a chain of equal keys (of the same
    sequence) joins them.
    """
    parent = list(range(len(keys[0])))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for column in keys:
        first: dict[Hashable, int] = {}
        for row, key in enumerate(column):
            parent[root(row)] = root(first.setdefault(key, row))
    return np.unique([root(row) for row in range(len(parent))], return_inverse=True)[1]


def split_groups(
    groups: np.ndarray, labels: list[tuple[int, ...]], shares: dict[str, float], seed: int
) -> np.ndarray:
    """A split name for each row, (N,): whole groups, every class in each split as near to its share
    as groups permit.

    Groups are placed largest first (equal ones in random order), each where it adds least to the
    sum over splits and classes of (count - wanted)^2 / wanted. Afterwards a split that lacks a
    class gets a smallest group of it. Raises ValueError where a class of a single-label set has
    fewer groups than there are splits.
    """
    names = list(shares)
    share = np.array([shares[name] for name in names], float)
    share /= share.sum()
    kinds = sorted({label for row in labels for label in row or (-1,)})  # -1: no finding
    counts = np.zeros((int(groups.max()) + 1, len(kinds)))
    for group, row in zip(groups, labels):
        for label in row or (-1,):
            counts[group, kinds.index(label)] += 1
    if len(counts) < len(names):
        raise ValueError(
            f"{len(counts)} patients cannot be split into {' + '.join(names)}: add other patients"
        )
    wanted = share[:, None] * counts.sum(axis=0)
    held = np.zeros_like(wanted)
    place = np.empty(len(counts), int)
    shuffled = np.random.default_rng(seed).permutation(len(counts))
    for group in shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]:
        size = counts[group]
        cost = (size * (size + 2 * (held - wanted)) / wanted).sum(axis=1)
        place[group] = np.lexsort((-share, cost))[0]
        held[place[group]] += size

    single_label = all(len(row) == 1 for row in labels)
    for having in counts.T > 0 if single_label else [np.ones(len(counts), bool)]:
        for split in range(len(names)):
            per_split = np.bincount(place[having], minlength=len(names))
            donor = int(per_split.argmax())
            if per_split[split] == 0 and per_split[donor] < 2:
                raise ValueError(
                    f"a class with {having.sum()} patients cannot stand in each of "
                    f"{' + '.join(names)}: add patients of it, or give the splits as folders"
                )
            if per_split[split] == 0:
                movable = np.flatnonzero(having & (place == donor))
                place[movable[np.argmin(counts[movable].sum(axis=1))]] = split
    return np.array(names)[place[groups]]


def complete_splits(
    given: list[str] | None,
    groups: np.ndarray,
    labels: list[tuple[int, ...]],
    validation_share: float,
    test_share: float = 0.2,
    seed: int = 42,
) -> list[str]:
    """The split of each row. All are drawn where none are `given`; where train has no validation
    beside it, `validation_share` of train is held out; otherwise they stay.
    """
    for name, share in {"validation_share": validation_share, "test_share": test_share}.items():
        if not 0 < share < 1:
            raise ValueError(f"{name} {share} is not between 0 and 1")
    if given is None:
        shares = {
            "train": 1 - validation_share - test_share,
            "validation": validation_share,
            "test": test_share,
        }
        if shares["train"] <= 0:
            raise ValueError(
                f"validation_share {validation_share} and test_share {test_share} leave nothing to "
                "train on"
            )
        return split_groups(groups, labels, shares, seed).tolist()
    if "train" not in given or "validation" in given:
        return given
    rows = [row for row, split in enumerate(given) if split == "train"]
    shares = {"train": 1 - validation_share, "validation": validation_share}
    drawn = split_groups(
        np.unique(groups[rows], return_inverse=True)[1], [labels[row] for row in rows], shares, seed
    )
    splits = list(given)
    for row, split in zip(rows, drawn.tolist()):
        splits[row] = split
    return splits


def content_hashes(dataset: Dataset) -> list[str]:
    """`content_hash` of each image of a split."""
    return [content_hash(image) for image in encoded_images(dataset)]


def check_leaks(dataset: DatasetDict) -> None:
    """Raise LeakError where a patient_id or a content hash (SHA-256 of the encoded image) stands in
    two splits.
    """
    patients, images = defaultdict(set), defaultdict(set)
    for split, part in dataset.items():
        for patient, image_id, content in zip(
            part["patient_id"], part["image_id"], content_hashes(part)
        ):
            patients[patient].add(split)
            images[content].add((split, image_id))
    people = [
        f"patient {patient} in {' and '.join(sorted(splits))}"
        for patient, splits in patients.items()
        if len(splits) > 1
    ]
    same = [
        "identical images " + " and ".join(f"{split}/{name}" for split, name in sorted(places))
        for places in images.values()
        if len({split for split, _ in places}) > 1
    ]
    if people or same:
        shown = people[: 5 - min(2, len(same))]
        shown += same[: 5 - len(shown)]
        raise LeakError(
            f"{len(people)} patients and {len(same)} identical images stand in more than one split "
            f"({'; '.join(shown)}): --regroup splits the images again by patient"
        )


def regroup(dataset: DatasetDict, seed: int = 0) -> DatasetDict:
    """All splits pooled and split again, each patient and each identical image in one alone: with
    the same shares where all three splits are given, else 70, 10 and 20 %.
    """
    pooled = concatenate_datasets(list(dataset.values()))
    groups = group_ids(pooled["patient_id"], content_hashes(pooled))
    shares = DEFAULT_SHARES
    if set(dataset) == set(DEFAULT_SHARES):
        shares = {name: len(part) for name, part in dataset.items()}
    splits = split_groups(groups, label_sets(pooled), shares, seed)
    return DatasetDict({name: pooled.select(np.flatnonzero(splits == name)) for name in shares})


def describe(dataset: DatasetDict) -> str:
    """A table in plain text: files, unique images, patients, and each class's count and prevalence,
    for each split.
    """
    names = class_names(next(iter(dataset.values())))
    columns = {
        split: (content_hashes(part), list(part["patient_id"]), label_sets(part))
        for split, part in dataset.items()
    }
    columns["total"] = tuple(sum(parts, []) for parts in zip(*columns.values()))
    table = [["split", "files", "unique", "patients", *names]]
    for split, (hashes, patients, labels) in columns.items():
        numbers = [len(hashes), len(set(hashes)), len(set(patients))]
        counts = [sum(index in row for row in labels) for index in range(len(names))]
        shown = [f"{count:,} ({count / len(labels):.1%})" for count in counts]
        table.append([split, *(f"{number:,}" for number in numbers), *shown])
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
    return "\n".join(lines)

"""What a set holds, in a table; patients and images that stand in two splits, and the repair."""

from collections import Counter, defaultdict

import numpy as np
from datasets import DatasetDict, concatenate_datasets

from datasets_scripts.schema import class_names, content_hashes, label_sets, unknown_sets
from datasets_scripts.splits import group_ids, split_groups

DEFAULT_SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


class LeakError(ValueError):
    """A patient or an identical image stands in two splits."""


def check_leaks(dataset: DatasetDict) -> None:
    """Refuses a set with a patient or an identical image in two splits.

    Raises:
        LeakError: a patient_id, or a content hash (SHA-256 of the encoded image), is in two.
    """
    patients, images = defaultdict(set), defaultdict(set)
    for split, part in dataset.items():
        for patient, image_id, content in zip(
            part["patient_id"][:], part["image_id"][:], content_hashes(part)
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
            f"({'; '.join(shown)}): --regroup splits the images again by patient."
        )


def regroup(dataset: DatasetDict, seed: int = 0) -> DatasetDict:
    """All splits pooled and split again, each patient and each identical image in one alone.

    The shares stay where all three splits are given; else they are 70, 10 and 20 %.
    """
    pooled = concatenate_datasets(list(dataset.values()))
    groups = group_ids(pooled["patient_id"][:], content_hashes(pooled))
    shares = DEFAULT_SHARES
    if set(dataset) == set(DEFAULT_SHARES):
        shares = {name: len(part) for name, part in dataset.items()}
    splits = split_groups(groups, label_sets(pooled), shares, seed)
    return DatasetDict({name: pooled.select(np.flatnonzero(splits == name)) for name in shares})


def describe(dataset: DatasetDict) -> str:
    """A table in plain text, a row a split.

    Its columns are files, unique images, patients, and each class's count, with its prevalence in
    the images of which it is known, and how many those are where it is not of all.
    """
    names = class_names(next(iter(dataset.values())))
    columns = {}
    for split, part in dataset.items():
        patients = part["patient_id"][:]
        columns[split] = content_hashes(part), patients, label_sets(part), unknown_sets(part)
    columns["total"] = tuple(sum(parts, []) for parts in zip(*columns.values()))
    table = [["split", "files", "unique", "patients", *names]]
    for split, (hashes, patients, labels, unknown) in columns.items():
        numbers = [len(hashes), len(set(hashes)), len(set(patients))]
        present = Counter(index for row in labels for index in row)
        missing = Counter(index for row in unknown for index in row)
        shown = [
            _prevalence(present[index], len(labels) - missing[index], len(labels))
            for index in range(len(names))
        ]
        table.append([split, *(f"{number:,}" for number in numbers), *shown])
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    ]
    return "\n".join(lines)


def _prevalence(count: int, known: int, total: int) -> str:
    share = f"{count / known:.1%}" if known else "unknown"
    return f"{count:,} ({share} of {known:,})" if 0 < known < total else f"{count:,} ({share})"

"""Splits by patient: names of splits, grouping, stratified assignment."""

import re
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Usual names, as `datasets` knows them; with numbers and words like "set", as in 2_training_set.
NAMES = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "valid", "validate", "validation", "dev", "development"),
    "test": ("test", "testing", "tst"),
    "eval": ("eval", "evaluation"),
}
SHORT = {"tr": "train", "va": "validation", "vl": "validation", "te": "test", "ts": "test"}
ABOUT = r"(?:sets?|data|datasets?|images?|imgs?|(?:chest[\W_]*)?x[\W_]?rays?|cxrs?)"
NAME = re.compile(
    rf"[\W\d_]*(?:{ABOUT}[\W\d_]+)*"
    rf"({'|'.join(name for names in NAMES.values() for name in names)})"
    rf"(?:[\W\d_]*(?:{ABOUT}|split|folder|new|final|v(?=\d)))*[\W\d_]*"
)


def read_splits(names: Iterable[str]) -> dict[str, str | None]:
    """train, validation or test for each name of a split, None for what is no such name.

    `eval` means test, as in `datasets`; beside a test split it means validation. Names as short as
    tr and te count beside one another alone.
    """
    found = {}
    names = list(names)
    short = {name: SHORT.get(name.casefold()) for name in names}
    if {"train", "test"} <= set(short.values()):
        found = {name: split for name, split in short.items() if split}
    for name in (name for name in names if name not in found):
        match = NAME.fullmatch(name.strip().casefold())
        found[name] = next((s for s, known in NAMES.items() if match and match[1] in known), None)
    meant = "validation" if "test" in found.values() else "test"
    return {name: meant if split == "eval" else split for name, split in found.items()}


def read_split_and_class(name: str) -> tuple[str, str] | None:
    """The split and the class in a name, as train_NORMAL or NORMAL-test; None where it has none."""
    words = re.split(r"[\W_]+", name)
    for word, kind in ((words[0], name[len(words[0]) :]), (words[-1], name[: -len(words[-1])])):
        if (split := read_splits([word])[word]) and (kind := kind.strip(" _-.")):
            return split, kind
    return None


def group_ids(*keys: Sequence[Hashable]) -> np.ndarray:
    """Group numbers, int64 (N,).

    Two rows share one where a chain of equal keys (of the same sequence) joins them.
    """
    rows = len(keys[0])
    # A graph with a node a row and a node a key; its components are the groups.
    nodes: dict[tuple[int, Hashable], int] = {}
    ends = [
        nodes.setdefault((number, key), rows + len(nodes))
        for number, column in enumerate(keys)
        for key in column
    ]
    starts = np.tile(np.arange(rows), len(keys))
    size = rows + len(nodes)
    graph = coo_array((np.ones(len(ends), bool), (starts, ends)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:rows].astype(np.int64)


def split_groups(
    groups: np.ndarray, labels: list[tuple[int, ...]], shares: dict[str, float], seed: int
) -> np.ndarray:
    """A split name for each row, str (N,).

    Groups stay whole, and every class is in each split as near to its share as groups permit. They
    are placed largest first (equal ones in random order), each where it adds least to the sum over
    splits and classes of (count - wanted)^2 / wanted. Afterwards a split that lacks a class gets a
    smallest group of it.

    Raises:
        ValueError: there are fewer groups than splits, be it of a class of a single-label set.
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
            f"{len(counts)} patients cannot be split into {' + '.join(names)}: add other patients."
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
                    f"{' + '.join(names)}: add patients of it, or give the splits as folders."
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
    """The split of each row.

    All are drawn where none are `given`, or are test where its share is 1; where train has no
    validation beside it, `validation_share` of train is held out; otherwise they stay.

    Raises:
        ValueError: shares that leave a split nothing, or too few groups, see `split_groups`.
    """
    for name, share in {"validation_share": validation_share, "test_share": test_share}.items():
        if not 0 < share < 1 and (name, share) != ("test_share", 1):
            raise ValueError(f"{name} {share} is not between 0 and 1.")
    if given is None and test_share == 1:
        return ["test"] * len(labels)
    if given is None:
        shares = {
            "train": 1 - validation_share - test_share,
            "validation": validation_share,
            "test": test_share,
        }
        if shares["train"] <= 0:
            raise ValueError(
                f"validation_share {validation_share} and test_share {test_share} leave nothing to "
                "train on."
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

"""What labels say: several in a cell, blanks, spellings, and which class is the finding."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import yaml

logger = logging.getLogger(__name__)

BLANK = {"", "nan", "NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "<NA>", "NaT"}
SEPARATOR = re.compile(r"[|;]")
QUOTED = re.compile(r'"([^"]*)"|\'([^\']*)\'')
# Usual names of the class without the finding, as `label_key` writes them.
NEGATIVE = re.compile(
    r"(?!no[nt] normal)"
    r"(normals?|healthy|controls?|neg|negatives?|benign|absent|absence|clear|unremarkable"
    r"|no|none|false|0|(no|non|not|without) \D.*|normals? .+|.+ (normal|negative|neg)|.+-)"
)


def read_labels(cell: object) -> list[str]:
    """The class names in a cell, each once and with single blanks; none where it says nothing.

    Args:
        cell: names joined by | or ;, a list of them, a list as text, as "['a', 'b']", or a number.
    """
    if isinstance(cell, str) and _is_list(cell):
        inner = cell.strip()[1:-1]
        quoted = [double or single for double, single in QUOTED.findall(inner)]
        parts: Iterable = quoted or inner.split(",")
    elif isinstance(cell, str):
        parts = SEPARATOR.split(cell)
    else:
        parts = cell if isinstance(cell, list | tuple) else [cell]
    return list(dict.fromkeys(name for part in parts if (name := text_of(part))))


def holds_lists(cells: Iterable[object]) -> bool:
    """Whether any cell is written as a list of labels, be it of one or of none."""
    return any(
        (_is_list(cell) or bool(SEPARATOR.search(cell)))
        if isinstance(cell, str)
        else isinstance(cell, list | tuple)
        for cell in cells
    )


def _is_list(text: str) -> bool:
    text = text.strip()
    return text[:1] + text[-1:] in ("[]", "{}", "()")


def text_of(value: object) -> str:
    """What a cell of a table says, with single blanks; empty for `BLANK`.

    A whole number is written as one: 1.0 is 1.
    """
    text = " ".join(str(value).split())
    if text in BLANK:
        return ""
    whole = re.fullmatch(r"(-?\d+)\.0+", text)  # an integer column with a gap becomes floats
    return whole[1] if whole else text


@lru_cache(maxsize=4096)
def label_key(name: str) -> str:
    """What two spellings of one class share: case, and blank, - or _ between words, count not."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", " ".join(plain.split()))


def is_negative(name: str) -> bool:
    """Whether a class has one of the usual names of the class without the finding."""
    return bool(NEGATIVE.fullmatch(label_key(name)))


def parse_map(label_map: dict | str | None) -> dict[str, str]:
    """A label map, as `{0: NORMAL, 1: PNEUMONIA}`, by the `label_key` of its names.

    A name without a new one, as in `{Support Devices: }`, is a label to leave out.

    Raises:
        ValueError: it is no such mapping.
    """
    given = label_map or {}
    if isinstance(given, str):
        try:
            given = yaml.load(given, yaml.BaseLoader)  # every scalar a text: no, yes and 0 too
        except yaml.YAMLError:
            given = None
    if not isinstance(given, dict) or not all(
        isinstance(name, str | int | None) for name in given.values()
    ):
        raise ValueError(
            f"label_map {label_map!r} is no mapping of names to names: write it as "
            "{0: NORMAL, 1: PNEUMONIA}."
        )
    return {key: text_of(new) for old, new in given.items() for key in _option_keys(old)}


def _option_keys(name: object) -> list[str]:
    """The `label_key` of a name given as option; several for YAML's yes and no."""
    if isinstance(name, bool):
        return ["true", "yes"] if name else ["false", "no"]
    return [label_key(text_of(name))]


def split_option(names: str | Sequence[str] | None) -> list[str]:
    """The names of an option: a sequence, or text in which commas join them."""
    if names is None:
        return []
    parts = names if isinstance(names, list | tuple) else str(names).split(",")
    return [name for part in parts if (name := text_of(part))]


def clean_order(order: Sequence[str], label_map: dict | str | None) -> list[str]:
    """A source's own classes after the map; of those that differ in spelling alone, the first."""
    renamed = parse_map(label_map)
    names: dict[str, str] = {}
    for name in order:
        new = renamed.get(label_key(name), name)
        if new:
            names.setdefault(label_key(new), new)
    return list(names.values())


def clean_labels(
    cells: list[object],
    order: Sequence[str],
    label_map: dict | str | None,
    name: str,
    own: Sequence[str] = (),
) -> list[list[str]]:
    """The class names of each image, every class in one spelling.

    Args:
        cells: of each image, see `read_labels`.
        order: names whose spelling is kept; otherwise the commonest of a class counts.
        label_map: see `parse_map`; what it does not name stays.
        name: of the set, for messages.
        own: labels that the set may have, whether an image has them or not.

    Raises:
        ValueError: the map names no label that is there, or a name looks like several in one.
    """
    renamed = parse_map(label_map)
    labels = [read_labels(cell) for cell in cells]
    there = {label for row in labels for label in row or [""]} | set(own)
    if renamed and not renamed.keys() & set(map(label_key, there)):
        raise ValueError(
            f"label_map names {', '.join(map(repr, renamed))}, but {name} has the labels "
            f"{', '.join(sorted(there - {''}))}."
        )
    if "" in renamed:
        labels = [row or [""] for row in labels]
    new = {label: renamed.get(label_key(label), label) for row in labels for label in row}
    labels = [[new[label] for label in row if new[label]] for row in labels]
    counts = Counter(label for row in labels for label in row)
    spelled = {label_key(label): label for label in reversed(order)}
    for label, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        spelled.setdefault(label_key(label), label)
    if changed := sorted(label for label in counts if spelled[label_key(label)] != label):
        logger.warning(
            "%s spells classes in two ways: %s.",
            name,
            ", ".join(f"{label!r} is read as {spelled[label_key(label)]!r}" for label in changed),
        )
    for label in counts:
        parts = [label_key(part) for part in re.split(r"[,/+&]", label)]
        if len(parts) > 1 and all(part in spelled for part in parts):
            raise ValueError(
                f"{name} has the label {label!r}, whose parts are classes too: join several "
                "labels by | or ;, or name it otherwise with label_map."
            )
    return [list(dict.fromkeys(spelled[label_key(label)] for label in row)) for row in labels]


def order_classes(
    found: set[str],
    order: Sequence[str],
    classes: list[str],
    positive: str | None,
    multi_label: bool,
    name: str,
) -> list[str]:
    """The classes in the order of their indices. In a two-class set the finding is class 1.

    Args:
        found: the classes that images have.
        order: the source's own order, which may hold more; empty: by name.
        classes: the user's; they must hold all that are found.
        positive: the user's finding, of two classes.
        multi_label: an image may have several classes, or none; no class is the finding then.
        name: of the set, for messages.

    Raises:
        ValueError: the options do not fit the classes.
    """
    if classes:
        if unknown := sorted(found - set(classes)):
            raise ValueError(
                f"{name} has the class {unknown[0]!r}, which is none of classes "
                f"{', '.join(classes)}: name it too, or rename it with label_map."
            )
        ordered = classes
    else:
        numbers = all(label.lstrip("-").isdecimal() for label in found)
        added = sorted(found - set(order), key=int if numbers else None)
        ordered = [*dict.fromkeys(order), *added]
    if len(ordered) != 2 or multi_label:
        if positive is not None:
            what = "several labels an image" if multi_label else f"{len(ordered)} classes"
            raise ValueError(f"positive {positive!r} is for two classes, but {name} has {what}.")
        return ordered
    keys = [label_key(label) for label in ordered]
    if positive is not None:
        sought = [number for number, key in enumerate(keys) if key in _option_keys(positive)]
        if len(sought) != 1:
            raise ValueError(
                f"positive {positive!r} is no class of {name}: use {' or '.join(ordered)}."
            )
        first, reason = 1 - sought[0], "positive says so"
    elif classes:
        first, reason = 0, "classes gives this order"
    else:
        negative = [is_negative(label) for label in ordered]
        if negative[0] == negative[1]:  # as uninfected beside infected
            pairs = zip(keys, reversed(keys))
            negative = [bool(re.fullmatch(f"(no|non|not|un){re.escape(b)}", a)) for a, b in pairs]
        if negative[0] == negative[1]:
            logger.warning(
                "%s: class 1, the finding, is %s by the order of names, as neither names the "
                "absence of a finding: set positive to the class that is sought.",
                name,
                ordered[1],
            )
            return ordered
        first = negative.index(True)
        reason = f"{ordered[first]} names the absence of a finding"
    ordered = [ordered[first], ordered[1 - first]]
    logger.info("%s: class 1, the finding, is %s: %s.", name, ordered[1], reason)
    return ordered

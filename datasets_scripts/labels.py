"""What labels say: several in a cell, blanks, spellings, and which class is the finding."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import yaml

logger = logging.getLogger(__name__)

BLANK = {"", "nan", "null", "na", "n/a", "n.a.", "<na>", "nat", "#n/a", "#na"}  # in any case
# Words that say of an image that its class is not known: as a class they are rarely meant.
UNSURE = {"unknown", "uncertain", "unclear", "undetermined", "unlabelled", "unlabeled", "?"}
SEPARATOR = re.compile(r"[|;]")
ARRAY = re.compile(r"array\((\[.*\])(,\s*dtype=\w+)?\)", re.DOTALL)  # as NumPy prints it
QUOTED = re.compile(r'"([^"]*)"|\'([^\']*)\'')
FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}
# Usual names of the class without the finding, as `plain_words` writes them.
NEGATIVE = re.compile(
    r"(?!(no[nt]|ab) normal)"
    r"(normals?|norm|healthy|neg|negatives?|benign|absent|absence|clear|unremarkable"
    r"|controls?( (groups?|patients?|subjects?|cases?|images?))?"
    r"|clear (lungs?|chests?|lung fields?)"
    r"|(un|non)(infected|affected|diseased|covid|covid ?19|tb|tuberculosis|pneumonia)"
    r"|no|none|false|(class |label )?0+|-|(no|non|not|without) \D.*|(normals?|healthy) .+"
    r"|.+ (normal|negative|neg)|.+-)"
)
# What may stand between the words of a name, or around them; between digits it counts, as in 1.5.
MARKS = r"[\s_\-.,:;/\\()\[\]{}'\"&#*|]"
BETWEEN_WORDS = re.compile(rf"(?<!{MARKS}){MARKS}++(?!\d)|(?<!{MARKS})(?<!\d){MARKS}+")


def read_labels(cell: object) -> list[str]:
    """The class names in a cell, each once and with single blanks; none where it says nothing.

    Args:
        cell: names joined by | or ;, a list of them, a list as text, as "['a', 'b']", a mapping
            of names to 0 or 1, or a number. A tuple holds names that stay as they are: "NA" too.

    Raises:
        ValueError: it says 0 or 1 of classes without their names, or maps names to other values,
            or may be one name or several.
    """
    if isinstance(cell, tuple):
        return list(cell)
    parts = _parse(cell) if isinstance(cell, str) else cell
    if isinstance(parts, dict):
        flags = {name: FLAGS.get(text_of(value).casefold()) for name, value in parts.items()}
        if None in flags.values():
            raise ValueError(
                f"the label {cell!r} maps names to values other than 0 and 1: write the names of "
                "the classes that are there, joined by |."
            )
        parts = [name for name, there in flags.items() if there]
    names = [text_of(part) for part in (parts if isinstance(parts, list) else [parts])]
    found = list(dict.fromkeys(filter(None, names)))
    if len(names) > len(found) and {name.casefold() for name in names} <= FLAGS.keys() - {""}:
        raise ValueError(_nameless(cell))
    return found


def read_column(cells: Iterable[object], name: object) -> list[list[str]]:
    """The class names in each cell of a set or table of this name, see `read_labels`.

    Raises:
        ValueError: as `read_labels`, with the name.
    """
    try:
        return [read_labels(cell) for cell in cells]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _nameless(cell: object) -> str:
    return (
        f"the label {cell!r} says 0 or 1 of each class without its name: write the names of the "
        "classes that are there, joined by |."
    )


def _parse(text: str) -> list[str] | dict[str, str]:
    """The names in a text, or what a mapping says of them."""
    text = text.strip()
    if array := ARRAY.fullmatch(text):
        text = array[1]
    if not _is_list(text):
        return SEPARATOR.split(text)
    if text[0] == "{" and ":" in text:
        try:
            flags = yaml.load(text, yaml.BaseLoader)
        except yaml.YAMLError:
            flags = {}
        if isinstance(flags, dict) and any(flags.values()):
            return flags
    inner = text[1:-1]
    if quoted := [double or single for double, single in QUOTED.findall(inner)]:
        return quoted
    if text[0] == "[" and "," not in inner and len(inner.split()) > 1:
        if set(inner.split()) <= {"0", "1", "0.", "1."}:
            raise ValueError(_nameless(text))
        raise ValueError(
            f"the label {text!r} may be one class or several: put each name in quotes, or join "
            "them by |."
        )
    return inner.split(",")


def holds_lists(cells: Iterable[object]) -> bool:
    """Whether any cell is written as a list of labels, be it of one or of none."""
    return any(
        (_is_list(cell) or bool(SEPARATOR.search(cell)))
        if isinstance(cell, str)
        else isinstance(cell, list | dict)
        for cell in cells
    )


def _is_list(text: str) -> bool:
    """Whether a text is written as a list; a name in parentheses, as (normal), is a name."""
    text = text.strip()
    if text[:1] + text[-1:] == "()":
        return text == "()" or "," in text
    return text[:1] + text[-1:] in ("[]", "{}") or bool(ARRAY.fullmatch(text))


def text_of(value: object) -> str:
    """What a cell of a table says, with single blanks; empty for `BLANK` and Python's None.

    A whole number is written as one: 1.0 is 1.
    """
    text = " ".join(str(value).split())
    if text == "None" or text.casefold() in BLANK:  # none in lower case names a class
        return ""
    whole = re.fullmatch(r"(-?\d+)\.0+", text)  # an integer column with a gap becomes floats
    return whole[1] if whole else text


@lru_cache(maxsize=4096)
def plain_words(name: str) -> str:
    """A name in lower case, with single blanks for blank, - or _ between words."""
    plain = unicodedata.normalize("NFKC", name)
    kinds = {letter: unicodedata.category(letter) for letter in set(plain)}
    plain = "".join(
        "-" if kinds[letter] == "Pd" else letter for letter in plain if kinds[letter] != "Cf"
    )
    return re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", " ".join(plain.casefold().split()).strip())


@lru_cache(maxsize=4096)
def label_key(name: str) -> str:
    """What the spellings of one class share: case, and marks and blanks between words, count not.

    Signs do, as in COVID+ and COVID- or 1 and -1, and what stands between digits.
    """
    plain = plain_words(name)
    start = "-" if re.match(r"-\d", plain) else ""
    end = "-" if plain.endswith("-") else ""
    return start + BETWEEN_WORDS.sub("", plain) + end or plain


def is_negative(name: str) -> bool:
    """Whether a class has one of the usual names of the class without the finding."""
    words = plain_words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).strip("[](){}\"' ")
    return bool(NEGATIVE.fullmatch(re.sub(r"^\d+[\W_]+(?=[^\W\d_])", "", words)))


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
    # NA may be meant as a blank cell or be a folder's name.
    return list({label_key(text_of(name)), label_key(text_of(name) or str(name or ""))})


def split_option(names: str | Sequence[str] | None) -> list[str]:
    """The names of an option: a sequence, or text in which commas join them."""
    if names is None:
        return []
    parts = names if isinstance(names, list | tuple) else str(names).split(",")
    # NA may be a folder's name.
    return [name for part in parts if (name := text_of(part) or str(part).strip())]


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
        ValueError: the map names no label that is there, or labels are no names, or several in one.
    """
    renamed = parse_map(label_map)
    labels = read_column(cells, name)
    if labels and all(set(row) == {"0", "1"} for row in labels):
        raise ValueError(f"{name}: {_nameless(cells[0])}")
    if not any("+" in row for row in labels):  # beside it - is a class
        labels = [
            row if isinstance(cell, tuple) else [label for label in row if label != "-"]
            for cell, row in zip(cells, labels)
        ]
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
    for label in sorted(counts, key=lambda label: (-counts[label], not label.isascii(), label)):
        spelled.setdefault(label_key(label), label)
    if changed := sorted(label for label in counts if spelled[label_key(label)] != label):
        logger.warning(
            "%s spells classes in two ways: %s.",
            name,
            ", ".join(f"{label!r} is read as {spelled[label_key(label)]!r}" for label in changed),
        )
    if unsure := sorted(label for label in counts if label.casefold() in UNSURE):
        logger.warning(
            "%s has %d labels %r: that is a class now; leave such images out, or rename it with "
            "label_map.",
            name,
            counts[unsure[0]],
            unsure[0],
        )
    if plural := {
        spelled[key + "s"]: name for key, name in spelled.items() if key + "s" in spelled
    }:
        logger.warning(
            "%s has classes and their plurals: if they are one, set label_map={%s}.",
            name,
            ", ".join(f"{more}: {one}" for more, one in sorted(plural.items())),
        )
    for label in counts:
        parts = re.split(r"[,/+&\\:]|\band\b", label)
        there = [part.strip() for part in parts if label_key(part) in spelled]
        if len(parts) > 1 and len(there) == len(parts):
            raise ValueError(
                f"{name} has the label {label!r}, whose parts are classes too: join several "
                "labels by | or ;, or name it otherwise with label_map."
            )
        words = label.split()
        if len(words) > 1 and all(label_key(word) in spelled for word in words):
            parts = there = words
        if len(parts) > 1 and there:
            logger.warning(
                "%s has the label %r beside %r: if it means several labels, join them by | or ;.",
                name,
                label,
                there[0],
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

"""The sources: one module each, found by the `SOURCE` and the `load` that it has."""

import difflib
import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args

from datasets import Dataset, DatasetDict

import datasets_scripts
from datasets_scripts.merge import merge
from datasets_scripts.schema import Source, assemble, check_usable
from datasets_scripts.xrv import is_xrv
from datasets_scripts.xrv import load as load_xrv

logger = logging.getLogger(__name__)


@cache
def modules() -> dict[str, ModuleType]:
    """The modules of the sources, by the source's name."""
    names = sorted(found.name for found in pkgutil.iter_modules(datasets_scripts.__path__))
    found = [importlib.import_module(f"datasets_scripts.{name}") for name in names]
    found = [module for module in found if isinstance(getattr(module, "SOURCE", None), Source)]
    return {module.SOURCE.name: module for module in found}


def sources() -> dict[str, Source]:
    """Every source by its name: the modules of this package that have a `SOURCE`.

    Such a module also has `load(path, *, ...) -> DatasetDict`, which calls `schema.assemble` with
    what it found: its options are given by name alone, and explained in its docstring's Args. It
    may have `recognise(path) -> bool`: whether a file or folder is its own.
    """
    return {name: module.SOURCE for name, module in modules().items()}


class Option(NamedTuple):
    """An option of a source: its default, its type on the command line, and what it is."""

    default: object
    kind: type
    meaning: str


def source_options(source: str) -> dict[str, Option]:
    """The options of a source, by name.

    They are what its `load` takes besides the path, as its docstring explains it, and what
    `assemble` takes where `load` passes `**options` on.
    """
    load = modules()[source].load
    parameters = inspect.signature(load).parameters.values()
    options = _options(load)
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        options = {**options, **{k: v for k, v in _options(assemble).items() if k not in options}}
    return options


def _options(function: Callable[..., DatasetDict]) -> dict[str, Option]:
    """The parameters that are given by name alone."""
    text = inspect.getdoc(function) or ""
    meanings = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE))
    found = {}
    for one in inspect.signature(function, eval_str=True).parameters.values():
        if one.kind is one.KEYWORD_ONLY:
            kinds = get_args(one.annotation) or (one.annotation,)
            kind = next((kind for kind in (int, float) if kind in kinds), str)
            meaning = " ".join(meanings.get(one.name, "").split()).rstrip(".")
            found[one.name] = Option(one.default, kind, meaning)
    return found


def recognise(source: str, path: str | Path | None) -> tuple[str, str | Path | None]:
    """(source, path or id) for a source's name, a path, or a Hub id given as `source`.

    Raises:
        ValueError: it is none of these.
        FileNotFoundError: it is a path to nothing.
    """
    if source in sources():
        return source, path
    place = Path(source).expanduser()
    if path is None and place.exists():
        if owner := _owner(place):
            return owner, place
        if place.is_dir():
            return "folder", place
        if place.suffix.lower() in (".csv", ".tsv"):
            return "manifest", place
        raise ValueError(
            f"{source} is a file: give a folder of images, a CSV file that lists them, or the "
            "Kermany zip."
        )
    if path is None and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        return "hub", source
    if path is None and "/" in source:
        raise FileNotFoundError(
            f"{source} does not exist: give an existing folder or zip, or a CSV file."
        )
    near = difflib.get_close_matches(source, sources(), n=2, cutoff=0.7)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(
        f"unknown dataset {source!r}{hint}: use {', '.join(sources())}, an existing folder, zip "
        "or CSV file, or a Hub id org/name."
    )


def _owner(place: Path) -> str | None:
    """The source whose own files these are."""
    known = ((name, getattr(module, "recognise", None)) for name, module in modules().items())
    return next((name for name, recognises in known if recognises and recognises(place)), None)


def load_cxr_dataset(
    source: str | Sequence[str] | Any,
    path: str | Path | None | Sequence[str | Path | None] = None,
    **options: Any,
) -> DatasetDict:
    """A chest X-ray set in the project's schema, or several as one.

    Its splits are those of train, validation, test and unlabelled that there are. Several, as in
    `load_cxr_dataset(["chestxray14", "org/set"], ["nih/", None])`, become one multi-label set, see
    `merge.merge`.

    Args:
        source: one of `sources()`, or itself a path or Hub id, which is then recognised; or a list
            of these; or a data set of TorchXRayVision, see `xrv`.
        path: what the source reads; None for one that takes none. Of several sources a list, or
            None where none has a path beside it.
        **options: see `source_options`. Of several sources, an option goes to each that takes it,
            and one called SOURCE.option to that source alone.

    Raises:
        ValueError: an unknown source or option, a set with too little to learn, or one with a
            finding that is known of no image.
        OSError: a path that is not there, or a Hub that is not reached.
    """
    if is_xrv(source):
        name = type(source).__name__
        if path is not None:
            raise ValueError(f"{name} is a data set already and takes no path, but got {path}.")
        if odd := sorted(set(options) - set(_options(assemble))):
            known = ", ".join(_options(assemble))
            raise ValueError(f"unknown option {odd[0]!r} of dataset {name}: it takes {known}.")
        return check_usable(load_xrv(source, **options), name)
    if isinstance(source, str | Path):
        source, path = recognise(str(source), path)
        return check_usable(_load(source, path, options), str(path or source))
    paths = [None] * len(source) if path is None else list(path)
    if len(paths) != len(source):
        raise ValueError(
            f"{len(source)} sources and {len(paths)} paths are given: give one path a source."
        )
    found = [recognise(str(one), its) for one, its in zip(source, paths)]
    taken = {
        f"{name}.{option}": (name, option) for name, _ in found for option in source_options(name)
    }
    for option in options:
        if option not in {*taken, *(plain for _, plain in taken.values())}:
            raise ValueError(
                f"unknown option {option!r} of datasets {', '.join(name for name, _ in found)}: "
                f"they take {', '.join(taken)}."
            )
    sets = [
        _load(
            name,
            its,
            {
                option: options[key]
                for option in source_options(name)
                for key in (option, f"{name}.{option}")  # the last one counts
                if key in options
            },
        )
        for name, its in found
    ]
    names = [str(its or name) for name, its in found]
    return check_usable(merge(sets, names, people_of), " and ".join(names))


def _load(source: str, path: str | Path | None, options: dict[str, Any]) -> DatasetDict:
    """The set of one source, whatever it is good for."""
    known = source_options(source)
    for name in options:
        if name not in known:
            raise ValueError(
                f"unknown option {name!r} of dataset {source}: it takes "
                f"{', '.join(known) or 'none'}."
            )
    about, load = sources()[source], modules()[source].load
    if not about.path_help:
        if path is not None:
            raise ValueError(
                f"dataset {source} is generated and takes no path, but {path} was given."
            )
        return load(**options)
    if path is None:
        raise ValueError(f"dataset {source} needs a path: {about.path_help}.")
    if not about.remote and not Path(path).expanduser().exists():
        raise FileNotFoundError(f"{path} does not exist: {source} reads {about.path_help}.")
    if source == "manifest" and (owner := _owner(Path(path).expanduser())):
        logger.warning("%s is a table of %s: --dataset %s reads more of it.", path, owner, owner)
    return load(path if about.remote else Path(path).expanduser(), **options)


def people_of(name: str) -> str | None:
    """The source whose patients the images of a source are; None where nothing is known of it."""
    source = find_source(name)
    if source is None or not source.population:
        return None
    return source.patients_of or source.name


def find_source(name: str) -> Source | None:
    """The source of images by their column `source`: its own name, or the id of a copy."""
    return next(
        (known for known in sources().values() if name in (known.name, *known.hub_ids)), None
    )


def known_sources(dataset: DatasetDict) -> tuple[list[Source], list[str]]:
    """The sources of a set's images that something is known of, and the names of the others."""
    names = dict.fromkeys(name for part in dataset.values() for name in part["source"][:])
    found = {name: find_source(name) for name in names}
    known = [source for source in found.values() if source and source.population]
    return list(dict.fromkeys(known)), [name for name in found if found[name] not in known]


def facts(dataset: DatasetDict) -> dict[str, str | list[str]]:
    """What is known of the sources of a set's images, ready for JSON; empty where nothing is.

    Returns:
        `title`, `citation`, `licence` and `population`, joined over the sources, those that any
        has; `limits` and `out_of_scope`, lists of sentences.
    """
    known, unknown = known_sources(dataset)
    if not known:
        return {}
    told: dict[str, str | list[str]] = {}
    for key in ("title", "citation", "licence", "population"):
        if texts := list(dict.fromkeys(filter(None, (getattr(one, key) for one in known)))):
            told[key] = "; ".join(texts)
    for key in ("limits", "out_of_scope"):
        told[key] = [sentence for one in known for sentence in getattr(one, key)]
    if unknown:
        told["limits"].append(f"Nothing is recorded of the images of {', '.join(unknown)}.")
    return told


def age_range(dataset: Dataset) -> list[float] | None:
    """The youngest and oldest in whole years; None where the ages of a source are unknown.

    The outermost hundredths do not count, as they hold slips of the pen. A source without ages
    counts by what is known of it.
    """
    ages = dataset["age"] if "age" in dataset.features else [None] * len(dataset)
    named = [(source, age) for source, age in zip(dataset["source"], ages) if age is not None]
    known = sorted(age for _, age in named)
    margin = len(known) // 100
    spans = [(float(int(known[margin])), float(int(known[-1 - margin])))] if known else []
    for name in sorted(set(dataset["source"]) - {source for source, _ in named}):
        source = find_source(name)
        if source is None or source.ages is None:
            return None
        spans.append(source.ages)
    return [min(low for low, _ in spans), max(high for _, high in spans)]

"""ChestX-ray14 of the NIH Clinical Center, as it is downloaded, or a part of it.

112,120 frontal X-rays of 30,805 patients with 14 findings that were read from reports by a program
(Wang et al. 2017). In the folder are Data_Entry_2017.csv or the corrected
Data_Entry_2017_v2020.csv, the images, whatever their folders and suffixes, and, where they were
kept,

    train_val_list.txt, test_list.txt    the official splits, by patient
    BBox_List_2017.csv                   984 boxes on 880 images of the test split

Lists of other splits are options, as those of arnoweng/CheXNet, which name 14 labels too: for 181
images other ones than the table of 2020 does. So is a table whose labels count instead, as Google's
of four findings that radiologists read from the images (Majkowska et al. 2019), yes or no.
"""

import logging
import os
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import DatasetDict

from datasets_scripts.boxes import fit_boxes, stored_size
from datasets_scripts.files import find_listed
from datasets_scripts.label_policy import read_cells
from datasets_scripts.schema import Source, assemble
from datasets_scripts.splits import read_splits
from datasets_scripts.tables import (
    age_or_none,
    chosen_rows,
    extra_columns,
    number_or_none,
    open_text,
    read_header,
    read_table,
    report_listed,
    warn_of_ages,
)

logger = logging.getLogger(__name__)

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
SOURCE = Source(
    name="chestxray14",
    title="ChestX-ray14, NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC",
    path_help="the folder with Data_Entry_2017.csv or _v2020.csv, or that file",
    classes=FINDINGS,
    citation="Wang et al., ChestX-ray8: Hospital-Scale Chest X-Ray Database and Benchmarks on "
    "Weakly-Supervised Classification and Localization of Common Thorax Diseases, CVPR 2017, "
    "https://doi.org/10.1109/CVPR.2017.369",
    population="frontal X-rays of in- and outpatients of a research hospital in Bethesda, USA, "
    "mostly adults, 1992 to 2015",
    limits=(
        "A program read the labels from reports: some one in ten is wrong, and what a report does "
        "not mention counts as absent.",
        "All images come from one centre, where patients take part in studies of rare and severe "
        "diseases.",
        "Tubes and drains mark treated findings, as in pneumothorax, and the view tells how ill a "
        "patient is: a model can score well on such shortcuts.",
    ),
    out_of_scope=("Lateral views, and findings other than the 14: none were labelled.",),
    ages=(0.0, 95.0),
)
TABLES = ("Data_Entry*.csv", "Data_Entry*.csv.gz", "sample_labels.csv")
IMAGE, LABELS, PATIENT = "Image Index", "Finding Labels", "Patient ID"
NO_FINDING = "No Finding"
BOX_NAMES = {"Infiltrate": "Infiltration"}  # as BBox_List_2017.csv calls it
OFFICIAL = {"train": "train_val_list.txt", "test": "test_list.txt"}
SIDE = 1024  # pixels, of the images as they are downloaded
LEFT_OUT = ("", "unused")  # names of no split


def _is_table(path: Path) -> bool:
    return path.is_file() and {IMAGE, LABELS, PATIENT} <= set(read_header(path))


def _tables(path: Path) -> list[Path]:
    """The label tables in a folder: that of 2020, whose name comes later, first."""
    found = [file for pattern in TABLES for file in sorted(path.glob(pattern), reverse=True)]
    return [file for file in found if _is_table(file)]


def recognise(path: Path) -> bool:
    """Whether it is a folder with a label table, or such a table."""
    if path.is_dir():
        return bool(_tables(path))
    return any(map(path.match, TABLES)) and _is_table(path)


def read_list(path: Path) -> tuple[list[str], list[list[str]] | None]:
    """The images of a list of a split, and their findings where it names them.

    Args:
        path: of the list, a line an image: its name, with or without folders, and then nothing or
            14 numbers, 1 for each of `FINDINGS` that is there and 0 for others.

    Raises:
        ValueError: a line is written otherwise.
    """
    with open_text(path) as file:
        lines = [line.split() for line in file if line.strip()]
    numbers = len(FINDINGS) if lines and len(lines[0]) > 1 else 0
    for line in lines:
        if len(line) != 1 + numbers or not set(line[1:]) <= {"0", "1"}:
            raise ValueError(
                f"{path} has the line {' '.join(line)!r}: each names an image, and after it "
                f"nothing or {len(FINDINGS)} numbers 0 or 1."
            )
    names = [line[0].rsplit("/", 1)[-1] for line in lines]
    if not numbers:
        return names, None
    return names, [[f for f, cell in zip(FINDINGS, line[1:]) if cell == "1"] for line in lines]


def _given(folder: Path, name: str, option: str) -> Path:
    """A file that an option names, in the folder or anywhere."""
    for file in (folder / name, Path(name).expanduser()):
        if file.is_file():
            return file
    raise FileNotFoundError(f"{option} {name} does not exist, nor is it in {folder}.")


def _split_table(path: Path, rows: dict[str, dict]) -> dict[str, str]:
    """The split of each image that a table with a column `split` names.

    Its other columns are added to the rows, but for those that they have.
    """
    header, found = read_table(path)
    images = [name for name in ("image_index", IMAGE, "image", "file") if name in header]
    if not images or "split" not in header:
        raise ValueError(
            f"{path} has the columns {', '.join(header)}: image_index and split are needed."
        )
    names = read_splits({row["split"] for row in found})
    if odd := sorted(name for name in names if not names[name] and name not in LEFT_OUT):
        raise ValueError(
            f"{path} gives the split {odd[0]!r}: use train, validation, test or unused."
        )
    listed = {PurePosixPath(row[images[0]]).name: row for row in found}
    _check_known(listed, rows, path)
    for name, row in listed.items():
        rows[name].update({key: value for key, value in row.items() if key not in rows[name]})
    return {name: names[row["split"]] for name, row in listed.items() if names[row["split"]]}


def _check_known(names: dict | list, rows: dict[str, dict], path: Path) -> None:
    if missing := [name for name in names if name not in rows]:
        raise ValueError(
            f"{path} lists {len(missing):,} images that the label table does not know, as "
            f"{missing[0]!r}: it belongs to another set."
        )


def _read_lists(
    lists: dict[str, Path], rows: dict[str, dict]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The split, and where the lists name them the findings, of each image in {split: list}.

    What validation has is taken out of train, as the official list is of both.
    """
    splits: dict[str, str] = {}
    findings: dict[str, list[str]] = {}
    for split in ("train", "validation", "test"):
        if split not in lists:
            continue
        names, labels = read_list(lists[split])
        _check_known(names, rows, lists[split])
        earlier = ("train",) if split == "validation" else ()
        if twice := [name for name in names if splits.get(name, split) not in (split, *earlier)]:
            raise ValueError(
                f"{lists[split]} lists {twice[0]!r}, which stands in the list of "
                f"{splits[twice[0]]} too: an image belongs to one split."
            )
        splits |= dict.fromkeys(names, split)
        findings |= dict(zip(names, labels or []))
    return splits, findings


def _table_labels(rows: dict[str, dict], table: Path) -> dict[str, list[str]]:
    """The findings of each image; none for No Finding."""
    cells = {row[LABELS] for row in rows.values()}
    read = {cell: [name for name in cell.split("|") if name != NO_FINDING] for cell in cells}
    odd = sorted({name for names in read.values() for name in names} - set(FINDINGS))
    if odd:
        raise ValueError(
            f"{table} names the finding {odd[0]!r}, which is none of {NO_FINDING}, "
            f"{', '.join(FINDINGS)}."
        )
    return {name: read[row[LABELS]] for name, row in rows.items()}


def _other_labels(
    path: Path, rows: dict[str, dict]
) -> tuple[dict[str, tuple[list[str], list[str]]], list[str]]:
    """What another table says of its images, present and unknown, and its findings.

    Those are its columns of YES and NO.
    """
    header, found = read_table(path)
    findings = [
        name
        for name in header
        if name and {row[name].upper() for row in found} <= {"YES", "NO", ""}
    ]
    if IMAGE not in header or not findings:
        raise ValueError(
            f"{path} has the columns {', '.join(header)}: {IMAGE} and columns of YES and NO, one a "
            "finding, are needed."
        )
    unknown = dict.fromkeys(findings)
    cells = read_cells(found, findings, unknown, unknown, path)
    names = [row[IMAGE] for row in found]
    _check_known(names, rows, path)
    return dict(zip(names, cells)), findings


def read_boxes(path: Path) -> dict[str, tuple[list[str], list[list[float]]]]:
    """The findings and boxes, [x, y, width, height] in pixels of `SIDE`, of each image.

    Raises:
        ValueError: a row without four numbers, or of another finding.
    """
    header, rows = read_table(path)
    if len(header) < 6 or header[0] != IMAGE:
        raise ValueError(f"{path} is no list of boxes: {IMAGE}, a finding, x, y, w, h are needed.")
    found: dict[str, tuple[list[str], list[list[float]]]] = defaultdict(lambda: ([], []))
    for row in rows:
        name, finding, *cells = (row[column] for column in header[:6])
        box = [number_or_none(cell) for cell in cells]
        finding = BOX_NAMES.get(finding, finding)
        if None in box or finding not in FINDINGS:
            raise ValueError(
                f"{path} gives {name} the box {' '.join(cells)!r} of {finding!r}: four numbers, "
                f"and one of {', '.join(FINDINGS)}, are needed."
            )
        found[name][0].append(finding)
        found[name][1].append(box)
    return found


def _find_boxes(folder: Path, files: dict[str, str], rows: dict[str, dict]) -> dict[str, dict]:
    """What is boxed in each image that has boxes, in its own pixels, see `make_features`."""
    path = folder / "BBox_List_2017.csv"
    if not path.is_file():
        return {}
    boxes = read_boxes(path)
    _check_known(boxes, rows, path)
    return {
        name: {
            "bbox": fit_boxes(places, SIDE, stored_size(Path(files[name])), name, path),
            "category": findings,
        }
        for name, (findings, places) in boxes.items()
        if name in files
    }


def _read_rows(path: Path) -> tuple[Path, list[str], dict[str, dict]]:
    """The label table of a folder, or itself, its columns, and its rows by image."""
    tables = _tables(path) if path.is_dir() else [path]
    if not tables or not _is_table(tables[0]):
        raise ValueError(
            f"{path} is no label table, and no folder with one, of {IMAGE}, {LABELS} and {PATIENT}."
        )
    header, listed = read_table(tables[0])
    rows = {row[IMAGE]: row for row in listed}
    if len(rows) < len(listed):
        twice = Counter(row[IMAGE] for row in listed).most_common(1)[0][0]
        raise ValueError(f"{tables[0]} lists {twice!r} twice: each image needs one row.")
    return tables[0], header, rows


def _find_lists(folder: Path, given: dict[str, str | None]) -> dict[str, Path]:
    """The list of each split: those given, and the official ones beside a validation list alone."""
    lists = {split: name for split, name in given.items() if name}
    if not {"train", "test"} & set(lists):
        there = {split: name for split, name in OFFICIAL.items() if (folder / name).is_file()}
        lists = there | lists
    return {split: _given(folder, name, f"{split}_list") for split, name in lists.items()}


def _find_labels(
    labels: str, named: dict[str, list[str]], rows: dict[str, dict], table: Path
) -> tuple[dict[str, tuple[list[str], list[str]]], list[str]]:
    """The findings of each image, present and unknown, by the option `labels`, and all of them."""
    if labels not in ("table", "lists"):
        return _other_labels(_given(table.parent, labels, "labels"), rows)
    if labels == "lists" and not named:
        raise ValueError("labels lists is for lists that name 14 labels, but none does.")
    found = named if labels == "lists" else _table_labels(rows, table)
    if other := sum(set(names) != set(found[image]) for image, names in named.items()):
        logger.warning(
            "Labels are those of %s: the lists give %d images other ones (labels=lists takes "
            "these).",
            table.name,
            other,
        )
    return {image: (names, []) for image, names in found.items()}, list(FINDINGS)


def load(
    path: str | Path,
    *,
    split: str | None = None,
    train_list: str | None = None,
    validation_list: str | None = None,
    test_list: str | None = None,
    labels: str = "table",
    images: str | None = None,
    where: str | None = None,
    columns: str | None = None,
    **options: Any,
) -> DatasetDict:
    """The images that are there, with their labels, in the splits that are asked for.

    Without other splits they are the official ones where their lists are in the folder, else they
    are drawn by patient. A part of train is held out where there is no validation. Images that no
    list names are left out.

    Args:
        path: folder, or label table.
        split: table with columns image_index and split, instead of lists
        train_list: list of training images, if not train_val_list.txt
        validation_list: list of validation images; those of the list for training do not count
            there
        test_list: list of test images, if not test_list.txt
        labels: table, for those of the label table; lists, for those that the lists name; or
            another table with columns of YES and NO, whose images alone are taken
        images: folder with the images, if not the label table's own
        where: column=regex: images to keep, those of the tables in whose column the regular
            expression is found
        columns: further columns of the tables to keep as text, joined by commas
        **options: of `assemble`.

    Raises:
        ValueError: tables and lists that do not fit one another, or a box outside its image.
        FileNotFoundError: a table, a list, or every image is missing.
    """
    path = Path(path).resolve()
    lists = {"train": train_list, "validation": validation_list, "test": test_list}
    # In a function of its own, whose tables and lists are gone when the set is assembled.
    records, classes = _read_records(path, split, lists, labels, images, where, columns)
    return assemble(records, str(path), True, classes, **options)


def _read_records(
    path: Path,
    split: str | None,
    lists: dict[str, str | None],
    labels: str,
    images: str | None,
    where: str | None,
    columns: str | None,
) -> tuple[list[dict], list[str]]:
    """The records and classes of `load`, whose other arguments these are."""
    table, header, rows = _read_rows(path)
    folder = table.parent
    named: dict[str, list[str]] = {}
    if split and any(lists.values()):
        raise ValueError(f"split {split} and lists of splits are given: choose one.")
    if split:
        splits = _split_table(_given(folder, split, "split"), rows)
        header = list(dict.fromkeys(name for row in rows.values() for name in row))
    else:
        found = _find_lists(folder, lists)
        splits, named = _read_lists(found, rows) if found else (dict.fromkeys(rows), {})
    known, classes = _find_labels(labels, named, rows, table)

    root = Path(images).expanduser().resolve() if images else folder
    names = {name.rsplit(".", 1)[0]: name for name in rows}
    files = {names[stem]: str(file) for stem, file in find_listed(root, names).items()}
    report_listed(len(files), len(rows), table, root)
    wanted = [
        row for name, row in rows.items() if name in files and name in known and name in splits
    ]
    if not wanted:
        raise ValueError(f"no image under {root} is in the splits and has labels: use others.")
    if len(wanted) < len(files):
        logger.info(
            "%d images are in no split or have no labels: left out.", len(files) - len(wanted)
        )
    wanted = chosen_rows([dict.fromkeys(header) | row for row in wanted], header, table, where)
    extra = extra_columns(columns, header, table)
    warn_of_ages([row["Patient Age"] for row in wanted], table)
    boxes = _find_boxes(folder, files, rows) if labels in ("table", "lists") else {}
    records = []
    for row in wanted:
        name = row[IMAGE]
        record = {
            "image": files[name],
            "label": known[name][0],
            "unknown": known[name][1],
            "name": name,
            "path": files[name].replace(os.sep, "/").removeprefix(f"{root.as_posix()}/"),
            "split": splits[name],
            "patient_id": row[PATIENT],
            "source": SOURCE.name,
            "view": row["View Position"] or None,
            "age": age_or_none(row["Patient Age"]),
            "sex": row["Patient Gender"] or None,
            **{column: row[column] or None for column in extra},
        }
        if boxes:
            record["objects"] = boxes.get(name)
        records.append(record)
    return records, classes


if __name__ == "__main__":
    from datasets_scripts.cli import main

    main(SOURCE.name)

"""Own image trees: splits, patients, metadata.csv, wrong input."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Image as Stored
from datasets_trees import write_classes, write_image
from dicom_files import dicom
from PIL import Image

from datasets_scripts import check_leaks, class_names, load_cxr_dataset, regroup


def counts(dataset):
    return {split: len(part) for split, part in dataset.items()}


def test_classes_alone_are_split_70_10_20_by_class(tmp_path):
    root = write_classes(tmp_path / "set", covid=60, normal=40, tb=20)
    dataset = load_cxr_dataset(str(root))
    assert counts(dataset) == {"train": 84, "validation": 12, "test": 24}
    assert class_names(dataset["train"]) == ["covid", "normal", "tb"]
    for part in dataset.values():
        labels = part["label"][:]
        assert [labels.count(label) * 120 / len(labels) for label in range(3)] == [60, 40, 20]
    row = dataset["test"][0]
    assert row["image_id"].startswith("covid-") and row["source"] == "set"
    assert row["image"].size == (40, 40)
    check_leaks(dataset)


def test_split_folders_stay_and_validation_comes_from_train(tmp_path):
    write_classes(tmp_path / "TRAIN", a=30, b=20)
    write_classes(tmp_path / "Test", a=4, b=4)
    dataset = load_cxr_dataset("folder", tmp_path)
    assert counts(dataset) == {"train": 45, "validation": 5, "test": 8}
    write_classes(tmp_path / "valid", a=3, b=3)
    assert counts(load_cxr_dataset("folder", tmp_path)) == {"train": 50, "validation": 6, "test": 8}


def test_equal_names_in_two_classes_are_two_images(tmp_path):
    for offset, name in enumerate(("a", "b")):
        for index in range(20):
            write_image(tmp_path / name / f"{index}.png", 100 * offset + index)
    dataset = load_cxr_dataset("folder", tmp_path)
    ids = [image_id for part in dataset.values() for image_id in part["image_id"]]
    assert sorted(ids) == sorted(f"{name}/{index}.png" for name in "ab" for index in range(20))
    check_leaks(dataset)


def test_a_lone_split_folder_is_that_split(tmp_path):
    write_classes(tmp_path / "set" / "test", NORMAL=4, OPACITY=4)
    assert counts(load_cxr_dataset(str(tmp_path / "set"))) == {"test": 8}


def test_regroup_makes_the_splits_that_are_missing(tmp_path):
    write_classes(tmp_path / "train", a=60, b=40)
    dataset = load_cxr_dataset("folder", tmp_path)
    assert set(dataset) == {"train", "validation"}
    assert counts(regroup(dataset)) == {"train": 70, "validation": 10, "test": 20}


def test_patients_stay_in_one_split(tmp_path):
    for index in range(60):
        write_image(tmp_path / "ab"[index % 2] / f"p{index // 4:02d}-view{index}.png", index)
    dataset = load_cxr_dataset("folder", tmp_path, patient_regex=r"(p\d+)-")
    assert set().union(*(part["patient_id"] for part in dataset.values())) == {
        f"p{patient:02d}" for patient in range(15)
    }
    check_leaks(dataset)


def test_patients_can_be_folders_below_the_class(tmp_path):
    for index in range(40):
        write_image(tmp_path / "ab"[index % 2] / f"patient{index // 4}" / f"{index}.png", index)
    dataset = load_cxr_dataset("folder", tmp_path, patient_regex=r"patient(\d+)/")
    assert "patient0/0.png" in sum((part["image_id"][:] for part in dataset.values()), [])
    assert set().union(*(part["patient_id"] for part in dataset.values())) == set(
        map(str, range(10))
    )


def test_without_a_patient_a_warning_says_so(tmp_path, caplog):
    root = write_classes(tmp_path / "set", a=20, b=20)
    with caplog.at_level(logging.WARNING):
        dataset = load_cxr_dataset("folder", root)
    assert "no patient for 40 of 40 images: each of these counts as its own" in caplog.text
    assert dataset["train"][0]["patient_id"] == f"a/{dataset['train'][0]['image_id']}"


def test_equal_files_stay_together_though_their_names_differ(tmp_path):
    root = write_classes(tmp_path / "set", a=20, b=20)
    for index in range(20):
        shutil.copy(root / "a" / f"a-{index:02d}.png", root / "a" / f"copy-{index:02d}.png")
    for seed in range(3):
        check_leaks(load_cxr_dataset("folder", root, seed=seed))


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "bmp", "tif", "TIFF", "webp", "jp2", "pgm"])
def test_suffixes(tmp_path, suffix):
    root = write_classes(tmp_path / "set", a=10, b=10)
    first = root / "a" / "a-00.png"
    Image.open(first).save(first.with_suffix(f".{suffix}"))
    first.unlink()
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "a" / ".hidden.png").write_bytes(b"")
    dataset = load_cxr_dataset("folder", root)
    names = set().union(*(part["image_id"] for part in dataset.values()))
    assert f"a-00.{suffix}" in names and len(names) == 20


def test_metadata_gives_patients_and_columns(tmp_path):
    root = write_classes(tmp_path / "set", a=20, b=20)
    lines = ["file_name,patient_id,view,age,sex,note"]
    lines += [f"{c}/{c}-{i:02d}.png,P{i // 2},PA,{i + 0.5},F,x" for c in "ab" for i in range(20)]
    (root / "metadata.csv").write_text("\n".join(lines))
    dataset = load_cxr_dataset("folder", root)
    check_leaks(dataset)
    assert len(set().union(*(part["patient_id"] for part in dataset.values()))) == 10
    for part in dataset.values():
        for row in part:
            number = int(row["image_id"][2:4])
            assert row["patient_id"] == f"P{number // 2}"
            assert (row["view"], row["age"], row["sex"]) == ("PA", number + 0.5, "F")
            assert "note" not in row


def test_metadata_with_labels_is_multi_label_and_may_be_flat(tmp_path, caplog):
    names = ["effusion", "mass", "effusion|mass", ""]
    lines = ["file_name,labels,patient_id"]
    for index in range(80):
        write_image(tmp_path / f"{index:02d}.png", index)
        lines.append(f"{index:02d}.png,{names[index % 4]},P{index // 2}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    write_image(tmp_path / "extra.png", 99)
    dataset = load_cxr_dataset("folder", tmp_path)
    assert "1 images under" in caplog.text and "not in its metadata: left out" in caplog.text
    assert class_names(dataset["train"]) == ["effusion", "mass"]
    assert counts(dataset) == {"train": 56, "validation": 8, "test": 16}
    for part in dataset.values():
        for row in part:
            expected = [["effusion"], ["mass"], ["effusion", "mass"], []][
                int(row["image_id"][:2]) % 4
            ]
            assert [class_names(part)[label] for label in row["labels"]] == expected
    check_leaks(dataset)


def test_wrong_trees_are_one_sentence(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="nowhere does not exist: folder reads a folder with class/file or"
    ):
        load_cxr_dataset("folder", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is empty: expected class/file or split/class/file"):
        load_cxr_dataset("folder", tmp_path)
    root = write_classes(tmp_path / "one", a=9)
    with pytest.raises(ValueError, match="only the class 'a': a classifier needs images of two"):
        load_cxr_dataset("folder", root)
    (root / "b").mkdir()
    with pytest.raises(ValueError, match="class folder .*/one/b is empty"):
        load_cxr_dataset("folder", root)
    write_image(root / "b" / "only.png", 77)
    with pytest.raises(ValueError, match=r"1 patients cannot stand in each of train \+ validation"):
        load_cxr_dataset("folder", root)
    loose = write_image(root / "loose.png", 5)
    with pytest.raises(ValueError, match="loose.png stands in no class folder"):
        load_cxr_dataset("folder", root)
    loose.unlink()
    mixed = write_classes(tmp_path / "mixed" / "train", a=9, b=9).parent
    write_classes(mixed / "tset", a=9, b=9)
    with pytest.raises(ValueError, match="tset stands beside split folders but is none of train"):
        load_cxr_dataset("folder", mixed)
    shutil.rmtree(mixed / "tset")
    write_classes(mixed / "test", a=1)
    with pytest.raises(ValueError, match="split 'test' of .*mixed has 1 image: it needs 2 or more"):
        load_cxr_dataset("folder", mixed)
    shutil.rmtree(mixed / "test")
    write_classes(mixed / "val", a=3)
    with pytest.raises(ValueError, match="split 'validation' of .* holds only the class 'a'"):
        load_cxr_dataset("folder", mixed)


def test_a_test_folder_of_one_class_beside_others_is_kept(tmp_path):
    write_classes(tmp_path / "train", a=20, b=20)
    for index in range(5):
        write_image(tmp_path / "test" / "b" / f"{index}.png", 5000 + index)
    assert load_cxr_dataset("folder", tmp_path)["test"]["label"][:] == [1] * 5


@pytest.mark.parametrize(
    "regex, message",
    [
        ("(p", "is not a regular expression"),
        (r"p\d+", "has no group: put the patient's part in parentheses"),
        (r"(q\d+)", r"finds no patient in the file name 'a-00.png'"),
    ],
)
def test_wrong_patient_regex(tmp_path, regex, message):
    root = write_classes(tmp_path / "set", a=9, b=9)
    with pytest.raises(ValueError, match=message):
        load_cxr_dataset("folder", root, patient_regex=regex)


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,view\na/a-00.png,PA", "no column file_name: its columns are name, view"),
        ("file_name,view\na/zz.png,PA", "lists 'a/zz.png', but no such file is under"),
        ("file_name,view\na/a-00.png,PA\na/a-00.png,AP", "lists 'a/a-00.png' twice"),
        ("file_name,patient_id\na/a-00.png,P1", "gives a/a-01.png no patient_id"),
    ],
)
def test_wrong_metadata(tmp_path, text, message):
    root = write_classes(tmp_path / "set", a=9, b=9)
    (root / "metadata.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_cxr_dataset("folder", root)


@pytest.mark.parametrize(
    "source, message",
    [
        ("kermny", r"unknown dataset 'kermny' \(did you mean kermany\?\): use chestxray14"),
        ("imagenet", "use chestxray14, chexpert, folder, .*, rsna, an existing folder"),
        ("/no/such/folder", "/no/such/folder does not exist: give an existing folder or zip"),
        ("folder", "dataset folder needs a path"),
        ("hub", "dataset hub needs a path: the id of a data set on the Hub"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_cxr_dataset(source)


def test_unknown_options_and_files(tmp_path):
    with pytest.raises(ValueError, match="unknown option 'sede' of dataset folder: it takes lab"):
        load_cxr_dataset("folder", tmp_path, sede=1)
    with pytest.raises(ValueError, match="generated and takes no path"):
        load_cxr_dataset("phantom", tmp_path)
    file = write_image(tmp_path / "x.png", 1)
    with pytest.raises(ValueError, match="x.png is a file: give a folder of images"):
        load_cxr_dataset(str(file))


def files_in(dataset):
    """The stored path of each image, by split."""
    return {
        split: [
            Path(image["path"])
            for image in part.cast_column("image", Stored(decode=False))["image"]
        ]
        for split, part in dataset.items()
    }


@pytest.mark.parametrize(
    "folders",
    [
        ("Training", "Validation", "Testing"),
        ("TRAIN", "VAL", "TEST"),
        ("train", "dev", "eval"),
        ("train", "eval", "test"),  # eval means test, as in `datasets`, where nothing else does
        ("train_set", "valid_set", "test_set"),
        ("trainset", "validate", "test1"),
        ("01_train", "02_valid", "03_test"),
        ("Training Images", "development", "testing-images"),
        ("train_v2", "val_v2", "test_v2"),
        ("Training Data Set", "Validation Data Set", "Testing Data Set"),
        ("xray_train", "xray_val", "xray_test"),
        ("train_new", "valid_final", "test_set_images"),
        ("Tr", "Va", "Te"),
    ],
)
@pytest.mark.parametrize("order", ["split/class", "class/split", "wrapper/split/class"])
def test_split_folders_are_known_by_their_usual_names(tmp_path, folders, order):
    for split, name in enumerate(folders):
        for label in range(2):
            place = {"split": name, "class": ("NORMAL", "PNEUMONIA")[label], "wrapper": "data"}
            folder = tmp_path.joinpath(*(place[part] for part in order.split("/")))
            for index in range(3 + split):
                write_image(folder / f"{index}.png", 100 * split + 10 * label + index)
    dataset = load_cxr_dataset(str(tmp_path))
    assert counts(dataset) == {"train": 6, "validation": 8, "test": 10}
    assert class_names(dataset["train"]) == ["NORMAL", "PNEUMONIA"]
    check_leaks(dataset)


def test_parts_of_one_split_are_joined(tmp_path):
    for number, name in enumerate(("train1", "train2", "test")):
        for label in range(2):
            for index in range(10):
                file = tmp_path / name / "ab"[label] / f"{index}.png"
                write_image(file, 100 * number + 10 * label + index)
    assert counts(load_cxr_dataset("folder", tmp_path)) == {
        "train": 36,
        "validation": 4,
        "test": 20,
    }


@pytest.mark.parametrize(
    "names, inner",
    [
        (("site1", "site2"), ("NORMAL", "PNEUMONIA")),
        (("part_one", "part_two"), ("covid", "tb")),
        (("2019", "2020"), ("healthy", "ill")),
    ],
)
def test_folders_that_hold_the_same_folders_are_refused(tmp_path, names, inner):
    for number, name in enumerate(names):
        for label, kind in enumerate(inner):
            for index in range(5):
                write_image(
                    tmp_path / name / kind / f"{index}.png", 100 * number + 10 * label + index
                )
    with pytest.raises(
        ValueError, match=f"the folders {', '.join(names)} of .* hold the same fold"
    ):
        load_cxr_dataset("folder", tmp_path)
    dataset = load_cxr_dataset("folder", tmp_path, classes=",".join(names))
    assert class_names(dataset["train"]) == list(names)


@pytest.mark.parametrize(
    "junk", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN", ".hidden", "lost+found"]
)
@pytest.mark.parametrize("place", ["", "train", "train/a", "train/a/patient1"])
def test_side_folders_are_no_part_of_the_set(tmp_path, junk, place):
    for number, split in enumerate(("train", "test")):
        for label in range(2):
            for index in range(4):
                file = tmp_path / split / "ab"[label] / f"patient{index}" / "x.png"
                write_image(file, 100 * number + 10 * label + index)
    write_image(tmp_path / place / junk / "a" / "checkpoint.png", 999)
    for name in ("Thumbs.db", ".DS_Store", "._x.png", "desktop.ini", "notes"):
        (tmp_path / place / name).write_bytes(b"junk")
    dataset = load_cxr_dataset("folder", tmp_path, validation_share=0.5)
    assert counts(dataset) == {"train": 4, "validation": 4, "test": 8}


@pytest.mark.parametrize(
    "image, mask, is_lung",
    [
        ("{c}/images/{i}.png", "{c}/masks/{i}.png", True),
        ("{c}/Images/{i}.png", "{c}/Lung Masks/{i}_mask.png", True),
        ("images/{c}/{i}.png", "masks/{c}/{i}.png", True),
        ("{c}/{i}.png", "{c}/{i}_mask.png", True),
        ("{c}/{i}.png", "lung_masks/{c}/{i}.png", True),
        ("{c}/images/{i}.png", "{c}/infection masks/{i}.png", False),
        ("{c}/images/{i}.png", "{c}/segmentation/{i}.png", False),
        ("{c}/{i}.png", "{c}/leftMask/{i}.png", False),
        ("{c}/{i}.png", "{c}/{i}_seg.png", False),
        ("{c}/{i}.png", "{c}/{i}_lungs.bmp", False),
        ("{c}/{i}.png", "{c}/{i}_GT.png", False),
        ("{c}/{i}.png", "{c}/mask_{i}.png", False),
        ("{c}/{i}.png", "{c}/{i}_mask_lung.png", False),
        ("{c}/{i}.png", "{c}/{i}-maskLeft.png", False),
        ("{c}/{i}.png", "{c}/{i}mask.png", False),
        ("{c}/{i}.png", "{c}/{i}_leftlung_overlay.png", False),
        ("{c}/CXR/{i}.png", "{c}/labels/{i}.png", False),
        ("{c}/images/{i}.png", "{c}/Heatmaps/{i}.png", False),
        ("{c}/{i}.png", "ground_truth/{c}/{i}.png", False),
        ("images/{c}/{i}.png", "annotations/{i}.png", False),
        ("{c}/{i}.png", "{c}/overlays/{i}.png", False),
    ],
)
def test_masks_beside_the_images_are_masks(tmp_path, caplog, image, mask, is_lung):
    for label, name in enumerate(("COVID", "Normal")):
        for index in range(10):
            seed = 100 * label + index
            write_image(tmp_path / image.format(c=name, i=f"{name}-{index}"), seed)
            write_image(tmp_path / mask.format(c=name, i=f"{name}-{index}"), 5000 + seed, size=20)
    dataset = load_cxr_dataset("folder", tmp_path)
    assert sum(counts(dataset).values()) == 20
    assert class_names(dataset["train"]) == ["Normal", "COVID"]
    for part in dataset.values():
        for row in part:
            assert row["image"].size == (40, 40)
            if is_lung:
                assert row["lung_mask"].size == (20, 20)
            assert ("lung_mask" in row) == is_lung
    assert ("20 masks under" in caplog.text) != is_lung


def test_an_image_without_a_lung_mask_has_none(tmp_path):
    write_classes(tmp_path / "images", a=10, b=10)
    write_image(tmp_path / "masks" / "a" / "a-03.png", 7)
    dataset = load_cxr_dataset("folder", tmp_path)
    masks = {row["image_id"]: row["lung_mask"] for part in dataset.values() for row in part}
    assert [name for name, mask in masks.items() if mask] == ["a-03.png"]


def test_links_are_followed_and_never_for_ever(tmp_path):
    elsewhere = write_classes(tmp_path / "elsewhere", a=10, b=10)
    root = tmp_path / "set"
    for name in "ab":
        (root / name).mkdir(parents=True)
        (root / name / "hospital").symlink_to(elsewhere / name)
        (root / name / "again").symlink_to(root)
    assert sum(counts(load_cxr_dataset("folder", root)).values()) == 20
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError, match="a/gone.png is a link that leads nowhere: mend or"):
        load_cxr_dataset("folder", root)


@pytest.mark.parametrize("name", ["{}.dcm", "{}.DCM", "{}.dicom", "IM{}", "1.2.840.113619.{}"])
def test_dicom_files_are_found(tmp_path, name):
    for label in range(2):
        folder = tmp_path / ("NORMAL", "PNEUMONIA")[label] / "study"
        folder.mkdir(parents=True)
        for index in range(10):
            pixels = np.full((40, 40), 100 * label + index, np.uint8)
            (folder / name.format(index)).write_bytes(dicom(pixels))
        (folder / "DICOMDIR").write_bytes(dicom(pixels + 1))
        (folder / "README").write_text("no image")
    files = [file for part in files_in(load_cxr_dataset(str(tmp_path))).values() for file in part]
    assert len(files) == 20 and all(file.name != "DICOMDIR" for file in files)
    assert all(b"DICM" in file.read_bytes()[:132] for file in files)


def test_an_empty_class_folder_says_what_is_there(tmp_path):
    root = write_classes(tmp_path / "set", a=10)
    (root / "b").mkdir()
    (root / "b" / "hospital").write_text("../elsewhere")  # a link that an archive made a text of
    (root / "b" / "volume.nii.gz").write_bytes(b"123")
    with pytest.raises(
        ValueError,
        match=r"class folder .*/b holds no images by suffix or content, but 2 other files, as "
        r"hospital \(12 bytes\), volume.nii.gz \(3 bytes\): put images in it",
    ):
        load_cxr_dataset("folder", root)


def write_rows(path, rows):
    """The rows (dicts) as a metadata file of the kind that its suffix says."""
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        pd.DataFrame(rows).to_parquet(path, index=False)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("place", ["", "split", "class"])
def test_metadata_of_imagefolder_gives_patients_wherever_it_stands(tmp_path, kind, place):
    rows = {}
    for number, split in enumerate(("train", "test")):
        for label in range(2):
            for index in range(12):
                file = tmp_path / split / "ab"[label] / f"{split}-{index}.png"
                write_image(file, 100 * number + 20 * label + index)
                folder = {"": tmp_path, "split": tmp_path / split, "class": file.parent}[place]
                row = {
                    "file_name": file.relative_to(folder).as_posix(),
                    "patient_id": f"{split}{index // 2}",
                    "age": 30 + index,
                }
                rows.setdefault(folder, []).append(row)
    for folder, listed in rows.items():
        write_rows(folder / f"metadata.{kind}", listed)
    dataset = load_cxr_dataset("folder", tmp_path, validation_share=0.25)
    check_leaks(dataset)
    assert len(dataset["test"]) == 24 and set(dataset["test"]["patient_id"]) == {
        f"test{patient}" for patient in range(6)
    }
    assert set(dataset["test"]["age"]) == set(range(30, 42))
    assert not set(dataset["train"]["patient_id"]) & set(dataset["validation"]["patient_id"])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["label", "Label", "class"])
def test_metadata_with_one_label_an_image(tmp_path, kind, column):
    rows = []
    for index in range(40):
        write_image(tmp_path / "images" / f"{index}.png", index)
        rows.append({"file_name": f"{index}.png", column: ("sick", "healthy")[index % 2]})
    write_rows(tmp_path / "images" / f"metadata.{kind}", rows)
    dataset = load_cxr_dataset("folder", tmp_path)
    assert class_names(dataset["train"]) == ["healthy", "sick"]
    for part in dataset.values():
        for row in part:
            assert row["label"] == 1 - int(row["image_id"][:-4]) % 2


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_metadata_with_lists_of_labels(tmp_path, kind):
    labels = [["Effusion"], ["Edema", "Effusion"], [], ["Edema"]]
    rows = []
    for index in range(40):
        write_image(tmp_path / f"{index}.png", index)
        rows.append({"file_name": f"{index}.png", "findings": "", "labels": labels[index % 4]})
    write_rows(tmp_path / f"metadata.{kind}", rows)
    for part in load_cxr_dataset("folder", tmp_path).values():
        for row in part:
            found = [class_names(part)[label] for label in row["labels"]]
            assert sorted(found) == labels[int(row["image_id"][:-4]) % 4]


def test_metadata_may_name_splits_and_masks(tmp_path):
    rows = []
    for index in range(12):
        write_image(tmp_path / f"{index}.png", index)
        write_image(tmp_path / "lungs" / f"{index}.png", 100 + index, size=20)
        split = ("train", "val", "test")[index // 4]
        row = {"image_file_name": f"{index}.png", "split": split, "label": "ab"[index % 2]}
        rows.append({**row, "mask_file_name": f"lungs/{index}.png"})
    write_rows(tmp_path / "metadata.csv", rows)
    dataset = load_cxr_dataset("folder", tmp_path)
    assert counts(dataset) == {"train": 4, "validation": 4, "test": 4}
    assert dataset["test"][0]["lung_mask"].size == (20, 20)


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("metadata.jsonl", '{"file_name": "a/a-00.png"', "is no JSON lines file in UTF-8"),
        ("metadata.jsonl", "[1]", "is no JSON lines file in UTF-8 .a line is no object"),
        ("metadata.jsonl", '{"file": "a/a-00.png"}', "has no column file_name: its columns are fi"),
        ("metadata.parquet", "PAR", "is no Parquet file in UTF-8"),
        ("a/metadata.csv", "file_name\n../b/b-00.png", "lists '../b/b-00.png', which is outside"),
        ("metadata.csv", "images_file_names\na/a-00.png", "lists several images a row"),
        ("a/metadata.csv", "file_name\nzz.png", "lists 'zz.png', but no such file is under"),
        ("metadata.csv", "file_name,label,split\na/a-00.png,a,odd", "the split 'odd': use train"),
        ("metadata.csv", "file_name,split\na/a-00.png,odd", "the split 'odd': use train"),
        (
            "metadata.csv",
            "file_name,split\na/a-00.png,train",
            "with and without a split: give a/a-",
        ),
        (
            "metadata.csv",
            "file_name,label\na/a-00.png,b\nb/b-00.png,a",
            "b', but its folder is 'a'",
        ),
        ("metadata.tsv", "file_name\tview\na/zz.png\tPA", "lists 'a/zz.png', but no such file"),
        (
            "metadata.csv",
            "file_name,labels\na/a-00.png,0|0|1",
            r"metadata.csv: the label .0\|0\|1. s",
        ),
        (
            "metadata.csv",
            "file_name,label\na/a-00.png,[0 1]",
            "metadata of .*: the label '.0 1.' s",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a/a-00.png", "labels": []}\n{"file_name": "a/a-01.png"}',
            "gives a/a-01.png no labels: write .. where there is no finding",
        ),
    ],
)
def test_wrong_metadata_of_every_kind(tmp_path, file, text, message):
    root = write_classes(tmp_path / "set", a=9, b=9)
    (root / file).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_cxr_dataset("folder", root)
    assert "\n" not in str(caught.value)


def test_two_metadata_files_in_one_folder_are_refused(tmp_path):
    root = write_classes(tmp_path / "set", a=9, b=9)
    for kind in ("csv", "jsonl"):
        write_rows(root / f"metadata.{kind}", [{"file_name": "a/a-00.png"}])
    with pytest.raises(ValueError, match=r"set holds metadata.csv and metadata.jsonl: keep one\."):
        load_cxr_dataset("folder", root)


def test_look_alikes_between_splits_are_one_class(tmp_path, caplog):
    for number, (split, names) in enumerate(
        {"train": ("Normal", "Pleural_Effusion"), "test": ("normal", "pleural effusion")}.items()
    ):
        for label, name in enumerate(names):
            for index in range(10 - 5 * number):
                write_image(
                    tmp_path / split / name / f"{index}.png", 100 * number + 10 * label + index
                )
    dataset = load_cxr_dataset("folder", tmp_path)
    assert class_names(dataset["test"]) == ["Normal", "Pleural_Effusion"]
    assert dataset["test"]["label"][:] == [0] * 5 + [1] * 5
    assert "'normal' is read as 'Normal'" in caplog.text


def test_identical_images_under_two_labels_are_named_or_refused(tmp_path, caplog):
    root = write_classes(tmp_path / "set", a=100, b=100)
    shutil.copy(root / "a" / "a-07.png", root / "b" / "copy.png")
    load_cxr_dataset("folder", root)
    assert "2 of 201 images of" in caplog.text and "both labels stay" in caplog.text
    assert "a/a-07.png (a) and b/copy.png (b)" in caplog.text
    shutil.copy(root / "a" / "a-08.png", root / "b" / "copy2.png")
    with pytest.raises(
        ValueError, match="4 of 202 images .* more than the 1.0% that max_conflicts"
    ):
        load_cxr_dataset("folder", root)
    load_cxr_dataset("folder", root, max_conflicts=0.1)


@pytest.mark.parametrize(
    "names, finding",
    [
        (("COVID", "NORMAL"), "COVID"),
        (("NORMAL", "PNEUMONIA"), "PNEUMONIA"),
        (("Effusion", "No Finding"), "Effusion"),
        (("Cardiomegaly", "no_cardiomegaly"), "Cardiomegaly"),
        (("cases", "controls"), "cases"),
        (("0", "1"), "1"),
        (("healthy", "TB"), "TB"),
        (("infected", "uninfected"), "infected"),
        (("Covid", "non-covid"), "Covid"),
        (("COVID+", "COVID-"), "COVID+"),
        (("TB negative", "TB positive"), "TB positive"),
        (("abnormal", "normal"), "abnormal"),
        (("normal", "not normal"), "not normal"),
        (("no", "yes"), "yes"),
        (("Fibrosis", "NoFinding"), "Fibrosis"),
        (("Parasitized", "Uninfected"), "Parasitized"),
        (("TB", "NONCOVID"), "TB"),
        (("NORM", "ILL"), "ILL"),
        (("AbNormal", "Healthy lungs"), "AbNormal"),
        (("COPD", "clear lungs"), "COPD"),
        (("cases", "control group"), "cases"),
        (("00", "01"), "01"),
        (("class_0", "class_1"), "class_1"),
        (("[ILL]", "[NORMAL]"), "[ILL]"),
        (("None", "Pneumonia"), "Pneumonia"),
    ],
)
def test_the_finding_is_class_1(tmp_path, caplog, names, finding):
    root = write_classes(tmp_path / "set", **dict.fromkeys(names, 10))
    with caplog.at_level(logging.INFO):
        dataset = load_cxr_dataset("folder", root)
    assert class_names(dataset["train"])[1] == finding
    for part in dataset.values():
        for row in part:
            assert class_names(part)[row["label"]] == row["image_id"].rsplit("-", 1)[0]
    (other,) = set(names) - {finding}
    assert f"class 1, the finding, is {finding}: {other} names the absence of a find" in caplog.text


def test_a_user_says_which_class_is_the_finding(tmp_path, caplog):
    root = write_classes(tmp_path / "set", covid=10, tb=10)
    assert class_names(load_cxr_dataset("folder", root)["train"]) == ["covid", "tb"]
    assert "class 1, the finding, is tb by the order of names, as neither" in caplog.text
    for options in ({"positive": "COVID"}, {"classes": "tb,covid"}, {"classes": ["tb", "covid"]}):
        assert class_names(load_cxr_dataset("folder", root, **options)["train"]) == ["tb", "covid"]
    mapped = load_cxr_dataset("folder", root, label_map={"TB": "normal"})
    assert class_names(mapped["train"]) == ["normal", "covid"]
    three = write_classes(tmp_path / "three", covid=10, tb=10, normal=10)
    dataset = load_cxr_dataset("folder", three, classes="normal, tb, covid")
    assert class_names(dataset["train"]) == ["normal", "tb", "covid"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"positive": "flu"}, "positive 'flu' is no class of .*: use a or b"),
        ({"classes": "a,c"}, "has the class 'b', which is none of classes a, c: name it too"),
        ({"classes": "a,b,c", "positive": "a"}, "positive 'a' is for two classes, but .* has 3 cl"),
        ({"label_map": {"x": "a"}}, "label_map names 'x', but .* has the labels a, b"),
        ({"label_map": "a"}, "label_map 'a' is no mapping of names to names: write it as {0: NORM"),
        ({"label_map": {"a": ["b"]}}, "is no mapping of names to names"),
        ({"label_map": {"a": ""}}, "gives 'a/a-00.png' no label: give each image one"),
    ],
)
def test_wrong_class_options(tmp_path, options, message):
    root = write_classes(tmp_path / "set", a=10, b=10)
    with pytest.raises(ValueError, match=message):
        load_cxr_dataset("folder", root, **options)


@pytest.mark.parametrize("patients", [("0", "1"), ("no_1", "no_2"), ("p", "q")])
def test_patients_of_one_class_are_no_classes(tmp_path, patients):
    for number, patient in enumerate(patients):
        for index in range(5):
            write_image(tmp_path / "PNEUMONIA" / patient / f"{index}.png", 10 * number + index)
    with pytest.raises(ValueError, match="holds only the class 'PNEUMONIA'"):
        load_cxr_dataset("folder", tmp_path)


def test_a_folder_around_the_classes_is_no_class(tmp_path):
    write_classes(tmp_path / "dataset", covid=10, normal=10)
    dataset = load_cxr_dataset("folder", tmp_path)
    assert class_names(dataset["train"]) == ["normal", "covid"]


def test_metadata_may_split_a_class_tree(tmp_path):
    root = write_classes(tmp_path / "set", a=12, b=12)
    rows = [
        {"file_name": f"{c}/{c}-{i:02d}.png", "split": ("train", "eval", "test")[i % 3]}
        for c in "ab"
        for i in range(12)
    ]
    write_rows(root / "metadata.csv", rows)
    dataset = load_cxr_dataset("folder", root)
    assert counts(dataset) == {"train": 8, "validation": 8, "test": 8}
    assert {int(name[2:4]) % 3 for name in dataset["test"]["image_id"]} == {2}


@pytest.mark.parametrize("tree", ["{split}/{c}/{i}.png", "{split}/{i}{c}.png"])
def test_folders_and_metadata_of_two_splits_are_refused(tmp_path, tree):
    rows = []
    for index in range(20):
        name = tree.format(split=("train", "test")[index % 2], c="ab"[index // 10], i=index)
        write_image(tmp_path / name, index)
        rows.append({"file_name": name, "label": "ab"[index // 10], "split": "train"})
    if "{c}/" in tree:
        rows = [{"file_name": row["file_name"], "split": "train"} for row in rows]
    write_rows(tmp_path / "metadata.csv", rows)
    with pytest.raises(ValueError, match=r"test/\S+ the split 'train', but its folder says test"):
        load_cxr_dataset("folder", tmp_path)


def test_labels_in_the_metadata_of_one_split_alone_are_refused(tmp_path):
    for number, split in enumerate(("train", "test")):
        rows = []
        for index in range(20):
            write_image(tmp_path / split / f"{index}.png", 100 * number + index)
            rows.append({"file_name": f"{index}.png", "age": 50, "labels": "Edema|Mass"})
        write_rows(tmp_path / split / "metadata.csv", [{**row} for row in rows])
    load_cxr_dataset("folder", tmp_path)
    for row in rows:
        del row["labels"]
    write_rows(tmp_path / "test" / "metadata.csv", rows)
    with pytest.raises(
        ValueError, match="test/metadata.csv has no column of labels, but .*train/m"
    ):
        load_cxr_dataset("folder", tmp_path)


@pytest.mark.parametrize("kind", [".tsv", ".ndjson", ".csv.gz"])
def test_metadata_of_other_kinds_give_patients(tmp_path, kind):
    root = write_classes(tmp_path / "set", a=20, b=20)
    table = pd.DataFrame({"file_name": [f"{c}/{c}-{i:02d}.png" for c in "ab" for i in range(20)]})
    table["patient_id"] = [f"P{index // 4}" for index in range(40)]
    table["view"] = "PA\u2028lying"
    if kind == ".ndjson":
        table.to_json(root / f"metadata{kind}", orient="records", lines=True, force_ascii=False)
    else:
        table.to_csv(root / f"metadata{kind}", index=False, sep="\t" if kind == ".tsv" else ",")
    dataset = load_cxr_dataset("folder", root)
    assert set().union(*(part["patient_id"] for part in dataset.values())) == {
        f"P{number}" for number in range(10)
    }


def test_tables_and_files_that_are_left_out_are_warned_of(tmp_path, caplog):
    root = write_classes(tmp_path / "set", a=20, b=20)
    for name in ("labels.csv", "metadata.json", "a/x.gif", "a/y.gif", "b/z.nii", "notes.txt"):
        (root / name).write_text("x")
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "b" / "scan.ima").write_bytes(dicom(np.zeros((40, 40), np.uint8)))
    dataset = load_cxr_dataset("folder", root)
    assert "2 tables under" in caplog.text and "as labels.csv: only those named" in caplog.text
    assert "no images by suffix or content are left out: 2 .gif, 1 .nii." in caplog.text
    assert "scan.ima" in sum((part["image_id"][:] for part in dataset.values()), [])


def test_images_named_alike_without_a_word_for_masks_stay(tmp_path):
    for index in range(10):
        for name in ("{}", "{}_left", "{}_lateral", "{}_2"):
            file = tmp_path / "ab"[index % 2] / f"{name.format(index)}.png"
            write_image(file, 10 * index + len(name))
    assert sum(counts(load_cxr_dataset("folder", tmp_path)).values()) == 40


@pytest.mark.parametrize(
    "folders, message",
    [
        (("train_a", "train_b", "test_a", "other"), "other stands beside folders named by split"),
        (("a", "normal", "more/a", "more/normal"), "more stands beside classes but holds folders"),
    ],
)
def test_folders_that_are_no_class_beside_others_are_refused(tmp_path, folders, message):
    for number, folder in enumerate(folders):
        for index in range(4):
            write_image(tmp_path / folder / f"{index}.png", 10 * number + index)
    with pytest.raises(ValueError, match=message):
        load_cxr_dataset("folder", tmp_path)


@pytest.mark.parametrize("name", ["{split}_{c}", "{c} - {split}"])
def test_folders_may_be_named_by_split_and_class(tmp_path, name):
    for number, split in enumerate(("train", "Val", "TEST")):
        for label, c in enumerate(("NORMAL", "VIRAL_PNEUMONIA")):
            for index in range(3 + number):
                file = tmp_path / name.format(split=split, c=c) / f"{index}.png"
                write_image(file, 100 * number + 10 * label + index)
    dataset = load_cxr_dataset("folder", tmp_path)
    assert counts(dataset) == {"train": 6, "validation": 8, "test": 10}
    assert class_names(dataset["train"]) == ["NORMAL", "VIRAL_PNEUMONIA"]


def test_results_of_a_test_are_classes(tmp_path):
    root = write_classes(tmp_path / "set", test_negative=20, test_positive=20)
    assert class_names(load_cxr_dataset("folder", root)["train"]) == [
        "test_negative",
        "test_positive",
    ]


def test_folders_around_folders_around_the_classes_are_no_classes(tmp_path):
    write_classes(tmp_path / "archive" / "data", COVID=10, Normal=10)
    dataset = load_cxr_dataset("folder", tmp_path)
    assert class_names(dataset["train"]) == ["Normal", "COVID"]


@pytest.mark.parametrize("name", ["None", "NA", "nan", "-"])
def test_a_folder_with_a_name_like_a_blank_is_a_class(tmp_path, name):
    root = write_classes(tmp_path / "set", **{name: 10, "TB": 10})
    for options in ({"positive": "TB"}, {"classes": f"{name},TB"}):
        dataset = load_cxr_dataset("folder", root, **options)
        assert class_names(dataset["train"]) == [name, "TB"]
    dataset = load_cxr_dataset("folder", root, label_map=f"{{'{name}': healthy}}")
    assert class_names(dataset["train"]) == ["healthy", "TB"]

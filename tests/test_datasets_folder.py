"""Own image trees: splits, patients, metadata.csv, wrong input."""

import logging
import shutil

import pytest
from datasets_trees import write_classes, write_image
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
    assert "each of 40 files counts as its own patient (set patient_regex" in caplog.text
    assert dataset["train"][0]["patient_id"] == f"a/{dataset['train'][0]['image_id']}"


def test_equal_files_stay_together_though_their_names_differ(tmp_path):
    root = write_classes(tmp_path / "set", a=20, b=20)
    for index in range(20):
        shutil.copy(root / "a" / f"a-{index:02d}.png", root / "a" / f"copy-{index:02d}.png")
    for seed in range(3):
        check_leaks(load_cxr_dataset("folder", root, seed=seed))


@pytest.mark.parametrize("suffix", ["JPG", "jpeg", "bmp", "tif", "TIFF", "webp"])
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
    assert "1 images under" in caplog.text and "not in metadata.csv" in caplog.text
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
        FileNotFoundError, match="nowhere does not exist: give the folder of folder"
    ):
        load_cxr_dataset("folder", tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match="holds no images: expected class/file or split/class/file"
    ):
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
    write_classes(tmp_path / "test", b=5)
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
        ("file_name,view\na/zz.png,PA", "lists 'a/zz.png' but no such file is under"),
        ("file_name,view\na/a-00.png,PA\na/a-00.png,AP", "lists 'a/a-00.png' twice"),
        ("file_name,patient_id\na/a-00.png,P1", "gives a/a-01.png no patient_id"),
        ("file_name,age\na/a-00.png,old", "gives the age 'old': a number of years is needed"),
    ],
)
def test_wrong_metadata(tmp_path, text, message):
    root = write_classes(tmp_path / "set", a=9, b=9)
    (root / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_cxr_dataset("folder", root)


@pytest.mark.parametrize(
    "source, message",
    [
        ("kermny", r"unknown dataset 'kermny' \(did you mean kermany\?\): use phantom, kermany"),
        ("imagenet", "use phantom, kermany, folder, hub, manifest, an existing folder"),
        ("/no/such/folder", "/no/such/folder does not exist: give an existing folder or zip"),
        ("folder", "dataset folder needs a path"),
        ("hub", "dataset hub needs a Hub id"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_cxr_dataset(source)


def test_unknown_options_and_files(tmp_path):
    with pytest.raises(ValueError, match="unknown option 'sede' of dataset folder: it takes pat"):
        load_cxr_dataset("folder", tmp_path, sede=1)
    with pytest.raises(ValueError, match="generated and takes no path"):
        load_cxr_dataset("phantom", tmp_path)
    file = write_image(tmp_path / "x.png", 1)
    with pytest.raises(ValueError, match="x.png is a file: give a folder of images"):
        load_cxr_dataset(str(file))

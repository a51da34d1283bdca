"""The Kermany set: real counts, the trees and zips it comes as, patients, wrong input."""

import json
import shutil
import zipfile
from hashlib import sha256

import pytest
from datasets import DatasetDict, Image
from datasets_trees import write_image, write_kermany

from datasets_scripts import (
    age_range,
    check_leaks,
    content_hashes,
    describe,
    facts,
    load_cxr_dataset,
)
from datasets_scripts.kermany import patient_key
from training.arguments import parse_args

# Hashes of the image_ids in order: every published figure stands on these splits.
ROWS = {"train": "027e27d8ceb9760d", "validation": "c3f5b98a6e015c91"}


def counts(dataset):
    return {split: len(part) for split, part in dataset.items()}


def names(dataset, *splits):
    return {name for split in splits or dataset for name in dataset[split]["image_id"]}


@pytest.mark.parametrize(
    "name, key",
    [
        ("person12_bacteria_46.jpeg", ("person12_bacteria", "bacteria")),
        ("person12_virus_46.jpeg", ("person12_virus", "virus")),
        ("person1372_virus_2365_2.jpeg", ("person1372_virus", "virus")),
        ("IM-0115-0001.jpeg", ("IM-0115", "normal")),
        ("IM-0115-0001-0002.jpeg", ("IM-0115", "normal")),
        ("NORMAL2-IM-0115-0001.jpeg", ("NORMAL2-IM-0115", "normal")),
        ("IM-0115-0001_jpeg.rf.4d1bf92dbd6a.jpg", ("IM-0115", "normal")),
        ("person12_bacteria_46_jpeg.rf.0f1a.jpg", ("person12_bacteria", "bacteria")),
        ("chest-12.png", None),
        ("xIM-0115-0001.jpeg", None),
    ],
)
def test_patient_key(name, key):
    assert patient_key(name) == key


def test_real_set_has_the_known_counts(cxr_data):
    dataset = load_cxr_dataset("kermany", cxr_data / "chest_xray")
    assert counts(dataset) == {"train": 4709, "validation": 523, "test": 624}
    training = dataset["train"]["patient_id"][:] + dataset["validation"]["patient_id"][:]
    assert len(set(training)) == 3669
    assert len(set(dataset["test"]["patient_id"])) == 428
    assert len(set(training) | set(dataset["test"]["patient_id"])) == 4097
    assert set(dataset["train"]["subtype"]) == {"normal", "bacteria", "virus"}
    lines = [line.split() for line in describe(dataset).splitlines()]
    assert lines[0] == ["split", "files", "unique", "patients", "NORMAL", "PNEUMONIA"]
    assert lines[3][:4] == ["test", "624", "618", "428"]
    assert lines[3][4:] == ["234", "(37.5%)", "390", "(62.5%)"]
    assert lines[4][:4] == ["total", "5,856", "5,824", "4,097"]
    share = dataset["validation"]["label"][:].count(1) / 523
    assert share == pytest.approx(3883 / 5232, abs=0.002)
    check_leaks(dataset)
    rows = {name: "\n".join(dataset[name]["image_id"]) for name in ("train", "validation")}
    assert {name: sha256(text.encode()).hexdigest()[:16] for name, text in rows.items()} == ROWS


def test_real_set_is_recognised_from_its_parent_and_its_split(cxr_data):
    assert counts(load_cxr_dataset(str(cxr_data)))["test"] == 624
    assert counts(load_cxr_dataset(str(cxr_data / "chest_xray" / "test"))) == {"test": 624}


def test_val_is_training_data_and_test_is_kept(tmp_path):
    root = write_kermany(tmp_path / "chest_xray")
    dataset = load_cxr_dataset("kermany", root, validation_share=0.2)
    assert sum(counts(dataset).values()) == 80 + 4 + 12
    assert names(dataset, "test") == {file.name for file in root.glob("test/*/*")}
    assert names(dataset, "train", "validation") >= {file.name for file in root.glob("val/*/*")}
    assert 14 <= len(dataset["validation"]) <= 20
    assert dataset["validation"]["label"][:].count(0) in (8, 9)
    check_leaks(dataset)
    row = dataset["test"][0]
    assert (row["image_id"], row["patient_id"]) == ("IM-8000-0001.jpeg", "IM-8000")
    assert (row["label"], row["subtype"], row["source"]) == (0, "normal", "kermany")
    assert row["image"].size == (40, 40)


def test_the_seed_decides_the_validation_split(tmp_path):
    root = write_kermany(tmp_path / "chest_xray")
    first, again, other = (
        names(load_cxr_dataset("kermany", root, seed=seed), "validation") for seed in (1, 1, 2)
    )
    assert first == again != other


def test_identical_files_join_two_patients(tmp_path):
    root = write_kermany(tmp_path / "chest_xray", train=6)
    twin = root / "train/PNEUMONIA/person77_virus_1.jpeg"
    shutil.copy(next(root.glob("train/PNEUMONIA/person0_bacteria_*")), twin)
    for seed in range(8):
        dataset = load_cxr_dataset("kermany", root, seed=seed, validation_share=0.4)
        sides = [
            split
            for split, part in dataset.items()
            if {"person0_bacteria", "person77_virus"} & set(part["patient_id"])
        ]
        assert len(sides) == 1
        check_leaks(dataset)


@pytest.mark.parametrize(
    "kept, splits",
    [
        (["test"], ["test"]),
        (["train"], ["train", "validation"]),
        (["val"], ["train", "validation"]),
    ],
)
def test_a_folder_with_some_splits_gives_those(tmp_path, kept, splits):
    root = write_kermany(tmp_path / "chest_xray", val=4)
    for split in {"train", "val", "test"} - set(kept):
        shutil.rmtree(root / split)
    assert list(load_cxr_dataset("kermany", root)) == splits


def write_zip(path, root, prefixes, junk=True):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.jpeg")):
            for prefix in prefixes:
                archive.write(file, f"{prefix}/{file.relative_to(root)}")
            if junk:
                inside = file.relative_to(root)
                archive.writestr(f"chest_xray/__MACOSX/{inside.parent}/._{inside.name}", b"junk")
                archive.writestr(f"chest_xray/{inside.parent}/._{inside.name}", b"junk")
        archive.writestr("chest_xray/.DS_Store", b"junk")
    return path


def test_the_kaggle_zip_equals_the_folder_and_is_unpacked_once(tmp_path):
    root = write_kermany(tmp_path / "chest_xray")
    archive = write_zip(tmp_path / "a.zip", root, ["chest_xray", "chest_xray/chest_xray"])
    cache = tmp_path / "cache"
    dataset = load_cxr_dataset(str(archive), cache_dir=str(cache))
    assert describe(dataset) == describe(load_cxr_dataset("kermany", root))
    (unpacked,) = cache.iterdir()
    files = {file: file.stat().st_mtime_ns for file in unpacked.rglob("*.jpeg")}
    assert len(files) == 96
    load_cxr_dataset("kermany", archive, cache_dir=str(cache))
    assert list(cache.iterdir()) == [unpacked]
    assert {file: file.stat().st_mtime_ns for file in unpacked.rglob("*.jpeg")} == files


def test_a_zip_with_train_and_test_only(tmp_path):
    root = write_kermany(tmp_path / "chest_xray", val=0)
    archive = write_zip(tmp_path / "m.zip", root, ["ChestXRay2017/chest_xray"], junk=False)
    dataset = load_cxr_dataset("kermany", archive, cache_dir=tmp_path / "cache")
    assert counts(dataset) == {"train": 72, "validation": 8, "test": 12}


def test_a_zip_never_writes_outside_its_folder(tmp_path):
    root = write_kermany(tmp_path / "in", train=4, val=0, test=2)
    archive = write_zip(tmp_path / "evil.zip", root, ["chest_xray"], junk=False)
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("../../escaped.jpeg", b"x")
        more.writestr("../train/NORMAL/IM-0666-0001.jpeg", b"x")
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    dataset = load_cxr_dataset("kermany", archive, cache_dir=tmp_path / "cache" / "deep")
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    (unpacked,) = (tmp_path / "cache" / "deep").iterdir()
    outside = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert all(path.is_relative_to(unpacked) for path in outside)
    assert "IM-0666-0001.jpeg" not in names(dataset)


def test_a_damaged_zip_leaves_nothing_behind(tmp_path):
    root = write_kermany(tmp_path / "chest_xray", train=4, val=0, test=2)
    archive = write_zip(tmp_path / "bad.zip", root, ["chest_xray"], junk=False)
    data = bytearray(archive.read_bytes())
    data[len(data) // 4 : len(data) // 4 + 200] = bytes(200)
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=r"bad.zip cannot be unpacked .*download it again"):
        load_cxr_dataset("kermany", archive, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    archive.write_bytes(data[:1000])
    with pytest.raises(ValueError, match="no readable zip file"):
        load_cxr_dataset("kermany", archive, cache_dir=tmp_path / "cache")


def test_wrong_input_is_one_sentence(tmp_path):
    root = write_kermany(tmp_path / "chest_xray", train=4, val=0, test=2)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: kermany reads the ch"):
        load_cxr_dataset("kermany", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="validation_share 1.5 is not between 0 and 1"):
        load_cxr_dataset("kermany", root, validation_share=1.5)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="no train, val or test folder with NORMAL and PNEUMONIA"):
        load_cxr_dataset("kermany", tmp_path / "other")
    stranger = write_image(root / "train/NORMAL/mine.png", 1)
    with pytest.raises(ValueError, match="mine.png is not named like a Kermany image.*folder"):
        load_cxr_dataset("kermany", root)
    stranger.unlink()
    shutil.rmtree(root / "test/NORMAL")
    (root / "test/NORMAL").mkdir()
    with pytest.raises(ValueError, match="class folder .*test/NORMAL is empty"):
        load_cxr_dataset("kermany", root)


def test_real_lung_masks_and_sizes_leave_the_rest_as_it_is(cxr_data):
    plain = load_cxr_dataset("kermany", cxr_data / "chest_xray")
    option = f"extra={cxr_data / 'kermany_extra'}"
    flags = ["--dataset", "kermany", "--dataset_path", str(cxr_data / "chest_xray")]
    args = parse_args([*flags, "--dataset_options", option, "--output_dir", "unused"])
    full = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    added = {"lung_mask", "original_width", "original_height"}
    masks, sizes = 0, []
    for split, part in full.items():
        assert content_hashes(part) == content_hashes(plain[split])
        assert set(part.features) - set(plain[split].features) == added
        for column in set(plain[split].features) - {"image"}:
            assert part[column][:] == plain[split][column][:]
        stored = part.cast_column("lung_mask", Image(decode=False))["lung_mask"]
        masks += sum(mask is not None for mask in stored)
        sizes += zip(part["image_id"], part["original_width"], part["original_height"])
    assert masks == 5851
    assert sum(None in size for size in sizes) == 5
    assert {("IM-0115-0001.jpeg", 2090, 1858), ("IM-0117-0001.jpeg", 1422, 1152)} < set(sizes)
    row = full["test"][0]
    assert row["lung_mask"].size == row["image"].size == (224, 224)


def write_extra(folder, root, header="name,orig_w,orig_h,lung_mask"):
    """A manifest of all images of a tree; the first has neither mask nor size."""
    rows = []
    for index, file in enumerate(sorted(root.rglob("*.jpeg"))):
        mask = f"{file.stem}.png" if index else ""
        if mask:
            write_image(folder / "lung_masks" / mask, index)
        rows.append(f"{file.name},{100 + index if index else ''},{90 if index else ''},{mask}")
    (folder / "manifest.csv").write_text("\n".join([header, *rows]))
    return folder


def test_what_an_extra_folder_does_not_know_is_none(tmp_path):
    root = write_kermany(tmp_path / "chest_xray", train=0, val=0, test=2)
    extra = write_extra(tmp_path / "extra", root)
    for path in (root / "test", write_zip(tmp_path / "a.zip", root, ["chest_xray"])):
        options = {"cache_dir": str(tmp_path / "cache")}
        test = load_cxr_dataset("kermany", path, extra=str(extra), **options)["test"]
        assert test["original_width"][:] == [None, 101, 102, 103]
        assert test["original_height"][:] == [None, 90, 90, 90]
        assert [mask is None for mask in test["lung_mask"]] == [True, False, False, False]


def test_an_extra_folder_of_another_set_is_one_sentence(tmp_path):
    root = write_kermany(tmp_path / "chest_xray", train=0, val=0, test=2)

    def load(extra):
        return load_cxr_dataset("kermany", root / "test", extra=extra)

    with pytest.raises(FileNotFoundError, match="extra .*none has no manifest.csv: give the fold"):
        load(tmp_path / "none")
    extra = write_extra(tmp_path / "other", root, header="file,orig_w,orig_h,lung_mask")
    with pytest.raises(ValueError, match="has no column 'name': it is not a manifest of the Kerm"):
        load(extra)
    extra = write_extra(tmp_path / "extra", root)
    (extra / "lung_masks" / "IM-8001-0001.png").unlink()
    with pytest.raises(FileNotFoundError, match="lists 'IM-8001-0001.png', but no such file is u"):
        load(extra)
    extra = write_extra(tmp_path / "extra", root)
    write_image(root / "test/NORMAL/IM-0666-0001.jpeg", 7)
    with pytest.raises(ValueError, match="does not list 1 of the 5 images, as 'IM-0666-0001.jpeg'"):
        load(extra)


@pytest.mark.parametrize("names", [("Training", "Testing"), ("TRAIN", "TEST"), ("train", "test")])
def test_splits_are_known_by_their_usual_names(tmp_path, names):
    root = write_kermany(tmp_path / "chest_xray", val=0)
    for old, new in zip(("train", "test"), names):
        (root / old).rename(root / "moved")
        (root / "moved").rename(root / new)
    dataset = load_cxr_dataset(str(root))
    assert counts(dataset) == {"train": 72, "validation": 8, "test": 12}
    assert dataset["train"]["source"][0] == "kermany"


def test_what_is_known_of_the_set_holds_for_its_copies(tmp_path):
    root = write_kermany(tmp_path / "chest_xray")
    dataset = load_cxr_dataset(str(root))
    known = facts(dataset)
    assert known["licence"] == "cc-by-4.0" and "children aged 1 to 5" in known["population"]
    assert "10.17632/rscbjbr9sj" in known["title"] and "Cell 172, 2018" in known["citation"]
    assert json.loads(json.dumps(known)) == known and len(known["limits"]) == 3
    for name in ("keremberke/chest-xray-classification", "hf-vision/chest-xray-pneumonia"):
        copies = DatasetDict(
            {
                split: part.remove_columns("source").add_column("source", [name] * len(part))
                for split, part in dataset.items()
            }
        )
        assert facts(copies) == known
        assert age_range(copies["train"]) == age_range(dataset["train"]) == [1.0, 5.0]


def test_facts_and_ages_of_several_sources(tmp_path):
    def load(*rows):
        for row, _ in enumerate(rows):
            write_image(tmp_path / f"{row}.png", row)
        lines = [f"{row}.png,{'ab'[row % 2]},{text}" for row, text in enumerate(rows)]
        (tmp_path / "set.csv").write_text("\n".join(["file,label,source,age", *lines]))
        return load_cxr_dataset(str(tmp_path / "set.csv"))

    def ages(*rows):
        return age_range(load(*rows)["test"])

    mixed = facts(load("kermany,", "phantom,", "clinic,30"))
    assert mixed["licence"] == "cc-by-4.0; apache-2.0" and "synthetic" in mixed["population"]
    assert mixed["limits"][-1] == "Nothing is recorded of the images of clinic."
    assert facts(load("clinic,", "folder,")) == {}

    assert ages("kermany,", "clinic,30", "clinic,70") == [1.0, 70.0]
    assert ages("kermany,", "clinic,", "clinic,70") == [1.0, 70.0]
    assert ages("kermany,", "clinic,") is None  # nobody knows how old the others were
    assert ages("phantom,", "phantom,") is None

"""ChestX-ray14: the label table, lists of splits, boxes, other labels, and the real part of it."""

import gzip
import logging

import pytest
from datasets_trees import write_image

from datasets_scripts import check_leaks, class_names, label_sets, load_cxr_dataset
from datasets_scripts.chestxray14 import FINDINGS
from datasets_scripts.leaks import LeakError

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
LABELS = ("No Finding", "Effusion", "Effusion|Pleural_Thickening", "Mass")


def write_nih(root, patients=20, per_patient=2, age="058Y", suffix=".png"):
    """The folder as it is downloaded: the last quarter of the patients is the test."""
    lines, names = [HEADER], []
    for patient in range(1, patients + 1):
        for image in range(per_patient):
            name = f"{patient:08d}_{image:03d}.png"
            seed = patient * 10 + image
            file = f"images_00{1 + patient % 2}/images/{name}"
            write_image((root / file).with_suffix(suffix), seed)
            label = LABELS[seed % 4]
            lines.append(f"{name},{label},{image},{patient},{age},F,PA,2048,2500,0.14,0.14,")
            names.append(name)
    cut = len(names) * 3 // 4
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(names[:cut]))
    (root / "test_list.txt").write_text("\n".join(names[cut:]))
    return root, names


def write_list(path, names, labels=None):
    cells = [" ".join("01"[finding in row] for finding in FINDINGS) for row in labels or []]
    lines = map(" ".join, zip(names, cells)) if labels else names
    text = "\n".join(lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def splits_of(dataset):
    return {split: sorted(part["image_id"]) for split, part in dataset.items()}


def test_the_download_is_recognised_and_read(tmp_path):
    root, names = write_nih(tmp_path)
    for path in (root, root / "Data_Entry_2017.csv"):
        dataset = load_cxr_dataset(str(path))
        assert class_names(dataset["test"]) == list(FINDINGS)
        assert splits_of(dataset)["test"] == names[30:]
        assert sorted(sum(list(splits_of(dataset).values()), [])) == names
        check_leaks(dataset)
        row = dataset["test"][0]
        found = {FINDINGS[index] for index in row.pop("labels")}
        assert found == set(LABELS[160 % 4].split("|")) - {"No Finding"}
        assert row.pop("image").size == (40, 40)
        assert row == {
            "image_id": "00000016_000.png",
            "patient_id": "16",
            "source": "chestxray14",
            "view": "PA",
            "age": 58.0,
            "sex": "F",
        }


def test_a_part_with_other_suffixes_and_folders_is_said(tmp_path, caplog):
    root, names = write_nih(tmp_path / "nih", suffix=".jpg")
    for name in names[1::2]:
        next((root).rglob(name.replace(".png", ".jpg"))).unlink()
    (root / "images_001").rename(tmp_path / "nih" / "resized")
    with caplog.at_level(logging.INFO):
        dataset = load_cxr_dataset(str(root))
    assert "20 of 40 listed images found." in caplog.text
    assert sorted(sum(list(splits_of(dataset).values()), [])) == names[::2]


def test_images_may_be_elsewhere_but_not_twice(tmp_path):
    root, names = write_nih(tmp_path / "nih")
    (root / "images_001").rename(tmp_path / "one")
    (root / "images_002").rename(tmp_path / "two")
    with pytest.raises(FileNotFoundError, match=r"none of the 40 images that .* is under .*: set"):
        load_cxr_dataset(str(root))
    dataset = load_cxr_dataset(str(root), images=str(tmp_path))
    assert sum(map(len, dataset.values())) == 40
    twin = write_image(tmp_path / "small" / names[0], 1)
    with pytest.raises(ValueError, match="are one image of the table: set images to the folder"):
        load_cxr_dataset(str(root), images=str(tmp_path))
    mask = tmp_path / "masks" / names[0]
    mask.parent.mkdir()
    twin.rename(mask)
    assert sum(map(len, load_cxr_dataset(str(root), images=str(tmp_path)).values())) == 40


def test_a_validation_list_is_taken_out_of_the_official_train(tmp_path):
    root, names = write_nih(tmp_path)
    write_list(root / "val_official.txt", names[4:8])
    dataset = load_cxr_dataset(str(root), validation_list="val_official.txt")
    assert splits_of(dataset) == {
        "train": names[:4] + names[8:30],
        "validation": names[4:8],
        "test": names[30:],
    }


def test_lists_with_labels(tmp_path, caplog):
    root, names = write_nih(tmp_path)
    labels = [set(LABELS[(10 + i // 2 * 10 + i % 2) % 4].split("|")) for i in range(40)]
    labels[0] = {"Hernia", "Mass"}
    lists = {"train": slice(10, 40), "validation": slice(6, 10), "test": slice(0, 6)}
    options = {}
    for split, part in lists.items():
        folders = [f"images_006/{name}" for name in names[part]]
        write_list(root / f"{split}.txt.gz", folders, labels[part])
        options[f"{split}_list"] = f"{split}.txt.gz"
    dataset = load_cxr_dataset(str(root), **options)
    assert splits_of(dataset) == {split: names[part] for split, part in lists.items()}
    assert "Labels are those of Data_Entry_2017.csv: the lists give 1 images other ones" in (
        caplog.text
    )
    first = dataset["test"]["image_id"].index(names[0])
    found = {FINDINGS[i] for i in label_sets(dataset["test"])[first]}
    assert found == {"Effusion", "Pleural_Thickening"}
    theirs = load_cxr_dataset(str(root), labels="lists", **options)["test"]
    assert {FINDINGS[i] for i in label_sets(theirs)[first]} == {"Hernia", "Mass"}
    with pytest.raises(ValueError, match="labels lists is for lists that name 14 labels"):
        load_cxr_dataset(str(root), labels="lists")


def test_a_split_table_its_columns_and_where(tmp_path, caplog):
    root, names = write_nih(tmp_path)
    parts = ["train"] * 24 + ["validation"] * 6 + ["test"] * 8 + ["unused"] * 2
    rows = [f"{name},{split},{'ab'[i % 2]}" for i, (name, split) in enumerate(zip(names, parts))]
    (root / "split.csv").write_text("\n".join(["image_index,split,site", *rows]))
    with caplog.at_level(logging.INFO):
        dataset = load_cxr_dataset(str(root), split="split.csv", columns="site,Follow-up #")
    assert "2 images are in no split or have no labels: left out." in caplog.text
    assert splits_of(dataset)["test"] == names[30:38]
    assert dataset["test"]["site"][:] == list("abababab")
    assert dataset["test"]["Follow-up #"][:] == list("01010101")
    only = load_cxr_dataset(str(root), split="split.csv", where="site=a")
    assert splits_of(only)["test"] == names[30:38:2]


def test_boxes_are_in_pixels_of_the_stored_image(tmp_path):
    root, names = write_nih(tmp_path)
    rows = [f"{names[30]},Infiltrate,512,256,128,64,,,", f"{names[30]},Mass,0,0,1024,1024,,,"]
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    (root / "BBox_List_2017.csv").write_text("\n".join([header, *rows]))
    test = load_cxr_dataset(str(root))["test"]
    objects = dict(zip(test["image_id"], test["objects"]))
    assert objects[names[30]] == {
        "bbox": [[20, 10, 5, 2.5], [0, 0, 40, 40]],
        "category": [FINDINGS.index("Infiltration"), FINDINGS.index("Mass")],
    }
    assert objects[names[31]] is None
    mapped = load_cxr_dataset(str(root), label_map={"Mass": None})["test"]
    kept = dict(zip(mapped["image_id"], mapped["objects"]))[names[30]]
    assert kept["bbox"] == [[20, 10, 5, 2.5]]
    assert "Mass" not in class_names(mapped)


def test_labels_of_another_table(tmp_path):
    root, names = write_nih(tmp_path)
    cells = ["YES,NO", "NO,YES", "NO,", "YES,YES"]
    rows = [f"{name},{i // 2},{cells[i % 4]}" for i, name in enumerate(names[::2])]
    (root / "readers.csv").write_text(
        "\n".join(["Image Index,Patient ID,Fracture,Nodule or mass", *rows])
    )
    dataset = load_cxr_dataset(str(root), labels="readers.csv")
    assert class_names(dataset["test"]) == ["Fracture", "Nodule or mass"]
    assert sorted(sum(list(splits_of(dataset).values()), [])) == names[::2]
    test = dataset["test"]
    assert sorted(
        zip(test["image_id"], map(tuple, test["labels"]), map(tuple, test["unknown"]))
    ) == [
        (names[30], (0, 1), ()),
        (names[32], (0,), ()),
        (names[34], (1,), ()),
        (names[36], (), (1,)),
        (names[38], (0, 1), ()),
    ]


def test_ages_that_are_none_are_left_empty(tmp_path, caplog):
    root, _ = write_nih(tmp_path, age="414Y")
    assert set(load_cxr_dataset(str(root))["test"]["age"]) == {None}
    assert "gives 40 ages that are no number of years, as '414Y': they are left empty" in (
        caplog.text
    )


def test_findings_are_left_out_whether_an_image_has_them_or_not(tmp_path):
    root, _ = write_nih(tmp_path)
    one = load_cxr_dataset(str(root), label_map={"hernia": None})
    assert class_names(one["test"]) == list(FINDINGS[:-1])
    others = {finding: None for finding in FINDINGS if finding != "Mass"}
    only = load_cxr_dataset(str(root), label_map=others)
    assert class_names(only["test"]) == ["Mass"]
    seeds = [int(name[:8]) * 10 + int(name[9:12]) for name in only["test"]["image_id"]]
    assert label_sets(only["test"]) == [(0,) if seed % 4 == 3 else () for seed in seeds]


def replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


BOXES = "Image Index,Finding Label,Bbox [x,y,w,h]"
ONE = "00000001_000.png"


@pytest.mark.parametrize(
    ("file", "text", "options", "error"),
    [
        ("a.txt", "0099_000.png", {"test_list": "a.txt"}, "lists 1 images that the label table"),
        ("a.txt", "a.png 0 1", {"test_list": "a.txt"}, "has the line 'a.png 0 1': each names"),
        ("a.txt", "", {"test_list": "no.txt"}, "test_list no.txt does not exist, nor is it in"),
        (
            "a.txt",
            ONE,
            {"train_list": "train_val_list.txt", "test_list": "a.txt"},
            f"lists '{ONE}', which stands in the list of train too",
        ),
        ("a.csv", f"image,split\n{ONE},dev9x", {"split": "a.csv"}, "gives the split 'dev9x'"),
        ("a.csv", "image,part\na,b", {"split": "a.csv"}, "image_index and split are needed"),
        ("a.csv", "", {"split": "a.csv", "test_list": "test_list.txt"}, "choose one"),
        (
            "BBox_List_2017.csv",
            f"{BOXES}\n{ONE},Mass,1000,0,100,10",
            {},
            r"\[1000, 0, 100, 10\], which does not lie in an image of 1024 x 1024 pixels",
        ),
        ("BBox_List_2017.csv", f"{BOXES}\n{ONE},Mas,1,0,9,9", {}, "the box '1 0 9 9' of 'Mas'"),
        ("a.csv", f"Image Index,Mass\n{ONE},maybe", {"labels": "a.csv"}, "columns of YES and NO"),
        ("a.txt", "", {"where": "Finding Labels=Pneumothorax"}, "fits none of the 40 rows"),
        ("a.txt", "", {"columns": "ward"}, "columns 'ward' asks for 'ward', which is not there"),
    ],
)
def test_files_that_do_not_fit_are_one_sentence(tmp_path, file, text, options, error):
    root, _ = write_nih(tmp_path)
    (root / file).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=error) as raised:
        load_cxr_dataset(str(root), **options)
    assert str(raised.value).endswith(".") and "\n" not in str(raised.value)


def test_an_unknown_finding_and_an_image_listed_twice_are_refused(tmp_path):
    root, names = write_nih(tmp_path)
    table = root / "Data_Entry_2017.csv"
    replaced(table, ",Mass,", ",Pneumoniae,")
    with pytest.raises(ValueError, match="names the finding 'Pneumoniae', which is none of No Fin"):
        load_cxr_dataset(str(root))
    replaced(table, names[1], names[0])
    with pytest.raises(ValueError, match=f"lists '{names[0]}' twice: each image needs one row"):
        load_cxr_dataset(str(root))


def test_a_patient_in_two_lists_is_a_leak(tmp_path):
    root, names = write_nih(tmp_path)
    write_list(root / "train.txt", names[1:20])
    write_list(root / "test.txt", [names[0], *names[20:]])
    dataset = load_cxr_dataset(str(root), train_list="train.txt", test_list="test.txt")
    with pytest.raises(LeakError, match="1 patients .* .patient 1 in test and train.: --regroup"):
        check_leaks(dataset)


ARNOWENG = {
    f"{split}_list": f"arnoweng_{name}_list.txt.gz"
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test"))
}


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({"split": "split.csv", "columns": "repository"}, (1528, 178, 811)),
        ({"validation_list": "validation_list_customary.txt"}, (1787, 275, 532)),
        (ARNOWENG, (1428, 169, 997)),
    ],
    ids=["own", "official", "arnoweng"],
)
def test_the_real_part_loads_by_each_of_its_splits(cxr_data, caplog, options, counts):
    path = cxr_data / "chestxray14"
    if not path.is_dir():
        pytest.skip("CXR_DATA holds no part of ChestX-ray14")
    dataset = load_cxr_dataset(str(path), **options)
    assert tuple(len(dataset[split]) for split in ("train", "validation", "test")) == counts
    check_leaks(dataset)
    if "columns" in options:
        assert dataset["test"]["repository"][:].count("jrzech") == 605
    else:  # all images
        boxed = [found for part in dataset.values() for found in part["objects"] if found]
        assert sum(len(found["bbox"]) for found in boxed) == 67
    assert ("the lists give 181 images other ones" in caplog.text) == (options is ARNOWENG)

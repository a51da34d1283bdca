"""A CSV file with a row an image: columns, patients, splits, real external sets, wrong input."""

import logging

import numpy as np
import pytest
from datasets_trees import write_image

from datasets_scripts import check_leaks, class_names, describe, load_cxr_dataset
from datasets_scripts.cli import main
from training.arguments import parse_args


def write_manifest(folder, header, *rows):
    """The CSV file, and an image of noise for each first cell."""
    for seed, row in enumerate(rows):
        write_image(folder / row.split(",")[0], seed)
    path = folder / "manifest.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_row_an_image_becomes_the_schema(tmp_path):
    path = write_manifest(
        tmp_path / "clinic",
        "file,label,finding,view,patient,age,sex,orig_w,orig_h,lung_mask",
        "a/1.png,PNEUMONIA,COVID-19 ,PA,7,63,female,705,691,a/2.png",
        "a/2.png,NORMAL,,,,unknown,,,,",
    )
    for dataset in (load_cxr_dataset("manifest", path), load_cxr_dataset(str(path))):
        assert list(dataset) == ["test"]
        assert class_names(dataset["test"]) == ["NORMAL", "PNEUMONIA"]
        first, second = dataset["test"]
        assert np.array_equal(first.pop("lung_mask"), second.pop("image"))
        assert first.pop("image").size == (40, 40)
        assert first == {
            "label": 1,
            "image_id": "1.png",
            "patient_id": "7",
            "source": "clinic",
            "subtype": "COVID-19",
            "view": "PA",
            "age": 63.0,
            "sex": "female",
            "original_width": 705,
            "original_height": 691,
        }
        assert (second["patient_id"], second["image_id"]) == ("a/2.png", "2.png")
        empty = ("subtype", "view", "age", "sex", "lung_mask")
        assert [second[name] for name in (*empty, "original_width", "original_height")] == [
            None
        ] * 7


@pytest.mark.parametrize("file", ["file", "file_name", "filename", "path", "image", "File Name"])
@pytest.mark.parametrize("label", ["label", "class", "labels", "Label"])
@pytest.mark.parametrize("patient", ["patient", "patient_id", "Patient ID"])
def test_the_usual_names_are_found(tmp_path, file, label, patient):
    path = write_manifest(tmp_path, f"{file},{label},{patient}", "1.png,a,p", "2.png,b,p")
    test = load_cxr_dataset(str(path))["test"]
    assert (test["label"][:], test["patient_id"][:]) == ([0, 1], ["p", "p"])


def test_other_names_are_given_as_options(tmp_path):
    header = "id,image,scan,diagnosis,mother"
    path = write_manifest(tmp_path, "scan,image,diagnosis,mother", "1.png,x,a,p", "2.png,y,b,q")
    options = {"label_column": "diagnosis", "patient_column": "mother"}
    test = load_cxr_dataset(str(path), file_column="scan", **options)["test"]
    assert (test["label"][:], test["patient_id"][:]) == ([0, 1], ["p", "q"])
    with pytest.raises(FileNotFoundError, match="lists 'x', but no such file is under"):
        load_cxr_dataset(str(path), **options)
    with pytest.raises(ValueError, match="has no column 'id': its columns are scan, image"):
        load_cxr_dataset(str(path), file_column=header.split(",")[0], **options)


def test_images_without_a_patient_are_counted_once(tmp_path, caplog):
    rows = ["1.png,a,p,45", "2.png,b,,unknown", "3.png,b,,", "4.png,a,q,o45"]
    path = write_manifest(tmp_path, "file,label,patient,age", *rows)
    with caplog.at_level(logging.WARNING):
        test = load_cxr_dataset(str(path))["test"]
    assert test["patient_id"][:] == ["p", "2.png", "3.png", "q"]
    assert test["age"][:] == [45.0, None, None, None]
    ages, classes, patients = (record.getMessage() for record in caplog.records)
    assert "names no patient for 2 of 4 images: each of these counts as its own" in patients
    assert "class 1, the finding, is b by the order of names" in classes
    assert "gives 2 ages that are no number of years, as 'unknown': they are left empty" in ages


def test_equal_file_names_keep_their_folders(tmp_path):
    rows = ["a/1.png,a", "b/1.png,b", "b/2.png,b"]
    path = write_manifest(tmp_path, "file,label", *rows)
    ids = load_cxr_dataset(str(path))["test"]["image_id"][:]
    assert ids == ["a/1.png", "b/1.png", "b/2.png"]


def test_windows_paths_and_byte_order_marks_are_read(tmp_path):
    path = write_manifest(tmp_path, "file,label", "a/1.png,a", "a/2.png,b")
    path.write_text("\ufefffile,label\r\na\\1.png,a\r\n.\\a\\2.png,b\r\n", newline="")
    assert load_cxr_dataset(str(path))["test"]["image_id"][:] == ["1.png", "2.png"]


def test_splits_stay_and_validation_comes_from_train_by_patient(tmp_path):
    rows = [
        f"{row}.png,{'ab'[row % 2]},p{row // 4},{'Train' if row < 80 else 'test'}"
        for row in range(100)
    ]
    path = write_manifest(tmp_path, "file,label,patient,split", *rows)
    dataset = load_cxr_dataset(str(path), validation_share=0.2)
    assert {split: len(part) for split, part in dataset.items()} == {
        "train": 64,
        "validation": 16,
        "test": 20,
    }
    check_leaks(dataset)
    assert set(dataset["test"]["patient_id"]) == {f"p{patient}" for patient in range(20, 25)}


def test_where_keeps_rows_and_their_classes(tmp_path):
    rows = ["x/1.png,a,CT 1", "x/2.png,a,", "y/3.png,b,CT 2", "y/4.png,a,CT 2"]
    path = write_manifest(tmp_path, "file,label,machine", *rows)
    test = load_cxr_dataset(str(path), where="file=^x/")["test"]
    assert (class_names(test), test["image_id"][:]) == (["a"], ["1.png", "2.png"])
    assert "machine" not in test.features
    test = load_cxr_dataset(str(path), where="machine=2$", columns="machine")["test"]
    assert (class_names(test), test["label"][:]) == (["a", "b"], [1, 0])
    test = load_cxr_dataset(str(path), columns="machine")["test"]
    assert test["machine"][:] == ["CT 1", None, "CT 2", "CT 2"]


def test_several_labels_an_image(tmp_path):
    path = write_manifest(tmp_path, "file,labels", "1.png,b|a", "2.png,", "3.png,b")
    test = load_cxr_dataset(str(path))["test"]
    assert class_names(test) == ["a", "b"]
    assert [sorted(labels) for labels in test["labels"]] == [[0, 1], [], [1]]


def test_one_class_is_enough_for_a_test_split_alone(tmp_path):
    path = write_manifest(tmp_path, "file,label,split", "1.png,a,test", "2.png,a,test")
    assert class_names(load_cxr_dataset(str(path))["test"]) == ["a"]
    path = write_manifest(tmp_path, "file,label,split", "1.png,a,val", "2.png,a,val")
    with pytest.raises(ValueError, match="split 'validation' of .* holds only the class 'a'"):
        load_cxr_dataset(str(path))


def test_the_command_line_exports_free_columns(tmp_path, capsys):
    rows = ["1.png,a,x", "2.png,b,y"]
    path = write_manifest(tmp_path / "set", "file,label,machine", *rows)
    out = tmp_path / "out"
    main("manifest", [str(path), "--columns", "machine", "--output", str(out)])
    read = load_cxr_dataset(str(out))
    assert describe(read) in capsys.readouterr().out
    assert read["test"]["machine"][:] == ["x", "y"]
    assert "`source`; `machine`." in (out / "README.md").read_text()
    assert "images that `manifest.csv` lists" in (out / "README.md").read_text()


def test_trains_flags_reach_the_loader(tmp_path):
    path = write_manifest(tmp_path, "file,label", "x/1.png,a", "x/2.png,b", "y/3.png,b")
    flags = ["--dataset", str(path), "--dataset_options", "where=file=^x/", "columns=file"]
    args = parse_args([*flags, "--output_dir", str(tmp_path / "run")])
    dataset = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    assert dataset["test"]["file"][:] == ["x/1.png", "x/2.png"]


@pytest.mark.parametrize(
    "where, count, classes, patients, warned, masks",
    [
        ("file=^covid_cxnet/", 260, {"PNEUMONIA": 260}, 226, 121, 0),
        ("file=^actualmed/", 44, {"NORMAL": 18, "PNEUMONIA": 26}, 39, 0, 0),
        ("file=^openist/", 129, {"NORMAL": 129}, 129, 129, 129),
        (None, 433, {"NORMAL": 147, "PNEUMONIA": 286}, 394, 250, 129),
    ],
)
def test_the_real_external_sets(cxr_data, caplog, where, count, classes, patients, warned, masks):
    with caplog.at_level(logging.WARNING):
        dataset = load_cxr_dataset(str(cxr_data / "external" / "manifest.csv"), where=where)
    test = dataset["test"]
    labels = [class_names(test)[label] for label in test["label"]]
    assert (list(dataset), len(test)) == (["test"], count)
    assert {name: labels.count(name) for name in class_names(test)} == classes
    assert len(set(test["patient_id"])) == patients
    assert [record.args[1] for record in caplog.records] == [warned] * bool(warned)
    assert sum(mask is not None for mask in test["lung_mask"]) == masks
    check_leaks(dataset)


def test_a_real_external_row(cxr_data):
    test = load_cxr_dataset(str(cxr_data / "external" / "manifest.csv"))["test"]
    row = test[test["image_id"][:].index("427.png")]
    assert row.pop("image").size == (512, 502)
    assert row == {
        "label": 1,
        "image_id": "427.png",
        "patient_id": "108",
        "source": "external",
        "subtype": "COVID-19",
        "view": None,
        "age": 63.0,
        "sex": "female",
        "lung_mask": None,
        "original_width": 705,
        "original_height": 691,
    }
    normal = test[test["image_id"][:].index("195-204-500-500-100.png")]
    assert normal["lung_mask"].size == normal["image"].size == (500, 417)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no rows: expected the names of columns and a row an image"),
        ("file,label", "has no rows: expected the names of columns and a row an image"),
        ("name,label\n1.png,a", "no column with a usual name for the file: set file_column to"),
        ("file,kind\n1.png,a", "no column with a usual name for the label: set label_column to"),
        ("file,path,label\n1.png,1.png,a", "has the columns file and path: set file_column to one"),
        ("file,label,label\n1.png,a,b", "names the column 'label' twice: rename one"),
        ("file,label\n1.png,a\n2.png,a,b", "row 3 of .* has more cells than the header"),
        ("file,label\n1.png,a\n2.png,", "gives '2.png' no label: give each image one"),
        ("file,label\n1.png,a\n2.png", "gives '2.png' no label: give each image one"),
        ("file,label\n1.png,a\nzz.png,a", "lists 'zz.png', but no such file is under"),
        ("file,label\n1.png,a\n,a", "lists '', but no such file is under"),
        ("file,label\n1.png,a\n./1.png,a", "lists '1.png' twice: each file needs one row"),
        ("file,label\n1.png,a\n../x.png,a", r"lists '\.\./x.png', which is outside"),
        ("file,label\n1.png,a\n/etc/passwd,a", "lists '/etc/passwd', which is outside"),
        ("file,label,lung_mask\n1.png,a,\n2.png,b,../m.png", r"lists '\.\./m.png', which is outs"),
        ("file,label,lung_mask\n1.png,a,\n2.png,b,m.png", "lists 'm.png', but no such file"),
        ("file,label,split\n1.png,a,odd\n2.png,b,test", "gives the split 'odd': use train, val"),
        ("file,label,split\n1.png,a,\n2.png,b,test", "gives the split '': use train, val"),
        ("file,label,orig_w\n1.png,a,wide\n2.png,b,9", "the original_width 'wide': a number of"),
        ("file,label,orig_h\n1.png,a,0\n2.png,b,9", "the original_height '0': a number of pixels"),
        ("file,label\n1.png,a", "split 'test' of .* has 1 image: it needs 2 or more"),
    ],
)
def test_wrong_manifests_are_one_sentence(tmp_path, text, message):
    folder = write_image(write_image(tmp_path / "set/1.png", 1).with_name("2.png"), 2).parent
    write_image(tmp_path / "x.png", 3)
    (folder / "manifest.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_cxr_dataset("manifest", folder / "manifest.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"where": "label"}, "where 'label' is not column=regex with a column of .*: file, label"),
        ({"where": "view=PA"}, "where 'view=PA' is not column=regex with a column of"),
        ({"where": "label=("}, r"where 'label=\(' holds no regular expression"),
        ({"where": "label=^c$"}, "where 'label=.c.' fits none of the 2 rows"),
        ({"columns": "ward"}, "asks for 'ward', which is not there: the columns of .* file, label"),
        ({"columns": "label"}, "asks for 'label', which is a name of the schema itself"),
        ({"patient_column": "ward"}, "has no column 'ward': its columns are file, label"),
        ({"regex": "x"}, "unknown option 'regex' of dataset manifest: it takes file_column"),
    ],
)
def test_wrong_options_are_one_sentence(tmp_path, options, message):
    path = write_manifest(tmp_path, "file,label", "1.png,a", "2.png,b")
    with pytest.raises(ValueError, match=message):
        load_cxr_dataset("manifest", path, **options)


def test_wrong_places_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="is a folder: give the CSV file in it"):
        load_cxr_dataset("manifest", tmp_path)
    with pytest.raises(FileNotFoundError, match="no.csv does not exist: manifest reads a CSV file"):
        load_cxr_dataset("manifest", tmp_path / "no.csv")
    (tmp_path / "latin.csv").write_bytes("file,label\n1.png,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.csv is no CSV file in UTF-8 .*: save it as one"):
        load_cxr_dataset("manifest", tmp_path / "latin.csv")

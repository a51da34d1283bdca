"""A CSV file with a row an image: columns, patients, splits, real external sets, wrong input."""

import logging

import numpy as np
import pytest
from datasets_trees import write_image

from datasets_scripts import check_leaks, class_names, describe, load_cxr_dataset
from datasets_scripts.cli import main
from datasets_scripts.labels import label_key, read_labels
from datasets_scripts.schema import UNLABELLED
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


def test_ages_are_years_or_those_of_dicom(tmp_path):
    ages = ("058Y", "006M", "58", "414", "-1", "0", "99X")
    rows = [f"{row}.png,{'ab'[row % 2]},{age}" for row, age in enumerate(ages)]
    test = load_cxr_dataset(str(write_manifest(tmp_path, "file,label,Patient Age", *rows)))["test"]
    assert test["age"][:] == [58.0, 0.5, 58.0, None, None, 0.0, None]


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


@pytest.mark.parametrize(
    "cells, names",
    [
        (("Effusion | Edema", " Edema", ""), [["Edema", "Effusion"], ["Edema"], []]),
        (("Effusion;Edema", "Edema", "nan"), [["Edema", "Effusion"], ["Edema"], []]),
        (("['Effusion', 'Edema']", "['Edema']", "[]"), [["Edema", "Effusion"], ["Edema"], []]),
        (("['Effusion' 'Edema']", "[]", "[]"), [["Edema", "Effusion"], [], []]),
        (("[Effusion, Edema]", "[nan]", "None"), [["Edema", "Effusion"], [], []]),
        (("Effusion|", "NaN", "Edema|Edema"), [["Effusion"], [], ["Edema"]]),
        (("edema|Effusion", "Edema", "Edema"), [["Edema", "Effusion"], ["Edema"], ["Edema"]]),
        (
            ("Pleural  effusion|x", "Pleural_effusion", "x"),
            [["Pleural effusion", "x"], ["Pleural effusion"], ["x"]],
        ),
    ],
)
def test_labels_are_read_as_they_are_written(tmp_path, cells, names):
    rows = [f'{row}.png,"{cell}"' for row, cell in enumerate(cells)]
    test = load_cxr_dataset(str(write_manifest(tmp_path, "file,label", *rows)))["test"]
    found = [sorted(class_names(test)[label] for label in labels) for labels in test["labels"]]
    assert found == names


@pytest.mark.parametrize(
    "cells, classes, labels",
    [
        (("0", "1", "1.0"), ["0", "1"], [0, 1, 1]),
        ((" NORMAL", "PNEUMONIA ", "normal"), ["NORMAL", "PNEUMONIA"], [0, 1, 0]),
        (("2", "10", "0"), ["0", "2", "10"], [1, 2, 0]),
        (("COVID", "NORMAL", "COVID"), ["NORMAL", "COVID"], [1, 0, 1]),
    ],
)
def test_one_label_an_image_in_several_spellings(tmp_path, cells, classes, labels):
    rows = [f"{row}.png,{cell}" for row, cell in enumerate(cells)]
    test = load_cxr_dataset(str(write_manifest(tmp_path, "file,label", *rows)))["test"]
    assert (class_names(test), test["label"][:]) == (classes, labels)


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "None", "null", "N/A", "<NA>"])
def test_an_empty_label_is_refused_however_it_is_written(tmp_path, cell):
    path = write_manifest(tmp_path, "file,label", "1.png,a", f"2.png,{cell}")
    with pytest.raises(ValueError, match="gives '2.png' no label: give each image one"):
        load_cxr_dataset(str(path))
    test = load_cxr_dataset(str(path), label_map={None: "b"})["test"]
    assert class_names(test) == ["a", "b"]


def test_several_labels_joined_by_commas_are_refused(tmp_path):
    path = write_manifest(tmp_path, "file,label", "1.png,a", "2.png,b", '3.png,"a, b"')
    with pytest.raises(ValueError, match="has the label 'a, b', whose parts are classes too: join"):
        load_cxr_dataset(str(path))


@pytest.mark.parametrize(
    "option",
    [
        "label_map={0: NORMAL, 1: PNEUMONIA}",
        'label_map={"0": NORMAL, "1": PNEUMONIA}',
        "label_map={0: NORMAL, 1: PNEUMONIA, 2: other}",
    ],
)
def test_a_label_map_renames_classes(tmp_path, option):
    path = write_manifest(tmp_path, "file,label", "1.png,0", "2.png,1", "3.png,1.0")
    args = parse_args(["--dataset", str(path), "--dataset_options", option])
    test = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)["test"]
    assert (class_names(test), test["label"][:]) == (["NORMAL", "PNEUMONIA"], [0, 1, 1])
    key, text = option.split("=", 1)
    assert class_names(load_cxr_dataset(str(path), **{key: text})["test"]) == class_names(test)


@pytest.mark.parametrize("option", ["{no: NORMAL, yes: ILL}", "{'no': NORMAL, 'yes': ILL}"])
def test_a_label_map_reads_yes_and_no(tmp_path, option):
    path = write_manifest(tmp_path, "file,label", "1.png,No", "2.png,Yes")
    args = parse_args(["--dataset", str(path), "--dataset_options", f"label_map={option}"])
    test = load_cxr_dataset(str(path), **args.dataset_options)["test"]
    assert class_names(test) == ["NORMAL", "ILL"]


def test_a_user_says_which_class_is_the_finding(tmp_path):
    path = write_manifest(tmp_path, "file,label", "1.png,0", "2.png,1")
    assert class_names(load_cxr_dataset(str(path), positive=0)["test"]) == ["1", "0"]
    path = write_manifest(tmp_path, "file,label", "1.png,ILL", "2.png,ILL")
    test = load_cxr_dataset(str(path), classes="NORMAL,ILL")["test"]
    assert (class_names(test), test["label"][:]) == (["NORMAL", "ILL"], [1, 1])


@pytest.mark.parametrize(
    "name, split",
    [
        *(("TRAIN", "train"), ("training", "train"), ("Train_1", "train"), ("dev", "validation")),
        *(("valid", "validation"), ("Validate", "validation"), ("VAL2", "validation")),
        *(("testing", "test"), ("Test set", "test"), ("eval", "validation")),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, name, split):
    splits = {"train": "train", "validation": "val", "test": "test", split: name}
    rows = [
        f"{known}{row}.png,{'ab'[row % 2]},{said}"
        for known, said in splits.items()
        for row in range(4)
    ]
    dataset = load_cxr_dataset(str(write_manifest(tmp_path, "file,label,split", *rows)))
    assert {known: len(part) for known, part in dataset.items()} == {
        "train": 4,
        "validation": 4,
        "test": 4,
    }
    assert all(image_id.startswith(split) for image_id in dataset[split]["image_id"])


def test_without_a_split_column_a_share_makes_splits(tmp_path):
    rows = [f"{row}.png,{'ab'[row % 2]}" for row in range(20)]
    path = write_manifest(tmp_path, "file,label", *rows)
    dataset = load_cxr_dataset(str(path), test_share=0.4, validation_share=0.2)
    assert {split: len(part) for split, part in dataset.items()} == {
        "train": 8,
        "validation": 4,
        "test": 8,
    }


def test_patients_may_stand_in_the_path(tmp_path):
    rows = [f"patient{row // 4}/study/{row}.png,{'ab'[row % 2]}" for row in range(8)]
    path = write_manifest(tmp_path, "file,label", *rows)
    test = load_cxr_dataset(str(path), patient_regex=r"patient(\d+)/")["test"]
    assert test["patient_id"][:] == ["0"] * 4 + ["1"] * 4


def test_files_may_lie_under_another_root(tmp_path):
    path = write_manifest(tmp_path / "lists", "file,label", "1.png,a", "2.png,b")
    write_image(tmp_path / "images" / "1.png", 1)
    write_image(tmp_path / "images" / "2.png", 2)
    for file in path.parent.glob("*.png"):
        file.unlink()
    test = load_cxr_dataset(str(path), root=str(tmp_path / "images"))["test"]
    assert (len(test), test["source"][:]) == (2, ["images", "images"])
    with pytest.raises(FileNotFoundError, match="lists '1.png', but no such file is under .*lists"):
        load_cxr_dataset(str(path))


def test_a_source_may_be_named_for_each_image(tmp_path):
    path = write_manifest(tmp_path / "x", "file,label,source", "1.png,a,kermany", "2.png,b,")
    assert load_cxr_dataset(str(path))["test"]["source"][:] == ["kermany", "x"]


def test_weights_are_kept(tmp_path):
    rows = ["1.png,a,0", "2.png,b,0.25", "3.png,b,3"]
    test = load_cxr_dataset(str(write_manifest(tmp_path, "file,label,weight", *rows)))["test"]
    assert test["weight"][:] == [0.0, 0.25, 3.0]


@pytest.mark.parametrize("weight", ["-1", "heavy", "", "nan", "inf"])
def test_a_wrong_weight_is_refused(tmp_path, weight):
    path = write_manifest(tmp_path, "file,label,weight", "1.png,a,1", f"2.png,b,{weight}")
    with pytest.raises(ValueError, match="gives the weight .*: a number of 0 or more is needed"):
        load_cxr_dataset(str(path))


def test_unlabelled_images_are_a_split_of_their_own(tmp_path):
    rows = [f"{row}.png,{'ab'[row % 2]},train" for row in range(20)]
    rows += [f"u{row}.png,,{name}" for row, name in enumerate(("unlabelled", "Unlabeled"))]
    dataset = load_cxr_dataset(str(write_manifest(tmp_path, "file,label,split", *rows)))
    assert list(dataset) == ["train", "validation", "unlabelled"]
    assert dataset["unlabelled"]["label"][:] == [UNLABELLED] * 2
    assert class_names(dataset["unlabelled"]) == ["a", "b"]
    check_leaks(dataset)


@pytest.mark.parametrize("labels", [("a", "b", "a"), ("a|b", "b", "")])
def test_labelled_images_have_no_place_among_the_unlabelled(tmp_path, labels):
    splits = ("test", "test", "unlabelled")
    rows = [f"{row}.png,{pair[0]},{pair[1]}" for row, pair in enumerate(zip(labels, splits))]
    path = write_manifest(tmp_path, "file,label,split", *rows)
    with pytest.raises(ValueError, match="has '2.png' in the split unlabelled: that is for images"):
        load_cxr_dataset(str(path))


def test_a_finding_that_a_split_lacks_is_named(tmp_path, caplog):
    labels = {"train": ["a|b", "b", "a"], "val": ["a", "c|b", ""], "test": ["a|c", "b", ""]}
    rows = [
        f"{split}{row}.png,{x},{split}" for split in labels for row, x in enumerate(labels[split])
    ]
    path = write_manifest(tmp_path, "file,label,split", *rows)
    dataset = load_cxr_dataset(str(path))
    assert class_names(dataset["train"]) == ["a", "b", "c"]
    assert f"Split 'train' of {path} has no image of c." in caplog.text


def test_identical_images_under_two_labels_are_refused(tmp_path):
    path = write_manifest(tmp_path, "file,label", "1.png,a", "2.png,b", "3.png,b")
    (tmp_path / "3.png").write_bytes((tmp_path / "1.png").read_bytes())
    with pytest.raises(ValueError, match=r"2 of 3 images of .* \(1.png \(a\) and 3.png \(b\)\)"):
        load_cxr_dataset(str(path))


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_cells_may_be_parted_by_semicolons_or_tabs(tmp_path, delimiter):
    path = write_manifest(tmp_path, "file,label,view", "1.png,a,PA", "2.png,b,AP")
    path.write_text(path.read_text().replace(",", delimiter))
    assert load_cxr_dataset(str(path))["test"]["view"][:] == ["PA", "AP"]


@pytest.mark.parametrize("cell", ["", "nan", "None"])
def test_an_empty_patient_is_no_patient(tmp_path, cell):
    rows = [f"{row}.png,{'ab'[row]},{cell}" for row in range(2)]
    path = write_manifest(tmp_path, "file,label,patient", *rows)
    assert load_cxr_dataset(str(path))["test"]["patient_id"][:] == ["0.png", "1.png"]


@pytest.mark.parametrize(
    "cell, names",
    [
        ("{'A': 1, 'B': 0}", ["A"]),
        ('{"A": true, "B": false}', ["A"]),
        ({"A": 1.0, "B": None, "C": True}, ["A", "C"]),
        ("{A, B}", ["A", "B"]),
        ("['A' 'B']", ["A", "B"]),
        ("array(['A', 'B'], dtype=object)", ["A", "B"]),
        ("('A', 'B')", ["A", "B"]),
        ("(normal)", ["(normal)"]),
        ("[Pleural Effusion, Edema]", ["Pleural Effusion", "Edema"]),
        (["A", None], ["A"]),
        ("NAN", []),
        (" #n/a ", []),
        ("none", ["none"]),
        (("NA", "None"), ["NA", "None"]),
    ],
)
def test_a_cell_names_the_classes_that_are_there(cell, names):
    assert read_labels(cell) == names


@pytest.mark.parametrize(
    "cell, message",
    [
        ("[1, 0, 0]", "says 0 or 1 of each class without its name: write the names"),
        ([0, 0, 1], "says 0 or 1 of each class without its name"),
        ([True, False, False], "says 0 or 1 of each class without its name"),
        ("1|0|0", "says 0 or 1 of each class without its name"),
        ("[1. 0.]", "says 0 or 1 of each class without its name"),
        ({"name": "A"}, "maps names to values other than 0 and 1"),
        ("{'A': 0.7, 'B': 0}", "maps names to values other than 0 and 1"),
        ("[A B]", "may be one class or several: put each name in quotes"),
    ],
)
def test_a_cell_that_names_no_class_for_sure_is_refused(cell, message):
    with pytest.raises(ValueError, match=message):
        read_labels(cell)


def write_labels(folder, labels):
    """A table of images with these labels in turn."""
    lines = ["file,label"]
    for index in range(24):
        write_image(folder / f"{index}.png", index)
        lines.append(f'{index}.png,"{labels[index % len(labels)]}"')
    (folder / "table.csv").write_text("\n".join(lines))
    return str(folder / "table.csv")


@pytest.mark.parametrize(
    "labels, message",
    [
        (("[0, 1]", "[1, 0]"), "table.csv: the label .* says 0 or 1 of each class without its n"),
        (("-", "A", "B"), "gives '0.png' no label"),
        (("NULL", "A", "B"), "gives '0.png' no label"),
        (("A and B", "A", "B"), "whose parts are classes too"),
        ((r"A\B", "A", "B"), "whose parts are classes too"),
    ],
)
def test_columns_that_name_no_class_for_sure_are_refused(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        load_cxr_dataset(write_labels(tmp_path, labels), test_share=0.2)


@pytest.mark.parametrize(
    "labels, classes, warning",
    [
        (("[0, 1]", "[1]", "[]"), ["0", "1"], None),
        (("+", "-"), ["-", "+"], None),
        (("unknown", "A", "B"), ["A", "B", "unknown"], "has 8 labels 'unknown': that is a class"),
        (("A, B", "A", "C"), ["A", "A, B", "C"], "has the label 'A, B' beside 'A': if it means"),
        (("A B", "A", "B"), ["A", "A B", "B"], "has the label 'A B' beside 'A': if it means"),
        (("mass", "nodule"), ["mass", "nodule"], None),
        (("Mass", "Masss", "x"), ["Mass", "Masss", "x"], "set label_map={Masss: Mass}"),
        (("tb", "NORMAL\u200b", "TB", "NORMAL"), ["NORMAL", "TB"], "is read as 'NORMAL'"),
    ],
)
def test_labels_that_may_be_meant_otherwise_are_warned_of(
    tmp_path, caplog, labels, classes, warning
):
    dataset = load_cxr_dataset(write_labels(tmp_path, labels), test_share=0.2)
    assert class_names(dataset["train"]) == classes
    usual = ("names no patient", "class 1, the finding", "has no image of")
    said = [text for text in caplog.messages if not any(part in text for part in usual)]
    assert len(said) == (warning is not None) and all(warning in text for text in said)


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("COVID-19", "COVID19", True),
        ("ViralPneumonia", "Viral Pneumonia", True),
        ("0_normal", "0. Normal", True),
        ("TB", "TB\u200b", True),
        ("Covid\u201119", "covid\u201319", True),
        ("COVID+", "COVID-", False),
        ("-1", "1", False),
        ("1.5", "15", False),
        ("Pneumonia", "Pneumonia?", False),
    ],
)
def test_spellings_of_one_class(one, other, same):
    assert (label_key(one) == label_key(other)) == same

"""Tables of findings: policies for what is left open, CheXpert, the RSNA's boxes, PadChest."""

import json
import logging

import numpy as np
import pytest
from datasets_trees import write_image
from dicom_files import dicom

from datasets_scripts import (
    check_leaks,
    chexpert,
    class_names,
    label_sets,
    load_cxr_dataset,
    unknown_sets,
)
from datasets_scripts.cli import main

CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Fracture,Support Devices"
# No Finding, Edema, Fracture, Support Devices -> present, unknown
CHEXPERT_CELLS = {
    "1.0,,,": ("", "Support Devices"),
    ",1.0,-1.0,": ("Edema", "Fracture|Support Devices"),
    ",0.0,1.0,1.0": ("Fracture|Support Devices", ""),
    ",-1.0,,0.0": ("", "Edema|Fracture"),
}


def write_chexpert(root, patients=20, tables=("train",), lateral=True):
    """Each patient with a study a kind of cells, and a lateral view of the first."""
    seed = 0
    for table in tables:
        lines = [CHEXPERT]
        for patient in range(patients):
            views = [(study, "frontal", cells) for study, cells in enumerate(CHEXPERT_CELLS, 1)]
            views += [(1, "lateral", next(iter(CHEXPERT_CELLS)))] if lateral else []
            for study, view, cells in views:
                seed += 1
                path = f"{table}/patient{seed // 100 + patient:05d}{table}/study{study}"
                path += f"/view1_{view}.jpg"
                write_image(root / path, seed)
                kind = "Frontal,AP" if view == "frontal" else "Lateral,"
                lines.append(f"CheXpert-v1.0-small/{path},Female,63,{kind},{cells}")
        (root / f"{table}.csv").write_text("\n".join(lines) + "\n")
    return root


def cells_of(dataset):
    """(present, unknown) names of each image, by its name."""
    found = {}
    for part in dataset.values():
        names = class_names(part)
        for image, *rows in zip(part["image_id"], label_sets(part), unknown_sets(part)):
            found[image] = tuple("|".join(sorted(names[i] for i in row)) for row in rows)
    return found


def by_study(dataset):
    """The cells of the studies, which are those of `CHEXPERT_CELLS` in turn."""
    found = {}
    for image, cells in cells_of(dataset).items():
        found.setdefault(image.split("/")[1], set()).add(cells)
    return [found[f"study{number}"] for number in range(1, 5)]


def test_chexpert_leaves_open_what_its_table_leaves_open(tmp_path, caplog):
    root = write_chexpert(tmp_path / "CheXpert-v1.0-small")
    with caplog.at_level(logging.INFO):
        dataset = load_cxr_dataset(str(root))
    assert "100 of 100 listed images found." in caplog.text
    assert "20 lateral images are left out: views=all keeps them." in caplog.text
    assert {split: len(part) for split, part in dataset.items()} == {"train": 72, "validation": 8}
    check_leaks(dataset)
    assert by_study(dataset) == [{cells} for cells in CHEXPERT_CELLS.values()]
    row = dataset["validation"][0]
    assert row["patient_id"] == row["image_id"].split("/")[0]
    assert (row["view"], row["age"], row["sex"], row["source"]) == ("AP", 63, "Female", "chexpert")
    assert len(row["image_id"].split("/")) == 3


DEVICES = "Support Devices"


@pytest.mark.parametrize(
    ("options", "first", "second", "last"),
    [
        ({"policy": "zeros"}, ("", DEVICES), ("Edema", DEVICES), ("", "Fracture")),
        ({"policy": "ones"}, ("", DEVICES), ("Edema|Fracture", DEVICES), ("Edema", "Fracture")),
        ({"blank": "zeros"}, ("", ""), ("Edema", "Fracture"), ("", "Edema")),
        (
            {"policy": {"Edema": "ones", "Fracture": "zeros"}, "blank": "zeros"},
            ("", ""),
            ("Edema", ""),
            ("Edema", ""),
        ),
        (
            {"policy": "{fracture: ones}"},
            ("", DEVICES),
            ("Edema|Fracture", DEVICES),
            ("", "Edema|Fracture"),
        ),
    ],
)
def test_policies_decide_on_open_labels(tmp_path, options, first, second, last):
    dataset = load_cxr_dataset(str(write_chexpert(tmp_path, lateral=False)), **options)
    known = (f"Fracture|{DEVICES}", "")
    assert by_study(dataset) == [{first}, {second}, {known}, {last}]


def test_policies_on_the_command_line(tmp_path, capsys):
    root = write_chexpert(tmp_path, lateral=False)
    main("chexpert", [str(root), "--policy", "{Edema: ones}", "--blank", "zeros"])
    total = capsys.readouterr().out.splitlines()[-1].split()
    assert total == "total 80 80 20 40 (50.0%) 20 (33.3% of 60) 20 (25.0%)".split()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"policy": "maybe"}, "policy 'maybe' is none of ignore, zeros, ones, nor a mapping"),
        ({"policy": {"Edema": "two"}}, "policy {'Edema': 'two'} is none of ignore, zeros, ones"),
        ({"blank": {"Mass": "ones"}}, "blank names 'Mass', which is no column of a finding: use E"),
        ({"views": "top"}, "views 'top' is none of frontal and all"),
        ({"where": "Sex=^Male"}, r"where 'Sex=\^Male' fits none of the 100 rows"),
        ({"label_map": {"Mass": "Nodule"}}, "label_map names 'mass', but .* has the labels Edema"),
    ],
)
def test_wrong_options_are_one_sentence(tmp_path, options, error):
    with pytest.raises(ValueError, match=error) as raised:
        load_cxr_dataset(str(write_chexpert(tmp_path)), **options)
    assert str(raised.value).endswith(".") and "\n" not in str(raised.value)


def test_chexpert_keeps_its_tables_apart_and_takes_one_alone(tmp_path):
    root = write_chexpert(tmp_path, patients=3, tables=("train", "valid", "test"))
    dataset = load_cxr_dataset(str(root), views="all")
    assert {split: len(part) for split, part in dataset.items()} == {
        "train": 15,
        "validation": 15,
        "test": 15,
    }
    assert set(dataset["test"]["view"]) == {"AP", "LATERAL"}
    assert list(load_cxr_dataset(str(root / "valid.csv"))) == ["validation"]
    (root / "hospital.csv").write_text((root / "test.csv").read_text())
    whole = load_cxr_dataset("chexpert", root / "hospital.csv", test_share=1)
    assert {split: len(part) for split, part in whole.items()} == {"test": 12}


ALL_FINDINGS = ("No Finding", *chexpert.FINDINGS)


@pytest.mark.parametrize("name", ["test_labels", "groundtruth", "test"])
def test_the_radiologists_tables_are_the_official_test(tmp_path, name, caplog):
    root = write_chexpert(tmp_path, patients=10)
    by_study = name == "groundtruth"
    lines = [",".join(["Study" if by_study else "Path", *ALL_FINDINGS])]
    for patient in range(64741, 64745):
        study = f"test/patient{patient}/study1"
        for view in ("frontal", "lateral"):
            if patient < 64744:  # the last one is not there
                write_image(root / study / f"view1_{view}.jpg", patient + 9 * len(view))
            place = f"CheXpert-v1.0/{study}" if by_study else f"{study}/view1_{view}.jpg"
            cells = ["1" if finding in ("Edema", "Fracture") else "0" for finding in ALL_FINDINGS]
            if not by_study or view == "frontal":
                lines.append(",".join([place, *(cells if patient % 2 else ["0"] * 14)]))
    (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.INFO):
        dataset = load_cxr_dataset(str(root))
    assert f"56 of {57 if by_study else 58} listed images found." in caplog.text
    names = [f"patient{patient}/study1/view1_frontal" for patient in (64741, 64742, 64743)]
    found = cells_of({"test": dataset["test"]})
    assert sorted(found) == [f"{one}.jpg" for one in names]
    both, none = ("Edema|Fracture", ""), ("", "")
    assert [found[f"{one}.jpg"] for one in names] == [both, none, both]
    assert set(dataset["test"]["view"]) == set(dataset["test"]["age"]) == {None}
    assert set(dataset) == {"train", "validation", "test"}
    alone = load_cxr_dataset("chexpert", root / f"{name}.csv", views="all")
    assert {split: len(part) for split, part in alone.items()} == {"test": 6}
    assert set(alone["test"]["view"]) == {None, "LATERAL"}


def test_of_two_tables_of_the_test_one_counts(tmp_path):
    root = write_chexpert(tmp_path, patients=3, tables=("train", "test"))
    (root / "test_labels.csv").write_text((root / "test.csv").read_text())
    assert len(load_cxr_dataset(str(root))["test"]) == 12


def test_a_cell_that_is_no_label_is_refused(tmp_path):
    root = write_chexpert(tmp_path)
    text = (root / "train.csv").read_text().replace(",1.0,-1.0,", ",1.0,2.0,")
    (root / "train.csv").write_text(text)
    with pytest.raises(ValueError, match="says '2.0' of Fracture: 1, 0, -1 or nothing is needed"):
        load_cxr_dataset(str(root))


def test_the_manifest_says_whose_table_it_is_given(tmp_path, caplog):
    root = write_chexpert(tmp_path / "CheXpert-v1.0-small", patients=2)
    text = (root / "train.csv").read_text().replace("CheXpert-v1.0-small/", "")
    (root / "train.csv").write_text(text)
    load_cxr_dataset("manifest", root / "train.csv", label_column="Sex")
    assert "is a table of chexpert: --dataset chexpert reads more of it" in caplog.text


RSNA = "patientId,x,y,width,height,Target"


def write_rsna(root, images=20, dicom_files=True):
    """Every second image has two boxes; DICOM files of 64 x 32 pixels say age, sex and view."""
    lines, details = [RSNA], ["patientId,class"]
    rng = np.random.default_rng(0)
    for number in range(images):
        name = f"0004cfab-14fd-4e49-80ba-{number:012d}"
        file = root / "stage_2_train_images" / f"{name}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (64, 32), np.uint8)
        if dicom_files:
            said = {"PatientAge": "058Y", "PatientSex": "F", "ViewPosition": "AP"}
            file.write_bytes(dicom(pixels, **said))
        else:
            write_image(file.with_suffix(".jpg"), number)
        if number % 2:
            lines += [f"{name},264.0,152.0,213.0,379.0,1", f"{name},562.0,152.0,256.0,453.0,1"]
            details += [f"{name},Lung Opacity"] * 2
        else:
            lines += [f"{name},,,,,0"]
            details += [f"{name},{'Normal' if number % 4 else 'No Lung Opacity / Not Normal'}"]
    (root / "stage_2_train_labels.csv").write_text("\n".join(lines))
    (root / "stage_2_detailed_class_info.csv").write_text("\n".join(details))
    return root


def write_mapping(root, images=20):
    rows = [
        {
            "subset_img_id": f"0004cfab-14fd-4e49-80ba-{number:012d}",
            "img_id": f"{1 + number // 2:08d}_{number % 2:03d}.png",
        }
        for number in range(images)
    ]
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(rows))


def test_rsna_has_boxes_patients_and_headers(tmp_path, caplog):
    root = write_rsna(tmp_path)
    for path in (root, root / "stage_2_train_labels.csv"):
        whole = load_cxr_dataset(str(path), test_share=1)["test"]
        assert class_names(whole) == ["No Lung Opacity", "Lung Opacity"]
        assert sorted(whole["label"]) == [0] * 10 + [1] * 10
    assert "does not say which images are of one patient: put pneumonia-challenge" in caplog.text
    rows = {row["image_id"]: row for row in whole.remove_columns("image")}
    first, second = (rows[f"0004cfab-14fd-4e49-80ba-{number:012d}"] for number in (0, 1))
    assert first["objects"] == {"bbox": [], "category": []}
    assert first["subtype"] == "No Lung Opacity / Not Normal"
    assert (first["age"], first["sex"], first["view"]) == (58, "F", "AP")
    assert second["objects"]["category"] == [1, 1]
    assert second["objects"]["bbox"][0] == pytest.approx(
        [264 / 1024 * 32, 152 / 1024 * 64, 213 / 1024 * 32, 379 / 1024 * 64]
    )
    write_mapping(root)
    dataset = load_cxr_dataset(str(root))
    assert {patient for part in dataset.values() for patient in part["patient_id"]} == {
        str(number) for number in range(1, 11)
    }
    check_leaks(dataset)


def test_rsna_converted_to_other_files(tmp_path):
    whole = load_cxr_dataset(str(write_rsna(tmp_path, dicom_files=False)), test_share=1)["test"]
    assert set(whole["view"]) == {None}
    boxed = next(objects for objects in whole["objects"] if objects["bbox"])
    assert boxed["bbox"][0] == pytest.approx([n / 1024 * 40 for n in (264, 152, 213, 379)])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (",,,,1", "the box '   ' and Target '1': four numbers and 1, or nothing and 0, are needed"),
        ("1,2,3,4,0", "the box '1 2 3 4' and Target '0'"),
        ("1,2,x,4,1", "the box '1 2 x 4' and Target '1'"),
        (",,,,", "and Target ''"),
        ("900,2,300,4,1", r"the box \[900, 2, 300, 4\], which does not lie in an image of 1024"),
        ("9,2,0,4,1", r"the box \[9, 2, 0, 4\], which does not lie"),
    ],
)
def test_boxes_that_are_none_are_refused(tmp_path, line, error):
    table = write_rsna(tmp_path) / "stage_2_train_labels.csv"
    name = table.read_text().splitlines()[1].split(",")[0]
    table.write_text(f"{RSNA}\n{name},{line}\n")
    with pytest.raises(ValueError, match=error):
        load_cxr_dataset(str(tmp_path))


def test_a_mapping_that_is_none_is_refused(tmp_path):
    root = write_rsna(tmp_path)
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text('[{"img": "1"}]')
    with pytest.raises(ValueError, match="is no list of subset_img_id and img_id .*: download it"):
        load_cxr_dataset(str(root))


PADCHEST = "ImageID,ImageDir,StudyDate_DICOM,PatientID,PatientBirth,PatientSex_DICOM,Projection"
PADCHEST_LABELS = {
    "['normal']": "",
    "['laminar atelectasis', 'cardiomegaly', 'unchanged']": "atelectasis|cardiomegaly",
    "['pseudonodule', 'loc basal']": "",
    "['COPD signs', 'apical pleural thickening']": "pleural thickening",
    "['unchanged']": None,
    "['exclude', 'cardiomegaly']": None,
    "": None,
}


def write_padchest(root, patients=12):
    lines, seed = [f",{PADCHEST},MethodLabel,Labels"], 0
    for patient in range(patients):
        for number, labels in enumerate(PADCHEST_LABELS):
            for view in ("PA", "L"):
                seed += 1
                name = f"{patient}_{number}_{view}.png"
                write_image(root / "3" / name, seed)
                cells = f'{name},3,20140915,p{patient},1930.0,F,{view},Physician,"{labels}"'
                lines.append(f"{seed},{cells}")
    name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
    (root / name).write_text("\n".join(lines))
    return root


def test_padchest_reads_lists_of_labels(tmp_path, caplog):
    root = write_padchest(tmp_path)
    with caplog.at_level(logging.INFO):
        dataset = load_cxr_dataset(str(root))
    assert "120 images are left out: they are labelled exclude or not at all, or not" in caplog.text
    check_leaks(dataset)
    kinds = [labels for labels in PADCHEST_LABELS.values() if labels is not None]
    found = cells_of(dataset)
    assert {image: cells[0] for image, cells in found.items()} == {
        f"{patient}_{number}_PA.png": labels
        for patient in range(12)
        for number, labels in enumerate(kinds)
    }
    row = dataset["test"][0]
    assert (row["age"], row["sex"], row["view"], row["patient_id"][0]) == (84, "F", "PA", "p")


def test_padchest_takes_other_findings_and_views(tmp_path):
    root = write_padchest(tmp_path)
    dataset = load_cxr_dataset(str(root), findings="COPD signs, pseudonodule", views="all")
    assert class_names(dataset["test"]) == ["copd signs", "pseudonodule"]
    assert sum(map(len, dataset.values())) == 96
    with pytest.raises(ValueError, match="findings names 'mass', which .* never uses"):
        load_cxr_dataset(str(root), findings="cardiomegaly,mass")


@pytest.mark.parametrize("source", ["chestxray14", "chexpert", "rsna", "padchest"])
def test_a_folder_of_another_kind_is_refused_in_one_sentence(tmp_path, source):
    write_image(tmp_path / "a.png", 0)
    with pytest.raises(ValueError, match="is no (label )?table") as raised:
        load_cxr_dataset(source, tmp_path)
    assert str(raised.value).endswith(".")


@pytest.mark.parametrize("write", [write_chexpert, write_rsna, write_padchest])
def test_a_table_without_any_image_is_refused(tmp_path, write):
    write(tmp_path / "set", 4)
    for folder in (tmp_path / "set").iterdir():
        if folder.is_dir():
            folder.rename(tmp_path / folder.name)
    with pytest.raises(FileNotFoundError, match=r"none of the \d+ images that .* lists is under"):
        load_cxr_dataset(str(tmp_path / "set"))

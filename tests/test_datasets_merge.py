"""Several sets as one: findings, what is unknown, patients, leaks, options."""

import pytest
from datasets_trees import write_classes, write_image
from test_datasets_chestxray14 import write_nih
from test_datasets_findings import cells_of, write_chexpert, write_mapping, write_rsna

from datasets_scripts import (
    LeakError,
    check_leaks,
    class_names,
    describe,
    facts,
    load_cxr_dataset,
    regroup,
    unknown_sets,
)
from datasets_scripts.parquet import write


def write_manifest(folder, rows, header="file,labels,patient,split", seed=0):
    for number, row in enumerate(rows):
        write_image(folder / row.split(",")[0], seed + number)
    (folder / "set.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(folder / "set.csv")


def thirty(prefix, *labels):
    """30 rows of 15 patients, p0 to p14, in all splits."""
    splits = ["train"] * 18 + ["validation"] * 6 + ["test"] * 6
    return [
        f"{prefix}{row:02d}.png,{labels[row % len(labels)]},p{row // 2},{split}"
        for row, split in enumerate(splits)
    ]


@pytest.fixture
def two(tmp_path):
    """A clinic that annotates mass and Edema, and another one for edema and fracture."""
    one = write_manifest(tmp_path / "a", thirty("a", "Mass|Edema", "", "Mass"))
    return one, write_manifest(
        tmp_path / "b", thirty("b", "edema|fracture", "fracture", ""), seed=99
    )


def test_findings_are_joined_and_unknown_where_nobody_looked(two):
    merged = load_cxr_dataset(list(two))
    assert class_names(merged["train"]) == ["Edema", "Mass", "fracture"]
    assert {split: len(part) for split, part in merged.items()} == {
        "train": 36,
        "validation": 12,
        "test": 12,
    }
    kinds = {
        "a": [("Edema|Mass", "fracture"), ("", "fracture"), ("Mass", "fracture")],
        "b": [("Edema|fracture", "Mass"), ("fracture", "Mass"), ("", "Mass")],
    }
    assert cells_of(merged) == {
        f"{clinic}{row:02d}.png": kinds[clinic][row % 3] for clinic in "ab" for row in range(30)
    }
    assert set(merged["test"]["source"]) == {"a", "b"}


def test_patients_of_two_clinics_are_not_one(two):
    merged = load_cxr_dataset(list(two))
    check_leaks(merged)
    assert describe(merged).splitlines()[-1].split()[1:4] == ["60", "60", "30"]
    again = regroup(merged)
    check_leaks(again)
    assert cells_of(again) == cells_of(merged)


def test_a_merged_set_is_written_and_read(two, tmp_path):
    merged = load_cxr_dataset(list(two))
    read = load_cxr_dataset(str(write(merged, tmp_path / "out", "manifest")))
    assert cells_of(read) == cells_of(merged)
    assert read["test"].features == merged["test"].features


def test_a_set_of_two_classes_gives_its_finding(two, tmp_path):
    root = write_classes(tmp_path / "paediatric", NORMAL=20, PNEUMONIA=20)
    merged = load_cxr_dataset([two[0], str(root)])
    assert class_names(merged["train"]) == ["Edema", "Mass", "PNEUMONIA"]
    found = cells_of(merged)
    assert found["NORMAL-00.png"] == ("", "Edema|Mass")
    assert found["PNEUMONIA-00.png"] == ("PNEUMONIA", "Edema|Mass")
    assert found["a00.png"] == ("Edema|Mass", "PNEUMONIA")


def test_a_class_map_joins_names_of_one_finding(two, tmp_path):
    third = write_manifest(tmp_path / "c", thirty("c", "oedema|scar", ""), seed=500)
    merged = load_cxr_dataset(
        ["manifest"] * 3,
        [*two, third],
        label_map={"oedema": "Edema", "edema": "Edema", "scar": None},
    )
    assert class_names(merged["train"]) == ["Edema", "Mass", "fracture"]
    assert cells_of(merged)["c00.png"] == ("Edema", "Mass|fracture")


def test_an_image_of_two_sets_is_a_leak(tmp_path):
    one = write_manifest(tmp_path / "a", thirty("x", "Mass|Nodule", ""))
    other = write_manifest(tmp_path / "b", thirty("x", "scar|plate", "")[::-1])
    merged = load_cxr_dataset([one, other])
    assert set(merged["train"]["image_id"]) >= {"a/x00.png", "b/x00.png"}
    with pytest.raises(LeakError, match="identical images .*test/[ab]/x.* --regroup"):
        check_leaks(merged)
    check_leaks(regroup(merged))


def test_twins_that_contradict_are_refused(tmp_path):
    one = write_manifest(tmp_path / "a", thirty("x", "Mass|Nodule", ""))
    other = write_manifest(tmp_path / "b", thirty("y", "", "Mass|Nodule"))
    with pytest.raises(ValueError, match="have an identical twin under another label"):
        load_cxr_dataset([one, other])


def test_a_finding_known_of_no_image_is_refused(two, tmp_path):
    header = "file,labels,unknown,patient,split"
    rows = [row.replace(",", ",,scar,", 1).replace("scar,,", "scar,") for row in thirty("c", "")]
    with pytest.raises(ValueError, match="says of no image whether it shows scar: leave that cl"):
        load_cxr_dataset([two[0], write_manifest(tmp_path / "c", rows, header, 500)])


def test_options_go_to_the_sources_that_take_them(two, tmp_path):
    root = str(write_chexpert(tmp_path / "chexpert", patients=10))
    sources, paths = ["manifest", "chexpert"], [two[0], root]
    merged = load_cxr_dataset(sources, paths, blank="zeros", **{"chexpert.policy": "ones"})
    assert class_names(merged["train"])[:3] == ["Edema", "Mass", "Fracture"]
    chexpert = merged["train"].filter(lambda source: source == "chexpert", input_columns="source")
    assert set(unknown_sets(chexpert)) == {(1,)}
    assert set(chexpert["view"]) == {"AP"} and None in merged["train"]["view"]
    assert "Stanford" in facts(merged)["population"]
    with pytest.raises(ValueError, match="unknown option 'blnk' of datasets manifest, chexpert: t"):
        load_cxr_dataset(sources, paths, blnk="zeros")
    with pytest.raises(ValueError, match="unknown option 'manifest.policy' of datasets"):
        load_cxr_dataset(sources, paths, **{"manifest.policy": "ones"})
    with pytest.raises(ValueError, match="2 sources and 1 paths are given: give one path a sour"):
        load_cxr_dataset(sources, paths[:1])


def test_sets_of_the_same_people_keep_them_together(tmp_path):
    nih, _ = write_nih(tmp_path / "nih", patients=10)
    rsna = write_rsna(tmp_path / "rsna")
    with pytest.raises(
        ValueError, match="rsna and .*nih hold images of the same people, but .*rsna"
    ):
        load_cxr_dataset([str(nih), str(rsna)])
    write_mapping(rsna)
    merged = load_cxr_dataset([str(nih), str(rsna)])
    assert {patient for part in merged.values() for patient in part["patient_id"]} == {
        f"chestxray14/{number}" for number in range(1, 11)
    }
    with pytest.raises(LeakError, match="patient chestxray14/"):
        check_leaks(merged)
    whole = regroup(merged)
    check_leaks(whole)
    assert class_names(whole["train"])[-1] == "Lung Opacity"
    boxed = [
        category
        for part in whole.values()
        for row in part["objects"]
        if row
        for category in row["category"]
    ]
    assert set(boxed) == {14} and len(boxed) == 20

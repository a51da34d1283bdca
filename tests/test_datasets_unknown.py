"""Findings that a set does not annotate, from tables to splits, exports and the Hub."""

import pytest
from datasets import Dataset, DatasetDict
from datasets_trees import write_image

from datasets_scripts import (
    class_names,
    describe,
    label_sets,
    load_cxr_dataset,
    regroup,
    unknown_sets,
)
from datasets_scripts.cli import main
from datasets_scripts.schema import assemble, check_conflicts

ROWS = [("Edema|Mass", ""), ("", "Edema"), ("Mass", "Edema|Nodule"), ("Nodule", "")]


def write_manifest(folder, rows, header="file,labels,unknown,patient,split"):
    for seed, row in enumerate(rows):
        write_image(folder / row.split(",")[0], seed)
    path = folder / "set.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def manifest(tmp_path):
    """40 images of 20 patients, all in train: labels and unknown labels as `ROWS`, in turn."""
    rows = [
        f"{row:02d}.png,{ROWS[row % 4][0]},{ROWS[row % 4][1]},p{row // 2},train"
        for row in range(40)
    ]
    return write_manifest(tmp_path / "set", rows)


def by_image(dataset):
    """{image_id: (names of its findings, of the unknown ones)} over all splits."""
    found = {}
    for part in dataset.values():
        names = class_names(part)
        for image, labels, unknown in zip(part["image_id"], label_sets(part), unknown_sets(part)):
            found[image] = {names[i] for i in labels}, {names[i] for i in unknown}
    return found


def expected():
    cells = [tuple(set(filter(None, cell.split("|"))) for cell in row) for row in ROWS]
    return {f"{row:02d}.png": cells[row % 4] for row in range(40)}


def test_a_table_says_what_is_unknown(manifest):
    dataset = load_cxr_dataset(str(manifest))
    assert class_names(dataset["train"]) == ["Edema", "Mass", "Nodule"]
    assert by_image(dataset) == expected()
    assert by_image(regroup(dataset)) == expected()
    table = describe(dataset).splitlines()
    assert table[-1].split()[4:] == ["10", "(50.0%", "of", "20)", "20", "(50.0%)"] + [
        *("10", "(33.3%", "of", "30)")
    ]


def test_a_set_without_the_column_is_known(tmp_path):
    rows = [f"{row}.png,{'a' if row % 2 else 'a|b'}," for row in range(4)]
    path = write_manifest(tmp_path, rows, "file,labels,patient")
    test = load_cxr_dataset(str(path))["test"]
    assert "unknown" not in test.features
    assert unknown_sets(test) == [()] * 4


def test_what_is_there_is_not_unknown_and_names_are_mapped(tmp_path):
    rows = ["1.png,Effusion,pleural effusion", "2.png,,PLEURAL EFFUSION", "3.png,mass|Effusion,"]
    path = write_manifest(tmp_path, rows, "file,labels,unknown")
    mapped = load_cxr_dataset(str(path), label_map={"Effusion": "Pleural Effusion"})
    assert by_image(mapped) == {
        "1.png": ({"Pleural Effusion"}, set()),
        "2.png": (set(), {"Pleural Effusion"}),
        "3.png": ({"mass", "Pleural Effusion"}, set()),
    }


def test_unknown_labels_survive_an_export_and_the_hub(manifest, tmp_path, monkeypatch):
    main("manifest", [str(manifest), "--output", str(tmp_path / "out")])
    made, read = load_cxr_dataset(str(manifest)), load_cxr_dataset(str(tmp_path / "out"))
    assert read["train"].features == made["train"].features
    assert by_image(read) == expected()
    assert "`unknown`, the classes that are not annotated" in (
        tmp_path / "out" / "README.md"
    ).read_text("utf-8")
    monkeypatch.setattr("datasets_scripts.hub._download", lambda *_: read)
    assert by_image(load_cxr_dataset("org/set")) == expected()
    text = [
        {
            "image": image,
            "labels": "|".join(sorted(expected()[image_id][0])),
            "unknown": "|".join(sorted(expected()[image_id][1])),
            "image_id": image_id,
        }
        for part in read.values()
        for image, image_id in zip(part["image"], part["image_id"])
    ]
    other = DatasetDict(test=Dataset.from_list(text))
    monkeypatch.setattr("datasets_scripts.hub._download", lambda *_: other)
    assert by_image(load_cxr_dataset("org/other")) == expected()


def test_metadata_of_a_folder_say_what_is_unknown(tmp_path):
    for seed in range(4):
        write_image(tmp_path / "test" / f"{seed}.png", seed)
    lines = [f"{row}.png,{labels},{unknown}" for row, (labels, unknown) in enumerate(ROWS)]
    text = "\n".join(["file_name,label,unknown", *lines])
    (tmp_path / "test" / "metadata.csv").write_text(text)
    found = by_image(load_cxr_dataset(str(tmp_path)))
    assert found == {f"{row}.png": expected()[f"{row:02d}.png"] for row in range(4)}


def test_twins_conflict_only_where_both_are_known():
    check_conflicts(["x", "x"], [["a"], []], ["1", "2"], "set", 0, [[], ["a"]])
    check_conflicts(["x", "x"], [["a"], ["a", "b"]], ["1", "2"], "set", 0, [["b"], []])
    with pytest.raises(ValueError, match=r"identical twin under another label \(1 \(a\) and 2"):
        check_conflicts(["x", "x"], [["a"], []], ["1", "2"], "set", 0, [[], ["b"]])


def test_a_finding_that_is_known_nowhere_is_refused(tmp_path):
    path = write_manifest(tmp_path, ["1.png,a,b", "2.png,,b"], "file,labels,unknown")
    with pytest.raises(ValueError, match="says of no image whether it shows b: leave that class"):
        load_cxr_dataset(str(path))


def test_unknown_labels_in_a_set_of_one_label_an_image_are_refused():
    record = {"image": "x", "label": "a", "unknown": ["b"], "name": "x", "path": "x"}
    record |= {"split": None, "patient_id": "p", "source": "s"}
    with pytest.raises(ValueError, match="'x' unknown labels: those are for a set of several"):
        assemble([record], "set")

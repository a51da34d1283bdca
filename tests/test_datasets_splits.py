"""Splits by patient, the leak check and its repair, the table of a set."""

import json

import numpy as np
import pytest
from datasets_trees import write_classes, write_image

from datasets_scripts import LeakError, check_leaks, describe, regroup
from datasets_scripts.schema import build, make_features
from datasets_scripts.splits import group_ids, read_splits, split_groups


def make_set(rows):
    """A DatasetDict of (split, patient, content, label) rows; content is the image's bytes."""
    splits, patients, contents, labels = zip(*rows)
    names = [f"{index}.png" for index in range(len(rows))]
    columns = {
        "image": [{"path": name, "bytes": data} for name, data in zip(names, contents)],
        "label": labels,
        "image_id": names,
        "patient_id": patients,
        "source": ["test"] * len(rows),
    }
    return build(columns, splits, make_features(["no", "yes"]))


def test_groups_are_joined_by_chains_of_keys():
    patients = ["a", "b", "c", "c", "d", "e"]
    contents = ["1", "2", "2", "3", "3", "4"]
    groups = group_ids(patients, contents)
    assert len(set(groups)) == 3
    assert len(set(groups[1:5])) == 1


def test_splits_hold_their_share_of_each_class():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), rng.integers(1, 6, 400))
    labels = [(int(label),) for label in rng.choice(3, len(groups), p=[0.7, 0.25, 0.05])]
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    splits = split_groups(groups, labels, shares, seed=0)
    for group in range(400):
        assert len(set(splits[groups == group])) == 1
    for split, share in shares.items():
        for label in range(3):
            of_class = np.array([row == (label,) for row in labels])
            assert (splits[of_class] == split).sum() == pytest.approx(share * of_class.sum(), abs=2)
    assert (split_groups(groups, labels, shares, seed=0) == splits).all()
    assert (split_groups(groups, labels, shares, seed=1) != splits).any()


def test_a_rare_class_stands_in_each_split():
    groups = np.arange(100)
    labels = [(1,)] * 3 + [(0,)] * 97
    splits = split_groups(groups, labels, {"train": 0.8, "validation": 0.1, "test": 0.1}, seed=0)
    assert set(splits[:3]) == {"train", "validation", "test"}
    with pytest.raises(ValueError, match="a class with 2 patients cannot stand in each of"):
        split_groups(groups, labels[1:] + [(0,)], {"a": 0.8, "b": 0.1, "c": 0.1}, seed=0)
    with pytest.raises(ValueError, match=r"1 patients cannot be split into a \+ b"):
        split_groups(np.zeros(4, int), [(0,), (1,)] * 2, {"a": 0.5, "b": 0.5}, seed=0)


def leaky_set():
    rows = [("train", f"p{i}", b"t%d" % i, i % 2) for i in range(40)]
    rows += [("test", f"q{i}", b"q%d" % i, i % 2) for i in range(20)]
    rows += [("test", "p3", b"new", 1), ("test", "q99", b"t4", 0)]
    return make_set(rows)


def test_leaks_are_found_and_listed():
    with pytest.raises(LeakError) as caught:
        check_leaks(leaky_set())
    assert str(caught.value) == (
        "1 patients and 1 identical images stand in more than one split (patient p3 in test and "
        "train; identical images test/61.png and train/4.png): --regroup splits the images again "
        "by patient."
    )


def test_a_message_lists_five_leaks_at_most():
    rows = [(split, f"p{i}", b"%d" % i, i % 2) for i in range(30) for split in ("train", "test")]
    with pytest.raises(LeakError, match="30 patients and 30 identical images") as caught:
        check_leaks(make_set(rows))
    assert str(caught.value).count(";") == 4
    assert str(caught.value).count("identical images t") == 2


def test_regroup_repairs_leaks_and_then_keeps_the_shares():
    leaky = leaky_set()
    repaired = regroup(leaky, seed=3)
    check_leaks(repaired)
    assert sum(map(len, repaired.values())) == 62
    sizes = {split: len(part) for split, part in repaired.items()}
    assert sizes["test"] == pytest.approx(0.2 * 62, abs=1)  # a set of two splits gets all three
    again = {split: len(part) for split, part in regroup(repaired, seed=4).items()}
    assert again == pytest.approx(sizes, abs=1)
    assert repaired["train"].features == leaky["train"].features
    assert regroup(leaky, seed=3)["test"]["image_id"][:] == repaired["test"]["image_id"][:]
    for part in repaired.values():
        assert set(part["label"]) == {0, 1}


def test_the_table_counts_files_unique_images_patients_and_classes():
    rows = [("train", "p1", b"x", 0), ("train", "p1", b"x", 0), ("train", "p2", b"y", 1)]
    rows += [("test", "p3", b"z", 1)]
    assert describe(make_set(rows)).splitlines() == [
        "split  files  unique  patients         no         yes",
        "train      3       2         2  2 (66.7%)   1 (33.3%)",
        "test       1       1         1   0 (0.0%)  1 (100.0%)",
        "total      4       3         3  2 (50.0%)   2 (50.0%)",
    ]


@pytest.mark.parametrize(
    "names, splits",
    [
        (("train", "val"), ("train", "validation")),
        (("Training", "TESTING", "Valid"), ("train", "test", "validation")),
        (("train", "dev", "eval"), ("train", "validation", "test")),
        (("train", "eval", "test"), ("train", "validation", "test")),
        (("1-train", "test_data", "val images"), ("train", "test", "validation")),
        (("retrain", "contest", "interval", "trained", "device"), (None,) * 5),
        (("NORMAL", "unlabelled", "", "2"), (None,) * 4),
    ],
)
def test_names_of_splits(names, splits):
    assert tuple(read_splits(names).values()) == splits


HASH = """
import hashlib, json, sys
opened = []
def file_digest(file, kind):
    opened.append(file.name)
    return hashlib.new(kind, file.read())
hashlib.file_digest = file_digest
from datasets_scripts import load_cxr_dataset, check_leaks, describe
dataset = load_cxr_dataset(sys.argv[1])
check_leaks(dataset)
print("RESULT", json.dumps([describe(dataset), opened]))
"""


def test_a_file_is_hashed_once_for_all_processes(run_python, tmp_path):
    root = write_classes(tmp_path / "set", a=10, b=10)

    def load(cache):
        done = run_python(["-c", HASH, root], env={"CXR_CACHE": str(tmp_path / cache)})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.split("RESULT ")[1]), done.stderr

    (table, opened), _ = load("cache")
    assert len(opened) == 20
    assert load("cache")[0] == [table, []]
    changed = write_image(root / "a" / "a-03.png", 999)
    (_, opened), _ = load("cache")
    assert opened == [str(changed)]
    # Where nothing can be kept, the files are read again, and a warning says so.
    (tmp_path / "file").write_text("in the way")
    (again, opened), log = load("file/cache")
    assert (len(opened), "Hashes of files cannot be kept in" in log) == (20, True)
    assert log.count("Hashes of files") == 1

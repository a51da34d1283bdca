"""Data sets of the Hub, from a local Hub server, through the unmodified client."""

import io
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from datasets_trees import write_image, write_kermany
from dicom_files import dicom
from PIL import Image as PillowImage

SUMMARY = """
import json, logging, sys, time
time.sleep = lambda seconds: None  # the client's pauses between its retries
from datasets_scripts import load_cxr_dataset
logging.basicConfig(level=logging.INFO)
for source, options in json.loads(sys.argv[1]):
    try:
        dataset = load_cxr_dataset(source, **options)
    except Exception as error:
        print("RESULT", json.dumps({"error": f"{type(error).__name__}: {error}"}))
        continue
    first = next(iter(dataset.values()))
    label = first.features["labels" if "labels" in first.features else "label"]
    result = {
        "columns": list(first.features),
        "classes": getattr(label, "feature", label).names,
        "counts": {split: len(part) for split, part in dataset.items()},
        "rows": {
            split: [
                [row.get("label", row.get("labels")), row["image_id"], row["patient_id"]]
                for row in part.select_columns([c for c in first.features if c != "image"])
            ]
            for split, part in dataset.items()
        },
        "size": first[0]["image"].size,
        "source": first[0]["source"],
    }
    print("RESULT", json.dumps(result))
"""


@pytest.fixture
def load(hub, run_python):
    """Load (source, options) pairs in one fresh process that knows only the local Hub."""

    def run(*calls, env=None):
        done = run_python(["-c", SUMMARY, json.dumps(calls)], env={**hub.env, **(env or {})})
        assert done.returncode == 0, done.stderr
        lines = [line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        return [json.loads(line) for line in lines], done.stderr

    return run


def png(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10), np.uint8)
    PillowImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(rows, features):
    """A Parquet file of rows, as bytes."""
    buffer = io.BytesIO()
    columns = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(columns, features=Features(features)).to_parquet(buffer)
    return buffer.getvalue()


def kermany_rows(first, count, **extra):
    """Rows of `count` patients of both classes, named as Roboflow names Kermany's images."""
    rows = []
    for number in range(first, first + count):
        for label, name in enumerate((f"IM-{number:04d}-0001", f"person{number}_virus_{number}")):
            file = f"{name}_jpeg.rf.{number:032x}.jpg"
            image = {"path": file, "bytes": png(2 * number + label)}
            rows.append({"image": image, "labels": label, "label": label, "name": file, **extra})
    return rows


CLASSES = ClassLabel(names=["NORMAL", "PNEUMONIA"])


def test_a_repository_with_a_loading_script_is_read_from_its_parquet_copy(hub, load):
    features = {"image_file_path": Value("string"), "image": Image(), "labels": CLASSES}
    copy = {}
    for config, sizes in {"full": (12, 3, 5), "mini": (2, 2, 2)}.items():
        start = 0
        for split, count in zip(("train", "validation", "test"), sizes):
            rows = kermany_rows(start, count)
            rows = [{**row, "image_file_path": f"/storage/{split}/{row['name']}"} for row in rows]
            copy[f"{config}/{split}/0000.parquet"] = parquet(rows, features)
            start += count
    script = {"README.md": b"---\nlicense: cc-by-4.0\n---\n", "chest-xray.py": b"raise SystemExit"}
    hub.add_files("org/chest-xray", script, repo_type="dataset")
    hub.add_files("org/chest-xray", copy, repo_type="dataset", revision="refs/convert/parquet")
    hub.add_files("org/scripted", {"scripted.py": b"raise SystemExit"}, repo_type="dataset")
    (full, unnamed, wrong, without), _ = load(
        ("org/chest-xray", {"config_name": "full"}),
        ("org/chest-xray", {}),
        ("org/chest-xray", {"config_name": "huge"}),
        ("org/scripted", {}),
    )
    assert full["counts"] == {"train": 24, "validation": 6, "test": 10}
    assert full["columns"] == ["image", "label", "image_id", "patient_id", "source"]
    assert full["classes"] == ["NORMAL", "PNEUMONIA"]
    name = f"IM-0012-0001_jpeg.rf.{12:032x}.jpg"
    assert full["rows"]["validation"][0] == [0, name, "IM-0012"]
    assert full["rows"]["validation"][1][::2] == [1, "person12_virus"]
    assert (full["size"], full["source"]) == ([10, 12], "org/chest-xray")
    known = "set config_name to full or mini."
    assert unnamed["error"].endswith(f"has several configurations: {known}")
    assert wrong["error"].endswith(f"has no config_name 'huge': {known}")
    assert "has a loading script, which is never run, and no revision" in without["error"]


def test_columns_are_found_or_given(hub, load):
    rows = [
        {
            "image": {"path": None, "bytes": png(i)},
            "xray": {"path": f"P{i // 2}_{i}.png", "bytes": png(100 + i)},
            "label": i % 2,
            "finding": ("clear", "opaque")[i % 2],
            "grade": i % 2 + 3,
            "tags": [["effusion"], ["mass", "effusion"], []][i % 3],
        }
        for i in range(40)
    ]
    features = {
        "image": Image(),
        "xray": Image(),
        "label": CLASSES,
        "finding": Value("string"),
        "grade": Value("int64"),
        "tags": List(Value("string")),
    }
    files = {"train.parquet": parquet(rows, features), "test.parquet": parquet(rows[:8], features)}
    hub.add_files("org/set", files, repo_type="dataset")
    wanted = ["label", "finding", "grade", "tags"]
    regex = r"(P\d+)_"
    results, log = load(
        *(("org/set", {"label_column": column}) for column in wanted),
        ("org/set", {"image_column": "xray", "patient_regex": regex}),
        ("org/set", {"label_column": "class"}),
        ("org/set", {"image_column": "grade"}),
    )
    assert [result["classes"] for result in results[:4]] == [
        ["NORMAL", "PNEUMONIA"],
        ["clear", "opaque"],
        ["3", "4"],
        ["effusion", "mass"],
    ]
    assert results[0]["counts"] == {"train": 36, "validation": 4, "test": 8}
    assert results[0]["rows"]["test"][3] == [1, "test-000003", "test-000003/test-000003"]
    assert "org/set names no patient for 48 of 48 images: each of these counts as its own" in log
    assert results[3]["rows"]["test"][1][0] == [1, 0] and results[3]["columns"][1] == "labels"
    # The name alone would not do: train holds one like it.
    assert results[4]["rows"]["test"][3] == [1, "test-000003/P1_3.png", "P1"]
    there = "its columns are image, xray, label, finding, grade, tags."
    assert results[5]["error"] == f"ValueError: data set 'org/set' has no column 'class': {there}"
    assert "column 'grade' of 'org/set' holds no images" in results[6]["error"]


def test_splits_are_completed_by_patient(hub, load):
    features = {"image": Image(), "label": CLASSES}
    kaggle = {
        "data/train-0.parquet": parquet(kermany_rows(0, 40), features),
        "data/validation-0.parquet": parquet(kermany_rows(40, 8), features),
        "data/test-0.parquet": parquet(kermany_rows(50, 10), features),
    }
    hub.add_files("org/kaggle", kaggle, repo_type="dataset")
    alone = {"data/train-0.parquet": parquet(kermany_rows(0, 50), features)}
    hub.add_files("org/alone", alone, repo_type="dataset")
    holdout = {"data/holdout.parquet": alone["data/train-0.parquet"]}
    card = """---
configs:
- config_name: default
  data_files:
  - split: holdout
    path: data/holdout.parquet
---
"""
    hub.add_files("org/odd", {"README.md": card.encode(), **holdout}, repo_type="dataset")
    (merged, split, odd), log = load(("org/kaggle", {}), ("org/alone", {}), ("org/odd", {}))
    assert "The 16 validation images are Kaggle's `val`" in log
    assert merged["counts"] == {"train": 86, "validation": 10, "test": 20}
    assert {row[2] for row in merged["rows"]["test"]} == {
        patient for n in range(50, 60) for patient in (f"IM-{n:04d}", f"person{n}_virus")
    }
    assert split["counts"] == {"train": 70, "validation": 10, "test": 20}
    assert "split 'holdout' of 'org/odd' is none of train, validation and test." in odd["error"]


def test_a_missing_set_and_an_unreachable_hub_are_one_sentence(load):
    (missing, revision), _ = load(
        ("org/nothing", {}), ("hub", {"path": "org/nothing", "revision": "v9"})
    )
    said = "FileNotFoundError: there is no data set 'org/nothing'"
    assert missing["error"].startswith(f"{said} on the Hub, or it is private: check the id")
    assert revision["error"].startswith(f"{said} at revision 'v9' on the Hub")
    (unreachable,), _ = load(("org/nothing", {}), env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert unreachable["error"] == (
        "ConnectionError: the Hub cannot be reached for data set 'org/nothing': check the network, "
        "or give a folder on disk."
    )


def test_a_pushed_set_is_loaded_with_the_same_rows(hub, load, run_python, tmp_path):
    root = write_kermany(tmp_path / "chest_xray")
    command = ["-m", "datasets_scripts.kermany", root, "--push_to_hub", "org/converted"]
    command.append("--publish_ids")
    done = run_python([*command, "--private"], env=hub.env)
    assert done.returncode == 0 and "pushed to" in done.stdout, done.stderr
    assert "10.17632/rscbjbr9sj" in hub.read("org/converted", "README.md", "dataset").decode()
    again = run_python(command, env=hub.env)
    assert again.returncode == 0, again.stderr
    shards = {f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")}
    assert {"README.md", *shards} <= set(hub.files("org/converted", "dataset"))
    (pushed, local), _ = load(("org/converted", {}), (str(root), {}))
    assert pushed == local
    denied = run_python(command, env={**hub.env, "HF_TOKEN": "hf_wrong"})
    assert denied.returncode == 1
    assert denied.stderr.splitlines()[-1] == (
        "error: could not push to data set 'org/converted' (Invalid credentials in Authorization "
        "header)."
    )


def test_a_push_hides_the_names_of_files_and_patients(hub, run_python, tmp_path):
    root = tmp_path / "export"
    for name in ("NORMAL/DOE_JANE", "NORMAL/ROE_MAX", "PNEUMONIA/DOE_JOHN", "PNEUMONIA/POE_ANN"):
        for number in range(24):
            seed = len(list(root.rglob("*.png")))
            write_image(root / f"{name}_{number // 4}_{number % 4}.png", seed)
    command = ["-m", "datasets_scripts.folder", root, "--patient_regex", r"^(.+)_\d+\.png$"]
    done = run_python([*command, "--push_to_hub", "org/hidden"], env=hub.env)
    assert done.returncode == 0, done.stderr
    assert (
        "org/hidden is public: pushed will be the images as they are, with label, image_id, pat"
        in (done.stderr)
    )
    assert "; names of files and patients are salted hashes." in done.stderr
    pushed = {}
    for name in hub.files("org/hidden", "dataset"):
        content = hub.read("org/hidden", name, "dataset")
        if name.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content)).to_pylist()
            pushed[name] = table
            assert all(row["image"]["path"] == row["image_id"] for row in table)
            content = str(table).encode()
        assert not re.search(rb"DOE|ROE|POE", content), name
    rows = sum(pushed.values(), [])
    assert len({row["image_id"] for row in rows}) == 96
    assert len({row["patient_id"] for row in rows}) == 24
    again = run_python([*command, "--push_to_hub", "org/hidden", "--private"], env=hub.env)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1] == (
        "error: data set org/hidden is public, against --private; change that on the Hub, or name "
        "another."
    )


def test_dicom_files_whose_headers_may_name_patients_are_not_pushed(hub, run_python, tmp_path):
    for index in range(12):
        path = tmp_path / "set" / ("NORMAL", "PNEUMONIA")[index % 2] / f"{index}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 4096, (64, 64)).astype(np.uint16)
        path.write_bytes(dicom(noise, 12, PatientName="DOE^JOHN"))
    command = ["-m", "datasets_scripts.folder", tmp_path / "set", "--push_to_hub", "org/headers"]
    refused = run_python(command, env=hub.env)
    assert refused.returncode == 1
    assert "is a DICOM file, the header of which may name its patient" in refused.stderr
    assert ("dataset", "org/headers") not in hub.repos


def test_labels_and_splits_are_read_as_they_are_written(hub, load):
    texts = ["Effusion | edema", "Edema", "['Effusion']", "[]"]
    rows = [
        {
            "image": {"path": f"P{i}.png", "bytes": png(i)},
            "label": ["NORMAL", "COVID"][i % 2],
            "kind": i % 2,
            "alike": i % 3,
            "findings": texts[i % 4],
        }
        for i in range(40)
    ]
    features = {
        "image": Image(),
        "label": Value("string"),
        "kind": ClassLabel(names=["covid", "normal"]),
        "alike": ClassLabel(names=["COVID", "Normal", "normal"]),
        "findings": Value("string"),
    }
    files = {"training.parquet": parquet(rows[:24], features)}
    files |= {"dev.parquet": parquet(rows[24:32], features)}
    files |= {"testing.parquet": parquet(rows[32:], features)}
    splits = "".join(f"  - split: {name[:-8]}\n    path: {name}\n" for name in files)
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n"
    hub.add_files("org/words", {"README.md": card.encode(), **files}, repo_type="dataset")
    twins = [{**row, "image": {"path": None, "bytes": png(0)}} for row in rows[:8]]
    twins = {"train.parquet": parquet(twins, features)}
    hub.add_files("org/twins", twins, repo_type="dataset")
    (words, kinds, alike, findings, mapped, same), log = load(
        ("org/words", {}),
        ("org/words", {"label_column": "kind"}),
        ("org/words", {"label_column": "alike"}),
        ("org/words", {"label_column": "findings"}),
        (
            "org/words",
            {"label_column": "kind", "label_map": {"covid": "ILL"}, "positive": "normal"},
        ),
        ("org/twins", {}),
    )
    assert words["counts"] == {"train": 24, "validation": 8, "test": 8}
    assert words["classes"] == ["NORMAL", "COVID"] and words["rows"]["test"][1][0] == 1
    # The column's own order has the finding first.
    assert kinds["classes"] == ["normal", "covid"] and kinds["rows"]["test"][1][0] == 0
    assert "class 1, the finding, is covid: normal names the absence of a finding" in log
    assert findings["classes"] in (["Edema", "Effusion"], ["Effusion", "edema"])
    assert [len(row[0]) for row in findings["rows"]["test"][:4]] == [2, 1, 1, 0]
    assert alike["classes"] == ["Normal", "COVID"]
    assert [row[0] for row in alike["rows"]["train"][:3]] == [1, 0, 0]
    assert mapped["classes"] == ["ILL", "normal"]
    assert "8 of 8 images of org/twins have an identical twin under another label" in same["error"]

"""The Kermany study: its page has no typed number, seeds meet their like, a release is one run."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from report_folders import make_run

from evaluation.predictions import read_predictions, write_predictions
from recipes.kermany import nih, results
from recipes.kermany.release import release

STUDY = Path(__file__).parent.parent / "recipes" / "kermany"


def make_study_run(folder, seed, auroc=0.9, **options):
    """A run that has what the study reads, trained with this seed."""
    files = make_run(folder, **options)
    metrics = files["metrics"]
    metrics |= {"uncalibrated_test": metrics["test"], "operation": dict(metrics["validation"])}
    metrics["operation"]["auroc"] = {"value": auroc, "low": auroc - 0.1, "high": auroc + 0.1}
    arguments = {"model": "densenet121", "seed": seed, "image_size": 64}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "training_args.json").write_text(json.dumps(arguments))
    return folder


def test_no_number_is_typed_into_the_results_page():
    text = (STUDY / "RESULTS.md.jinja").read_text()
    holes = r"\{\{.*?\}\}|\{%.*?%\}"
    names = r"```.*?```|`[^`]*`|\]\([^)]*\)|DenseNet-121|arXiv [0-9.]+|Kermany et al\. 2018"
    typed = re.sub(f"{holes}|{names}", "", text, flags=re.DOTALL)
    assert len(typed) > 3000  # the prose is still there
    assert not re.findall(r".{0,30}\d.{0,30}", typed)
    assert re.search(r"\d", re.sub(names, "", "{{ n }} of 624 images"))  # the test sees numbers


def test_seeds_are_paired_by_the_seed_they_were_trained_with(tmp_path):
    seeds = {"baseline-1": 7, "baseline-2": 8, "densenet121-1": 8, "densenet121-2": 7}
    for name, seed in seeds.items():
        make_study_run(tmp_path / name, seed)
    path = tmp_path / "baseline-2" / "predictions_test.csv"
    with open(path) as file:
        rows = list(csv.DictReader(file))
    saved = read_predictions(path)
    patients, logits = saved.patient_id, saved.logits.copy()
    logits[:20, 1] += 3  # seed 8 of the baseline ranks other images otherwise
    ids = [row["image_id"] for row in rows]
    write_predictions(path, ids, patients, saved.labels, logits, saved.class_names, "test")
    table = results.pairs_table(results.group_by_model(results.read_runs(tmp_path)))
    first, second = (re.split(r"\s*\|\s*", line) for line in table.splitlines()[2:])
    assert first[1:4] == ["densenet121-2 - baseline-1", "+0.000", "undefined"]
    assert second[1] == "densenet121-1 - baseline-2" and second[2] != "+0.000"
    make_study_run(tmp_path / "baseline-3", 8)
    with pytest.raises(ValueError, match=r"baseline-3 has the seed 8 of .*baseline-2"):
        results.group_by_model(results.read_runs(tmp_path))


def test_a_release_leaves_nothing_of_the_one_before_it(tmp_path):
    better = make_study_run(tmp_path / "better", 1, auroc=0.9)
    worse = make_study_run(tmp_path / "worse", 2, auroc=0.8)
    (worse / "checkpoints").mkdir()
    (worse / "figures" / "old.png").write_bytes(b"")
    (worse / "evidence.json").write_text("[]")
    output = tmp_path / "released"
    assert release([worse], output) == worse
    assert (output / "figures" / "old.png").exists() and not (output / "checkpoints").exists()
    assert release([better, worse], output) == better
    expected = {path.relative_to(better) for path in better.rglob("*")} | {Path("README.md")}
    assert {path.relative_to(output) for path in output.rglob("*")} == expected
    assert "old.png" not in (output / "README.md").read_text()


def test_a_release_removes_no_folder_but_a_model(tmp_path):
    run = make_study_run(tmp_path / "run", 1)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="home holds no model to replace"):
        release([run], tmp_path / "home")
    with pytest.raises(ValueError, match="run is one of the runs"):
        release([run], run)
    assert (tmp_path / "home" / "letter.txt").exists() and (run / "metrics.json").exists()
    shutil.rmtree(tmp_path / "home")
    release([run], tmp_path / "home")
    assert (tmp_path / "home" / "config.json").exists()


def test_adults_of_another_hospital_are_test_images_of_one_repositorys_normals(tmp_path):
    rows = [
        "file,image_index,patient_id,labels,age,sex,view,repository,split",
        "images/a.jpg,a.png,1,Pneumonia|Mass,50,M,PA,muhammedtalo,test",
        "images/b.jpg,b.png,2,No Finding,51,F,PA,jrzech,test",
        "images/c.jpg,c.png,3,No Finding,52,F,AP,jrzech,test",
        "images/d.jpg,d.png,4,No Finding,53,F,PA,muhammedtalo,test",  # told by its grey values
        "images/e.jpg,e.png,5,Mass,54,F,PA,jrzech,test",  # neither class
        "images/f.jpg,f.png,6,Pneumonia,55,F,PA,jrzech,train",
    ]
    (tmp_path / "split.csv").write_text("\n".join(rows) + "\n")
    images = nih.list_images(tmp_path)
    assert images[["file", "label", "source"]].to_numpy().tolist() == [
        ["images/a.jpg", "PNEUMONIA", "nih-PA"],
        ["images/b.jpg", "NORMAL", "nih-PA"],
        ["images/c.jpg", "NORMAL", "nih-AP"],
    ]
    (tmp_path / "split.csv").write_text("file,label\n")
    with pytest.raises(ValueError, match="split.csv has no column patient_id."):
        nih.list_images(tmp_path)

"""The rules of the house: style, size, floors, and numbers that come from files."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.calibration import apply_operation
from evaluation.metrics import METRIC_NAMES, compute_metrics
from evaluation.predictions import read_predictions, read_predictions_by_model
from evaluation.table import results_table
from recipes.results import write_results

REPO = Path(__file__).parent.parent
FLOORS = {
    "modeling": set(),
    "space": set(),
    # the one reader and what it is not given; they need no torch
    "datasets_scripts": {"modeling.own_files", "modeling.reading_cxr"},
    "evaluation": {"modeling"},  # calibration and heat colours
    "training": {"datasets_scripts", "evaluation", "modeling"},
    "prediction": {"modeling"},
    "exporting": {"modeling", "evaluation"},
    "embedding": {"modeling", "evaluation"},  # tables, and the files that these are kept in
}


def sources(folder="."):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", f"{folder}/*.py"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    return [REPO / name for name in listed.stdout.splitlines()]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_passes(command):
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=REPO, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("folder", FLOORS)
def test_a_folder_imports_only_what_its_floor_allows(folder):
    imported = set()
    for path in sources(folder):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module)
    assert imported
    scripts = {"train", "validate", "predict", "embed", "probe", "export"}
    upstairs = {*FLOORS, *scripts, "tests"} - {folder}
    found = {name for name in imported if name.split(".")[0] in upstairs}
    assert {name for name in found if name.split(".")[0] not in FLOORS[folder]} <= FLOORS[folder]


def test_evaluation_takes_calibration_and_heat_colours_of_modeling_alone():
    found = set()
    for path in sources("evaluation"):
        found |= set(re.findall(r"^from (modeling\S*) import", path.read_text(), re.MULTILINE))
    assert found <= {"modeling.calibration_cxr", "modeling.overlay_cxr"}


def test_the_readmes_results_are_those_of_the_checkpoints():
    folders = [REPO / "checkpoints" / name for name in ("cxr-densenet121", "cxr-baseline")]
    block = (REPO / "README.md").read_text().split("<!-- results:kermany:start -->")[1]
    block = block.split("<!-- results:kermany:end -->")[0]
    assert block.strip() == results_table(folders)


def test_the_results_page_is_what_its_files_give(tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    shutil.copytree("results", tmp_path / "results")
    write_results(tmp_path / "results", tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_text() == Path("RESULTS.md").read_text()


@pytest.mark.parametrize(
    "file", sorted(REPO.glob("results/*/*/*/metrics.json")), ids=lambda file: file.parent.name
)
def test_committed_values_are_recomputed_from_their_predictions(file):
    content = json.loads(file.read_text())
    if "models" in content:
        raw = read_predictions_by_model(file.parent / "predictions.csv")
        pairs = []
        for name, model in content["models"].items():
            operated = apply_operation(raw[name], model["operation"])
            pairs += [(raw[name], model["uncalibrated"]), (operated, model["metrics"])]
    else:
        names = [name for name in ("validation", "test") if name in content]
        files = [file.parent / f"predictions_{name}.csv" for name in names]
        stated = [content.get(f"uncalibrated_{name}", content[name]) for name in names]
        pairs = list(zip(map(read_predictions, files), stated))
    assert pairs
    for predictions, stated in pairs:
        computed = compute_metrics(predictions, num_resamples=0)
        groups = [(computed, stated)]
        groups += [(computed["classes"][k], of) for k, of in stated.get("classes", {}).items()]
        for found, expected in groups:
            names = [name for name in METRIC_NAMES if name in expected]
            assert "auroc" in names and names == [name for name in METRIC_NAMES if name in found]
            for name in names:
                assert found[name]["value"] == pytest.approx(expected[name]["value"], abs=1e-9)

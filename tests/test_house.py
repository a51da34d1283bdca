"""The rules of the house: style, size, floors, and numbers that come from files."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.metrics import METRIC_NAMES, compute_metrics
from evaluation.predictions import read_predictions
from evaluation.table import results_table

REPO = Path(__file__).parent.parent
FLOORS = {
    "modeling": set(),
    "space": set(),
    "datasets_scripts": set(),
    "evaluation": set(),
    "training": {"datasets_scripts", "modeling"},
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


def test_no_file_is_longer_than_400_lines():
    long = [path.name for path in sources() if len(path.read_text().splitlines()) > 400]
    assert sources()
    assert not long


@pytest.mark.parametrize("folder", FLOORS)
def test_a_folder_imports_only_what_its_floor_allows(folder):
    imported = set()
    for path in sources(folder):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    assert imported
    upstairs = {*FLOORS, "train", "tests"} - {folder}
    assert imported & upstairs <= FLOORS[folder]


@pytest.mark.parametrize("name", ["kermany"])
def test_the_readmes_results_are_those_of_the_committed_files(name):
    folders = sorted(path.parent for path in REPO.glob(f"results/{name}/*/metrics.json"))
    assert len(folders) == 2
    block = (REPO / "README.md").read_text().split(f"<!-- results:{name}:start -->")[1]
    block = block.split(f"<!-- results:{name}:end -->")[0]
    assert block.strip() == results_table(folders)


def test_the_committed_results_are_recomputed_from_their_predictions():
    files = list(REPO.glob("results/*/*/metrics.json"))
    assert files
    for path in files:
        stated = json.loads(path.read_text())["test"]
        predictions = read_predictions(path.parent / "predictions_test.csv")
        computed = compute_metrics(predictions, seed=stated["seed"])
        for name in METRIC_NAMES:
            for bound in ("value", "low", "high"):
                assert computed[name][bound] == pytest.approx(stated[name][bound], abs=1e-9)

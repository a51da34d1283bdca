r"""Judge what came back of a recipe, on the CPU, by the project's own validation.

    python -m recipes.gpu.collect runs/gpu/out DATA runs/gpu/manifest.csv runs/gpu/pack \
        results/transfer

Each run becomes a model folder OUT/models/NAME. All of them are validated on the same validation
images of each hospital, and RESULTS/runs.md compares them: a figure in brackets is of a hospital
that the run was trained without. No test image is read.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evaluation.metrics import compute_metrics, format_metric
from evaluation.predictions import Predictions, write_text
from evaluation.table import markdown_table
from modeling import CxrImageProcessor
from recipes.gpu.manifest import HOSPITALS
from recipes.gpu.run import CLASSES, Pack, load_run
from recipes.grey import grey_statistics
from training.half import save_half

REPO = Path(__file__).parents[2]
HEADER = ["Run", "Pixels", "Geometry", "Teachers", "Images drawn", "Images/s"]


def make_models(out: Path, folder: Path) -> dict[str, dict]:
    """A model folder for each run that sent weights back; what its recipe and log said, by name."""
    told = {}
    for file in sorted(out.glob("*.safetensors")):
        model, processor, told[file.stem] = load_run(file)
        save_half(model, folder / file.stem)
        processor.save_pretrained(folder / file.stem)
    if not told:
        raise ValueError(f"{out} holds no weights of a run; run.py writes NAME.safetensors there.")
    return told


def validate(models: list[Path], data: Path, manifest: Path, hospital: str, report: Path) -> dict:
    """validate.py on the validation images of one hospital; what its metrics.json holds."""
    where = f"where=source=^({'|'.join(HOSPITALS[hospital])})$"
    shutil.rmtree(report, ignore_errors=True)
    subprocess.run(
        [
            *(sys.executable, REPO / "validate.py", "--model", *models, "--split", "validation"),
            *("--dataset", manifest, "--dataset_options", f"root={data.resolve()}", where),
            *("--output_dir", report, "--skip_heatmaps", "--num_resamples", "1000"),
        ],
        check=True,
    )
    return json.loads((report / "metrics.json").read_text())


def grey_floor(pack: Pack, hospital: str, hold_out: bool) -> Predictions:
    """What grey statistics alone tell of a hospital's validation images.

    With `hold_out` they learn from the other hospitals' training images instead of its own.
    """
    pack.decode(CxrImageProcessor(224, geometry="crop"), "cpu")
    statistics = grey_statistics(pack.images.numpy().astype(np.float32) / 255)
    inside, labelled = pack.hospital == hospital, pack.labels >= 0
    train = labelled & (pack.split == "train") & (inside ^ hold_out)
    rows = np.flatnonzero(inside & (pack.split == "validation"))
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    model.fit(statistics[train], pack.labels[train])
    margin = model.decision_function(statistics[rows])
    return Predictions(
        pack.image[rows],
        pack.patient[rows],
        pack.labels[rows],
        np.stack([np.zeros_like(margin), margin], 1),
        tuple(CLASSES),
        "validation",
        False,
    )


def runs_table(told: dict[str, dict], reports: dict[str, dict], pack: Pack) -> str:
    """Markdown, a row a run, and two of grey statistics alone."""
    rows = []
    for name, run in told.items():
        row = [name, str(run["image_size"]), run["geometry"], ", ".join(run["teachers"]) or "-"]
        row += [f"{run['step'] * run['batch_size']:,}", f"{run['images_per_second']:.1f}"]
        for hospital, report in reports.items():
            auroc = format_metric(report["models"][name]["metrics"]["auroc"])
            row.append(f"({auroc})" if run["hold_out"] == hospital else auroc)
        rows.append(row)
    for hold_out in (False, True):
        row = ["grey statistics", *["-"] * (len(HEADER) - 1)]
        for hospital in reports:
            floor = compute_metrics(grey_floor(pack, hospital, hold_out), 1000)["auroc"]
            row.append(f"({format_metric(floor)})" if hold_out else format_metric(floor))
        rows.append(row)
    header = [*HEADER, *(f"AUROC {name} [95 % CI]" for name in reports)]
    return markdown_table(header, rows, left=4)


def main() -> None:
    """Makes the models, validates them, and writes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="what run.py wrote")
    parser.add_argument("data", type=Path, help="folder that the manifest's files are relative to")
    parser.add_argument("manifest", type=Path, help="CSV file of manifest.py")
    parser.add_argument("pack", type=Path, help="folder of pack.py")
    parser.add_argument("results", type=Path, help="folder for the reports and runs.md")
    options = parser.parse_args()
    models = options.out / "models"
    try:
        told = make_models(options.out, models)
        folders = [models / name for name in told]
        reports = {
            hospital: validate(
                folders, options.data, options.manifest, hospital, options.results / hospital
            )
            for hospital in HOSPITALS
        }
        table = runs_table(told, reports, Pack(options.pack / "images.npz"))
        write_text(options.results / "runs.md", f"{table}\n")
        write_text(options.results / "runs.json", json.dumps(told, indent=2) + "\n")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    print(table)


if __name__ == "__main__":
    main()

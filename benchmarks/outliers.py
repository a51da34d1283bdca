"""What the outlier detectors flag: `python benchmarks/outliers.py DATA OTHERS DIR MODEL...`.

DATA is the folder of recipes/kermany/study.sh; OTHERS holds manifest.csv, a row an image that is no
chest X-ray: file, kind, package. DIR gets scores.csv, a row an image and a score a model, and
thresholds.json.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from datasets_scripts import load_cxr_dataset
from datasets_scripts.schema import encoded_images
from modeling import load_model

EXTERNAL = ("actualmed", "covid_cxnet", "openist")


def read_xrays(data: Path) -> Iterator[tuple[dict, bytes | str]]:
    """Real chest X-rays that no detector was fitted on: the official test split, external sets."""
    sets = {"kermany test": load_cxr_dataset("kermany", data / "chest_xray")["test"]}
    for name in EXTERNAL:
        manifest, where = data / "external" / "manifest.csv", f"file=^{name}/"
        sets[name] = load_cxr_dataset("manifest", manifest, where=where)["test"]
    for name, split in sets.items():
        ids = zip(split["image_id"], split["patient_id"], encoded_images(split))
        for image_id, patient_id, image in ids:
            yield {"set": name, "xray": 1, "image": image_id, "cluster": patient_id}, image


def read_others(folder: Path) -> Iterator[tuple[dict, Path]]:
    """Images of other things; those of one package may be alike, so a package is a cluster."""
    with open(folder / "manifest.csv", newline="") as file:
        for row in csv.DictReader(file):
            name = row["kind"].replace("_", " ")
            facts = {"set": name, "xray": 0, "image": row["file"], "cluster": row["package"]}
            yield facts, folder / row["file"]


def main(data: str, others: str, output: str, *model_ids: str) -> None:
    """Writes scores.csv and thresholds.json into the folder `output`."""
    models = {Path(model_id).name: load_model(model_id) for model_id in model_ids}
    rows = []
    everything = [*read_xrays(Path(data)), *read_others(Path(others))]
    for facts, image in tqdm(everything, unit="image"):
        for name, (model, processor) in models.items():
            try:
                opened = processor.open(image)
            except ValueError as error:  # refused before any detector sees it
                facts[name] = str(error).partition(": ")[2]
                continue
            (answer,) = model.assess([opened], processor)
            by_score = answer.outlier_score > model.config.outlier_threshold
            drawn = answer.refusal is not None and not by_score
            facts[name] = answer.refusal if drawn else f"{answer.outlier_score:.4f}"
        rows.append(facts)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    thresholds = {name: model.config.outlier_threshold for name, (model, _) in models.items()}
    (folder / "thresholds.json").write_text(json.dumps(thresholds, indent=2) + "\n")
    with open(folder / "scores.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])

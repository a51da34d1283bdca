"""What the tables of `recipes.boxes.measure` say, beside the detector's own run on phantoms.

    python -m recipes.boxes.results results/boxes runs/boxes

The run may be left out: phantom.json keeps what is taken of it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.detection import (
    BoxedImage,
    fit_threshold,
    read_detection,
    summarize_detection,
)
from evaluation.pages.detection_card import detection_table
from evaluation.predictions import write_text
from evaluation.table import read_json

METHODS = {"heat": "Heat of cxr-densenet121", "detector": "Detector of phantoms"}
SETS = {
    "all": ("all findings", None),
    "opacities": ("Pneumonia and Infiltration", ("Pneumonia", "Infiltration")),
}
KEPT = ("train_seconds", "num_parameters", "best_epoch", "validation", "test")


def chosen(images: Sequence[BoxedImage], findings: Sequence[str] | None) -> list[BoxedImage]:
    """The images with a true box of these findings, or of any, and all boxes of one class."""
    kept = []
    for image in images:
        wanted = np.array([findings is None or name in findings for name in image.true_labels])
        if wanted.any():
            true = image.true_boxes[wanted]
            alike = {"true_labels": np.full(len(true), "finding")}
            alike |= {"labels": np.full(len(image.boxes), "finding")}
            kept.append(image._replace(true_boxes=true, **alike))
    return kept


def write_results(results: Path, run: Path | None = None) -> None:
    """Writes boxes.json and boxes.md from the tables.

    Args:
        results: folder with the tables, and phantom.json where there is no run.
        run: folder of the detector.

    Raises:
        ValueError, OSError: a table or a file of the run is missing or damaged.
    """
    if run is not None:
        metrics = read_json(run / "metrics.json", KEPT, "train_detector.py")
        kept = {name: metrics[name] for name in KEPT}
        write_text(results / "phantom.json", json.dumps(kept, indent=2) + "\n")
    phantom = read_json(results / "phantom.json", KEPT, "recipes.boxes.results")
    heat = read_json(results / "heat.json", ("heat_threshold", "boxes", "images"))
    found: dict[str, dict] = {}
    for method in METHODS:
        fitted = chosen(read_detection(results / f"{method}_fit.csv"), None)
        threshold = fit_threshold(fitted)
        test = read_detection(results / f"{method}_test.csv")
        found[method] = {
            name: summarize_detection(chosen(test, findings), threshold)
            for name, (_, findings) in SETS.items()
        }
    write_text(results / "boxes.json", json.dumps(found, indent=2) + "\n")
    columns = {
        f"{title}, {what}": found[method][name]
        for name, (what, _) in SETS.items()
        for method, title in METHODS.items()
    }
    page = f"""# Boxes

## A detector from scratch, on phantoms

{detection_table({title.capitalize(): phantom[title] for title in ("validation", "test")})}

A Faster R-CNN on mobilenetv3_small_100 ({phantom["num_parameters"]:,} parameters) of 128 pixels,
trained for {phantom["train_seconds"] / 60:.0f} minutes on one core. It shows that the road works.

## Boxes of ChestX-ray14

{detection_table(columns)}

On the images of our test part that have boxes: no other image says where it holds nothing, so false
boxes are counted beside a finding only. Boxes of all kinds count as one class. The classifier knows
pneumonia of children, the detector opacities of phantoms; neither learned from an adult. A box of
heat surrounds the largest region of {heat["heat_threshold"]:g} or more in the Grad-CAM of
PNEUMONIA, a cut fitted on {heat["boxes"]} boxes of {heat["images"]} other images; its score is the
probability of the class. From which score on boxes count was fitted there, too, for both.
"""
    write_text(results / "boxes.md", page)


if __name__ == "__main__":
    try:
        write_results(*map(Path, sys.argv[1:3]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

"""Boxes on ChestX-ray14: those of a classifier's heat, and those of a detector.

    python -m recipes.boxes.measure CLASSIFIER DETECTOR CHESTXRAY14 OUTPUT

The folder gets heat_fit.csv, heat_test.csv, detector_fit.csv and detector_test.csv, see
`evaluation.detection.write_detection`, and heat.json. The rows of split.csv for the test are judged
on, all others with boxes fitted on. No image counts in which nobody drew boxes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import tqdm

from datasets_scripts import class_names, load_cxr_dataset
from datasets_scripts.pixels import content, stored_rows
from evaluation.detection import (
    BoxedImage,
    fit_heatmap_threshold,
    heatmap_boxes,
    write_detection,
)
from evaluation.predictions import write_text
from modeling import CxrDetector, CxrImageProcessor, load_detector, load_model
from modeling.modeling_cxr import CxrClassifier
from training.boxes import boxes_in_file


def read_boxed(folder: str) -> dict[str, list[dict]]:
    """The rows with boxes, "fit" and "test", their boxes with names as categories.

    Raises:
        ValueError, OSError: see `load_cxr_dataset`.
    """
    dataset = load_cxr_dataset("chestxray14", folder, split="split.csv")
    parts: dict[str, list[dict]] = {"fit": [], "test": []}
    for name, split in dataset.items():
        names = class_names(split)
        kept = [row for row, found in enumerate(split["objects"][:]) if found is not None]
        for row in stored_rows(split.select(kept)):
            row["labels"] = [names[k] for k in row["objects"]["category"]]
            parts["test" if name == "test" else "fit"].append(row)
    return parts


@torch.no_grad()
def find_by_detector(
    model: CxrDetector, processor: CxrImageProcessor, row: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (m, 4), left, top, right, bottom in pixels of the file, and their scores (m,)."""
    image = processor.open(content(row["image"]))
    output = model(processor.normalize(processor.prepare(image.pixels)[None]))
    (found,) = processor.post_process_object_detection(output, 0.0, [image.pixels.shape])
    boxes = found["boxes"].double().numpy() + np.tile(image.origin, 2)
    return boxes, found["scores"].double().numpy()


def heat_of(
    model: CxrClassifier, processor: CxrImageProcessor, row: dict
) -> tuple[np.ndarray, float]:
    """The heat of class 1 in the frame of the file, float32 (h, w), and its probability."""
    image = processor.open(content(row["image"]))
    output = model.explain(processor.normalize(processor.prepare(image.pixels)[None]), target=1)
    heat = processor.restore(output.heatmaps[0], *image.pixels.shape).clip(0, 1)
    top, left, bottom, right = image.margins
    return np.pad(heat, ((top, bottom), (left, right))), output.probabilities[0, 1].item()


def boxed(
    row: dict, processor: CxrImageProcessor, boxes: np.ndarray, scores: np.ndarray, label: str
) -> BoxedImage:
    """What was found in a row's image beside what is boxed in it."""
    true = boxes_in_file(row["objects"]["bbox"], processor.open(content(row["image"])))
    return BoxedImage(
        *(row["image_id"], row["patient_id"], true, np.array(row["labels"], str)),
        *(boxes, scores, np.array([label] * len(scores), str)),
    )


def main(argv: Sequence[str]) -> None:
    """Writes the tables.

    Raises:
        ValueError: other models, or no boxes to fit on.
        OSError: a file cannot be read or written.
    """
    parser = argparse.ArgumentParser(prog="python -m recipes.boxes.measure", description=__doc__)
    parser.add_argument("classifier", help="folder or Hub id")
    parser.add_argument("detector", help="folder or Hub id")
    parser.add_argument("data", help="folder of ChestX-ray14 with split.csv")
    parser.add_argument("output", type=Path, help="folder for the tables")
    args = parser.parse_args(argv)
    parts = read_boxed(args.data)

    model, processor = load_detector(args.detector)
    for name, rows in parts.items():
        images = [
            boxed(row, processor, *find_by_detector(model, processor, row), "found")
            for row in tqdm(rows, desc=f"detector, {name}", unit="image")
        ]
        write_detection(args.output / f"detector_{name}.csv", images)

    model, processor = load_model(args.classifier)
    heats = {
        name: [
            heat_of(model, processor, row) for row in tqdm(rows, desc=f"heat, {name}", unit="image")
        ]
        for name, rows in parts.items()
    }
    true = [
        boxes_in_file(row["objects"]["bbox"], processor.open(content(row["image"])))
        for row in parts["fit"]
    ]
    threshold = fit_heatmap_threshold([heat for heat, _ in heats["fit"]], true)
    for name, rows in parts.items():
        images = []
        for row, (heat, probability) in zip(rows, heats[name]):
            boxes, _ = heatmap_boxes(heat, threshold)
            scores = np.full(len(boxes), probability)
            images.append(boxed(row, processor, boxes, scores, "found"))
        write_detection(args.output / f"heat_{name}.csv", images)
    found = {"heat_threshold": threshold, "boxes": sum(map(len, true)), "images": len(true)}
    write_text(args.output / "heat.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

"""Heatmaps of models under validation: measured, tested by randomisation, drawn in a gallery."""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import tqdm

from datasets_scripts.pixels import content
from evaluation.cases import choose_cases
from evaluation.figures import draw_case
from evaluation.predictions import Predictions
from evaluation.saliency import (
    boxes_mask,
    deletion_insertion,
    measure_heatmap,
    randomization_check,
)
from modeling.modeling_cxr import CxrClassifier
from training.subject import Subject


def decided_classes(predictions: Predictions) -> np.ndarray:
    """int64 (N,): the class that a heatmap explains; of several labels the most probable."""
    return predictions.logits.argmax(1) if predictions.multi_label else predictions.decisions


def saliency_rows(
    subject: Subject, predictions: Predictions, args: argparse.Namespace
) -> list[dict]:
    """A row an image: the heatmap of the decided class against the lungs, and curves for some.

    Pointing game and IoU are those of the boxes where the data have boxes; of several labels an
    image, of the boxes of the explained class.

    Args:
        subject: the model and its images.
        predictions: at the model's operating point.
        args: of validate.py; `seed` and `curves` choose the images that have curves.
    """
    split, targets, rows = subject.split, decided_classes(predictions), []
    curves = set(chosen_rows(subject, args).tolist())
    located = {"lung_mask", "objects"} & set(split.features)
    facts = subject.stored.select_columns(["image_id", "patient_id", *sorted(located)])
    if "lung_mask" in located:
        looked_at = range(len(split))
    else:
        objects = split["objects"][:] if located else []
        looked_at = sorted(curves | {row for row, found in enumerate(objects) if found})
    for row in tqdm(looked_at, desc=f"heatmaps of {subject.name}", unit="image"):
        target = int(targets[row])
        pixel_values, heatmap = subject.explain(row, target)
        image = facts[row]
        found = {key: image[key] for key in ("image_id", "patient_id")} | {"model": subject.name}
        opened, shape = subject.open(row) if located else (None, None)
        if image.get("lung_mask") is not None:
            lungs = subject.place(content(image["lung_mask"]), opened, shape)
            found |= measure_heatmap(heatmap, lungs)
        if "objects" in located:
            boxes = subject.boxes_of(image["objects"], target)
            inside = boxes_mask(boxes, *opened.file_shape)
            inside = measure_heatmap(heatmap, subject.place(inside, opened, shape))
            found |= {key: inside[key] for key in ("pointing", "iou")}
        if row in curves:

            @torch.no_grad()
            def score(images: np.ndarray, target: int = target) -> np.ndarray:
                images = torch.from_numpy(images).float().to(subject.model.device)
                return subject.model(images).probabilities[:, target].cpu().numpy()

            found |= deletion_insertion(score, pixel_values[0].cpu().numpy(), heatmap)
        rows.append(found)
    return rows


def randomization_rows(
    subject: Subject, predictions: Predictions, args: argparse.Namespace
) -> list[dict]:
    """How alike heatmaps stay while the layers, from the classifier down, are drawn afresh.

    The parameter-randomisation check of Adebayo et al. 2018, on the images of the curves.
    """
    rows = chosen_rows(subject, args)
    targets = decided_classes(predictions)[rows].tolist()
    explained = [subject.explain(int(row), target) for row, target in zip(rows, targets)]
    pixel_values = torch.cat([pixels for pixels, _ in explained])
    model, names, stages = copy.deepcopy(subject.model), [], []
    torch.manual_seed(args.seed)
    for name, module in reversed(layers(model)):
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        names.append(name)
        stages.append(model.grad_cam(pixel_values, targets).cpu().numpy())
    before = np.stack([heatmap for _, heatmap in explained])
    patients = np.array(subject.split["patient_id"])[rows]
    entries = randomization_check(before, np.stack(stages), patients, args.num_resamples, args.seed)
    return [{"layers": name, **entry} for name, entry in zip(names, entries)]


def chosen_rows(subject: Subject, args: argparse.Namespace) -> np.ndarray:
    """int64: the images that the slower tests are made on, the same for every model."""
    return np.random.default_rng(args.seed).permutation(len(subject.split))[: args.curves]


def layers(model: CxrClassifier) -> list[tuple[str, torch.nn.Module]]:
    """The network's parts that hold weights, from the image to the classifier."""
    found = []
    for name, module in model.network.named_children():
        inner = list(module.named_children())
        parts = [(f"{name}.{key}", part) for key, part in inner] or [(name, module)]
        found += [part for part in parts if list(part[1].parameters())]
    return found


def draw_gallery(
    folder: Path, subjects: list[Subject], models: dict[str, Predictions], count: int
) -> None:
    """The most confident mistakes and the least certain cases, each under every model's heatmap.

    Args:
        folder: of the report.
        subjects: the models, all of the same images.
        models: predictions at each model's operating point, by name.
        count: cases to show, at most.

    Raises:
        OSError: `folder`/gallery or gallery.json cannot be written.
    """
    (folder / "gallery").mkdir(exist_ok=True)
    shown = []
    for number, case in enumerate(choose_cases(models, count)):
        row, name = case["index"], f"gallery/{number + 1:02d}.jpg"
        whole = subjects[0].open_whole(row)[0]
        grey, heatmaps, targets = whole.pixels, {}, {}
        for subject in subjects:
            target = int(decided_classes(models[subject.name])[row])
            _, heatmap = subject.explain(row, target)
            heatmaps[subject.name] = subject.restore(heatmap, row, whole)
            targets[subject.name] = subject.class_names[target]
        draw_case((grey >> 8).astype(np.uint8), heatmaps, case, targets, folder / name)
        kept = {key: value for key, value in case.items() if key != "index"}
        shown.append({**kept, "images": [name]})
    (folder / "gallery.json").write_text(json.dumps(shown, indent=2) + "\n")

"""Validate saved or Hub models on a labelled data set: predictions, metrics, figures, report.

    python validate.py --model runs/densenet121 runs/baseline --dataset phantom --output_dir report
    python validate.py --rescore report/predictions.csv --output_dir again

Processes and precision are `accelerate launch`'s own flags.
"""

import argparse
import copy
import hashlib
import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets

from datasets_scripts import (
    SOURCES,
    VARIANTS,
    class_names,
    fingerprint,
    load_cxr_dataset,
    make_variant,
)
from evaluation.calibration import apply_operation
from evaluation.error_analysis import choose_cases, draw_case
from evaluation.metrics import format_metric
from evaluation.predictions import (
    Predictions,
    read_predictions_by_model,
    write_predictions_by_model,
)
from evaluation.saliency import (
    boxes_mask,
    deletion_insertion,
    measure_heatmap,
    randomization_check,
    write_saliency,
)
from evaluation.validation import (
    NO_OPERATION,
    bare_context,
    describe_predictions,
    score_report,
)
from modeling import load_model
from training.arguments import option, recipe
from training.data import PixelDataset, decode_splits
from training.inference import make_loader, predict, to_predictions
from training.launch import make_accelerator

logger = logging.getLogger("validate")
FULL_SCALE = 65535
BESIDE = ("context.json", "saliency.csv", "randomization.json", "gallery.json", "gallery")
EXTRA = ("subtype", "view", "age", "sex", "original_width", "original_height")


def parse_args(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Validate chest X-ray classifiers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    what("--model", nargs="+", metavar="PATH_OR_ID", help="saved folders or Hub ids")
    what("--rescore", metavar="CSV", help="a predictions.csv, with what lies beside it")
    add("--output_dir", default="report", help="the report folder")
    add("--dataset", default="phantom", help=f"{', '.join(SOURCES)}, a folder, a file, or a Hub id")
    pairs = {"nargs": "*", "type": option, "default": [], "metavar": "KEY=VALUE"}
    add("--dataset_path", metavar="PATH", help="what to read, where --dataset names a source")
    add("--dataset_options", help="the source's own, as extra=PATH", **pairs)
    add("--split", default="test", help="train, validation, test, or all of them together")
    add("--variant", choices=sorted(VARIANTS), help="alter the images: a test for shortcuts")
    add("--max_eval_samples", type=int, help="score so many images")
    add("--max_unreadable", type=float, default=0.01, help="share of damaged images to put up with")
    add("--cache_dir", default="~/.cache/cxr-classification", help="where decoded pixels are kept")
    add("--per_device_eval_batch_size", type=int, default=64, help="images")
    add("--prevalence", type=float, help="also correct the probabilities to this share of class 1")
    add("--gallery", type=int, default=12, help="mistakes and uncertain cases to show")
    add(
        "--curves",
        type=int,
        default=40,
        help="images for deletion and insertion curves, and for the randomisation check",
    )
    add("--num_resamples", type=int, default=2000, help="of the bootstrap over patients")
    add("--seed", type=int, default=0, help="of the bootstrap and the variant")
    args = parser.parse_args(argv)
    if args.prevalence is not None and not 0 < args.prevalence < 1:
        parser.error(f"--prevalence is {args.prevalence}; it lies between 0 and 1")
    args.dataset_options = dict(args.dataset_options)
    args.report_to = "none"
    return args


# --------------------------------------------------------------------------------------------- data


def load_split(args: argparse.Namespace) -> Dataset:
    """The split to validate on, altered by --variant."""
    dataset = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    if args.split != "all" and args.split not in dataset:
        raise ValueError(
            f"{args.dataset} has no split {args.split!r}; it has {', '.join(dataset)}, or all."
        )
    parts = list(dataset.values()) if args.split == "all" else [dataset[args.split]]
    split = concatenate_datasets(parts)
    if args.max_eval_samples is not None and args.max_eval_samples < len(split):
        split = split.shuffle(seed=0).select(range(args.max_eval_samples))
    return make_variant(split, args.variant, args.seed) if args.variant else split


def check_fit(name: str, config, split: Dataset) -> None:
    """Refuses a model whose task or classes are not those of the data."""
    multi_label = config.problem_type == "multi_label_classification"
    if multi_label != ("labels" in split.features):
        raise ValueError(
            f"{name} is a {config.problem_type} model, but the data have "
            f"{'one label' if multi_label else 'several labels'} an image."
        )
    known = [config.id2label[k] for k in range(config.num_labels)]
    unknown = [text for text in class_names(split) if text not in known]
    if unknown:
        raise ValueError(
            f"the data's class {unknown[0]!r} is none of {name}'s: {', '.join(known)}."
        )


def columns(split: Dataset, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of predictions.csv by which errors are broken down, as text."""
    found = {}
    for column in (c for c in EXTRA if c in split.features):
        found[column] = np.array(["" if v is None else str(v) for v in split[column]])
    levels = [f"{image.mean() / FULL_SCALE:.3f}" for image in pixels]
    return found | {"brightness": np.array(levels)}


# ------------------------------------------------------------------------------------------- models


class Subject:
    """A model under validation: network, processor, its decoded images and logits."""

    def __init__(self, name: str, model_id: str, split: Dataset, args: argparse.Namespace):
        self.name, self.id = name, model_id
        self.model, self.processor = load_model(model_id)
        check_fit(model_id, self.model.config, split)
        config = self.model.config
        self.class_names = [config.id2label[k] for k in range(config.num_labels)]
        dataset = DatasetDict({args.split: split})
        self.pixels = decode_splits(dataset, self.processor, args.cache_dir, args.max_unreadable)[
            args.split
        ]
        self.split = dataset[args.split]
        align_classes(self.pixels, self.class_names)

    @property
    def operation(self) -> dict | None:
        fields = {name: getattr(self.model.config, name) for name in NO_OPERATION}
        return fields if any(value is not None for value in fields.values()) else None

    def describe(self) -> dict:
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return {
            "id": Path(self.id).name if Path(self.id).is_dir() else self.id,
            "weights_sha256": digest.hexdigest(),
            "num_parameters": self.model.num_parameters(),
            "operation": self.operation,
        }

    def predict(self, args, accelerator) -> Predictions:
        loader = make_loader(self.pixels, args.per_device_eval_batch_size)
        model = self.model.to(accelerator.device, memory_format=torch.channels_last)
        logits = predict(model, accelerator.prepare(loader), self.processor, accelerator)
        extra = columns(self.split, self.pixels.pixels)
        return to_predictions(self.pixels, logits.float(), args.split, extra)

    def explain(self, row: int) -> tuple[torch.Tensor, np.ndarray, int]:
        """`pixel_values`, the heatmap (H, W) and the predicted class of one image."""
        pixel_values = self.processor.normalize(np.asarray(self.pixels.pixels[[row]]))
        pixel_values = pixel_values.to(self.model.device)
        logits, heatmaps = self.model.explain(pixel_values)
        return pixel_values, heatmaps[0].cpu().numpy(), int(logits.argmax())


def align_classes(pixels: PixelDataset, names: list[str]) -> None:
    """Labels in the model's order of classes; the data may hold fewer of them."""
    order = [names.index(text) for text in pixels.class_names]
    if pixels.multi_label:
        labels = np.zeros((len(pixels), len(names)), pixels.labels.dtype)
        labels[:, order] = pixels.labels
        pixels.labels = labels
    else:
        pixels.labels = np.array(order)[pixels.labels]
    pixels.class_names = names


def short_names(ids: list[str]) -> list[str]:
    """What the report calls each model: the last part of its folder or id."""
    names = [
        Path(model_id).resolve().name if Path(model_id).is_dir() else model_id.split("/")[-1]
        for model_id in ids
    ]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise ValueError(f"two models are called {double!r}; rename one folder.")
    return names


# ----------------------------------------------------------------------------------------- saliency


def saliency_rows(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """A row an image: the heatmap of the predicted class against the lungs, and curves for some.

    Pointing game and IoU are those of the boxes where the data have boxes.
    """
    split, rows = subject.split, []
    curves = set(np.random.default_rng(args.seed).permutation(len(split))[: args.curves].tolist())
    located = {"lung_mask", "boxes"} & set(split.features)
    for row in range(len(split)) if located else sorted(curves):
        pixel_values, heatmap, predicted = subject.explain(row)
        image = split[row]
        found = {key: image[key] for key in ("image_id", "patient_id")} | {"model": subject.name}
        if image.get("lung_mask") is not None:
            lungs = subject.processor.read(image["lung_mask"].convert("L")) > FULL_SCALE // 2
            found |= measure_heatmap(heatmap, lungs)
        if "boxes" in located:
            width, height = image["image"].size
            inside = subject.processor.read(boxes_mask(image["boxes"] or [], height, width))
            inside = measure_heatmap(heatmap, inside > FULL_SCALE // 2)
            found |= {key: inside[key] for key in ("pointing", "iou")}
        if row in curves:

            @torch.no_grad()
            def score(images, predicted=predicted):
                images = torch.from_numpy(images).float().to(subject.model.device)
                logits = subject.model(images).logits
                return subject.model.probabilities(logits)[:, predicted].cpu().numpy()

            found |= deletion_insertion(score, pixel_values[0].cpu().numpy(), heatmap)
        rows.append(found)
    return rows


def randomization_rows(subject: Subject, args: argparse.Namespace) -> list[dict]:
    """How alike heatmaps stay while the layers, from the classifier down, are drawn afresh.

    The parameter-randomisation check of Adebayo et al. 2018, on the images of the curves.
    """
    rows = np.random.default_rng(args.seed).permutation(len(subject.split))[: args.curves]
    explained = [subject.explain(int(row)) for row in rows]
    pixel_values = torch.cat([pixels for pixels, _, _ in explained])
    targets = [target for _, _, target in explained]
    model, names, stages = copy.deepcopy(subject.model), [], []
    torch.manual_seed(args.seed)
    for name, module in reversed(layers(model)):
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        names.append(name)
        stages.append(model.grad_cam(pixel_values, targets).cpu().numpy())
    before = np.stack([heatmap for _, heatmap, _ in explained])
    patients = np.array(subject.split["patient_id"])[rows]
    entries = randomization_check(before, np.stack(stages), patients, args.num_resamples, args.seed)
    return [{"layers": name, **entry} for name, entry in zip(names, entries)]


def layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The network's parts that hold weights, from the image to the classifier."""
    found = []
    for name, module in model.network.named_children():
        inner = list(module.named_children())
        parts = [(f"{name}.{key}", part) for key, part in inner] or [(name, module)]
        found += [part for part in parts if list(part[1].parameters())]
    return found


def draw_gallery(folder: Path, subjects: list[Subject], models: dict, count: int) -> None:
    """The most confident mistakes and the least certain cases, each under every model's heatmap."""
    (folder / "gallery").mkdir(exist_ok=True)
    shown = []
    for number, case in enumerate(choose_cases(models, count)):
        row, name = case["index"], f"gallery/{number + 1:02d}.jpg"
        grey = subjects[0].processor.load(subjects[0].split[row]["image"])
        heatmaps, targets = {}, {}
        for subject in subjects:
            _, heatmap, predicted = subject.explain(row)
            restored = subject.processor.restore(torch.from_numpy(heatmap), *grey.shape)
            heatmaps[subject.name] = np.asarray(restored)
            targets[subject.name] = subject.class_names[predicted]
        draw_case((grey >> 8).astype(np.uint8), heatmaps, case, targets, folder / name)
        kept = {key: value for key, value in case.items() if key != "index"}
        shown.append({**kept, "images": [name]})
    (folder / "gallery.json").write_text(json.dumps(shown, indent=2) + "\n")


# --------------------------------------------------------------------------------------------- main


def rescore(args: argparse.Namespace, command: str) -> None:
    """The report again, from a predictions file and what lies beside it."""
    source, folder = Path(args.rescore), Path(args.output_dir)
    read_predictions_by_model(source)
    folder.mkdir(parents=True, exist_ok=True)
    if source.parent.resolve() != folder.resolve():
        for name in BESIDE:
            beside = source.parent / name
            if beside.is_dir():
                shutil.copytree(beside, folder / name, dirs_exist_ok=True)
            elif beside.is_file():
                shutil.copyfile(beside, folder / name)
        shutil.copyfile(source, folder / "predictions.csv")
    if not (folder / "context.json").is_file():
        logger.warning("no context.json beside %s: raw probabilities, argmax decisions", source)
        context = bare_context(folder / "predictions.csv", command)
        (folder / "context.json").write_text(json.dumps(context, indent=2) + "\n")
    score_report(folder, args.num_resamples, args.seed)


def main(argv: list[str]) -> None:
    args = parse_args(argv)
    accelerator = make_accelerator(args)
    command = shlex.join(["python", "validate.py", *map(shorten, argv)])
    if args.rescore:
        if accelerator.is_main_process:
            rescore(args, command)
        return

    with accelerator.main_process_first():
        split = load_split(args)
        subjects = [
            Subject(name, model_id, split, args)
            for name, model_id in zip(short_names(args.model), args.model)
        ]
    predictions = {subject.name: subject.predict(args, accelerator) for subject in subjects}
    if not accelerator.is_main_process:
        return

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions_by_model(folder / "predictions.csv", predictions)
    predictions = read_predictions_by_model(folder / "predictions.csv")
    told = recipe(args)
    source = told["dataset_path"] or told["dataset"]
    dataset = describe_predictions(next(iter(predictions.values())), source)
    dataset |= {"source": split[0]["source"], "variant": args.variant}
    dataset["fingerprint"] = fingerprint(split)
    title = f"{' and '.join(predictions)} on {source}, {args.split}"
    context = {
        "title": title + (f" ({args.variant})" if args.variant else ""),
        "command": command,
        "dataset": dataset,
        "prevalence": args.prevalence,
        "models": {subject.name: subject.describe() for subject in subjects},
    }
    (folder / "context.json").write_text(json.dumps(context, indent=2) + "\n")
    rows = [row for subject in subjects for row in saliency_rows(subject, args)]
    if rows:
        write_saliency(folder / "saliency.csv", rows)
    if args.curves:
        stages = {subject.name: randomization_rows(subject, args) for subject in subjects}
        (folder / "randomization.json").write_text(json.dumps(stages, indent=2) + "\n")
    if args.gallery:
        operated = {
            subject.name: apply_operation(
                predictions[subject.name], subject.operation or NO_OPERATION
            )
            for subject in subjects
        }
        draw_gallery(folder, subjects, operated, args.gallery)
    report = score_report(folder, args.num_resamples, args.seed)
    for name, model in report["models"].items():
        logger.info("%s: AUROC %s", name, format_metric(model["metrics"]["auroc"]))
    logger.info("Written to %s", folder / "report.html")


def shorten(text: str) -> str:
    """A path by its last part, so that a report names no place on the machine that wrote it."""
    head, equals, tail = text.partition("=")
    if equals and "/" in tail and Path(tail).exists():
        return f"{head}={Path(tail).name}"
    return Path(text).name if Path(text).is_absolute() and Path(text).exists() else text


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"validate.py: error: {error}")

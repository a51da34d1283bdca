"""Validate saved or Hub models on a labelled data set: predictions, metrics, figures, report.

    python validate.py --model runs/densenet121 runs/baseline --dataset phantom --output_dir report
    python validate.py --rescore report/predictions.csv --output_dir again
    python validate.py --rescore scores.csv.gz --labels Data_Entry_2017.csv --output_dir peers
    python validate.py --model runs/chexnet --fit_on validation --fitted_dir runs/fitted ...

It runs under `accelerate launch` too; every process takes its share of the images.
"""

import argparse
import hashlib
import json
import logging
import shlex
import shutil
import sys
from pathlib import Path

from accelerate import Accelerator
from datasets import Dataset, DatasetDict, concatenate_datasets

from datasets_scripts import PERTURBATIONS, content_hashes, load_cxr_dataset
from evaluation.calibration import apply_operation, fit_operation
from evaluation.metrics import format_metric
from evaluation.predictions import (
    Predictions,
    read_predictions_by_model,
    write_predictions_by_model,
)
from evaluation.saliency import write_saliency
from evaluation.validation import bare_context, describe_predictions, score_report
from modeling.convert import TRAINED_ON
from training.arguments import (
    add_dataset,
    add_operation,
    check_ranges,
    dataset_name,
    settle_dataset,
)
from training.data import source_names
from training.heatmaps import draw_gallery, randomization_rows, saliency_rows
from training.launch import make_accelerator
from training.rescoring import join_scores
from training.subject import Subject, beside, refuse_trained_on, was_trained_on

logger = logging.getLogger("validate")
BESIDE = ("context.json", "saliency.csv", "randomization.json", "gallery.json", "gallery")
RANGES = {
    "max_eval_samples": (2, 10**9),
    "max_unreadable": (0, 1),
    "per_device_eval_batch_size": (1, 10**9),
    "prevalence": (0.001, 0.999),
    "target_sensitivity": (0, 1),
    "abstain_share": (0, 0.9),
    "gallery": (0, 1000),
    "curves": (0, 10**9),
    "num_resamples": (0, 10**6),
    "seed": (0, 2**31 - 1),
}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The flags of validate.py; ends the program where one is wrong.

    Raises:
        ValueError: paths are too many.
    """
    parser = argparse.ArgumentParser(
        description="Validate chest X-ray classifiers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True).add_argument
    what("--model", nargs="+", metavar="PATH_OR_ID", help="saved folders, Hub ids or id@commit")
    what("--rescore", metavar="CSV", help="a predictions.csv, with what lies beside it; or scores")
    labels = "labels of the scores: a CSV file with images, labels, patients; or kermany"
    add("--labels", metavar="CSV", help=labels)
    add("--output_dir", default="report", help="the report folder")
    add_dataset(add)
    add("--split", default="test", help="train, validation, test, or all of them together")
    add("--variant", choices=sorted(PERTURBATIONS), help="alter the images: a test for shortcuts")
    add("--max_eval_samples", type=int, help="score so many images")
    add("--max_unreadable", type=float, default=0.01, help="share of damaged images to put up with")
    add("--cache_dir", default="~/.cache/cxr-classification", help="where decoded pixels are kept")
    add("--per_device_eval_batch_size", type=int, default=64, help="images")
    add(
        "--ten_crop",
        action="store_true",
        help="mean probability over ten crops; needs --skip_heatmaps",
    )
    add("--prevalence", type=float, help="also correct the probabilities to this share of class 1")
    add("--gallery", type=int, default=12, help="mistakes and uncertain cases to show")
    add(
        "--curves",
        type=int,
        default=40,
        help="images for deletion and insertion curves, and for the randomisation check",
    )
    add("--skip_heatmaps", action="store_true", help="neither saliency nor gallery: much faster")
    add("--num_resamples", type=int, default=2000, help="of the bootstrap over patients")
    add("--seed", type=int, default=0, help="of the bootstrap and the variant")
    add = parser.add_argument_group("operating point of a model without one").add_argument
    add("--fit_on", metavar="SPLIT", help="first fit calibration, thresholds and abstention here")
    add("--fitted_dir", metavar="FOLDER", help="save the model so fitted, which is then validated")
    add_operation(add)
    args = parser.parse_args(argv)
    check_ranges(parser, args, RANGES)
    if args.labels and not args.rescore:
        parser.error("--labels goes with --rescore; a model's images bring their own.")
    if args.ten_crop and not args.skip_heatmaps:
        parser.error("--ten_crop has no heatmaps; add --skip_heatmaps.")
    if (args.fit_on is None) != (args.fitted_dir is None):
        parser.error("--fit_on SPLIT and --fitted_dir FOLDER go together.")
    if args.fit_on and (args.rescore or len(args.model) > 1):
        parser.error("--fit_on fits one --model.")
    settle_dataset(args)
    args.report_to = "none"
    return args


# --------------------------------------------------------------------------------------------- data


def load_data(args: argparse.Namespace) -> DatasetDict:
    """The whole set.

    Raises:
        ValueError: it lacks the split to validate or to fit on, or cannot be used.
        OSError: it cannot be read.
    """
    dataset = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    for split in filter(None, (args.split, args.fit_on)):
        if split not in dataset and (split != "all" or split == args.fit_on):
            raise ValueError(
                f"{dataset_name(args)} has no split {split!r}; it has {', '.join(dataset)}"
                f"{'' if split == args.fit_on else ', or all'}."
            )
    return dataset


def choose_split(dataset: DatasetDict, args: argparse.Namespace) -> tuple[Dataset, list[str]]:
    """The split to validate on, and those of --model that were trained on images of it.

    Raises:
        ValueError: a converted model was trained on patients of it.
    """
    for model in args.model:
        refuse_trained_on(model, dataset, args.split)
    if args.split != "all":
        dataset = DatasetDict({args.split: dataset[args.split]})
    name = dataset_name(args)
    seen = [model for model in args.model if was_trained_on(model, dataset, name)]
    split = concatenate_datasets(list(dataset.values()))
    if args.max_eval_samples is not None and args.max_eval_samples < len(split):
        split = split.shuffle(seed=0).select(range(args.max_eval_samples))
    return split, seen


def short_names(ids: list[str]) -> list[str]:
    """What the report calls each model: the last part of its folder or id.

    Raises:
        ValueError: two models would have one name.
    """
    names = [
        Path(model_id).resolve().name if Path(model_id).is_dir() else model_id.split("/")[-1]
        for model_id in ids
    ]
    double = next((name for name in names if names.count(name) > 1), None)
    if double:
        raise ValueError(f"two models are called {double!r}; rename one folder.")
    return names


# ------------------------------------------------------------------------------------------ fitting


def fit(dataset: DatasetDict, args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Saves --model as --fitted_dir, its operation fitted on the split --fit_on.

    Raises:
        ValueError: the model was trained on that split, or it shares patients with the one to
            validate on, or no operation can be fitted on it.
        OSError: the folder cannot be written.
    """
    (model,), split, folder = args.model, dataset[args.fit_on], Path(args.fitted_dir)
    refuse_trained_on(model, dataset, args.fit_on)
    if was_trained_on(model, DatasetDict({args.fit_on: split}), dataset_name(args)):
        raise ValueError(f"{model} was trained on the split {args.fit_on!r}; fit it on another.")
    judged = list(dataset.values()) if args.split == "all" else [dataset[args.split]]
    shared = {one for part in judged for one in part["patient_id"]} & set(split["patient_id"])
    if shared:
        raise ValueError(
            f"{len(shared)} patients are in the splits {args.split!r} and {args.fit_on!r}, as "
            f"{min(shared)}; fit on patients that the model is not judged on."
        )
    plain = argparse.Namespace(**{**vars(args), "split": args.fit_on, "variant": None})
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            open_folder(folder)
        subject = Subject(folder.name, model, split, plain)
    predictions = subject.predict(plain, accelerator)
    if accelerator.is_main_process:
        written = folder / f"predictions_{args.fit_on}.csv"
        write_predictions_by_model(written, {folder.name: predictions})
        (predictions,) = read_predictions_by_model(written).values()
        rules = args.threshold_rule, args.target_sensitivity, args.abstain_share
        subject.model.config.set_operation(fit_operation(predictions, *rules))
        subject.model.save_pretrained(folder)
        subject.processor.save_pretrained(folder)
        for name in (TRAINED_ON, "dataset.json"):
            if found := beside(model, name):
                shutil.copyfile(found, folder / name)
    accelerator.wait_for_everyone()


# --------------------------------------------------------------------------------------------- main


def rescore(args: argparse.Namespace, command: str) -> None:
    """The report again, from a predictions file and what lies beside it."""
    source, folder = Path(args.rescore), Path(args.output_dir)
    target = folder / "predictions.csv"
    if args.labels:
        predictions = join_scores(source, args.labels, args.split)
        open_folder(folder)
        name = source.name.removesuffix(".gz").removesuffix(".csv")
        write_predictions_by_model(target, {name: predictions})
        context = bare_context(target, command)
        context["title"] = f"Scores of {source.name} by the labels of {Path(args.labels).name}"
        context["dataset"]["name"] = Path(args.labels).name
        (folder / "context.json").write_text(json.dumps(context, indent=2) + "\n")
        log_aurocs(score_report(folder, args.num_resamples, args.seed), folder)
        return
    read_predictions_by_model(source)
    in_place = target.exists() and source.samefile(target)
    if not in_place:
        open_folder(folder)
        for name in BESIDE:
            beside = source.parent / name
            if beside.is_dir():
                shutil.copytree(beside, folder / name)
            elif beside.is_file():
                shutil.copyfile(beside, folder / name)
        shutil.copyfile(source, target)
    if not (folder / "context.json").is_file():
        logger.warning("no context.json beside %s: raw probabilities, argmax decisions", source)
        context = bare_context(target, command)
        (folder / "context.json").write_text(json.dumps(context, indent=2) + "\n")
    log_aurocs(score_report(folder, args.num_resamples, args.seed), folder)


def log_aurocs(report: dict, folder: Path) -> None:
    """What a report says first."""
    for name, model in report["models"].items():
        logger.info("%s: AUROC %s", name, format_metric(model["metrics"]["auroc"]))
    logger.info("Written to %s", folder / "report.html")


def open_folder(folder: Path) -> None:
    """An empty folder to write to: nothing of an earlier report may slip into this one.

    Raises:
        ValueError: the folder has content.
        OSError: it cannot be made.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name another folder, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)


def look(folder: Path, pairs: list[tuple[Subject, Predictions]], args: argparse.Namespace) -> None:
    """saliency.csv, randomization.json and the gallery of models at their operating points."""
    blind = [subject.name for subject, _ in pairs if not subject.has_heatmaps()]
    if blind:
        logger.warning("No feature maps, and so no heatmaps, of %s.", ", ".join(blind))
    pairs = [(subject, operated) for subject, operated in pairs if subject.name not in blind]
    if not pairs:
        return
    rows = [row for subject, operated in pairs for row in saliency_rows(subject, operated, args)]
    if rows:
        write_saliency(folder / "saliency.csv", rows)
    if args.curves:
        stages = {s.name: randomization_rows(s, operated, args) for s, operated in pairs}
        (folder / "randomization.json").write_text(json.dumps(stages, indent=2) + "\n")
    if args.gallery:
        models = {subject.name: operated for subject, operated in pairs}
        draw_gallery(folder, [subject for subject, _ in pairs], models, args.gallery)


def main(argv: list[str]) -> None:
    """Validates models, or scores a predictions file again, as the flags say."""
    args = parse_args(argv)
    accelerator = make_accelerator(args)
    command = shlex.join(["python", "validate.py", *map(shorten, argv)])
    if args.rescore:
        if accelerator.is_main_process:
            rescore(args, command)
        return

    # Data and models
    folder = Path(args.output_dir)
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            open_folder(folder)
        dataset = load_data(args)
    if args.fit_on:
        fit(dataset, args, accelerator)
        args.model = [args.fitted_dir]
    names = short_names(args.model)
    with accelerator.main_process_first():
        split, seen = choose_split(dataset, args)
        subjects = [Subject(name, model, split, args) for name, model in zip(names, args.model)]
        if args.prevalence is not None and subjects[0].class_names[2:]:
            raise ValueError(f"--prevalence {args.prevalence} is for two classes.")

    # Predictions
    predictions = {subject.name: subject.predict(args, accelerator) for subject in subjects}
    if not accelerator.is_main_process:
        return
    write_predictions_by_model(folder / "predictions.csv", predictions)
    predictions = read_predictions_by_model(folder / "predictions.csv")
    name = dataset_name(args)
    title = f"{' and '.join(names)} on {name}, {args.split}"
    if seen:
        learned = " and ".join(short_names(seen))
        logger.warning(
            "%s learned from images of this split: the figures say nothing of new ones; use "
            "--split test, or another set.", learned,
        )  # fmt: skip
        title += f", with training images of {learned}"
    title += ", ten crops" if args.ten_crop else ""
    digest = hashlib.sha256("".join(content_hashes(split)).encode()).hexdigest()
    context = {
        "title": title + (f" ({args.variant})" if args.variant else ""),
        "command": command,
        "dataset": {
            **describe_predictions(predictions[names[0]], name),
            "source": source_names(split),
            "variant": args.variant,
            "fingerprint": digest,
        },
        "prevalence": args.prevalence,
        "models": {subject.name: subject.describe() for subject in subjects},
    }
    (folder / "context.json").write_text(json.dumps(context, indent=2) + "\n")

    if not args.skip_heatmaps:
        look(
            folder, [(s, apply_operation(predictions[s.name], s.operation)) for s in subjects], args
        )

    # Report
    log_aurocs(score_report(folder, args.num_resamples, args.seed), folder)


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

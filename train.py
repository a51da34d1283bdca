"""Train a chest X-ray classifier: data, model, loop, evaluation, save, push.

    accelerate launch train.py --dataset phantom --model densenet121 --output_dir runs/densenet121

Processes, precision and gradient accumulation are `accelerate launch`'s own flags.
"""

import argparse
import logging
import math
import os
import shutil
import sys
import time
from pathlib import Path

import torch
from accelerate import skip_first_batches
from accelerate.utils import set_seed, tqdm
from datasets import Dataset, DatasetDict, concatenate_datasets
from timm.optim import param_groups_weight_decay
from transformers import get_cosine_schedule_with_warmup

from datasets_scripts import (
    age_range,
    check_leaks,
    class_names,
    describe,
    label_sets,
    load_cxr_dataset,
    regroup,
    unknown_sets,
)
from evaluation.calibration import fit_operation
from evaluation.metrics import compute_metrics, format_metric
from evaluation.predictions import Predictions
from modeling import CxrImageProcessor, create_model, load_model, load_segmenter
from modeling.loss_cxr import classification_loss
from modeling.lungs_cxr import LungFinder
from modeling.modeling_cxr import CxrClassifier
from modeling.preprocessing_cxr import equalization
from modeling.pretrained import first_line
from training.arguments import FINAL, dataset_name, parse_args, recipe
from training.augmentation import augment, swap_backgrounds
from training.averaging import snapshot, weight_average
from training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint, write_errors
from training.data import decode_splits, limit_splits, split_digest, summarize, versions
from training.distillation import Teachers, student_loss
from training.half import half_state
from training.inference import make_loader, predict, to_predictions
from training.launch import make_accelerator
from training.outliers import DETECTORS
from training.publish import check_hub, push_run
from training.run_folder import write_run
from training.seeds import mix_seed

logger = logging.getLogger("train")
# Those that a resumed run's last digits hang on.
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "accelerate", "numpy")


# --------------------------------------------------------------------------------------------- data


def load_data(args: argparse.Namespace) -> DatasetDict:
    """The splits, grouped by patient, checked for leaks, cut to the sample limits.

    Raises:
        ValueError: a split is missing or of one image, or splits share a patient or an image.
        OSError: the data cannot be read.
    """
    dataset = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    unlabelled = dataset.pop("unlabelled", None)
    if args.regroup:
        dataset = regroup(dataset)
    for name in ("train", "validation", *(["test"] if not args.skip_test else [])):
        if name not in dataset or len(dataset[name]) < 2:
            raise ValueError(
                f"{dataset_name(args)} has no {name} split of two or more images; "
                "add some, or let --regroup split all images by patient."
            )
    if unlabelled is not None:
        dataset["unlabelled"] = unlabelled
    logger.info("%s", describe(dataset))
    check_leaks(dataset)
    if args.skip_test:
        dataset.pop("test", None)
    if dataset.pop("unlabelled", None) is not None:
        if args.teacher:
            dataset["train"] = concatenate_datasets([dataset["train"], unlabelled])
        else:
            logger.info("%d unlabelled images are left out: no --teacher.", len(unlabelled))
    limit_splits(dataset, args)
    return dataset


# -------------------------------------------------------------------------------------------- model


def build_model(
    train: Dataset, args: argparse.Namespace
) -> tuple[CxrClassifier, CxrImageProcessor]:
    """The model and its image processor, with a head and a loss for the training split.

    Raises:
        ValueError: no such model, options that do not fit it, or a network that fails on a blank
            image of its size.
        OSError: its weights cannot be loaded.
    """
    multi_label, names = "labels" in train.features, class_names(train)
    options = {
        "problem_type": f"{'multi' if multi_label else 'single'}_label_classification",
        "loss": args.loss,
        "class_weights": None,
        "label_smoothing": args.label_smoothing,
        "focal_gamma": args.focal_gamma,
        "focal_alpha": args.focal_alpha,
        **args.model_options,
    }
    if args.class_weights == "balanced":
        options["class_weights"] = balanced_weights(train, names)
    if args.num_channels is not None:
        options["num_channels"] = args.num_channels
    model, processor = create_model(args.model, names, args.image_size, args.pretrained, **options)
    processor.geometry = args.geometry or processor.geometry
    if args.equalize is not None:
        processor.equalize = equalization(args.equalize)
    if args.crop is not None:
        processor.crop = args.crop
    if args.mask is not None:
        processor.mask = args.mask
    if args.lungs is not None:
        processor.lungs = LungFinder(*load_segmenter(args.lungs))
    if args.swap_background and (processor.windowed or processor.equalize):
        raise ValueError(
            "--swap_background needs X-rays as they are; leave out --crop, --mask and --equalize."
        )
    if args.lungs is not None and not (processor.windowed or args.swap_background):
        raise ValueError("--lungs is for --crop, --mask or --swap_background; give one of these.")
    if processor.lungs is None and (processor.windowed or args.swap_background):
        raise ValueError(
            "--crop, --mask and --swap_background need --lungs, the folder or id of a lung "
            "segmenter, such as checkpoints/cxr-lungs."
        )
    processor.correct = processor.correct and not args.no_corrections
    model.config.age_range = age_range(train)
    size, channels = processor.size["height"], processor.num_channels
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError) as error:
        # Mostly the size; but memory or --model_options may be the cause, too.
        raise ValueError(
            f"{args.model} fails on a blank image of {size} x {size} pixels ({first_line(error)})."
        ) from error
    return model, processor


def balanced_weights(train: Dataset, names: list[str]) -> list[float]:
    """A weight a class: n / (classes * n_class) of labelled images; multi-label: absent / present.

    Images for which a finding is unknown count for neither.

    Raises:
        ValueError: a class without a training image.
    """
    rows = label_sets(train)
    counts = [sum(k in row for row in rows) for k in range(len(names))]
    if 0 in counts:
        absent = names[counts.index(0)]
        raise ValueError(f"class {absent} has no training image; leave out --class_weights.")
    if "labels" in train.features:
        unknown = [k for row in unknown_sets(train) for k in row]
        return [(len(train) - unknown.count(k) - n) / n for k, n in enumerate(counts)]
    return [sum(counts) / (len(counts) * count) for count in counts]


# --------------------------------------------------------------------------------------- evaluation


def choosing_auroc(predictions: Predictions) -> dict:
    """AUROC, of more than two classes the mean over those that have one.

    Raises:
        ValueError: no class has one.
    """
    auroc = compute_metrics(predictions, num_resamples=0)["auroc"]
    if auroc["value"] is None:
        raise ValueError(f"the validation split has no AUROC to choose by: it {auroc['reason']}.")
    return auroc


# --------------------------------------------------------------------------------------------- main


def main(argv: list[str]) -> None:  # noqa: PLR0915 - flat by design, read from top to bottom
    """Trains a model as the flags say, and leaves its folder."""
    # Set-up
    args = parse_args(argv)
    output_dir = Path(args.output_dir)
    checkpoints = output_dir / "checkpoints"
    accelerator = make_accelerator(args)
    with accelerator.main_process_first(), write_errors(f"the output folder {output_dir}"):
        holds_run = list_checkpoints(checkpoints) or (output_dir / "config.json").exists()
        if holds_run and not args.resume_from_checkpoint and accelerator.is_main_process:
            raise ValueError(
                f"{output_dir} holds a run already; name another --output_dir, or go on with "
                "--resume_from_checkpoint."
            )
        checkpoints.mkdir(parents=True, exist_ok=True)
    if args.push_to_hub and accelerator.is_main_process:
        check_hub(args.hub_model_id, args.hub_private, args.publish_ids)
    if args.report_to != "none":
        accelerator.init_trackers("cxr", {key: str(value) for key, value in vars(args).items()})
    set_seed(args.seed)

    # Data and model
    with accelerator.main_process_first():
        dataset = load_data(args)
        model, processor = build_model(dataset["train"], args)
        teachers = None
        if args.teacher:
            models = {name: load_model(name) for name in args.teacher}
            teachers = Teachers(models, processor, model.config, accelerator.device)
        splits = decode_splits(dataset, processor, args.cache_dir, args.max_unreadable)
        if args.operation_variant:
            altered = DatasetDict({"operation": dataset["validation"]})
            splits |= decode_splits(
                altered, processor, args.cache_dir, args.max_unreadable, args.operation_variant
            )
    noticed = {name: split.warnings for name, split in splits.items()}
    summary = summarize(dataset, dataset_name(args), noticed)
    # Before any training: ids that clash, a validation split without an AUROC to choose by, images
    # that no operation can be fitted on.
    for name, split in splits.items():
        if name == "train":
            continue
        blank = to_predictions(split, torch.zeros(len(split), len(split.class_names)), name)
        if name == "validation" and (absent := choosing_auroc(blank).get("without")):
            logger.warning(
                "The validation split lacks images with or without %s: the AUROC that chooses the "
                "epoch is the mean over the other classes.",
                ", ".join(absent),
            )
        if name in ("validation", "operation"):
            fit_operation(blank, args.threshold_rule, args.target_sensitivity, args.abstain_share)
    batch_sizes = {"train": args.per_device_train_batch_size}
    loaders = {
        name: accelerator.prepare(
            make_loader(
                split,
                batch_sizes.get(name, args.per_device_eval_batch_size),
                args.seed if name == "train" else None,
            )
        )
        for name, split in splits.items()
    }

    # Optimizer; matrices and kernels decay, biases and normalisation do not: pulled to 0 they would
    # switch channels off
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    average = weight_average(model, args.ema_decay) if args.ema_decay else None
    optimizer = torch.optim.AdamW(
        param_groups_weight_decay(model, args.weight_decay), lr=args.learning_rate
    )
    num_batches = len(loaders["train"])
    updates = math.ceil(num_batches / accelerator.gradient_accumulation_steps)
    updates *= args.num_train_epochs
    # Not prepared: Accelerate would step it once a process instead of once an update.
    scheduler = get_cosine_schedule_with_warmup(
        optimizer, round(args.warmup_ratio * updates), updates
    )
    raw_model = model
    model, optimizer = accelerator.prepare(model, optimizer)
    evaluated = raw_model if average is None else average.module

    # State of the loop, saved with every checkpoint
    progress = {"epoch": 0, "batch": 0, "loss_sum": 0.0, "seconds": 0.0, "history": []}
    progress |= {"best_epoch": 0, "best_score": [-math.inf, -math.inf]}
    progress["recipe"] = {**recipe(args), "num_processes": accelerator.num_processes}
    progress["data"] = {name: split_digest(split) for name, split in dataset.items()}
    progress["versions"] = versions(LIBRARIES)
    best = {}
    if args.resume_from_checkpoint:
        fixed = {key: value for key, value in progress["recipe"].items() if key not in FINAL}
        saved, tensors = load_checkpoint(accelerator, checkpoints, fixed, progress["data"])
        progress = {**saved, "versions": progress["versions"]}
        best = tensors["best"]
        scheduler.load_state_dict(progress["scheduler"])
        if average is not None:
            average.load_state_dict(tensors["average"])
    started = time.monotonic() - progress["seconds"]

    def save() -> None:
        progress["seconds"] = time.monotonic() - started
        progress["scheduler"] = scheduler.state_dict()
        tensors = {"best": best} | ({} if average is None else {"average": snapshot(average)})
        step = progress["epoch"] * num_batches + progress["batch"]
        save_checkpoint(accelerator, checkpoints, step, progress, tensors)

    # Loop
    for epoch in range(progress["epoch"], args.num_train_epochs):
        if 0 < args.early_stopping_patience <= epoch - progress["best_epoch"]:
            logger.info("Stopping: no better AUROC since epoch %d.", progress["best_epoch"])
            break
        epoch_started = time.monotonic()
        model.train()
        loaders["train"].set_epoch(epoch)
        images_seen = progress["batch"] * loaders["train"].total_batch_size
        bar = tqdm(
            total=min(len(splits["train"]), num_batches * loaders["train"].total_batch_size),
            initial=images_seen,
            desc=f"epoch {epoch + 1}/{args.num_train_epochs}",
            unit="image",
        )
        shown = {"auroc": f"{progress['history'][-1]['validation_auroc']:.3f}"} if epoch else {}
        for batch in skip_first_batches(loaders["train"], progress["batch"]):
            # A seed for every batch, so that a resumed run draws what an unbroken one draws.
            step = epoch * num_batches + progress["batch"]
            torch.manual_seed(mix_seed(args.seed, step, accelerator.process_index))
            with accelerator.accumulate(model):
                images = batch["pixels"]
                if args.swap_background:
                    images = swap_backgrounds(images, processor.lungs, args.swap_background)
                images = augment(images, args)
                pixel_values = processor.normalize(images)
                pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
                targets = teachers(images, args.distill_temperature) if teachers else None
                output = model(pixel_values)
                loss = student_loss(
                    output.head_logits or (output.logits,),
                    batch["labels"],
                    raw_model.config,
                    targets,
                    args.distill_weight,
                    args.distill_temperature,
                )
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                scheduler.step()
                if average is not None:
                    average.update_parameters(raw_model)
            mean_loss = accelerator.gather(loss.detach()).mean().item()
            if not math.isfinite(mean_loss):
                raise ValueError(
                    f"the loss is {mean_loss} in epoch {epoch + 1}; a --learning_rate below "
                    f"{args.learning_rate} may help."
                )
            progress["loss_sum"] += mean_loss
            progress["batch"] += 1
            bar.set_postfix(loss=f"{progress['loss_sum'] / progress['batch']:.4f}", **shown)
            bar.update(min(loaders["train"].total_batch_size, bar.total - bar.n))
            due = args.checkpointing_steps and (step + 1) % args.checkpointing_steps == 0
            # Gradients in accumulation are in no checkpoint.
            if due and accelerator.sync_gradients and progress["batch"] < num_batches:
                save()
        bar.close()
        seconds = time.monotonic() - epoch_started
        logits = predict(evaluated, loaders["validation"], processor, accelerator)
        labels = torch.from_numpy(splits["validation"].labels)
        row = {
            "epoch": epoch + 1,
            "train_loss": progress["loss_sum"] / progress["batch"],
            "validation_loss": classification_loss(logits, labels, raw_model.config).item(),
            "validation_auroc": choosing_auroc(
                to_predictions(splits["validation"], logits, "validation")
            )["value"],
            "learning_rate": scheduler.get_last_lr()[0],
            "seconds": seconds,
            "images_per_second": (bar.total - images_seen) / seconds,
        }
        logger.info(
            "epoch %(epoch)d: train loss %(train_loss).4f, validation loss %(validation_loss).4f, "
            "validation AUROC %(validation_auroc).4f, %(images_per_second).0f images/s",
            row,
        )
        accelerator.log({key: row[key] for key in row if key != "epoch"}, step=epoch + 1)
        progress["history"].append(row)
        score = [row["validation_auroc"], -row["validation_loss"]]
        if args.keep == "last" or score > progress["best_score"]:
            progress |= {"best_score": score, "best_epoch": epoch + 1}
            best = snapshot(evaluated)
        progress |= {"epoch": epoch + 1, "batch": 0, "loss_sum": 0.0}
        save()

    # Evaluation of the weights kept, in full precision, as whoever loads them will run them
    final = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    final.load_state_dict(best)
    if args.half:
        final.load_state_dict(half_state(final))
    scored = [name for name in splits if name != "train"]
    logits = {name: predict(final, loaders[name], processor, accelerator) for name in scored}
    if accelerator.is_main_process:
        if args.outlier_detector != "none":
            pixels = (splits[name].pixels for name in ("train", "validation"))
            fit = DETECTORS[args.outlier_detector]
            final.set_outlier_detector(*fit(*pixels, processor, args.seed))
        partial = output_dir / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        device = f"{accelerator.num_processes} x {accelerator.device.type}"
        device += f" on {os.cpu_count()} cores"
        with write_errors(f"the results in {output_dir}"):
            metrics = write_run(
                partial, final, processor, splits, logits, progress, args, summary, device
            )
            (output_dir / "figures").mkdir(exist_ok=True)
            for file in sorted(path for path in partial.rglob("*") if path.is_file()):
                os.replace(file, output_dir / file.relative_to(partial))
            shutil.rmtree(partial)
        last = "validation" if args.skip_test else "test"
        auroc = format_metric(metrics[last]["auroc"])
        if absent := metrics[last]["auroc"].get("without"):
            auroc += f", the mean over all classes but {', '.join(absent)}"
        logger.info("%s AUROC %s. Written to %s", last.capitalize(), auroc, output_dir)
        if args.push_to_hub:
            logger.info("Pushed to %s", push_run(output_dir, args.hub_model_id, args.publish_ids))
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"train.py: error: {error}")

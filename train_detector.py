"""Train a detector, which boxes findings: data, model, loop, evaluation, save, push.

    accelerate launch train_detector.py --dataset DATA/rsna --output_dir runs/boxes

The set needs boxes (`objects`); images that were looked at and hold none are learned from, too.
Processes, precision and gradient accumulation are `accelerate launch`'s own flags.
"""

import argparse
import csv
import json
import logging
import math
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import skip_first_batches
from accelerate.utils import set_seed, tqdm
from timm.optim import param_groups_weight_decay
from transformers import get_cosine_schedule_with_warmup

from evaluation.detection import (
    average_precision,
    fit_threshold,
    summarize_detection,
    write_detection,
)
from evaluation.pages.detection_card import write_detection_card
from modeling import CxrDetector, CxrDetectorConfig, CxrImageProcessor
from modeling.preprocessing_cxr import GEOMETRIES
from training.arguments import RANGES as RANGES_OF_TRAINING
from training.arguments import add_dataset, check_ranges, dataset_name, recipe, settle_dataset
from training.augmentation import augment_with_boxes
from training.averaging import snapshot, weight_average
from training.boxes import (
    MIN_SIDE,
    boxed_images,
    decode_boxed,
    detect,
    measure_detection,
    select_boxed,
)
from training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint, write_errors
from training.data import load_splits, split_digest, summarize, versions
from training.half import half_state, save_half
from training.inference import make_loader
from training.launch import make_accelerator
from training.publish import check_hub, push_run
from training.seeds import mix_seed

logger = logging.getLogger("train_detector")
LIBRARIES = ("torch", "timm", "transformers", "accelerate", "numpy", "torchvision")
RANGES = {
    name: RANGES_OF_TRAINING[name]
    for name in (
        *("max_unreadable", "max_train_samples", "max_eval_samples", "num_train_epochs"),
        *("per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate"),
        *("weight_decay", "max_grad_norm", "warmup_ratio", "ema_decay", "max_rotation"),
        *("max_scale", "max_shift", "max_contrast", "max_blur", "seed", "checkpointing_steps"),
    )
} | {"image_size": (64, 4096)}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The flags of train_detector.py; ends the program where one is wrong.

    Raises:
        ValueError: paths are too many.
    """
    parser = argparse.ArgumentParser(
        description="Train a detector.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("data").add_argument
    add_dataset(add)
    add("--max_unreadable", type=float, default=0.01, help="share of damaged images to put up with")
    add("--max_train_samples", type=int, help="train on so many images, the same for every seed")
    add("--max_eval_samples", type=int, help="validate and test on so many images each")
    add("--cache_dir", default="~/.cache/cxr-classification", help="where decoded pixels are kept")

    add = parser.add_argument_group("model").add_argument
    backbones = "timm network: densenet121, resnet50, mobilenetv3_small_100, ..."
    add("--architecture", default="resnet50", metavar="NAME", help=backbones)
    add("--image_size", type=int, default=512, help="pixels a side")
    geometries = "pad keeps all, squash stretches, crop keeps the centre, inner_crop 7/8 of that"
    add("--geometry", choices=GEOMETRIES, default="pad", help=geometries)
    add("--num_channels", type=int, choices=(1, 3), default=1, help="1: grey")
    add("--fpn_channels", type=int, default=256, help="of the feature pyramid")
    add("--hidden_size", type=int, default=1024, help="width of the box head")
    add("--num_proposals", type=int, default=1000, help="regions that the box head looks at")

    # Angles are small: a box around a turned box is larger than the finding.
    add = parser.add_argument_group("recipe").add_argument
    add("--num_train_epochs", type=int, default=12, help="passes over the training split")
    add("--per_device_train_batch_size", type=int, default=8, help="images")
    add("--per_device_eval_batch_size", type=int, default=16, help="images")
    add("--learning_rate", type=float, default=3e-4, help="peak, after warm-up")
    add("--weight_decay", type=float, default=0.05, help="of kernels")
    add("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to it")
    add("--warmup_ratio", type=float, default=0.05, help="share of the steps before the cosine")
    add("--ema_decay", type=float, default=0.99, help="average the weights; 0 does not")
    add("--max_rotation", type=float, default=5.0, help="augmentation: degrees")
    add("--max_scale", type=float, default=0.15, help="augmentation: share of the size")
    add("--max_shift", type=float, default=0.1, help="augmentation: share of the side")
    add("--max_contrast", type=float, default=0.3, help="augmentation: share, gain and gamma")
    add("--max_blur", type=float, default=0.0, help="augmentation: share of the resolution lost")

    add = parser.add_argument_group("run").add_argument
    add("--skip_test", action="store_true", help="leave the test split alone, as in a search")
    add("--output_dir", default="runs/detector", help="the model folder")
    add("--seed", type=int, default=42, help="of weights, order and augmentation")
    add("--checkpointing_steps", type=int, default=0, help="0: at the end of each epoch only")
    add("--resume_from_checkpoint", action="store_true", help="go on from output_dir's last one")
    add("--push_to_hub", action="store_true", help="needs --hub_model_id and a token")
    add("--hub_model_id", metavar="ORG/NAME", help="the repository to push to")
    add("--hub_private", action="store_true", help="make the repository private")
    args = parser.parse_args(argv)
    if args.push_to_hub and not args.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id ORG/NAME.")
    check_ranges(parser, args, RANGES)
    settle_dataset(args)
    args.report_to = "none"
    return args


def main(argv: list[str]) -> None:  # noqa: PLR0915 - flat by design, read from top to bottom
    """Trains a detector as the flags say, and leaves its folder."""
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
        check_hub(args.hub_model_id, args.hub_private)
    set_seed(args.seed)

    # Data: boxes are moved as their images are
    processor = CxrImageProcessor(
        args.image_size, num_channels=args.num_channels, geometry=args.geometry
    )
    with accelerator.main_process_first():
        dataset = load_splits(args)
        known = select_boxed(dataset)
        splits = decode_boxed(dataset, processor, known, args.cache_dir, args.max_unreadable)
    logger.info(
        "Boxes of %s: %s",
        ", ".join(known),
        ", ".join(
            f"{name} {sum(len(target['boxes']) for target in split.targets)} in {len(split)} images"
            for name, split in splits.items()
        ),
    )
    summary = summarize(dataset, dataset_name(args))
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

    # Model and optimizer
    config = CxrDetectorConfig(
        args.architecture,
        args.image_size,
        args.num_channels,
        args.fpn_channels,
        args.hidden_size,
        num_proposals=args.num_proposals,
        id2label=dict(enumerate(known)),
    )
    model = CxrDetector(config)
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
    progress |= {"best_epoch": 0, "best_score": -math.inf}
    progress["recipe"] = {**recipe(args), "num_processes": accelerator.num_processes}
    progress["data"] = {
        name: f"{split_digest(split)} {splits[name].boxes_digest()}"
        for name, split in dataset.items()
    }
    progress["versions"] = versions(LIBRARIES)
    best = {}
    if args.resume_from_checkpoint:
        fixed = {key: value for key, value in progress["recipe"].items() if key != "skip_test"}
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
        for batch in skip_first_batches(loaders["train"], progress["batch"]):
            # A seed for every batch, so that a resumed run draws what an unbroken one draws.
            step = epoch * num_batches + progress["batch"]
            torch.manual_seed(mix_seed(args.seed, step, accelerator.process_index))
            with accelerator.accumulate(model):
                images, targets = augment_with_boxes(
                    batch["pixels"], batch["targets"], MIN_SIDE, args
                )
                pixel_values = processor.normalize(images)
                pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
                loss = model(pixel_values, targets).loss
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
            bar.set_postfix(loss=f"{progress['loss_sum'] / progress['batch']:.4f}")
            bar.update(min(loaders["train"].total_batch_size, bar.total - bar.n))
            due = args.checkpointing_steps and (step + 1) % args.checkpointing_steps == 0
            # Gradients in accumulation are in no checkpoint.
            if due and accelerator.sync_gradients and progress["batch"] < num_batches:
                save()
        bar.close()
        seconds = time.monotonic() - epoch_started
        found = detect(evaluated, loaders["validation"], processor, accelerator)
        precision = average_precision(boxed_images(found, splits["validation"], known)).values()
        row = {
            "epoch": epoch + 1,
            "train_loss": progress["loss_sum"] / progress["batch"],
            **{
                f"validation_{key}": sum(of[key] for of in precision) / len(precision)
                for key in ("ap", "ap50")
            },
            "learning_rate": scheduler.get_last_lr()[0],
            "seconds": seconds,
            "images_per_second": (bar.total - images_seen) / seconds,
        }
        logger.info(
            "epoch %(epoch)d: train loss %(train_loss).4f, validation AP %(validation_ap).4f, "
            "AP50 %(validation_ap50).4f, %(images_per_second).1f images/s",
            row,
        )
        progress["history"].append(row)
        if row["validation_ap50"] >= progress["best_score"]:
            progress |= {"best_score": row["validation_ap50"], "best_epoch": epoch + 1}
            best = snapshot(evaluated)
        progress |= {"epoch": epoch + 1, "batch": 0, "loss_sum": 0.0}
        save()

    # Evaluation of the best weights as they are stored, matrices and kernels in float16, boxes in
    # pixels of the stored images, from the threshold on that is best on validation
    final = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    final.load_state_dict(best)
    final.load_state_dict(half_state(final))
    found = {
        name: detect(final, loaders[name], processor, accelerator)
        for name in splits
        if name != "train"
    }
    if accelerator.is_main_process:
        metrics = {
            "best_epoch": progress["best_epoch"],
            "train_seconds": progress["seconds"],
            "num_parameters": sum(weight.numel() for weight in final.parameters()),
            "device": f"{accelerator.num_processes} x {accelerator.device.type} on "
            f"{os.cpu_count()} cores",
        }
        with write_errors(f"the results in {output_dir}"):
            for name in found:
                images = measure_detection(found[name], dataset[name], processor, known, name)
                write_detection(output_dir / f"detection_{name}.csv", images)
                if name == "validation":
                    final.config.threshold = fit_threshold(images)
                metrics[name] = summarize_detection(images, final.config.threshold)
            save_half(final, output_dir)
            processor.save_pretrained(output_dir)
            with open(output_dir / "history.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, progress["history"][0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(progress["history"])
            contents = {"metrics": metrics, "training_args": recipe(args), "dataset": summary}
            for name, content in contents.items():
                (output_dir / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
            write_detection_card(output_dir, args.hub_model_id or output_dir.resolve().name)
        last = "validation" if args.skip_test else "test"
        value = metrics[last]["ap50"]["value"]
        logger.info("%s AP50 %.4f. Written to %s", last.capitalize(), value, output_dir)
        if args.push_to_hub:
            url = push_run(output_dir, args.hub_model_id, publish_ids=False)
            logger.info("Pushed to %s", url)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"train_detector.py: error: {error}")

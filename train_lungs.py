"""Train a lung segmenter: data, model, loop, evaluation, save, push.

    accelerate launch train_lungs.py --dataset DATA/chest_xray --dataset_options extra=DATA/extra

The set needs lung masks; what reads them for Kermany's images is the option `extra`.
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
from datasets import DatasetDict
from timm.optim import param_groups_weight_decay
from transformers import get_cosine_schedule_with_warmup

from evaluation.pages.lung_card import write_lung_card
from evaluation.segmentation import summarize_segmentation, write_segmentation
from modeling import CxrImageProcessor, CxrLungSegmenter, CxrLungSegmenterConfig
from modeling.image_cxr import FULL_SCALE
from modeling.segmentation_cxr import segmentation_loss
from training.arguments import RANGES as RANGES_OF_TRAINING
from training.arguments import add_dataset, check_ranges, dataset_name, recipe, settle_dataset
from training.augmentation import augment_with_masks
from training.averaging import snapshot, weight_average
from training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint, write_errors
from training.data import load_splits, split_digest, summarize, versions
from training.half import half_state, save_half
from training.inference import make_loader, predict
from training.launch import make_accelerator
from training.lungs import decode_masked, dice_of_logits, measure_segmentation
from training.publish import check_hub, push_run
from training.seeds import mix_seed

logger = logging.getLogger("train_lungs")
LIBRARIES = ("torch", "timm", "transformers", "accelerate", "numpy", "scipy")
RANGES = {
    name: RANGES_OF_TRAINING[name]
    for name in (
        *("max_unreadable", "max_train_samples", "max_eval_samples", "num_train_epochs"),
        *("per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate"),
        *("weight_decay", "max_grad_norm", "warmup_ratio", "ema_decay", "max_rotation"),
        *("max_scale", "max_stretch", "max_shift", "max_contrast", "max_blur", "seed"),
        "checkpointing_steps",
    )
} | {"image_size": (32, 1024), "max_shading": (0, 2), "max_noise": (0, 1)}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The flags of train_lungs.py; ends the program where one is wrong.

    Raises:
        ValueError: paths are too many.
    """
    parser = argparse.ArgumentParser(
        description="Train a lung segmenter.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("data").add_argument
    add_dataset(add)
    add("--max_unreadable", type=float, default=0.01, help="share of damaged images to put up with")
    add("--max_train_samples", type=int, help="train on so many images, the same for every seed")
    add("--max_eval_samples", type=int, help="validate and test on so many images each")
    add("--cache_dir", default="~/.cache/cxr-classification", help="where decoded pixels are kept")

    # Lungs are large and smooth, and those who drew the masks agree to a pixel or two of 224: more
    # than 128 buys little.
    add = parser.add_argument_group("model").add_argument
    add("--image_size", type=int, default=128, help="pixels a side")
    add(
        "--hidden_sizes",
        type=int,
        nargs="+",
        default=[8, 16, 32, 64, 96],
        help="channels of the stages, each of which halves the sides",
    )

    # Adults of other hospitals are the goal, and no image of theirs is learned from: so grey values
    # and proportions vary more than they do in a classifier's training.
    add = parser.add_argument_group("recipe").add_argument
    add("--num_train_epochs", type=int, default=6, help="passes over the training split")
    add("--per_device_train_batch_size", type=int, default=32, help="images")
    add("--per_device_eval_batch_size", type=int, default=64, help="images")
    add("--learning_rate", type=float, default=3e-3, help="peak, after warm-up")
    add("--weight_decay", type=float, default=0.05, help="of kernels")
    add("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to it")
    add("--warmup_ratio", type=float, default=0.05, help="share of the steps before the cosine")
    add("--ema_decay", type=float, default=0.99, help="average the weights; 0 does not")
    add("--max_rotation", type=float, default=15.0, help="augmentation: degrees")
    add("--max_scale", type=float, default=0.3, help="augmentation: share of the size")
    add("--max_stretch", type=float, default=0.3, help="augmentation: width against height")
    add("--max_shift", type=float, default=0.1, help="augmentation: share of the side")
    add("--max_contrast", type=float, default=0.6, help="augmentation: share, gain and gamma")
    add("--max_blur", type=float, default=0.5, help="augmentation: share of the resolution lost")
    add("--max_shading", type=float, default=0.25, help="augmentation: uneven gamma")
    add("--max_noise", type=float, default=0.05, help="augmentation: share of full scale")

    add = parser.add_argument_group("run").add_argument
    add("--skip_test", action="store_true", help="leave the test split alone, as in a search")
    add("--output_dir", default="runs/lungs", help="the model folder")
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
    """Trains a segmenter as the flags say, and leaves its folder."""
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

    # Data: images squashed to the square, as the set's are, whatever their proportions
    config = CxrLungSegmenterConfig(args.image_size, hidden_sizes=args.hidden_sizes)
    processor = CxrImageProcessor(args.image_size, geometry="squash")
    with accelerator.main_process_first():
        dataset = load_splits(args)
        decoding = (processor, args.cache_dir, args.max_unreadable)
        splits = decode_masked(dataset, *decoding)
        # The epoch is chosen on images that differ from those of the training as others' do.
        shifted = DatasetDict({"shifted": dataset["validation"]})
        splits |= decode_masked(shifted, *decoding, "shift")
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
    model = CxrLungSegmenter(config)
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
        name: f"{split_digest(split)} {splits[name].masks_digest()}"
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
                images, masks = augment_with_masks(batch["pixels"], batch["masks"], args)
                pixel_values = processor.normalize(images)
                pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
                loss = model(pixel_values, masks).loss
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
        logits = {
            name: predict(evaluated, loaders[name], processor, accelerator)
            for name in ("validation", "shifted")
        }
        masks = torch.from_numpy(splits["validation"].masks[:] / FULL_SCALE).float()
        row = {
            "epoch": epoch + 1,
            "train_loss": progress["loss_sum"] / progress["batch"],
            "validation_loss": segmentation_loss(logits["validation"], masks).item(),
            "validation_dice": dice_of_logits(logits["validation"], splits["validation"]),
            "shifted_dice": dice_of_logits(logits["shifted"], splits["shifted"]),
            "learning_rate": scheduler.get_last_lr()[0],
            "seconds": seconds,
            "images_per_second": (bar.total - images_seen) / seconds,
        }
        logger.info(
            "epoch %(epoch)d: train loss %(train_loss).4f, validation loss %(validation_loss).4f, "
            "validation Dice %(validation_dice).4f, of shifted images %(shifted_dice).4f, "
            "%(images_per_second).0f images/s",
            row,
        )
        progress["history"].append(row)
        if row["shifted_dice"] > progress["best_score"]:
            progress |= {"best_score": row["shifted_dice"], "best_epoch": epoch + 1}
            best = snapshot(evaluated)
        progress |= {"epoch": epoch + 1, "batch": 0, "loss_sum": 0.0}
        save()

    # Evaluation of the best weights as they are stored, matrices and kernels in float16, each image
    # and its mask at their own size; shifted images at the network's
    final = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    final.load_state_dict(best)
    final.load_state_dict(half_state(final))
    logits = {
        name: predict(final, loaders[name], processor, accelerator)
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
            "shifted_dice": dice_of_logits(logits["shifted"], splits["shifted"]),
            "unshifted_dice": dice_of_logits(logits["validation"], splits["validation"]),
        }
        with write_errors(f"the results in {output_dir}"):
            for name in (name for name in ("validation", "test") if name in logits):
                rows = measure_segmentation(logits[name], dataset[name], processor, name)
                write_segmentation(output_dir / f"segmentation_{name}.csv", rows)
                metrics[name] = summarize_segmentation(rows)
            save_half(final, output_dir)
            processor.save_pretrained(output_dir)
            with open(output_dir / "history.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, progress["history"][0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(progress["history"])
            contents = {"metrics": metrics, "training_args": recipe(args), "dataset": summary}
            for name, content in contents.items():
                (output_dir / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
            write_lung_card(output_dir, args.hub_model_id or output_dir.resolve().name)
        last = "validation" if args.skip_test else "test"
        dice = metrics[last]["whole"]["dice"]["value"]
        logger.info("%s Dice %.4f. Written to %s", last.capitalize(), dice, output_dir)
        if args.push_to_hub:
            url = push_run(output_dir, args.hub_model_id, publish_ids=False)
            logger.info("Pushed to %s", url)
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"train_lungs.py: error: {error}")

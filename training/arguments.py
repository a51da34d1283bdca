"""The flags of train.py, from the command line or a YAML file."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import yaml
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from datasets_scripts import PERTURBATIONS, sources
from evaluation.operating_points import RULES
from modeling.configuration_cxr import LOSSES, OPERATION
from modeling.image_processing_cxr import CROPS, MASKS
from modeling.preprocessing_cxr import EQUALIZATIONS, GEOMETRIES
from training.outliers import DETECTORS

MANY = 10**9
RANGES = {
    "max_unreadable": (0, 1),
    "max_train_samples": (2, MANY),
    "max_eval_samples": (2, MANY),
    "image_size": (32, 8192),
    "num_train_epochs": (1, MANY),
    "per_device_train_batch_size": (2, MANY),  # batch normalisation compares images
    "per_device_eval_batch_size": (1, MANY),
    "learning_rate": (0, 10),
    "weight_decay": (0, 10),
    "max_grad_norm": (1e-6, MANY),
    "warmup_ratio": (0, 1),
    "ema_decay": (0, 0.99999),
    "max_rotation": (0, 180),
    "max_scale": (0, 0.9),
    "max_stretch": (0, 1),
    "max_shift": (0, 1),
    "max_contrast": (0, 1),
    "max_blur": (0, 0.9),
    "swap_background": (0, 1),
    "distill_weight": (0, 1),
    "distill_temperature": (0.1, 100),
    "early_stopping_patience": (0, MANY),
    "target_sensitivity": (0, 1),
    "abstain_share": (0, 0.9),
    "seed": (0, 2**31 - 1),
    "checkpointing_steps": (0, MANY),
}
# What comes after the training: a finished run can be resumed with others.
FINAL = {
    *("skip_test", "threshold_rule", "target_sensitivity", "abstain_share"),
    *("operation_variant", "outlier_detector", "half"),
}
# What may differ between a run and its continuation, or says where things are on one machine.
LOCAL = {
    *("config", "cache_dir", "output_dir", "resume_from_checkpoint", "report_to"),
    *(
        "push_to_hub",
        "hub_model_id",
        "hub_private",
        "publish_ids",
        "max_unreadable",
        "checkpointing_steps",
    ),
}
# Fields of the configuration that come from the data and the training; no --model_options.
SET_BY_RUN = {
    *("name", "class_names", "problem_type", "id2label", "label2id"),
    *("age_range", "outlier_threshold"),
    *OPERATION,
}


def option(text: str) -> tuple[str, object]:
    """`key=value` with a YAML value, as `block_config=[2,2]`."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE.")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value  # a regular expression, say


PAIRS = {"nargs": "*", "type": option, "default": [], "metavar": "KEY=VALUE"}


def add_dataset(add: Callable[..., argparse.Action]) -> None:
    """Adds the flags that say what data to read."""
    known = ", ".join(sources())
    add(
        "--dataset",
        nargs="+",
        default="phantom",
        metavar="SET",
        help=f"{known}, a folder, a zip, a CSV, or a Hub id; several become one set",
    )
    add(
        "--dataset_path",
        nargs="+",
        metavar="PATH",
        help="what to read, where --dataset names a source; of several sets one each, in their "
        "order, - for a set that takes none",
    )
    add(
        "--dataset_options",
        help="the source's own, as validation_share=0.2; of several sets, KEY goes to each that "
        "takes it and SOURCE.KEY to one",
        **PAIRS,
    )


def add_operation(add: Callable[..., argparse.Action]) -> None:
    """Adds the flags of `fit_operation`."""
    add("--threshold_rule", choices=RULES, default=RULES[0], help="what the threshold maximises")
    add("--target_sensitivity", type=float, default=0.95, help="for --threshold_rule sensitivity")
    add("--abstain_share", type=float, default=0.1, help="of images left to a human reader")


def settle_dataset(args: argparse.Namespace) -> None:
    """Puts the flags of `add_dataset` as `load_cxr_dataset` takes them: lists for several sets."""
    args.dataset_options = dict(args.dataset_options)
    if args.dataset_path is not None:
        args.dataset_path = [None if path == "-" else path for path in args.dataset_path]
    if not isinstance(args.dataset, str) and len(args.dataset) == 1:
        (args.dataset,) = args.dataset
    if isinstance(args.dataset, str) and args.dataset_path is not None:
        if len(args.dataset_path) > 1:
            raise ValueError(
                f"--dataset_path gives {len(args.dataset_path)} paths for the one set "
                f"{args.dataset}; give one, or name a --dataset for each."
            )
        (args.dataset_path,) = args.dataset_path


def dataset_name(args: argparse.Namespace) -> str:
    """What the data are called: by their paths' last parts, else by --dataset."""
    told = recipe(args)
    names, paths = told["dataset"], told["dataset_path"]
    if isinstance(names, str):
        return paths or names
    return " + ".join(path or name for name, path in zip(names, paths or [None] * len(names)))


def parse_args(argv: list[str]) -> argparse.Namespace:  # noqa: PLR0915 - a list of the flags
    """The flags of train.py; ends the program where one is wrong.

    Raises:
        ValueError: the file of --config is no YAML mapping, or paths are too many.
        OSError: it cannot be read.
    """
    parser = argparse.ArgumentParser(
        description="Train a chest X-ray classifier.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML file of these flags; the command line wins")

    add = parser.add_argument_group("data").add_argument
    add_dataset(add)
    add("--regroup", action="store_true", help="pool the splits and split again by patient")
    add("--max_unreadable", type=float, default=0.01, help="share of damaged images to put up with")
    add("--max_train_samples", type=int, help="train on so many images, the same for every seed")
    add("--max_eval_samples", type=int, help="validate and test on so many images each")
    add("--cache_dir", default="~/.cache/cxr-classification", help="where decoded pixels are kept")

    add = parser.add_argument_group("model").add_argument
    add("--model", default="densenet121", help="baseline, densenet121, a timm name, a folder or id")
    add("--model_options", help="the configuration's own, as block_config=[2,2]", **PAIRS)
    add("--image_size", type=int, help="pixels a side; 224 if the model does not say")
    geometries = (
        "pad keeps all, squash stretches, crop keeps the centre, inner_crop 7/8 of that; pad if no "
        "model says"
    )
    add("--geometry", choices=GEOMETRIES, help=geometries)
    equalizations = "spreads grey levels; as the model says if not given"
    add("--equalize", choices=EQUALIZATIONS, help=equalizations)
    add("--crop", choices=CROPS, help="to the lungs' bounding box; as the model says if not given")
    masks = "all but the lungs set to one grey, or fading to it; as the model says if not given"
    add("--mask", choices=MASKS, help=masks)
    lungs = "folder or id of the lung segmenter for --crop, --mask and --swap_background"
    add("--lungs", metavar="ID", help=lungs)
    add("--no_corrections", action="store_true", help="leave negatives and frames as they are")
    add("--num_channels", type=int, choices=(1, 3), help="1 if the model does not say")
    weights = "start from ImageNet weights: timm's on the Hub, or those in a file or folder"
    add("--pretrained", nargs="?", const=True, default=False, metavar="PATH", help=weights)

    add = parser.add_argument_group("recipe").add_argument
    add("--num_train_epochs", type=int, default=10, help="passes over the training split")
    add("--per_device_train_batch_size", type=int, default=32, help="images")
    add("--per_device_eval_batch_size", type=int, default=64, help="images")
    add("--learning_rate", type=float, default=1e-3, help="peak, after warm-up")
    add("--weight_decay", type=float, default=0.05, help="of kernels and matrices")
    add("--max_grad_norm", type=float, default=1.0, help="gradients are clipped to it")
    add("--warmup_ratio", type=float, default=0.1, help="share of the steps before the cosine")
    add("--loss", choices=LOSSES, default=LOSSES[0], help="focal: Lin et al. 2017")
    add("--class_weights", choices=("none", "balanced"), default="none", help="in the loss")
    add("--label_smoothing", type=float, default=0.0, help="for cross_entropy")
    add("--focal_gamma", type=float, default=2.0, help="focusing exponent")
    add("--focal_alpha", type=float, help="weight of the positive class")
    add("--ema_decay", type=float, default=0.0, help="average the weights; 0 does not")
    add("--max_rotation", type=float, default=10.0, help="augmentation: degrees")
    add("--max_scale", type=float, default=0.15, help="augmentation: share of the size")
    add("--max_stretch", type=float, default=0.0, help="augmentation: width against height")
    add("--max_shift", type=float, default=0.1, help="augmentation: share of the side")
    add("--max_contrast", type=float, default=0.3, help="augmentation: share, gain and gamma")
    add("--max_blur", type=float, default=0.0, help="augmentation: share of the resolution lost")
    swap = "augmentation: share of the images shown with all but the lungs of another"
    add("--swap_background", type=float, default=0.0, help=swap)
    add("--early_stopping_patience", type=int, default=0, help="epochs; 0 never stops early")
    add("--keep", choices=("best", "last"), default="best", help="epoch, by validation AUROC")

    add = parser.add_argument_group("distillation").add_argument
    add("--teacher", nargs="+", default=[], metavar="ID", help="trained folders or Hub ids")
    add("--distill_weight", type=float, default=0.5, help="share of the teachers in the loss")
    add("--distill_temperature", type=float, default=2.0, help="softens teachers and student")

    add = parser.add_argument_group("operating point, fitted on validation").add_argument
    add_operation(add)
    add("--operation_variant", choices=sorted(PERTURBATIONS), help="fit on images so altered")

    add = parser.add_argument_group("what is no chest X-ray").add_argument
    detectors = "teaches the model to refuse other images; none saves its time"
    add("--outlier_detector", choices=("none", *DETECTORS), default="drawn", help=detectors)

    add = parser.add_argument_group("run").add_argument
    add("--half", action="store_true", help="store matrices and kernels as float16")
    add("--skip_test", action="store_true", help="leave the test split alone, as in a search")
    add("--output_dir", default="runs/cxr", help="the model folder")
    add("--seed", type=int, default=42, help="of weights, order and augmentation")
    add("--checkpointing_steps", type=int, default=0, help="0: at the end of each epoch only")
    add("--resume_from_checkpoint", action="store_true", help="go on from output_dir's last one")
    add(
        "--report_to",
        choices=("none", *LoggerType.list()),
        default="none",
        metavar="TRACKER",
        help="tensorboard, wandb, ...",
    )
    add("--push_to_hub", action="store_true", help="needs --hub_model_id and a token")
    add("--hub_model_id", metavar="ORG/NAME", help="the repository to push to")
    add("--hub_private", action="store_true", help="make the repository private")
    add("--publish_ids", action="store_true", help="push ids of images and patients, not hashes")

    args, _ = parser.parse_known_args(argv)
    if args.config:
        argv = yaml_flags(args.config) + argv
    args = parser.parse_args(argv)
    if args.push_to_hub and not args.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id ORG/NAME.")
    if args.keep == "last" and args.early_stopping_patience:
        parser.error("--keep last trains to the last epoch; leave out --early_stopping_patience.")
    if args.report_to not in ("none", *get_available_trackers()):
        parser.error(f"--report_to {args.report_to} needs that package: pip install it first.")
    check_ranges(parser, args, RANGES)
    settle_dataset(args)
    args.model_options = dict(args.model_options)
    for name in args.model_options:
        if hasattr(args, name):
            parser.error(f"--model_options {name}=... has a flag of its own, use --{name}.")
        if name in SET_BY_RUN:
            parser.error(f"--model_options {name}=... is set by the data and the training.")
    return args


def check_ranges(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    ranges: dict[str, tuple[float, float]],
) -> None:
    """Ends the program where a flag that is given lies outside its range, ends included."""
    for name, (low, high) in ranges.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name} is {value}; it lies in {low} to {high}.")


def yaml_flags(path: str) -> list[str]:
    """The flags in a YAML file, as if typed: one check for both.

    Raises:
        ValueError: the file is no YAML mapping.
        OSError: it cannot be read.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no YAML mapping of flags to values.")
    flags = []
    for name, value in content.items():
        if isinstance(value, dict):
            value = [f"{key}={json.dumps(item)}" for key, item in value.items()]
        if value is True:
            flags.append(f"--{name}")
        elif value is not False and value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def recipe(args: argparse.Namespace) -> dict:
    """The arguments that make a run what it is, ready for JSON; paths by their last part alone."""

    def public(value: object) -> object:
        if isinstance(value, list):
            return [public(item) for item in value]
        is_path = isinstance(value, str) and Path(value).expanduser().exists()
        return Path(value).name if is_path else value

    kept = {name: public(value) for name, value in vars(args).items() if name not in LOCAL}
    options = {name: public(value) for name, value in args.dataset_options.items()}
    return {**kept, "dataset_options": options}

"""Export a saved or Hub model: ONNX, OpenVINO or a torch.export program, and how alike it answers.

    python export.py --model runs/mine --format onnx --output_dir exported --dataset chest_xray
    python export.py --model runs/mine --format onnx --int8 ...

The folder holds the exported model, `parity.json`, and code that reads X-rays and answers with it
where neither torch nor transformers is: see `modeling.exported_cxr`.
"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers.dynamic_module_utils import get_relative_import_files

from datasets_scripts import load_cxr_dataset
from exporting.graph import ExportGraph
from exporting.parity import compare, refuse_loss, run_both
from modeling import exported_cxr
from modeling.exported_cxr import load_exported
from prediction.version import model_version
from training.arguments import add_dataset, check_ranges, dataset_name, settle_dataset
from training.data import PixelDataset, decode_splits, versions
from training.subject import Subject

logger = logging.getLogger("export")
# Of each format: the suffix of its file, and the extra of pyproject.toml that it needs.
FORMATS = {"onnx": (".onnx", "onnx"), "openvino": (".xml", "openvino"), "pt2": (".pt2", None)}
INT8 = ("onnx", "openvino")
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
RANGES = {
    "limit": (2, 10**9),
    "max_unreadable": (0, 1),
    "batch_size": (1, 10**6),
    "num_resamples": (0, 10**6),
    "calibration_images": (1, 10**6),
    "max_logit_difference": (0, 10**6),
    "max_auroc_drop": (0, 1),
    "max_changed": (0, 1),
}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The flags of export.py; ends the program where one is wrong.

    Raises:
        ValueError: paths are too many.
    """
    parser = argparse.ArgumentParser(
        description="Export a chest X-ray classifier.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="PATH_OR_ID", help="a saved folder, Hub id or id@commit")
    add("--format", required=True, choices=FORMATS, help="of the exported model")
    add("--output_dir", required=True, help="the folder for it")
    add = parser.add_argument_group("images on which both answer").add_argument
    add_dataset(add)
    add("--split", default="validation", help="of the data set")
    add("--limit", type=int, help="compare on so many images")
    add("--batch_size", type=int, default=16, help="images at a time")
    add("--max_unreadable", type=float, default=0.01, help="share of damaged images to put up with")
    add("--cache_dir", default="~/.cache/cxr-classification", help="where decoded pixels are kept")
    add("--num_resamples", type=int, default=2000, help="of the bootstrap over patients")
    add = parser.add_argument_group("what may be lost").add_argument
    add("--max_logit_difference", type=float, default=1e-3, help="without --int8")
    add("--max_auroc_drop", type=float, default=0.002, help="AUROC")
    add("--max_changed", type=float, default=0.01, help="share of the decisions")
    add = parser.add_argument_group("8-bit integers").add_argument
    add("--int8", action="store_true", help="weights and layers' inputs of 8 bits")
    meaning = "a data set whose --split gives the ranges of int8; if not given, --dataset"
    add("--calibration_data", metavar="NAME_OR_PATH", help=meaning)
    add("--calibration_images", type=int, default=200, help="of them")
    # What `Subject` asks for, too.
    parser.set_defaults(variant=None, ten_crop=False, seed=0)
    args = parser.parse_args(argv)
    check_ranges(parser, args, RANGES)
    if args.int8 and args.format not in INT8:
        parser.error(f"--int8 is for --format {' or '.join(INT8)}, not {args.format}.")
    if args.calibration_data is not None and not args.int8:
        parser.error("--calibration_data is for --int8.")
    settle_dataset(args)
    return args


def find_writer(args: argparse.Namespace) -> Callable:
    """What writes a model: `write(graph, metadata, file, batches)`.

    `batches` are the images of int8, float32 (B, C, H, W), or None without.

    Raises:
        ImportError: the packages of the format are missing.
    """
    try:
        if args.format == "onnx":
            from exporting.to_onnx import write_onnx as write
        elif args.format == "openvino":
            from exporting.to_openvino import write_openvino as write
        else:
            from exporting.to_pt2 import write_pt2 as write
    except ImportError as error:
        extra = FORMATS[args.format][1]
        raise ImportError(
            f"--format {args.format} needs the package {error.name}: pip install -e '.[{extra}]'."
        ) from error
    return write


def choose_images(dataset: DatasetDict, name: str, args: argparse.Namespace) -> Dataset:
    """The split to use, in an order that is chance.

    Args:
        dataset: the whole set.
        name: of it.
        args: of export.py.

    Raises:
        ValueError: it lacks the split.
    """
    if args.split not in dataset:
        raise ValueError(f"{name} has no split {args.split!r}; it has {', '.join(dataset)}.")
    return dataset[args.split].shuffle(seed=args.seed)


def decode_calibration(
    subject: Subject, dataset: DatasetDict, args: argparse.Namespace
) -> PixelDataset:
    """The images of --calibration_data, or of --dataset.

    Raises:
        ValueError: they cannot be used.
        OSError: they cannot be read.
    """
    name = args.calibration_data or dataset_name(args)
    dataset = load_cxr_dataset(args.calibration_data) if args.calibration_data else dataset
    split = choose_images(dataset, name, args)
    # From the end: --limit leaves these out.
    split = split.select(range(max(0, len(split) - args.calibration_images), len(split)))
    splits = DatasetDict({args.split: split})
    decoded = decode_splits(splits, subject.processor, args.cache_dir, args.max_unreadable)
    return decoded[args.split]


def to_batches(subject: Subject, pixels: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """What the network takes of decoded pixels (N, H, W): float32 (B, C, H, W)."""
    for start in range(0, len(pixels), batch_size):
        yield subject.processor.normalize(np.array(pixels[start : start + batch_size])).numpy()


def write_code(folder: Path) -> None:
    """The code that reads X-rays and answers, as a package: `FOLDER.exported_cxr`."""
    own = exported_cxr.__file__
    for file in (own, *get_relative_import_files(own)):
        shutil.copy(file, folder)


def main(argv: list[str]) -> None:
    """Exports a model, compares it, and keeps it if it is still the same."""
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    write = find_writer(args)
    folder = Path(args.output_dir)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name another folder, or remove it.")

    # Model and images
    dataset = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    split = choose_images(dataset, dataset_name(args), args)
    if args.limit is not None:
        split = split.select(range(min(len(split), args.limit)))
    subject = Subject(args.model, args.model, split, args)
    if subject.processor.windowed:
        raise ValueError(
            f"{args.model} has its images cut to the lungs or masked by a network of their own, "
            "which an exported file does not hold; export a model without."
        )
    source = model_version(args.model)
    name = source.split("@")[0].split("/")[-1] + ("-int8" if args.int8 else "")

    # Export
    graph = ExportGraph(subject.model)
    metadata = {
        "cxr_config": subject.model.config.to_json_string(),
        "cxr_preprocessor": subject.processor.to_json_string(),
        "cxr_model": source,
    }
    batches, calibrated = None, None
    if args.int8:
        images = decode_calibration(subject, dataset, args)
        batches = to_batches(subject, images.pixels, args.batch_size)
        judged = np.isin(images.image_ids, subject.pixels.image_ids)
        calibrated = {
            "data": Path(args.calibration_data or dataset_name(args)).name,
            "split": args.split,
            "images": len(images),
            "also_compared": int(judged.sum()),
        }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as draft:
        file = Path(draft) / f"{name}{FORMATS[args.format][0]}"
        write(graph, metadata, file, batches)

        # Parity
        exported, _ = load_exported(file)
        pixels = subject.pixels.pixels
        answers = run_both(subject.model, exported, subject.processor, pixels, args.batch_size)
        parity = {
            "model": source,
            "file": file.name,
            "bytes": sum(path.stat().st_size for path in Path(draft).iterdir()),
            "outputs": graph.outputs,
            "int8": calibrated,
            "data": {"name": dataset_name(args), "split": args.split},
            "num_resamples": args.num_resamples,
            "seed": args.seed,
            "versions": versions(PACKAGES),
        }
        logits = torch.from_numpy(answers[0]["logits"])
        predictions = subject.to_predictions(logits, args.split)
        parity |= compare(predictions, *answers, exported.config, args.num_resamples, args.seed)
        limit = None if args.int8 else args.max_logit_difference
        refuse_loss(parity, limit, args.max_auroc_drop, args.max_changed)
        for path in Path(draft).iterdir():
            shutil.move(path, folder)
    (folder / "parity.json").write_text(json.dumps(parity, indent=2) + "\n")
    write_code(folder)
    difference = parity["largest_difference"]["logits"]
    logger.info(
        "%s: outputs %s; logits differ by up to %.2g, %.1f%% of %d decisions.",
        folder / file.name,
        ", ".join(graph.outputs),
        difference,
        100 * parity["changed"]["value"],
        parity["images"],
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"export.py: error: {error}")

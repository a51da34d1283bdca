"""Measure a lung segmenter on a set with masks, a row an image.

python -m recipes.lungs.measure MODEL OUTPUT.csv --dataset manifest.csv --dataset_options ...
"""

import argparse
import sys
from collections.abc import Sequence

from accelerate import Accelerator
from datasets import DatasetDict

from datasets_scripts import load_cxr_dataset
from evaluation.segmentation import write_segmentation
from modeling import load_segmenter
from training.arguments import add_dataset, settle_dataset
from training.inference import make_loader, predict
from training.lungs import decode_masked, measure_segmentation


def main(argv: Sequence[str]) -> None:
    """Writes the table.

    Raises:
        ValueError: no segmenter, no such split, or images without masks.
        OSError: a file cannot be read or written.
    """
    parser = argparse.ArgumentParser(prog="python -m recipes.lungs.measure", description=__doc__)
    parser.add_argument("model", help="folder or Hub id of a lung segmenter")
    parser.add_argument("output", help="the table, a CSV file")
    add_dataset(parser.add_argument)
    parser.add_argument("--split", default="test", help="which images (default: %(default)s)")
    parser.add_argument("--cache_dir", default="~/.cache/cxr-classification")
    args = parser.parse_args(argv)
    settle_dataset(args)
    model, processor = load_segmenter(args.model)
    dataset = load_cxr_dataset(args.dataset, args.dataset_path, **args.dataset_options)
    if args.split not in dataset:
        raise ValueError(f"{args.dataset} has no {args.split} split; it has {', '.join(dataset)}.")
    part = DatasetDict({args.split: dataset[args.split]})
    decoded = decode_masked(part, processor, args.cache_dir, max_unreadable=0)
    accelerator = Accelerator()
    loader = accelerator.prepare(make_loader(decoded[args.split], 64))
    logits = predict(model.to(accelerator.device), loader, processor, accelerator)
    rows = measure_segmentation(logits, part[args.split], processor, args.split)
    write_segmentation(args.output, rows)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

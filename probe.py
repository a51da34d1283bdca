"""Learn from embeddings: a small head on a network that stays as it is.

    python probe.py --embeddings embeddings --output_dir runs/probe
    python probe.py --embeddings embeddings --zero_shot prompts.yaml --output_dir runs/zero_shot

It leaves predictions_*.csv and metrics.json as train.py does. A logistic head on a model of this
project is put into that model, which is then saved like any other. With prompts nothing is learnt
but the operating point; see embedding/prompts.py.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np
import torch

from embedding.heads import HEADS, Linear
from embedding.prompts import ZeroShot, read_prompts, zero_shot
from embedding.table import Embeddings, read_embeddings
from evaluation.calibration import apply_operation, fit_operation
from evaluation.metrics import compute_metrics, format_metric
from evaluation.predictions import read_predictions, write_predictions, write_text
from modeling import create_model
from modeling.factory import split_commit
from training.arguments import add_operation, check_ranges

logger = logging.getLogger("probe")
RANGES = {
    "max_train_patients": (2, 10**9),
    "target_sensitivity": (0, 1),
    "abstain_share": (0, 0.9),
    "seed": (0, 2**31 - 1),
}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The flags of probe.py; ends the program where one is wrong."""
    parser = argparse.ArgumentParser(
        description="Learn from embeddings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--embeddings", required=True, metavar="DIR", help="a folder that embed.py made")
    either = parser.add_mutually_exclusive_group().add_argument
    either("--head", choices=sorted(HEADS), default="logistic", help="what learns from the vectors")
    either("--zero_shot", metavar="YAML", help="prompts, see embedding/prompts.py")
    add("--output_dir", default="runs/probe", help="the folder of predictions and metrics")
    add("--max_train_patients", type=int, help="learn from so many patients, drawn by --seed")
    add_operation(add)
    add("--seed", type=int, default=42, help="of patients drawn, folds and weights")
    args = parser.parse_args(argv)
    check_ranges(parser, args, RANGES)
    return args


def some_patients(train: Embeddings, count: int | None, seed: int) -> Embeddings:
    """The images of so many patients, drawn at random; all of them for None."""
    patients = np.unique(train.patient_id)
    if count is None or count >= len(patients):
        return train
    drawn = np.random.default_rng(seed).choice(patients, count, replace=False)
    return train.of_patients(drawn)


def prompted(path: str, facts: dict, names: list[str], multi_label: bool) -> ZeroShot:
    """The head that a file of prompts makes.

    Raises:
        ValueError: three classes or more that exclude one another, or see `embedding.prompts`.
        OSError: a file or the encoder cannot be read.
    """
    if not multi_label and len(names) != 2:
        raise ValueError(f"prompts are for findings or two classes; the set has {len(names)}.")
    prompts = read_prompts(path, names if multi_label else names[1:])
    return zero_shot(prompts, pinned(facts), not multi_label)


def pinned(facts: dict) -> str:
    """The encoder as it made the embeddings: a folder, or a Hub id at its commit."""
    if facts["revision"] is None:
        return facts["encoder"]
    return f"{split_commit(facts['encoder'])[0]}@{facts['revision']}"


def save_model(facts: dict, head: Linear, operation: dict, folder: Path) -> None:
    """Puts a linear head into the model that made the embeddings, and saves it.

    Raises:
        OSError: the model is gone.
    """
    task = f"{facts['task']}_classification"
    model, processor = create_model(pinned(facts), facts["classes"], problem_type=task)
    (classifier,) = model.heads
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(head.weight))
        classifier.bias.copy_(torch.from_numpy(head.bias))
    model.config.set_operation(operation)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main(argv: list[str]) -> None:
    """Fits the head, fits the operating point on validation, scores both splits."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    folder = Path(args.output_dir)
    if (folder / "metrics.json").exists():
        raise ValueError(f"{folder} holds a run already; name another --output_dir.")
    facts, splits = read_embeddings(args.embeddings)
    learnt = [] if args.zero_shot else ["train"]
    if missing := [name for name in (*learnt, "validation", "test") if name not in splits]:
        raise ValueError(f"{args.embeddings} has no {missing[0]} split; embed a set that has one.")
    multi_label, names = facts["task"] == "multi_label", list(facts["classes"])
    metrics = {"encoder": facts["encoder"], "revision": facts["revision"]}
    if args.zero_shot:
        metrics |= {"head": "zero_shot", "prompts": Path(args.zero_shot).read_text("utf-8")}
        head = prompted(args.zero_shot, facts, names, multi_label)
    else:
        train = some_patients(splits["train"], args.max_train_patients, args.seed)
        metrics |= {"head": args.head, "images": len(train.image_id)}
        metrics |= {"patients": len(np.unique(train.patient_id))}
        head = HEADS[args.head](train, names, multi_label, args.seed)
    folder.mkdir(parents=True, exist_ok=True)
    read = {}
    for name in ("validation", "test"):
        split, path = splits[name], folder / f"predictions_{name}.csv"
        labels = split.labels.astype(np.float32)
        labels[split.unknown] = np.nan
        write_predictions(
            path,
            split.image_id,
            split.patient_id,
            labels if multi_label else split.labels.argmax(1),
            head(split.vectors),
            names,
            name,
            multi_label,
        )
        read[name] = read_predictions(path)
    operation = fit_operation(
        read["validation"], args.threshold_rule, args.target_sensitivity, args.abstain_share
    )
    for name, raw in read.items():
        metrics[name] = compute_metrics(apply_operation(raw, operation), seed=args.seed)
        metrics[f"uncalibrated_{name}"] = compute_metrics(raw, seed=args.seed)
    if isinstance(head, Linear) and facts["own"]:
        save_model(facts, head, operation, folder)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    logger.info("Test AUROC %s. Written to %s", format_metric(metrics["test"]["auroc"]), folder)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f"probe.py: error: {error}")

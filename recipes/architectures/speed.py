"""Parameters, multiplications and images a second of models, taken in turns in one process.

    python -m recipes.architectures.speed results/architectures MODEL [MODEL ...]

A model's other seeds are the same network: of MODEL-SEED folders one a name is measured. RESULTS
gets speed.json. Beside other work the figures are too low, but alike: read their ratios.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from evaluation.predictions import write_text
from modeling import load_model
from modeling.modeling_cxr import CxrClassifier

ROUNDS = 5
BATCH = 32


def count_macs(model: CxrClassifier, pixel_values: torch.Tensor) -> int:
    """Multiplications with addition of one image's forward pass, each two counted flops."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values[:1])
    return counter.get_total_flops() // 2


def train_step(model: CxrClassifier, pixel_values: torch.Tensor) -> None:
    """Forward and backward."""
    model.train()
    labels = torch.zeros(len(pixel_values), dtype=torch.long)
    model(pixel_values, labels=labels).loss.backward()
    model.zero_grad()


@torch.no_grad()
def predict_step(model: CxrClassifier, pixel_values: torch.Tensor) -> None:
    """Forward alone."""
    model.eval()(pixel_values)


def measure(folders: dict[str, str]) -> dict[str, dict]:
    """By name `parameters`, `macs`, and the median images a second of `train` and `predict`."""
    models, found, seconds = {}, {}, {}
    for name, folder in folders.items():
        model, processor = load_model(folder)
        channels, side = processor.num_channels, processor.size["height"]
        pixel_values = torch.rand(BATCH, channels, side, side)
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)
        models[name] = model, pixel_values
        found[name] = {
            "parameters": sum(weight.numel() for weight in model.network.parameters()),
            "macs": count_macs(model, pixel_values),
        }
        seconds[name] = {"train": [], "predict": []}
    for number in tqdm(range(ROUNDS + 1), desc="rounds"):
        for name, (model, pixel_values) in models.items():
            for kind, step in (("train", train_step), ("predict", predict_step)):
                since = time.perf_counter()
                step(model, pixel_values)
                if number:  # the first round warms up
                    seconds[name][kind].append(time.perf_counter() - since)
    for name, kinds in seconds.items():
        found[name] |= {kind: BATCH / statistics.median(times) for kind, times in kinds.items()}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder for speed.json")
    parser.add_argument("models", nargs="+", help="folders of train.py, named MODEL-SEED")
    options = parser.parse_args()
    try:
        named = {Path(model).name.rpartition("-")[0]: model for model in reversed(options.models)}
        measured = {"threads": torch.get_num_threads(), "models": measure(named)}
        write_text(options.results / "speed.json", json.dumps(measured, indent=2) + "\n")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")

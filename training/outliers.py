"""The outlier detector of a trained model, fitted on the training images and on drawn outliers.

`train.py` fits it at the end of a run; `python -m training.outliers MODEL --dataset SET` anew.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import tqdm

from datasets_scripts import age_range, load_cxr_dataset
from modeling import CxrImageProcessor, load_model
from modeling.image_cxr import FULL_SCALE
from modeling.outlier_cxr import OutlierDetector, shrink
from training.augmentation import augment
from training.data import decode_splits
from training.half import save_half
from training.outlier_images import draw_outliers

MAX_OUTLIERS = 10_000
EPOCHS = 10  # over the training images, and as many drawn outliers
BATCH_SIZE = 64  # of X-rays, and as many outliers
LEARNING_RATE = 4e-3
QUANTILE = 0.99  # of the altered validation images passes
# Far more than a classifier is trained with: an adult, another machine or a bad exposure is still
# a chest X-ray.
VARIETY = argparse.Namespace(
    max_rotation=15, max_scale=0.25, max_stretch=0, max_shift=0.12, max_contrast=0.8, max_blur=0
)
LEAST_CROP = 0.7  # of the height and of the width, each its own: other shapes of chest
MOST_VEIL = 0.8  # of white over one side of the image: the thick abdomen of an adult


def fit_outlier_detector(
    train: np.ndarray, validation: np.ndarray, processor: CxrImageProcessor, seed: int
) -> tuple[OutlierDetector, float]:
    """Teaches a detector, and sets the score above which an image is refused.

    Args:
        train, validation: uint16 (N, H, W), decoded X-rays.
        processor: makes `pixel_values` of them, as for the model.

    Returns:
        The detector, in evaluation mode, and its threshold: the score that 99 % of the validation
        images stay below when they are altered like half of the training images.
    """
    torch.manual_seed(seed)
    count = min(len(train), MAX_OUTLIERS)
    outliers = torch.from_numpy(draw_outliers(train, count, seed))
    detector = OutlierDetector()
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=0.05)
    steps = EPOCHS * math.ceil(len(train) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    labels = torch.arange(2).repeat_interleave(BATCH_SIZE).float()
    for _ in tqdm(range(steps), desc="outlier detector", unit="step", leave=False):
        xrays = torch.from_numpy(train[np.sort(_sample(len(train)))])
        others = outliers[_sample(len(outliers))].float() / FULL_SCALE
        half = BATCH_SIZE // 2
        parts = xrays[:half].float() / FULL_SCALE, _vary(xrays[half:]), others
        scores = detector(torch.cat([shrink(processor.normalize(part)) for part in parts]))
        loss = F.binary_cross_entropy_with_logits(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    detector.eval()
    with torch.no_grad():
        batches = torch.from_numpy(np.array(validation)).split(BATCH_SIZE)
        scores = torch.cat([detector(processor.normalize(_vary(batch))) for batch in batches])
    return detector, scores.quantile(QUANTILE).item()


def _sample(count):
    return torch.randint(count, (BATCH_SIZE,)).numpy()


def _vary(pixels):
    """float (B, h, w) in [0, 1]: an anisotropic crop, `augment`, and a veil that fades across."""
    height, width = pixels.shape[1:]
    rows, columns = (
        slice(first, first + length)
        for first, length in (_random_part(height), _random_part(width))
    )
    pixels = augment(pixels[:, rows, columns], VARIETY)
    ramps = (torch.linspace(-1, 1, length) for length in pixels.shape[1:])
    y, x = torch.meshgrid(*ramps, indexing="ij")
    slope_x, slope_y, offset = torch.randn(3, len(pixels), 1, 1)
    veil = (0.5 * slope_x * x + slope_y.abs() * y + offset - 0.5).clamp(0, MOST_VEIL)
    return pixels + veil * (1 - pixels)


def _random_part(length):
    kept = int(length * (LEAST_CROP + (1 - LEAST_CROP) * torch.rand(())))
    return int(torch.randint(length - kept + 1, ())), kept


def main(args: argparse.Namespace) -> None:
    """Gives a finished model what train.py gives a new one: a detector and an age range."""
    folder = Path(args.model)
    model, processor = load_model(args.model)
    stored = json.loads((folder / "training_args.json").read_text())
    dataset = load_cxr_dataset(args.dataset)
    splits = decode_splits(dataset, processor, args.cache_dir, max_unreadable=0)
    detector, threshold = fit_outlier_detector(
        splits["train"].pixels, splits["validation"].pixels, processor, stored["seed"]
    )
    model.set_outlier_detector(detector, threshold)
    model.config.age_range = age_range(dataset["train"])
    save_half(model, folder) if stored["half"] else model.save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="folder that train.py wrote; it is changed in place")
    parser.add_argument("--dataset", required=True, help="what the model was trained on")
    parser.add_argument(
        "--cache_dir", default="~/.cache/cxr-classification", help="where decoded pixels are kept"
    )
    try:
        main(parser.parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

"""The outlier detector of a trained model, fitted on its training images and on drawn outliers."""

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import tqdm

from modeling import CxrImageProcessor
from modeling.image_cxr import FULL_SCALE
from modeling.outlier_cxr import OutlierDetector, shrink
from training.augmentation import augment
from training.outlier_images import draw_outliers

# The budget. Each X-ray is shown so often: of a small set, whose training is short, little, so that
# the detector costs less than a tenth of the cheapest classifier; more from there to MAX_XRAYS, as
# much as detects no worse than ten times, for all and as many outliers, did.
LEAST_SHOWN, MOST_SHOWN = 1.5, 4
MAX_XRAYS = 5_000  # a larger set costs no more
DRAWN_SHARE = 1 / 8  # of the X-rays shown: to draw an outlier costs more than to learn from it
MAX_VALIDATION = 1_000  # images that set the threshold
BATCH_SIZE = 32  # of X-rays, and as many outliers
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
        train: uint16 (N, H, W), decoded X-rays; of a large set a part is used.
        validation: likewise.
        processor: makes `pixel_values` of them, as for the model.
        seed: of weights, order, alterations and drawn outliers.

    Returns:
        The detector, in evaluation mode on the CPU, and its threshold: the score that 99 % of the
        validation images stay below when they are altered like half of the training images.
    """
    torch.manual_seed(seed)
    count = min(len(train), MAX_XRAYS)
    shown = max(LEAST_SHOWN, MOST_SHOWN * count / MAX_XRAYS) * count
    steps = math.ceil(shown / BATCH_SIZE)
    outliers = torch.from_numpy(draw_outliers(train, math.ceil(DRAWN_SHARE * shown), seed))
    detector = OutlierDetector().to(memory_format=torch.channels_last)  # a quarter faster on CPUs
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    labels = torch.arange(2).repeat_interleave(BATCH_SIZE).float()
    for _ in tqdm(range(steps), desc="outlier detector", unit="step", leave=False):
        xrays = torch.from_numpy(train[np.sort(_sample(len(train)))])
        others = outliers[_sample(len(outliers))].float() / FULL_SCALE
        # Every other one: as they are sorted, one half would be of other patients.
        parts = xrays[::2].float() / FULL_SCALE, _vary(xrays[1::2]), others
        scores = detector(torch.cat([shrink(processor.normalize(part)) for part in parts]))
        loss = F.binary_cross_entropy_with_logits(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    detector.eval().to(memory_format=torch.contiguous_format)
    known = torch.randperm(len(validation))[:MAX_VALIDATION].sort().values.numpy()
    with torch.no_grad():
        batches = torch.from_numpy(validation[known]).split(BATCH_SIZE)
        scores = torch.cat([detector(processor.normalize(_vary(batch))) for batch in batches])
    return detector, scores.quantile(QUANTILE).item()


DETECTORS = {"drawn": fit_outlier_detector}  # the choices of --outlier_detector, beside none


def _sample(count: int) -> np.ndarray:
    return torch.randint(count, (BATCH_SIZE,)).numpy()


def _vary(pixels: torch.Tensor) -> torch.Tensor:
    """An anisotropic crop, `augment`, and a veil that fades across: float (B, h, w) in [0, 1]."""
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


def _random_part(length: int) -> tuple[int, int]:
    kept = int(length * (LEAST_CROP + (1 - LEAST_CROP) * torch.rand(())))
    return int(torch.randint(length - kept + 1, ())), kept

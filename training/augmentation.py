"""What may happen to an X-ray in training."""

import argparse
import math

import torch
import torch.nn.functional as F

from modeling.image_cxr import FULL_SCALE


def augment(images: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    """Small rotation, scale, stretch, shift, contrast, gamma and loss of resolution.

    No flip, as it would move the heart.

    Args:
        images: (B, H, W), uint16 at full scale or floats in [0, 1].
        args: the limits, see train.py: `max_rotation`, `max_scale`, `max_stretch`, `max_shift`,
            `max_contrast` and `max_blur`.

    Returns:
        float32 (B, H, W) in [0, 1]; what moves in is black.
    """

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(len(images), device=images.device) * 2 - 1) * limit

    if images.dtype == torch.uint16:
        images = images.float() / FULL_SCALE
    angle, scale = uniform(math.radians(args.max_rotation)), 1 + uniform(args.max_scale)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    shift_x, shift_y = uniform(2 * args.max_shift), uniform(2 * args.max_shift)
    wide, high = 1, 1
    if args.max_stretch:  # the area stays
        wide = uniform(math.log1p(args.max_stretch) / 2).exp()
        high = 1 / wide
    rows = [
        torch.stack((cosine * wide, -sine * high, shift_x), 1),
        torch.stack((sine * wide, cosine * high, shift_y), 1),
    ]
    shape = (len(images), 1, *images.shape[1:])
    grid = F.affine_grid(torch.stack(rows, 1), shape, align_corners=False)
    images = F.grid_sample(images[:, None], grid, align_corners=False)
    if args.max_blur:  # one resolution a batch
        coarse = [round(side * (1 - args.max_blur * torch.rand(()).item())) for side in shape[2:]]
        images = F.interpolate(images, coarse, mode="bilinear", antialias=True)
        images = F.interpolate(images, shape[2:], mode="bilinear")
    images = images[:, 0]
    gain, gamma = 1 + uniform(args.max_contrast), uniform(args.max_contrast).exp()
    mean = images.mean((1, 2), keepdim=True)
    images = ((images - mean) * gain[:, None, None] + mean).clamp(0, 1)
    return images ** gamma[:, None, None]

"""What may happen to an X-ray in training."""

import argparse
import math

import torch
import torch.nn.functional as F

from modeling.image_processing_cxr import FULL_SCALE


def augment(images: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    """Small rotation, scale, shift, contrast and gamma; no flip, as it would move the heart.

    Args:
        images: uint16 (B, H, W), full scale 0..65535.

    Returns:
        float32 (B, H, W) in [0, 1]; what moves in is black.
    """

    def uniform(limit):
        return (torch.rand(len(images), device=images.device) * 2 - 1) * limit

    images = images.float() / FULL_SCALE
    angle, scale = uniform(math.radians(args.max_rotation)), 1 + uniform(args.max_scale)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    shift_x, shift_y = uniform(2 * args.max_shift), uniform(2 * args.max_shift)
    rows = [torch.stack(row, 1) for row in ((cosine, -sine, shift_x), (sine, cosine, shift_y))]
    shape = (len(images), 1, *images.shape[1:])
    grid = F.affine_grid(torch.stack(rows, 1), shape, align_corners=False)
    images = F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
    gain, gamma = 1 + uniform(args.max_contrast), uniform(args.max_contrast).exp()
    mean = images.mean((1, 2), keepdim=True)
    images = ((images - mean) * gain[:, None, None] + mean).clamp(0, 1)
    return images ** gamma[:, None, None]

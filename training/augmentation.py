"""What may happen to an X-ray in training."""

import argparse
import math

import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from modeling.image_cxr import FULL_SCALE
from modeling.lungs_cxr import LEAST_SURE, LungFinder


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
    return _vary(_move(images, _random_grid(images, args)), args)


def augment_with_masks(
    images: torch.Tensor, masks: torch.Tensor, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """`augment`, the masks moved as their images are, and the images shaded and made noisy.

    Args:
        images: see `augment`.
        masks: (B, H, W), likewise.
        args: those of `augment`, and `max_shading`, the deviation of a smooth field whose
            exponential is the gamma of each pixel, and `max_noise`, a deviation in units of full
            scale; see train_lungs.py.

    Returns:
        Both as float32 (B, H, W) in [0, 1].
    """
    grid = _random_grid(images, args)
    masks, images = _move(masks, grid), _vary(_move(images, grid), args)
    field = torch.randn(len(images), 1, 4, 4, device=images.device) * args.max_shading
    field = F.interpolate(field, images.shape[1:], mode="bicubic")[:, 0]
    noise = torch.rand(len(images), 1, 1, device=images.device) * args.max_noise
    images = images ** field.exp() + noise * torch.randn_like(images)
    return images.clamp(0, 1), masks


def swap_backgrounds(images: torch.Tensor, finder: LungFinder, share: float) -> torch.Tensor:
    """Lungs on other images' backgrounds, so that backgrounds tell nothing.

    An image in which no lungs are found stays as it is.

    Args:
        images: (B, H, W), uint16 at full scale or floats in [0, 1], not augmented yet.
        finder: says where the lungs are.
        share: of the images that get another background, in [0, 1].

    Returns:
        float32 (B, H, W) in [0, 1].
    """
    images = _to_floats(images)
    size = tuple(finder.processor.size.values())
    seen = F.interpolate(images[:, None], size, mode="bilinear", antialias=True)[:, 0]
    seen = finder.processor.normalize(seen).to(finder.segmenter.device)
    sure = finder.segmenter.segment(seen).to(images.device)
    inside = sure > 0.5
    certain = (sure * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1) >= LEAST_SURE
    sure = F.interpolate(sure[:, None], images.shape[1:], mode="bilinear", antialias=True)[:, 0]
    others = images[torch.randperm(len(images))]
    swapped = (torch.rand(len(images), device=images.device) < share) & certain
    return torch.where(swapped[:, None, None], others + sure * (images - others), images)


def augment_with_boxes(
    images: torch.Tensor,
    targets: list[dict[str, torch.Tensor]],
    min_side: float,
    args: argparse.Namespace,
) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Rotation, scale and shift by torchvision, which moves boxes with their images; then `_vary`.

    A box around a turned box is larger than one around the turned finding: large angles teach
    boxes that are too large.

    Args:
        images: see `augment`.
        targets: of each image `boxes`, float (n, 4), left, top, right, bottom in pixels, and
            `class_labels`, int64 (n,).
        min_side: a box of which less is left in the image is left out, pixels.
        args: the limits, see train_detector.py: those of `augment` but `max_stretch`.

    Returns:
        float32 (B, H, W) in [0, 1], what moves in being black; and the targets.
    """
    images = _to_floats(images)
    move = v2.Compose(
        [
            v2.RandomAffine(
                args.max_rotation,
                (args.max_shift, args.max_shift),
                (1 - args.max_scale, 1 + args.max_scale),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            v2.SanitizeBoundingBoxes(min_side, labels_getter=lambda pair: pair[1]["class_labels"]),
        ]
    )
    moved = []
    for image, target in zip(images, targets):
        boxes = tv_tensors.BoundingBoxes(
            target["boxes"], format="XYXY", canvas_size=tuple(image.shape)
        )
        moved.append(move((tv_tensors.Image(image[None]), {**target, "boxes": boxes})))
    images = torch.cat([image.as_subclass(torch.Tensor) for image, _ in moved])
    targets = [
        {name: value.as_subclass(torch.Tensor) for name, value in target.items()}
        for _, target in moved
    ]
    return _vary(images, args), targets


def _to_floats(images: torch.Tensor) -> torch.Tensor:
    """uint16 at full scale as floats in [0, 1]; floats as they are."""
    return images.float() / FULL_SCALE if images.dtype == torch.uint16 else images


def _uniform(limit: float, images: torch.Tensor) -> torch.Tensor:
    return (torch.rand(len(images), device=images.device) * 2 - 1) * limit


def _random_grid(images: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    """Where each pixel comes from: float (B, H, W, 2)."""
    angle = _uniform(math.radians(args.max_rotation), images)
    scale = 1 + _uniform(args.max_scale, images)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    shift_x, shift_y = (_uniform(2 * args.max_shift, images) for _ in range(2))
    wide, high = 1, 1
    if args.max_stretch:  # the area stays
        wide = _uniform(math.log1p(args.max_stretch) / 2, images).exp()
        high = 1 / wide
    rows = [
        torch.stack((cosine * wide, -sine * high, shift_x), 1),
        torch.stack((sine * wide, cosine * high, shift_y), 1),
    ]
    shape = (len(images), 1, *images.shape[1:])
    return F.affine_grid(torch.stack(rows, 1), shape, align_corners=False)


def _move(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(_to_floats(images)[:, None], grid, align_corners=False)[:, 0]


def _vary(images: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    """Loss of resolution, contrast and gamma."""
    if args.max_blur:  # one resolution a batch
        sides = images.shape[1:]
        coarse = [round(side * (1 - args.max_blur * torch.rand(()).item())) for side in sides]
        images = F.interpolate(images[:, None], coarse, mode="bilinear", antialias=True)
        images = F.interpolate(images, sides, mode="bilinear")[:, 0]
    gain = 1 + _uniform(args.max_contrast, images)
    gamma = _uniform(args.max_contrast, images).exp()
    mean = images.mean((1, 2), keepdim=True)
    images = ((images - mean) * gain[:, None, None] + mean).clamp(0, 1)
    return images ** gamma[:, None, None]

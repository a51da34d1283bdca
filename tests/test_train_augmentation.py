"""What augmentation may do to an X-ray, on images where it can be seen."""

import argparse

import pytest
import torch

from training.augmentation import augment, augment_with_masks

NONE = dict.fromkeys(("rotation", "scale", "stretch", "shift", "contrast", "blur"), 0.0)


def augmented(images, seed=0, **limits):
    torch.manual_seed(seed)
    limits = {f"max_{name}": value for name, value in {**NONE, **limits}.items()}
    return augment(images, argparse.Namespace(**limits))


def disc(count=40, side=64, radius=16):
    axis = torch.arange(side) - (side - 1) / 2
    disc = ((axis[:, None] ** 2 + axis**2).sqrt() < radius).float()
    return disc.expand(count, side, side).contiguous()


def extents(images):
    """Height and width of what is bright, pixels, each (N,)."""
    bright = images > 0.5
    return bright.any(2).sum(1).float(), bright.any(1).sum(1).float()


def test_no_limits_leave_images_as_they_are():
    stored = torch.randint(0, 65536, (3, 64, 64)).to(torch.uint16)
    torch.testing.assert_close(augmented(stored), stored.float() / 65535, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NONE)
def test_every_limit_alters_and_depends_on_the_seed_alone(name):
    images = torch.rand(4, 64, 64)
    once = augmented(images, **{name: 0.5})
    assert once.dtype == torch.float32 and once.shape == images.shape
    assert once.min() >= 0 and once.max() <= 1
    torch.testing.assert_close(once, augmented(images, **{name: 0.5}), atol=0, rtol=0)
    for other in (images, augmented(images, seed=1, **{name: 0.5})):
        assert (once - other).abs().mean() > 0.001


def test_stretch_changes_proportions_and_keeps_the_area():
    high, wide = extents(augmented(disc(), stretch=0.5))
    ratios = wide / high
    assert ratios.min() > 0.6 and ratios.max() < 1.6  # 1 / 1.5 to 1.5, within a pixel's rounding
    assert ratios.min() < 0.8 and ratios.max() > 1.25
    torch.testing.assert_close((high * wide).sqrt(), torch.full((40,), 32.0), atol=1.5, rtol=0)


def test_blur_loses_detail_and_keeps_what_is_large():
    axis = torch.arange(64) // 3
    checks = (axis[:, None] + axis).remainder(2).float().expand(8, 64, 64)
    deviations = torch.stack([augmented(checks, seed, blur=0.9).std() for seed in range(8)])
    assert deviations.min() < 0.05 and deviations.max() > 0.2  # the loss is drawn for each batch
    kept = augmented(disc(8), blur=0.9)
    torch.testing.assert_close(kept.mean((1, 2)), disc(8).mean((1, 2)), atol=0.02, rtol=0)


def test_masks_follow_their_images():
    limits = {"rotation": 20, "scale": 0.3, "stretch": 0.3, "shift": 0.2, "blur": 0}
    limits |= {"contrast": 0, "shading": 0, "noise": 0}
    args = argparse.Namespace(**{f"max_{name}": value for name, value in limits.items()})
    stored = (disc(8, radius=10).roll(9, 2) * 65535).to(torch.uint16)
    torch.manual_seed(0)
    images, masks = augment_with_masks(stored, stored, args)
    torch.testing.assert_close(images, masks, atol=1e-6, rtol=0)
    assert (masks - disc(8, radius=10).roll(9, 2)).abs().mean((1, 2)).min() > 0.005


@pytest.mark.parametrize("name", ["blur", "contrast", "shading", "noise"])
def test_masks_are_spared_what_alters_greys(name):
    limits = dict.fromkeys((*NONE, "shading", "noise"), 0.0) | {name: 0.5}
    args = argparse.Namespace(**{f"max_{key}": value for key, value in limits.items()})
    images, masks = torch.rand(4, 64, 64), disc(4)
    torch.manual_seed(0)
    altered, same = augment_with_masks(images, masks, args)
    torch.testing.assert_close(same, masks, atol=1e-5, rtol=0)
    assert (altered - images).abs().mean() > 0.01
    assert altered.min() >= 0 and altered.max() <= 1


def test_shading_is_smooth_and_differs_between_places():
    limits = dict.fromkeys((*NONE, "noise"), 0.0) | {"shading": 0.5}
    args = argparse.Namespace(**{f"max_{key}": value for key, value in limits.items()})
    torch.manual_seed(0)
    altered, _ = augment_with_masks(torch.full((4, 64, 64), 0.5), disc(4), args)
    assert altered.std((1, 2)).min() > 0.02
    assert altered.diff(dim=1).abs().max() < 0.1

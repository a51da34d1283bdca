"""Is this a chest X-ray at all? A small network beside the classifier, taught by outlier exposure.

Hendrycks, Mazeika and Dietterich 2019: a detector that has seen training images beside many
unrelated ones tells images of neither kind apart. Here the unrelated images are drawn by a program.
"""

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 64
WIDTHS = (16, 32, 64, 64)


def shrink(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, C, 64, 64), each pixel the mean of those it covers."""
    return F.interpolate(images, (SIZE, SIZE), mode="area")


class OutlierDetector(nn.Module):
    """Four strided convolutions on a small copy of the image: 61,425 parameters."""

    def __init__(self) -> None:
        super().__init__()
        blocks, channels = [], 1
        for width in WIDTHS:
            blocks += [
                nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        side = SIZE // 2 ** len(WIDTHS)
        self.network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels * side**2, 1))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """How unlike the training images: a log-odds, above 0 more like what is none of them.

        Args:
            pixel_values: float (B, C, H, W), as the image processor gives them; brightness and,
                but for flat images, contrast make little difference.

        Returns:
            float (B,).
        """
        dtype = self.network[0].weight.dtype  # the classifier's own, which may be half precision
        grey = shrink(pixel_values.float().mean(1, keepdim=True))
        deviation, mean = torch.std_mean(grey, (2, 3), keepdim=True)
        return self.network(((grey - mean) / (deviation + 0.1)).to(dtype))[:, 0]

"""The lungs as a classifier's window: images cut to them, or left with nothing else."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.ndimage import maximum_filter

from .image_cxr import MIN_SIDE, CxrImage
from .sandbox_cxr import Sandbox
from .segmentation_cxr import CxrLungSegmenter, CxrLungSegmenterConfig

LUNGS_FILE = "lungs.safetensors"
MARGIN = 0.05  # of the image's sides, around the lungs' bounding box
DILATION = 0.02  # of the longer side; outlines lie in the lungs' own border
# Mean over what is found: blank images, ramps and noise stay below, nearly all X-rays are above.
LEAST_SURE = 0.9
NO_LUNGS = "No lungs were found in the image, so the model was shown all of it."


class LungFinder:
    """A segmenter with its image processor, in one file beside the settings of another processor.

    Args:
        segmenter: finds the lungs.
        processor: the segmenter's own.
    """

    def __init__(self, segmenter: CxrLungSegmenter, processor: Any) -> None:
        self.segmenter, self.processor = segmenter.eval().requires_grad_(False), processor
        for weight in segmenter.parameters():
            if weight.ndim > 1:  # so that what trains sees what is saved
                weight.data = weight.data.half().to(weight.dtype)

    @classmethod
    def load(cls, file: str | Path, processor_class: type) -> "LungFinder":
        """What `save` wrote.

        Args:
            file: its path.
            processor_class: of the segmenter's image processor.

        Raises:
            OSError, ValueError, safetensors.SafetensorError: the file is missing or damaged.
        """
        with safe_open(file, "pt") as stored:
            told = {name: json.loads(text) for name, text in stored.metadata().items()}
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        segmenter = CxrLungSegmenter(CxrLungSegmenterConfig.from_dict(told["config"]))
        segmenter.load_state_dict(weights)
        return cls(segmenter, processor_class.from_dict(told["processor"]))

    def save(self, file: str | Path) -> None:
        """Weights, kernels in float16, with both configurations as metadata."""
        weights = {
            name: (value.half() if value.ndim > 1 else value).contiguous()
            for name, value in self.segmenter.state_dict().items()
        }
        told = {"config": self.segmenter.config, "processor": self.processor}
        save_file(weights, file, {name: json.dumps(own.to_dict()) for name, own in told.items()})

    def digest(self) -> str:
        """A hash of all that decides what is found."""
        told = (self.segmenter.config.to_dict(), self.processor.to_dict())
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for value in self.segmenter.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def find(self, pixels: np.ndarray) -> np.ndarray:
        """How sure the segmenter is of each pixel: the two largest parts above 0.5, else 0.

        Args:
            pixels: uint16 (h, w).

        Returns:
            float32 (h, w) in [0, 1]; zeros where what is found is too unsure to be lungs.
        """
        seen = self.processor.normalize(self.processor.prepare(pixels)[None])
        found = self.segmenter.segment(seen.to(self.segmenter.device), largest=2)[0]
        inside = found > 0.5
        if not inside.any() or found[inside].mean() < LEAST_SURE:
            return np.zeros(pixels.shape, np.float32)
        return self.processor.restore(found, *pixels.shape)


def crop_to(image: CxrImage, lungs: np.ndarray) -> CxrImage:
    """The bounding box of the lungs, with a margin of 5 % of each side.

    Args:
        image: as read.
        lungs: bool (h, w), some of them True.
    """
    bounds = []
    for axis, side in ((1, lungs.shape[0]), (0, lungs.shape[1])):
        inside = np.flatnonzero(lungs.any(axis))
        margin = round(MARGIN * side)
        low, high = max(0, inside[0] - margin), min(side, inside[-1] + 1 + margin)
        if high - low < MIN_SIDE:
            low = min(low, side - MIN_SIDE)
            high = low + MIN_SIDE
        bounds.append((int(low), int(high)))
    (top, bottom), (left, right) = bounds
    height, width = image.pixels.shape
    cut = (top, left, height - bottom, width - right)
    margins = tuple(before + more for before, more in zip(image.margins, cut))
    return image._replace(pixels=image.pixels[top:bottom, left:right], margins=margins)


def mask_by(image: CxrImage, sure: np.ndarray, mask: str) -> CxrImage:
    """All but the lungs at the lungs' mean brightness.

    Args:
        image: as read.
        sure: float (h, w) in [0, 1], above 0.5 somewhere.
        mask: "lungs" keeps what is above 0.5, grown by 2 % of the longer side; "soft" fades by how
            sure the segmenter is.
    """
    if mask == "lungs":
        grown = 2 * round(DILATION * max(sure.shape)) + 1
        sure = maximum_filter(sure > 0.5, grown).astype(np.float32)
    mean = np.average(image.pixels, weights=sure)
    faded = mean + sure * (image.pixels - np.float32(mean))
    return image._replace(pixels=faded.round().astype(np.uint16))


class FocusedSandbox:
    """A sandbox whose images a processor has focused on the lungs."""

    def __init__(self, sandbox: Sandbox, processor: Any) -> None:
        self.sandbox, self.processor, self.limits = sandbox, processor, sandbox.limits

    def open(self, *args: Any, **kwargs: Any) -> CxrImage:
        """`Sandbox.open`, then `CxrImageProcessor.focus`."""
        return self.processor.focus(self.sandbox.open(*args, **kwargs))[0]

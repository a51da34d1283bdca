"""What an image processor's settings do to a file; needs neither torch nor transformers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .image_cxr import CxrImage
from .overlay_cxr import heat_layer, overlay
from .preprocessing_cxr import equalize, resize, restore
from .reading_cxr import ImageSource, open_image
from .sandbox_cxr import Sandbox, shared_sandbox


class CxrPreparation:
    """Reads, resizes and normalises by the settings of `CxrImageProcessor`, and back.

    Attributes:
        size, geometry, correct, equalize, image_mean, image_std: see `CxrImageProcessor`.
    """

    size: dict[str, int]
    geometry: str
    correct: bool
    # Of the class, so that settings without it do not name it.
    equalize: dict[str, Any] | None = None
    image_mean: list[float]
    image_std: list[float]

    def open(self, image: ImageSource) -> CxrImage:
        """Reads the grey image at its own size: `reading_cxr.open_image`."""
        return open_image(image, self.correct)

    def sandbox(self) -> Sandbox:
        """What reads files as `open` does, in processes with limits of time and memory."""
        return shared_sandbox(self.correct)

    def prepare(self, pixels: np.ndarray, shape: tuple[float, float] | None = None) -> np.ndarray:
        """`resize`, then equalized: the image as `normalize` takes it, uint16 (H, W).

        What was resized before may be given, what was equalized before may not.
        """
        resized = self.resize(pixels, shape)
        return resized if self.equalize is None else equalize(resized, self.equalize)

    def resize(self, pixels: np.ndarray, shape: tuple[float, float] | None = None) -> np.ndarray:
        """`preprocessing_cxr.resize` to these settings' size by their geometry: uint16 (H, W)."""
        return resize(pixels, self._side(), self.geometry, shape)

    def restore(self, heatmap: np.ndarray, height: int, width: int) -> np.ndarray:
        """`preprocessing_cxr.restore` to an image's frame: float32 (height, width)."""
        return restore(heatmap, self._side(), self.geometry, (height, width))

    def overlay(self, pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
        """`overlay_cxr.overlay`: heat (h, w) in [0, 1] over `pixels` (h, w), to uint8 (h, w, 3)."""
        return overlay(pixels, heat)

    def heat_layer(self, heat: np.ndarray) -> np.ndarray:
        """`overlay_cxr.heat_layer`: heat (h, w) in [0, 1] alone, to RGBA uint8 (h, w, 4)."""
        return heat_layer(heat)

    def _side(self) -> tuple[int, int]:
        return self.size["height"], self.size["width"]


class CxrSettings(CxrPreparation):
    """The image processor of an exported model: the fields of a preprocessor_config.json."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        vars(self).update(settings)

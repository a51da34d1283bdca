"""How a heatmap is drawn over an X-ray; NumPy alone.

Grad-CAM scales each image to its own maximum, so that a healthy chest looks as hot as a sick one.
What is drawn is therefore heat, Grad-CAM times the probability of the class it explains: colour and
opacity follow that product, 0 to 1, and mean the same in every image.
"""

import numpy as np

# Heat 0, 1/4, 1/2, 3/4, 1: hues no X-ray has, red for the probabilities that matter.
COLOURS = np.array([[255, 236, 110], [255, 196, 61], [250, 128, 30], [222, 45, 38], [165, 0, 60]])
MAX_OPACITY = 0.7

_LEVELS = np.linspace(0, 1, 256)
_STOPS = np.linspace(0, 1, len(COLOURS))
_COLOUR = np.stack([np.interp(_LEVELS, _STOPS, channel) for channel in COLOURS.T], axis=-1)
_OPACITY = MAX_OPACITY * _LEVELS[:, None]
_LAYER = np.concatenate([_COLOUR, 255 * _OPACITY], axis=1).round().astype(np.uint8)
# The colour of every heat level (256) over every grey level (256).
_BLENDED = np.arange(256)[:, None] * (1 - _OPACITY[:, None]) + (_COLOUR * _OPACITY)[:, None]
_BLENDED = _BLENDED.round().astype(np.uint8)


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draws heat over a grey image.

    Args:
        pixels: uint16 (h, w), 0..65535.
        heat: float (h, w) in [0, 1].

    Returns:
        uint8 (h, w, 3); a pixel without heat keeps its grey.
    """
    return _BLENDED[_level(heat), pixels >> 8]


def heat_layer(heat: np.ndarray) -> np.ndarray:
    """Heat alone, to lay over any image.

    Args:
        heat: float (h, w) in [0, 1].

    Returns:
        uint8 (h, w, 4), RGBA.
    """
    return _LAYER[_level(heat)]


def _level(heat: np.ndarray) -> np.ndarray:
    return (heat * 255).round().astype(np.uint8)

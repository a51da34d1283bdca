"""How a Grad-CAM heatmap is drawn over its X-ray, and the colour bar that explains its colours.

Grad-CAM scales each image to its own maximum, so that a healthy chest looks as hot as a sick one.
Here heat is Grad-CAM times the probability of the class it explains: colour and opacity follow
that product, 0 to 1, and mean the same in every image.
"""

import numpy as np

# Heat 0, 1/4, 1/2, 3/4, 1: hues no X-ray has, red for the probabilities that matter.
COLOURS = np.array([[255, 236, 110], [255, 196, 61], [250, 128, 30], [222, 45, 38], [165, 0, 60]])
MAX_OPACITY = 0.7


def _blend_table() -> np.ndarray:
    """The colour of every grey level (256) under every heat level (256), uint8 (256, 256, 3)."""
    heat = np.linspace(0, 1, 256)
    stops = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(heat, stops, channel) for channel in COLOURS.T], axis=-1)
    opacity = MAX_OPACITY * heat[:, None]
    grey = np.arange(256)[:, None, None]
    return (grey * (1 - opacity) + colour * opacity).round().astype(np.uint8)


_BLENDED = _blend_table()


def overlay(grey: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draw heat over a grey image.

    Args:
        grey: uint8 (h, w).
        heat: float32 (h, w) in [0, 1], Grad-CAM times the probability of its class.

    Returns:
        uint8 (h, w, 3); a pixel without heat keeps its grey.
    """
    return _BLENDED[grey, (heat * 255).round().astype(np.uint8)]


def css_gradient() -> str:
    """The colours and opacities of heat 0 to 1 as a CSS gradient."""
    opacities = np.linspace(0, MAX_OPACITY, len(COLOURS))
    stops = [
        f"rgb({red} {green} {blue} / {opacity:.3f})"
        for (red, green, blue), opacity in zip(COLOURS, opacities, strict=True)
    ]
    return f"linear-gradient(to right, {', '.join(stops)})"

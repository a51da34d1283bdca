"""Predictions for the tests of the figures, and what a figure that was drawn from them holds."""

from unittest import mock
from xml.etree import ElementTree

import numpy as np
from matplotlib.figure import Figure

from evaluation.curves import curve_bands
from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions


def simulated(num_classes=2, multi_label=False, num_images=120, seed=0, thresholds=None):
    rng = np.random.default_rng(seed + num_classes)
    labels = rng.integers(num_classes, size=num_images)
    truth = np.eye(num_classes)[labels]
    if multi_label:
        labels = truth = rng.random((num_images, num_classes)) < 0.4
    return Predictions(
        image_id=np.arange(num_images).astype(str),
        patient_id=rng.integers(num_images // 2, size=num_images).astype(str),
        labels=labels,
        logits=rng.normal(size=truth.shape) + 1.5 * truth - 0.5,
        class_names=tuple(f"FINDING {k}" for k in range(num_classes)),
        split="test",
        multi_label=multi_label,
        thresholds=thresholds,
    )


def by_hand(labels, probability, thresholds=None):
    """Binary predictions of NORMAL and PNEUMONIA with these probabilities of PNEUMONIA."""
    probability = np.array(probability)
    log_odds = np.log(probability / (1 - probability))
    ids = np.arange(len(labels)).astype(str)
    return Predictions(
        image_id=ids,
        patient_id=ids,
        labels=np.array(labels),
        logits=np.column_stack([np.zeros_like(log_odds), log_odds]),
        class_names=("NORMAL", "PNEUMONIA"),
        split="test",
        thresholds=thresholds,
    )


def scored(models, path, num_resamples=20, seed=0):
    """What the curves take after their models: metrics, path, bands."""
    options = {"num_resamples": num_resamples, "seed": seed}
    metrics = {name: compute_metrics(saved, **options) for name, saved in models.items()}
    return metrics, path, {name: curve_bands(saved, **options) for name, saved in models.items()}


def draw(plot, *arguments, **options):
    """The figure that a call of `plot` saves."""
    saved, save = [], Figure.savefig

    def keep(figure, *arguments, **options):
        saved.append(figure)
        save(figure, *arguments, **options)

    with mock.patch.object(Figure, "savefig", keep):
        plot(*arguments, **options)
    png, svg = saved
    assert png is svg
    return png


def svg_texts(path):
    """Every text of the SVG beside the PNG `path`, in order."""
    tree = ElementTree.parse(path.with_suffix(".svg"))
    return [node.text for node in tree.iter("{http://www.w3.org/2000/svg}text")]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(owner):
    """The entries of the legend of axes, or of a figure's only legend; wrapped lines joined."""
    found = owner.legends[0] if isinstance(owner, Figure) else owner.get_legend()
    return [text.get_text().replace("\n", " ") for text in found.get_texts()]


def title(axes):
    return axes.get_title(loc="left")

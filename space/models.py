"""Loading the models that MODEL_ID names, and asking one of them about an image.

A model answers through the code stored beside its weights, so this folder needs nothing else.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from heatmap import overlay
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification

PREDICTED = "predicted class"  # explain the class that the model finds most probable


class Explanation(NamedTuple):
    """One image as one model sees it."""

    probabilities: dict[str, float]
    shown: str  # the class that the heatmap explains
    grey: np.ndarray  # uint8 (h, w), the image at its own size
    overlay: np.ndarray  # uint8 (h, w, 3), the same under its heatmap


class Classifier:
    """A model and its image processor.

    Args:
        model_id: a Hub id or a folder that `save_pretrained` wrote; its own code is run.

    Raises:
        ValueError: there is no such model, it cannot be loaded, or it draws no heatmaps.
    """

    def __init__(self, model_id: str):
        try:
            self.model = AutoModelForImageClassification.from_pretrained(
                model_id, trust_remote_code=True
            )
            self.processor = AutoImageProcessor.from_pretrained(model_id, trust_remote_code=True)
        except (ImportError, OSError, RuntimeError, ValueError, SafetensorError) as error:
            problem = "is not a folder and cannot be loaded from the Hub"
            if Path(model_id).is_dir():
                problem = "cannot be loaded"
            reason = str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
            raise ValueError(f"MODEL_ID {model_id!r} {problem}: {reason}.") from error
        if not (hasattr(self.model, "explain") and hasattr(self.processor, "restore")):
            raise ValueError(
                f"MODEL_ID {model_id!r} is not one of this project's chest X-ray models: "
                "it draws no heatmaps."
            )
        self.model.eval()
        id2label = self.model.config.id2label
        self.classes = [id2label[index] for index in range(len(id2label))]

    def explain(self, image: bytes, target: str = PREDICTED) -> Explanation:
        """Classify an image and draw the evidence for one class over it.

        Args:
            image: an image file's own bytes, so that every pixel is the processor's to read.
            target: a class name, or PREDICTED.

        Raises:
            ValueError: the image cannot be read, or the model has no such class.
        """
        if target not in (PREDICTED, *self.classes):
            raise ValueError(
                f"{target!r} is not a class of this model; choose {', '.join(self.classes)}."
            )
        pixels = self.processor.load(image)
        pixel_values = self.processor.normalize(self.processor.resize(pixels)[None])
        index = None if target == PREDICTED else self.classes.index(target)
        logits, heatmaps = self.model.explain(pixel_values, index)
        if index is None:
            index = int(logits.argmax())
        probabilities = self.model.probabilities(logits)[0].tolist()
        heat = self.processor.restore(heatmaps[0], *pixels.shape) * probabilities[index]
        grey = (pixels >> 8).astype(np.uint8)
        return Explanation(
            probabilities=dict(zip(self.classes, probabilities, strict=True)),
            shown=self.classes[index],
            grey=grey,
            overlay=overlay(grey, heat),
        )


def load_classifiers(model_ids: str) -> dict[str, Classifier]:
    """Load the models named in a comma-separated list.

    Returns:
        {name: classifier}; a folder goes by its last part, so that no server path is shown.

    Raises:
        ValueError: nothing is named, two models go by one name, or `Classifier` cannot load one.
    """
    ids = [model_id.strip() for model_id in model_ids.split(",") if model_id.strip()]
    if not ids:
        raise ValueError(
            "MODEL_ID is not set; give it a Hub id (org/cxr-densenet121) or a model folder, "
            "or several separated by commas."
        )
    classifiers = {}
    for model_id in ids:
        name = Path(model_id).resolve().name if Path(model_id).is_dir() else model_id
        if name in classifiers:
            raise ValueError(f"MODEL_ID has two models called {name!r}; rename one of them.")
        classifiers[name] = Classifier(model_id)
    return classifiers

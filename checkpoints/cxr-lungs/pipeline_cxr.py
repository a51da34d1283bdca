"""transformers' pipelines on the models' own preprocessing, probabilities and boxes."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub import get_session
from transformers import (
    ImageClassificationPipeline,
    ImageFeatureExtractionPipeline,
    ObjectDetectionPipeline,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .answers_cxr import refusal
from .configuration_cxr import NO_FEATURES
from .image_cxr import CxrImage, check_file_size
from .reading_cxr import ImageSource

FETCH_SECONDS = 30.0


class CxrImageClassificationPipeline(ImageClassificationPipeline):
    """Gives the image processor the file itself, and the caller calibrated probabilities.

    The parent class converts every image to 8-bit RGB first, which crushes 16-bit X-rays; here a
    path, URL, base64 text, PIL image or array reaches the one preprocessing path as it is.

    An answer is a list of `{"label", "score", "logit"}`, highest score first: the calibrated
    probability in [0, 1] and the raw logit. A model with an outlier detector adds `outlier`: True
    where `assess` would refuse the image, and the score means nothing. `top_k` (5 by
    default) shortens the list; `prevalence` moves the scores to the share of class 1, or of each
    class, where the images come from.
    """

    def _sanitize_parameters(
        self,
        prevalence: float | Sequence[float] | None = None,
        function_to_apply: Any = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if function_to_apply is not None:
            raise ValueError(
                f"function_to_apply is {function_to_apply!r}; this model's scores are calibrated "
                "probabilities already, and each answer holds the raw logit: leave it out."
            )
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if prevalence is not None:
            postprocess["prevalence"] = prevalence
        return preprocess, forward, postprocess

    def preprocess(
        self, image: ImageSource | torch.Tensor, timeout: float = FETCH_SECONDS
    ) -> dict[str, torch.Tensor]:
        """`pixel_values`, (1, C, H, W) in the model's precision, and `drawn`, bool (1,).

        What lies at an address may have 256 MB and take `timeout` seconds to arrive.
        """
        opened, pixel_values = _read(image, timeout, self.image_processor)
        return {"pixel_values": pixel_values.to(self.dtype), "drawn": torch.tensor([opened.drawn])}

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        drawn = model_inputs.pop("drawn")
        return {**self.model(**model_inputs), "drawn": drawn}

    def postprocess(
        self,
        model_outputs: Mapping[str, torch.Tensor],
        prevalence: float | Sequence[float] | None = None,
        top_k: int = 5,
    ) -> list[dict[str, str | float | bool]]:
        """One image's answer, see the class."""
        logits = model_outputs["logits"]
        scores = self.model.probabilities(logits, prevalence)[0].tolist()
        labels = [self.model.config.id2label[index] for index in range(len(scores))]
        rows = [
            {"label": label, "score": score, "logit": logit}
            for label, score, logit in zip(labels, scores, logits[0].tolist())
        ]
        if "outlier_score" in model_outputs:
            score, drawn = model_outputs["outlier_score"].item(), model_outputs["drawn"].item()
            reason = refusal(score, self.model.config.outlier_threshold, drawn)
            rows = [{**row, "outlier": reason is not None} for row in rows]
        return sorted(rows, key=lambda row: row["score"], reverse=True)[:top_k]


class CxrObjectDetectionPipeline(ObjectDetectionPipeline):
    """Gives the image processor the file itself, and the caller boxes in pixels of that file.

    An answer is a list of `{"score", "label", "box"}`, the highest score first; a box is `{"xmin",
    "ymin", "xmax", "ymax"}`, whole pixels. `threshold` is the least score, the configuration's own
    by default.
    """

    def check_model_type(self, supported_models: list[str] | dict) -> None:
        """Nothing: what the parent class compares with are transformers' own models alone."""

    def preprocess(
        self, image: ImageSource | torch.Tensor, timeout: float = FETCH_SECONDS
    ) -> dict[str, torch.Tensor]:
        """`pixel_values`, (1, C, H, W), and where they come from in the file's image.

        `target_size`, int64 (1, 2), is height and width of what was read of it; `origin`, int64
        (1, 2), left and top of that where a plain frame was cut away. What lies at an address may
        have 256 MB and take `timeout` seconds to arrive.
        """
        opened, pixel_values = _read(image, timeout, self.image_processor)
        return {
            "pixel_values": pixel_values.to(self.dtype),
            "target_size": torch.tensor([opened.pixels.shape]),
            "origin": torch.tensor([opened.origin]),
        }

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        place = {name: model_inputs.pop(name) for name in ("target_size", "origin")}
        return {**self.model(**model_inputs), **place}

    def postprocess(
        self, model_outputs: Mapping[str, torch.Tensor], threshold: float | None = None
    ) -> list[dict[str, Any]]:
        """One image's answer, see the class."""
        (found,) = self.image_processor.post_process_object_detection(
            model_outputs,
            self.model.config.threshold if threshold is None else threshold,
            model_outputs["target_size"],
        )
        boxes = found["boxes"] + model_outputs["origin"].repeat(1, 2)
        return [
            {
                "score": score,
                "label": self.model.config.id2label[label],
                "box": self._get_bounding_box(box),
            }
            for score, label, box in zip(found["scores"].tolist(), found["labels"].tolist(), boxes)
        ]


def _read(
    image: ImageSource | torch.Tensor, timeout: float, processor: BaseImageProcessor
) -> tuple[CxrImage, torch.Tensor]:
    """An image, or what lies at an address, as it is read, and as `pixel_values` (1, C, H, W)."""
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        image = _fetch(image, timeout)
    opened = processor.open(image)
    return opened, processor.normalize(processor.prepare(opened.pixels)[None])


def _fetch(url: str, timeout: float) -> bytes:
    """What lies at an http(s) address.

    Raises:
        ValueError: over 256 MB, or not there after so many seconds.
        Exception: `huggingface_hub`'s client says that it cannot be reached, or answers an error.
    """
    content, end = bytearray(), time.monotonic() + timeout
    with get_session().stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            content += piece
            check_file_size(len(content), url)
            if time.monotonic() > end:
                raise ValueError(f"{url}: not there after {timeout:g} seconds; give more timeout.")
    return bytes(content)


class LoadedModelPipeline(ImageClassificationPipeline):
    """What `pipeline("image-classification", model=...)` starts for a model that is loaded already.

    transformers finds a model's own pipeline by the folder's or Hub id's name alone; this one finds
    it by the model's `pipelines`. Models of others get transformers' pipeline, as before.
    """

    def __new__(
        cls, model: PreTrainedModel, *args: Any, **kwargs: Any
    ) -> ImageClassificationPipeline:
        """The pipeline that the model names, or else transformers' own."""
        own = getattr(model, "pipelines", {}).get("image-classification")
        return (own or ImageClassificationPipeline)(model, *args, **kwargs)


class LoadedDetectionPipeline(ObjectDetectionPipeline):
    """What `pipeline("object-detection", model=...)` starts for a model that is loaded already."""

    def __new__(cls, model: PreTrainedModel, *args: Any, **kwargs: Any) -> ObjectDetectionPipeline:
        """The pipeline that the model names, or else transformers' own."""
        own = getattr(model, "pipelines", {}).get("object-detection")
        return (own or ObjectDetectionPipeline)(model, *args, **kwargs)


class LoadedFeaturePipeline(ImageFeatureExtractionPipeline):
    """What `pipeline("image-feature-extraction", model=...)` starts for a loaded model."""

    def __new__(
        cls, model: PreTrainedModel, *args: Any, **kwargs: Any
    ) -> ImageFeatureExtractionPipeline:
        """The pipeline of transformers.

        Raises:
            ValueError: one of this project's models, of which it would give the logits.
        """
        if getattr(model, "pipelines", {}):
            raise ValueError(NO_FEATURES)
        return ImageFeatureExtractionPipeline(model, *args, **kwargs)


PIPELINE_REGISTRY.supported_tasks["image-classification"]["impl"] = LoadedModelPipeline
PIPELINE_REGISTRY.supported_tasks["object-detection"]["impl"] = LoadedDetectionPipeline
PIPELINE_REGISTRY.supported_tasks["image-feature-extraction"]["impl"] = LoadedFeaturePipeline

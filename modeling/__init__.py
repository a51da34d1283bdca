"""What the Hub stores beside the weights: configurations, models, the image processor."""

import importlib
from typing import Any

_PLACES = {
    "CxrBaselineConfig": "baseline_cxr",
    "CxrBaselineForImageClassification": "baseline_cxr",
    "CxrDenseNetConfig": "densenet_cxr",
    "CxrDenseNetForImageClassification": "densenet_cxr",
    "CxrDetector": "detection_cxr",
    "CxrDetectorConfig": "detection_cxr",
    "CxrImageClassificationPipeline": "pipeline_cxr",
    "CxrImageProcessor": "image_processing_cxr",
    "CxrLungSegmenter": "segmentation_cxr",
    "CxrLungSegmenterConfig": "segmentation_cxr",
    "CxrTimmConfig": "timm_cxr",
    "CxrTimmForImageClassification": "timm_cxr",
    "create_model": "factory",
    "load_detector": "factory",
    "load_model": "factory",
    "load_segmenter": "factory",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    # Loaded with the first name asked for: reading X-rays needs neither torch nor transformers.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    importlib.import_module(".factory", __name__)  # makes the families known to transformers
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)

"""What the Hub stores beside the weights: configurations, models, the image processor."""

from .configuration_cxr import CxrBaselineConfig, CxrDenseNetConfig, CxrTimmConfig
from .factory import create_model, load_model
from .image_processing_cxr import CxrImageProcessor
from .modeling_cxr import (
    CxrBaselineForImageClassification,
    CxrDenseNetForImageClassification,
    CxrTimmForImageClassification,
)
from .pipeline_cxr import CxrImageClassificationPipeline

__all__ = [
    "CxrBaselineConfig",
    "CxrBaselineForImageClassification",
    "CxrDenseNetConfig",
    "CxrDenseNetForImageClassification",
    "CxrImageClassificationPipeline",
    "CxrImageProcessor",
    "CxrTimmConfig",
    "CxrTimmForImageClassification",
    "create_model",
    "load_model",
]

"""What the Hub stores beside the weights: configurations, models, the image processor."""

from .baseline_cxr import CxrBaselineConfig, CxrBaselineForImageClassification
from .densenet_cxr import CxrDenseNetConfig, CxrDenseNetForImageClassification
from .factory import create_model, load_model
from .image_processing_cxr import CxrImageProcessor
from .pipeline_cxr import CxrImageClassificationPipeline
from .timm_cxr import CxrTimmConfig, CxrTimmForImageClassification

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

"""Chest X-ray classifiers that explain themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models.densenet import DenseNet
from torch import nn
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.initialization import normal_, zeros_
from transformers.modeling_outputs import ImageClassifierOutput

from .answers_cxr import CxrAnswer, answers, class_names, refusal
from .baseline_cxr import BaselineCnn
from .calibration_cxr import calibrate, decide, to_probabilities
from .configuration_cxr import CxrBaselineConfig, CxrConfig, CxrDenseNetConfig, CxrTimmConfig
from .grad_cam_cxr import check_method, closed_form_grad_cam, gap_linear_head, library_cam
from .image_cxr import CxrImage
from .image_processing_cxr import CxrImageProcessor
from .loss_cxr import classification_loss
from .outlier_cxr import OutlierDetector
from .pipeline_cxr import CxrImageClassificationPipeline


@dataclass
class CxrClassifierOutput(ImageClassifierOutput):
    """What a classifier gives for a batch: `loss` and `logits` as in transformers, and more.

    Attributes:
        probabilities: float32 (B, K) in [0, 1], calibrated if the model is.
        outlier_score: float32 (B,), how unlike the training images; above
            `config.outlier_threshold` an image is no chest X-ray that the model knows. None where
            the model has no detector.
        heatmaps: float32 (B, H, W) in [0, 1], by `explain` alone.
    """

    probabilities: torch.Tensor | None = None
    outlier_score: torch.Tensor | None = None
    heatmaps: torch.Tensor | None = None


class CxrPreTrainedModel(PreTrainedModel):
    """What every family shares: loss, probabilities, decisions, Grad-CAM, a saved folder's files.

    A family sets `self.network`, which answers `forward_features`, `forward_head` and
    `get_classifier` as timm's networks do. `outlier_detector` is None, or tells what is no chest
    X-ray.
    """

    config_class = CxrConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"

    def __init__(self, config: CxrConfig):
        super().__init__(config)
        self.outlier_detector = None if config.outlier_threshold is None else OutlierDetector()

    def set_outlier_detector(self, detector: OutlierDetector, threshold: float) -> None:
        """Takes over a fitted detector, and the score above which `assess` refuses an image."""
        self.outlier_detector = detector
        self.config.outlier_threshold = threshold

    @torch.no_grad()
    def _init_weights(self, module):
        # timm initialises its own layers; only the classifier is ours, as a checkpoint may lack it.
        if module is self.network.get_classifier():
            normal_(module.weight, std=0.01)
            zeros_(module.bias)
        elif hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> CxrClassifierOutput | tuple:
        """Classifies a batch.

        Args:
            pixel_values: float (B, C, H, W), as the image processor gives them.
            labels: int (B,), or 0/1 (B, K) when the problem is multi-label; adds `loss`.
            return_dict: False gives a tuple of what there is of loss, logits, probabilities and
                outlier score.

        Returns:
            Raw logits, calibrated probabilities, the outlier score where the model has a detector,
            and the loss where labels are given.

        Raises:
            ValueError: another number of channels than the configuration's.
        """
        self._check_input(pixel_values)
        logits = self.network(pixel_values)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        output = CxrClassifierOutput(loss=loss, **self._scores(pixel_values, logits))
        return output if return_dict else output.to_tuple()

    def probabilities(
        self, logits: torch.Tensor, prevalence: float | Sequence[float] | None = None
    ) -> torch.Tensor:
        """Calibrated probabilities; without a calibration in the configuration, plain ones.

        Args:
            logits: float (B, K), as the network gives them.
            prevalence: share of each class where the images come from, or of class 1 of two; the
                probabilities are then moved there from `config.prevalence` by Bayes' rule.

        Returns:
            float32 (B, K) in [0, 1]: softmax over the classes, or a sigmoid each when the problem
            is multi-label.

        Raises:
            ValueError: logits of another shape, or a prevalence that does not fit, or that the
                model cannot start from as `config.prevalence` is None.
        """
        self._check_columns(logits, "logits")
        multi_label = self.config.is_multi_label
        calibrated = calibrate(logits, self.config.calibration, multi_label)
        return to_probabilities(calibrated, multi_label, self.config.prevalence, prevalence)

    def decide(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Decisions at the configuration's thresholds.

        Args:
            probabilities: float (B, K), as `probabilities` gives them.

        Returns:
            int64 (B,) class indices; (B, K) of 1 and 0 when the problem is multi-label. -1 where
            the model abstains: the probability lies in the configuration's abstention band.

        Raises:
            ValueError: probabilities of another shape.
        """
        self._check_columns(probabilities, "probabilities")
        config = self.config
        return decide(probabilities, config.thresholds, config.abstention, config.is_multi_label)

    def grad_cam(
        self, pixel_values: torch.Tensor, target: int | Sequence[int] | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Where the network looked (Grad-CAM, Selvaraju et al. 2017).

        Args:
            pixel_values: float (B, C, H, W).
            target: class index to explain, or one index an image; None for the predicted class.

        Returns:
            float32 (B, H, W) in [0, 1], each scaled to its own extremes.

        Raises:
            ValueError: a target that is no class, or not one an image.
        """
        return self.explain(pixel_values, target).heatmaps

    @torch.no_grad()
    def explain(
        self,
        pixel_values: torch.Tensor,
        target: int | Sequence[int] | torch.Tensor | None = None,
        method: str = "grad_cam",
    ) -> CxrClassifierOutput:
        """The answer of `forward` and heatmaps; Grad-CAM for little more than the answer's price.

        Args:
            pixel_values, target: see `grad_cam`.
            method: "grad_cam", "grad_cam_plus_plus", "hires_cam", "score_cam" or "layer_cam".
                Grad-CAM is computed in closed form behind a global average pool; the rest by the
                grad-cam library, Score-CAM with a forward pass a channel.

        Returns:
            `logits`, `probabilities`, `outlier_score` and `heatmaps`.

        Raises:
            ValueError: see `grad_cam`; an unknown method.
            ImportError: a method of the grad-cam library without it.
        """
        self._check_input(pixel_values)
        check_method(method)
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            features = self.network.forward_features(pixel_values)
            logits = self.network.forward_head(features)
            targets = self._check_target(target, logits)
            linear = gap_linear_head(self.network, features) if method == "grad_cam" else None
            if linear is None:
                heatmaps = library_cam(method, self.network, pixel_values, targets)
            else:
                size = tuple(pixel_values.shape[2:])
                heatmaps = closed_form_grad_cam(features, linear.weight[targets], size)
        finally:
            for module in training:
                module.training = True
        return CxrClassifierOutput(**self._scores(pixel_values, logits), heatmaps=heatmaps)

    @torch.no_grad()
    def assess(
        self,
        images: Sequence[CxrImage],
        processor: CxrImageProcessor,
        target: str | None = None,
        method: str | None = None,
    ) -> list[CxrAnswer]:
        """What the model says of X-rays, in words and numbers that can be shown.

        Args:
            images: as `processor.open` gives them.
            target: the class that the heatmaps explain; None for the most probable one.
            method: of the heatmaps, see `explain`; None makes none.

        Returns:
            One answer an image.

        Raises:
            ValueError: no such class or method.
        """
        config, names = self.config.to_dict(), class_names(self.config.to_dict())
        if target is not None and target not in names:
            raise ValueError(f"{target!r} is not a class of this model; choose {', '.join(names)}.")
        if method is not None:
            check_method(method)
        pixels = np.stack([processor.resize(image.pixels) for image in images])
        pixel_values = processor.normalize(pixels).to(self.device, self.dtype)
        outputs, known = {}, range(len(images))
        if self.outlier_detector is not None:
            scores = self.outlier_detector(pixel_values).tolist()
            threshold = config["outlier_threshold"]
            outputs["outlier_score"] = scores
            known = [k for k in known if refusal(scores[k], threshold, images[k].drawn) is None]
        # The classifier is asked, and perhaps explained, about these alone.
        outputs["logits"] = np.zeros((len(images), len(names)), np.float32)
        if method is not None:
            outputs["heatmaps"] = np.zeros((len(images), *pixels.shape[1:]), np.float32)
        if len(known):
            index = None if target is None else names.index(target)
            inputs = pixel_values[list(known)]
            output = self(inputs) if method is None else self.explain(inputs, index, method)
            for name in outputs.keys() - {"outlier_score"}:
                outputs[name][known] = output[name].float().cpu().numpy()
        return answers(outputs, images, config, target)

    def _scores(self, pixel_values, logits):
        scores = {"logits": logits, "probabilities": self.probabilities(logits)}
        if self.outlier_detector is not None:
            scores["outlier_score"] = self.outlier_detector(pixel_values)
        return scores

    def _check_input(self, pixel_values):
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; this model takes "
                f"(batch, {self.config.num_channels}, height, width)."
            )

    def _check_columns(self, scores, name):
        if scores.ndim != 2 or scores.shape[1] != self.config.num_labels:
            raise ValueError(
                f"{name} has shape {tuple(scores.shape)}; this model takes "
                f"(batch, {self.config.num_labels})."
            )

    def _check_target(self, target, logits):
        if target is None:
            return logits.argmax(1)
        targets = torch.as_tensor(target, device=logits.device)
        if targets.ndim == 0:
            targets = targets.expand(len(logits))
        if targets.shape != (len(logits),):
            raise ValueError(f"{len(targets)} targets for {len(logits)} images.")
        if targets.min() < 0 or targets.max() >= logits.shape[1]:
            raise ValueError(f"target is {target}; the classes are 0 to {logits.shape[1] - 1}.")
        return targets

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Writes weights, configuration and the code that loads them; see transformers."""
        # register_for_auto_class keeps one Auto class a model; both names must find the classifier.
        name = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = {"AutoModel": name, "AutoModelForImageClassification": name}
        pipeline = CxrImageClassificationPipeline
        self.config.custom_pipelines = {
            "image-classification": {
                "impl": f"{pipeline.__module__.rpartition('.')[2]}.{pipeline.__name__}",
                "pt": ["AutoModelForImageClassification"],
            }
        }
        super().save_pretrained(save_directory, **kwargs)
        custom_object_save(pipeline, save_directory)


class CxrBaselineForImageClassification(CxrPreTrainedModel):
    """The baseline CNN: 388,834 parameters with four blocks, one channel and two classes."""

    config_class = CxrBaselineConfig

    def __init__(self, config: CxrBaselineConfig):
        super().__init__(config)
        self.network = BaselineCnn(config)
        self.post_init()


class CxrDenseNetForImageClassification(CxrPreTrainedModel):
    """timm's DenseNet: DenseNet-121 has 6,949,634 parameters with one channel and two classes."""

    config_class = CxrDenseNetConfig

    def __init__(self, config: CxrDenseNetConfig):
        super().__init__(config)
        self.network = DenseNet(
            growth_rate=config.growth_rate,
            block_config=tuple(config.block_config),
            num_classes=config.num_labels,
            in_chans=config.num_channels,
            drop_rate=config.dropout,
        )
        self.post_init()


class CxrTimmForImageClassification(CxrPreTrainedModel):
    """Any timm classification network with one linear classifier.

    Raises:
        ValueError: a name that timm does not know, or a network with another kind of head.
    """

    config_class = CxrTimmConfig

    def __init__(self, config: CxrTimmConfig):
        super().__init__(config)
        if not timm.is_model(config.architecture):
            raise ValueError(f"architecture is {config.architecture!r}, which timm does not know.")
        self.network = timm.create_model(
            config.architecture,
            num_classes=config.num_labels,
            in_chans=config.num_channels,
            drop_rate=config.dropout,
            **fixed_size(config),
        )
        if not isinstance(self.network.get_classifier(), nn.Linear):
            raise ValueError(
                f"architecture is {config.architecture!r}, whose head is not one linear layer."
            )
        self.post_init()


def fixed_size(config: CxrTimmConfig) -> dict[str, int]:
    """`img_size` for the timm networks that are built for one input size, such as ViTs."""
    pretrained_cfg = timm.get_pretrained_cfg(config.architecture)
    fixed = pretrained_cfg is not None and pretrained_cfg.fixed_input_size
    return {"img_size": config.image_size} if fixed else {}


for _model in (
    CxrBaselineForImageClassification,
    CxrDenseNetForImageClassification,
    CxrTimmForImageClassification,
):
    _model.register_for_auto_class("AutoModelForImageClassification")

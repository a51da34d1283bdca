"""Chest X-ray models that explain themselves."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.initialization import normal_, zeros_
from transformers.modeling_outputs import ImageClassifierOutput

from .answers_cxr import NO_MAPS, CxrAnswer, answers, class_names, refusal
from .calibration_cxr import calibrate, decide, to_probabilities
from .configuration_cxr import CxrConfig, spelled_alike
from .heatmap_cxr import CAM_METHODS, TOKEN_METHOD, check_method, make_heatmaps
from .image_cxr import CxrImage
from .image_processing_cxr import CxrImageProcessor
from .loss_cxr import classification_loss
from .outlier_cxr import OutlierDetector
from .pipeline_cxr import CxrImageClassificationPipeline
from .preprocessing_cxr import ten_crops

logger = logging.getLogger(__name__)

# --------------------------------------------------------------------------------- every family

REGISTRY: dict[str, type["CxrPreTrainedModel"]] = {}
PRESETS: dict[str, dict[str, Any]] = {}


def register(
    name: str, **preset: Any
) -> Callable[[type["CxrPreTrainedModel"]], type["CxrPreTrainedModel"]]:
    """Makes a family known: a class decorator, one for each name of it.

    Args:
        name: what `create_model` and `--model` call it.
        preset: fields of the configuration that this name stands for.

    Raises:
        ValueError: another class has this name.
    """

    def add(model_class: type["CxrPreTrainedModel"]) -> type["CxrPreTrainedModel"]:
        known = REGISTRY.get(name, model_class).__name__
        if known != model_class.__name__:  # the same, where a module is read again
            raise ValueError(f"the name {name!r} is taken by {known}; choose another.")
        REGISTRY[name], PRESETS[name] = model_class, preset
        model_class.config_class.register_for_auto_class()
        model_class.register_for_auto_class(model_class.auto_model)
        return model_class

    return add


class CxrPreTrainedModel(PreTrainedModel):
    """What models of every task share: a saved folder holds the code that loads it.

    Attributes:
        auto_model: transformers' Auto class of the task; a saved folder serves it and `AutoModel`.
        pipelines: {task: pipeline class} of `transformers.pipeline` for its models.
    """

    main_input_name = "pixel_values"
    auto_model: str
    pipelines: dict[str, type] = {}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes weights, configuration and the code that loads them; see transformers."""
        # register_for_auto_class keeps one Auto class a model; both names must find the model.
        name = _file_and_name(type(self))
        self.config.auto_map = {"AutoModel": name, self.auto_model: name}
        self.config.custom_pipelines = {
            task: {"impl": _file_and_name(pipeline), "pt": [self.auto_model]}
            for task, pipeline in self.pipelines.items()
        }
        super().save_pretrained(save_directory, **kwargs)
        for pipeline in self.pipelines.values():
            custom_object_save(pipeline, save_directory)


def _file_and_name(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


# ---------------------------------------------------------------------------------- classifiers


class CxrNetwork(Protocol):
    """What the network of a family of classifiers answers, in timm's words.

    `network(pixel_values)` is `forward_head(forward_features(pixel_values))`.

    Attributes:
        num_features: D, width of the pooled features; timm's networks with a hidden layer before
            their head have `head_hidden_size` for it.
    """

    num_features: int

    def forward_features(self, pixel_values: torch.Tensor) -> Any:
        """Unpooled features of float (B, C, H, W).

        Feature maps (B, c, h, w), tokens (B, n, c), or whatever `forward_head` takes, such as a
        tuple of several branches.
        """

    def forward_head(self, features: Any, pre_logits: bool = False) -> torch.Tensor:
        """Logits (B, K); with `pre_logits` the pooled features (B, D) that they are read from."""

    def get_classifier(self) -> nn.Linear | tuple[nn.Linear, ...]:
        """The head; or several, each with K outputs, of which `forward_head` makes one answer."""


@dataclass
class CxrClassifierOutput(ImageClassifierOutput):
    """What a classifier gives for a batch: `loss` and `logits` as in transformers, and more.

    Attributes:
        probabilities: float32 (B, K) in [0, 1], calibrated if the model is.
        outlier_score: float32 (B,), how unlike the training images; above
            `config.outlier_threshold` an image is no chest X-ray that the model knows. None where
            the model has no detector.
        heatmaps: float32 (B, H, W) in [0, 1], by `explain` alone; None where the network has no
            feature maps.
        head_logits: float (B, K) of each head, by `forward` alone; None where there are not several
            that are trained by a loss each.
    """

    probabilities: torch.Tensor | None = None
    outlier_score: torch.Tensor | None = None
    heatmaps: torch.Tensor | None = None
    head_logits: tuple[torch.Tensor, ...] | None = None


class CxrClassifier(CxrPreTrainedModel):
    """What every family of classifiers shares: loss, probabilities, decisions, Grad-CAM.

    A family is one file with its configuration, its network and a subclass that sets
    `self.network`, calls `self.post_init()` and is decorated with `register`. Where its feature
    maps are not the 4-dimensional output of `forward_features`, it says so by `map_layer` and
    `to_maps`; where a transformer stands beside them, by `token_layer`; where each of several heads
    has a loss of its own, by `head_logits`. `outlier_detector` is None, or tells what is no chest
    X-ray.

    Attributes:
        timm_name: timm's network with the same keys, whose ImageNet weights fit; None without.
    """

    config_class = CxrConfig
    base_model_prefix = "network"
    auto_model = "AutoModelForImageClassification"
    pipelines = {"image-classification": CxrImageClassificationPipeline}
    timm_name: str | None = None
    # Other classes drop the detector's threshold, and so the detector.
    _keys_to_ignore_on_load_unexpected = [r"^outlier_detector\."]

    network: CxrNetwork

    def __init__(self, config: CxrConfig) -> None:
        config.follow_classes()
        config.check()
        super().__init__(config)
        self._head_classes = class_names(config.to_dict())
        self.outlier_detector = None if config.outlier_threshold is None else OutlierDetector()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any
    ) -> "CxrClassifier | tuple[CxrClassifier, dict]":
        """See transformers; the heads follow the classes that are asked for.

        The saved classes in another order, by `id2label` or a configuration, keep what the heads
        learned of each; others, but for another spelling, get fresh heads. A warning says so.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if pretrained_model_name_or_path is None:
            return loaded
        kwargs.pop("trust_remote_code", None)  # is warned of where it is not for an Auto class
        stored, _ = cls.config_class.get_config_dict(pretrained_model_name_or_path, **kwargs)
        if stored:
            saved = cls.config_class.from_dict(stored)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model._adapt_heads(class_names(saved.to_dict()))
        return loaded

    @torch.no_grad()
    def _adapt_heads(self, saved: list[str]) -> None:
        """To the model's classes, from those that it was saved with."""
        before, after = spelled_alike(saved), spelled_alike(self._head_classes)
        if before == after:
            return
        if sorted(before) == sorted(after):
            rows, what = [before.index(name) for name in after], "in another order"
        else:
            rows, what = None, "fresh, to be trained"
        for head in self.heads:
            if rows is None:
                head.reset_parameters()
                continue
            for parameter in head.parameters():  # weight (K, D) and bias (K,)
                parameter.copy_(parameter[rows])
        logger.warning(
            "Saved for %s, loaded for %s: the head is %s.",
            ", ".join(saved),
            ", ".join(self._head_classes),
            what,
        )

    @property
    def heads(self) -> tuple[nn.Linear, ...]:
        """The network's classifier heads, one or several."""
        heads = self.network.get_classifier()
        several = isinstance(heads, (tuple, list, nn.ModuleList))
        return tuple(heads) if several else (heads,)

    def head_keys(self) -> set[str]:
        """Keys of the heads' weights in the state dict."""
        found = [(name, module) for name, module in self.named_modules() if module in self.heads]
        return {f"{name}.{key}" for name, module in found for key in module.state_dict()}

    @property
    def map_layer(self) -> nn.Module | None:
        """The part of the network that gives the last feature maps; None for `forward_features`."""
        return None

    @property
    def token_layer(self) -> nn.Module | None:
        """The part that gives a transformer's tokens beside the feature maps; None without."""
        return None

    def to_maps(self, output: Any, size: tuple[int, int]) -> torch.Tensor | None:
        """Feature maps (B, c, h, w) of what `map_layer` or `token_layer` gives for images.

        Args:
            output: of that layer.
            size: height and width of the images, pixels.

        Returns:
            None if it has no places.
        """
        return output if torch.is_tensor(output) and output.ndim == 4 else None

    @property
    def heatmap_methods(self) -> tuple[str, ...]:
        """The methods that `explain` takes."""
        return (*CAM_METHODS, *([] if self.token_layer is None else [TOKEN_METHOD]))

    def set_outlier_detector(self, detector: OutlierDetector, threshold: float) -> None:
        """Takes over a fitted detector, and the score above which `assess` refuses an image."""
        self.outlier_detector = detector
        self.config.outlier_threshold = threshold

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # timm initialises its own layers; only the heads are ours, as a checkpoint may lack them.
        if module in self.heads:
            normal_(module.weight, std=0.01)
            if module.bias is not None:
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
            labels: see `loss_cxr.classification_loss`; adds `loss`.
            return_dict: False gives a tuple of what there is of loss, logits, probabilities,
                outlier score and the heads' own logits.

        Returns:
            Raw logits, calibrated probabilities, the outlier score where the model has a detector,
            the loss where labels are given, and each head's logits where each has a loss of its
            own; `loss` is then their mean.

        Raises:
            ValueError: another number of channels than the configuration's, or no floats.
        """
        pixel_values = self._to_input(pixel_values)
        heads = self.head_logits(pixel_values)
        loss = None
        if labels is not None:
            losses = [classification_loss(logits, labels, self.config) for logits in heads]
            loss = torch.stack(losses).mean()
        scores = self._scores(pixel_values, reduce(torch.add, heads))
        several = heads if len(heads) > 1 else None
        output = CxrClassifierOutput(loss=loss, **scores, head_logits=several)
        return output if return_dict else output.to_tuple()

    def head_logits(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of which each is trained by a loss of its own; the model's are their sum.

        Args:
            pixel_values: float (B, C, H, W), in the model's precision.

        Returns:
            float (B, K), one alone unless a family has several.
        """
        return (self.network(pixel_values),)

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the heads see of each image: its pooled features.

        Args:
            pixel_values: float (B, C, H, W), as the image processor gives them.

        Returns:
            float32 (B, D), see `CxrNetwork`.

        Raises:
            ValueError: see `forward`.
        """
        features = self.network.forward_features(self._to_input(pixel_values))
        return self.network.forward_head(features, pre_logits=True).float()

    def ten_crop_logits(self, frames: torch.Tensor) -> torch.Tensor:
        """Logits of the mean of the uncalibrated probabilities over ten crops of each image.

        Args:
            frames: float (B, C, h, w), as the processor's `frame` gives them.

        Returns:
            float32 (B, K), which `probabilities` takes as it takes those of `forward`; softmax or
            sigmoid of them is the mean.

        Raises:
            ValueError: see `forward`.
        """
        crops = ten_crops(self._to_input(frames), self.config.image_size)
        logits = torch.stack([self.network(crop).float() for crop in crops])
        if not self.config.is_multi_label:
            return logits.log_softmax(2).logsumexp(0) - math.log(len(crops))
        # In the logarithm, as 1 - p of a sure answer is 0 in float32.
        present, absent = F.logsigmoid(logits), F.logsigmoid(-logits)
        return present.logsumexp(0) - absent.logsumexp(0)

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
        self,
        pixel_values: torch.Tensor,
        target: int | str | Sequence[int] | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Where the network looked (Grad-CAM, Selvaraju et al. 2017).

        Args:
            pixel_values: float (B, C, H, W).
            target: class to explain, an index or a name, or one index an image; None for the
                predicted class.

        Returns:
            float32 (B, H, W) in [0, 1], each scaled to its own extremes.

        Raises:
            ValueError: a target that is no class, or not one an image; a network without feature
                maps.
        """
        heatmaps = self.explain(pixel_values, target).heatmaps
        if heatmaps is None:
            raise ValueError(NO_MAPS)
        return heatmaps

    @torch.no_grad()
    def explain(
        self,
        pixel_values: torch.Tensor,
        target: int | str | Sequence[int] | torch.Tensor | None = None,
        method: str = "grad_cam",
    ) -> CxrClassifierOutput:
        """The answer of `forward` and heatmaps; Grad-CAM for little more than the answer's price.

        Args:
            pixel_values: float (B, C, H, W).
            target: see `grad_cam`.
            method: one of `heatmap_methods`: "grad_cam", "grad_cam_plus_plus", "hires_cam",
                "layer_cam" or "score_cam", with a forward pass a channel; and "token_grad_cam", of
                a transformer's tokens, where a network has some beside its feature maps. All but
                Grad-CAM are by the grad-cam library.

        Returns:
            `logits`, `probabilities`, `outlier_score` and `heatmaps`; these are None, which a
            warning says, where the network has no feature maps.

        Raises:
            ValueError: see `grad_cam`; an unknown method.
            ImportError: a method of the grad-cam library without it.
        """
        pixel_values = self._to_input(pixel_values)
        check_method(method, self.heatmap_methods)
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.inference_mode(False), torch.no_grad():
                layer = self.token_layer if method == TOKEN_METHOD else self.map_layer
                logits, output = self._forward_to_explain(pixel_values, layer)
                targets = self._check_target(target, logits)
                size = tuple(pixel_values.shape[2:])
                maps, heatmaps = self.to_maps(output, size), None
                if maps is not None:
                    explained = logits.gather(1, targets[:, None]).sum()
                    (gradients,) = torch.autograd.grad(explained, output)
                    gradients = self.to_maps(gradients, size)
                    heatmaps = make_heatmaps(
                        method, maps, gradients, pixel_values, self.network, targets
                    )
        finally:
            for module in training:
                module.training = True
        if heatmaps is None:
            warnings.warn(NO_MAPS, stacklevel=3)
        scores = self._scores(pixel_values, logits.detach())
        return CxrClassifierOutput(**scores, heatmaps=heatmaps)

    def _forward_to_explain(
        self, pixel_values: torch.Tensor, layer: nn.Module | None
    ) -> tuple[torch.Tensor, Any]:
        """Logits and the output of a layer, with a graph from that on and none before."""
        kept = []

        def keep(output: Any) -> Any:
            if not torch.is_tensor(output):
                kept.append(output)
                return output
            torch.set_grad_enabled(True)  # until the caller's `no_grad` ends
            kept.append(output.detach().requires_grad_())
            return kept[0].clone()  # what comes next may change it in place

        if layer is None:
            features = keep(self.network.forward_features(pixel_values))
        else:
            handle = layer.register_forward_hook(lambda module, args, output: keep(output))
            try:
                features = self.network.forward_features(pixel_values)
            finally:
                handle.remove()
        return self.network.forward_head(features), kept[0]

    @torch.no_grad()
    def assess(
        self,
        images: Sequence[CxrImage],
        processor: CxrImageProcessor,
        target: str | None = None,
        method: str | None = None,
        ten_crop: bool = False,
    ) -> list[CxrAnswer]:
        """What the model says of X-rays, in words and numbers that can be shown.

        Args:
            images: as `processor.open` gives them.
            processor: the model's own.
            target: the class that the heatmaps explain; None for the most probable one.
            method: of the heatmaps, see `explain`; None makes none.
            ten_crop: answer by `ten_crop_logits`, ten times the work; such an answer has no
                heatmap.

        Returns:
            One answer an image.

        Raises:
            ValueError: no images; no such class or method, or a method with `ten_crop`.
        """
        if not len(images):
            raise ValueError("there are no images; give one or more.")
        if ten_crop and method is not None:
            raise ValueError(f"ten crops have no heatmap; leave out the method {method!r}.")
        config = self.config.to_dict()
        index = None if target is None else self._class_index(target)
        if method is not None:
            check_method(method, self.heatmap_methods)
        pixels = np.stack([processor.prepare(image.pixels) for image in images])
        pixel_values = processor.normalize(pixels).to(self.device, self.dtype)
        outputs, known = {}, range(len(images))
        if self.outlier_detector is not None:
            scores = self.outlier_detector(pixel_values).tolist()
            threshold = config["outlier_threshold"]
            outputs["outlier_score"] = scores
            known = [k for k in known if refusal(scores[k], threshold, images[k].drawn) is None]
        # The classifier is asked, and perhaps explained, about these alone.
        outputs["logits"] = np.zeros((len(images), self.config.num_labels), np.float32)
        if method is not None:
            outputs["heatmaps"] = np.zeros((len(images), *pixels.shape[1:]), np.float32)
        if len(known):
            inputs = pixel_values[list(known)]
            if ten_crop:
                frame = processor.frame()
                frames = np.stack([frame.prepare(images[k].pixels) for k in known])
                frames = frame.normalize(frames).to(self.device, self.dtype)
                output = {"logits": self.ten_crop_logits(frames)}
            elif method is None:
                output = self(inputs)
            else:
                output = self.explain(inputs, index, method)
            if method is not None and output.heatmaps is None:
                outputs["heatmaps"] = [None] * len(images)
            for name in (outputs.keys() & output.keys()) - {"outlier_score"}:
                outputs[name][known] = output[name].float().cpu().numpy()
        return answers(outputs, images, config, target)

    def _scores(self, pixel_values: torch.Tensor, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = {"logits": logits, "probabilities": self.probabilities(logits)}
        if self.outlier_detector is not None and self.config.outlier_threshold is not None:
            scores["outlier_score"] = self.outlier_detector(pixel_values)
        return scores

    def _to_input(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """In the model's precision, whatever that is: float16 answers what float32 is asked."""
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values is {pixel_values.dtype}; this model takes floats, as its image "
                "processor gives them."
            )
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; this model takes "
                f"(batch, {self.config.num_channels}, height, width)."
            )
        return pixel_values.to(self.dtype)

    def _check_columns(self, scores: torch.Tensor, name: str) -> None:
        if scores.ndim != 2 or scores.shape[1] != self.config.num_labels:
            raise ValueError(
                f"{name} has shape {tuple(scores.shape)}; this model takes "
                f"(batch, {self.config.num_labels})."
            )

    def _class_index(self, name: str) -> int:
        names = class_names(self.config.to_dict())
        if name not in names:
            raise ValueError(f"{name!r} is not a class of this model; choose {', '.join(names)}.")
        return names.index(name)

    def _check_target(
        self, target: int | str | Sequence[int] | torch.Tensor | None, logits: torch.Tensor
    ) -> torch.Tensor:
        if target is None:
            return logits.argmax(1)
        if isinstance(target, str):
            target = self._class_index(target)
        targets = torch.as_tensor(target, device=logits.device)
        if targets.is_floating_point():
            raise ValueError(f"target is {target}; it takes class indices, whole numbers.")
        targets = targets.long()
        if targets.ndim == 0:
            targets = targets.expand(len(logits))
        if targets.shape != (len(logits),):
            raise ValueError(f"{len(targets)} targets for {len(logits)} images.")
        if targets.min() < 0 or targets.max() >= logits.shape[1]:
            raise ValueError(f"target is {target}; the classes are 0 to {logits.shape[1] - 1}.")
        return targets

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes weights, configuration and the code that loads them; see transformers.

        Raises:
            ValueError: a folder that could not be loaded: the configuration has a value that does
                not fit, or other classes than the network, or the same in another order; nothing
                is then written.
        """
        self.config.follow_classes()
        self.config.check()
        names = class_names(self.config.to_dict())
        before, after = spelled_alike(self._head_classes), spelled_alike(names)
        if before != after and sorted(before) == sorted(after):
            raise ValueError(
                f"the configuration has the classes {', '.join(names)}, the network "
                f"{', '.join(self._head_classes)}; load the model with "
                "from_pretrained(..., id2label=...) to change their order."
            )
        outputs, count = {head.out_features for head in self.heads}, self.config.num_labels
        if outputs != {count}:
            raise ValueError(
                f"the configuration has {count} classes, the network {max(outputs)}; load the "
                f"model with from_pretrained(..., num_labels={count}, "
                "ignore_mismatched_sizes=True) to change its head."
            )
        if self.config.outlier_threshold is None:
            self.outlier_detector = None
        super().save_pretrained(save_directory, **kwargs)

"""Learning from the probabilities of trained models (Hinton et al. 2015, section 2)."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from modeling import CxrImageProcessor
from modeling.configuration_cxr import CxrConfig
from modeling.loss_cxr import classification_loss
from modeling.modeling_cxr import CxrClassifier


class Teachers:
    """Trained models that look at the same augmented images as their student.

    Args:
        models: each with its processor, as `load_model` gives them, by name.
        processor: the student's; theirs may have another size, mean and deviation.
        config: the student's.
        device: where they run.

    Raises:
        ValueError: other classes or another geometry than the student's.
    """

    def __init__(
        self,
        models: Mapping[str, tuple[CxrClassifier, CxrImageProcessor]],
        processor: CxrImageProcessor,
        config: CxrConfig,
        device: torch.device,
    ) -> None:
        self.multi_label = config.is_multi_label
        self.pairs = []
        for name, (model, own) in models.items():
            classes, wanted = (list(c.id2label.values()) for c in (model.config, config))
            if classes != wanted or model.config.is_multi_label != self.multi_label:
                raise ValueError(
                    f"teacher {name} tells {', '.join(classes)} apart, the student "
                    f"{', '.join(wanted)}; they need the same classes in the same order, and one "
                    "label an image or several alike."
                )
            if own.geometry != processor.geometry:
                raise ValueError(
                    f"teacher {name} has the geometry {own.geometry}, the student "
                    f"{processor.geometry}; set --geometry {own.geometry}."
                )
            for setting in ("equalize", "crop", "mask"):
                one, other = getattr(own, setting), getattr(processor, setting)
                if one != other:
                    raise ValueError(
                        f"teacher {name} has {setting}={one}, the student {other}; they see the "
                        f"same images, so set --{setting} alike."
                    )
            model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
            self.pairs.append((model, own))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, temperature: float) -> torch.Tensor:
        """The mean of their probabilities at a temperature.

        Args:
            images: float (B, H, W) in [0, 1], augmented.
            temperature: > 0; the logits are divided by it.

        Returns:
            float32 (B, K).
        """
        answers = []
        for model, processor in self.pairs:
            size = (processor.size["height"], processor.size["width"])
            seen = images
            if images.shape[1:] != size:
                seen = F.interpolate(images[:, None], size, mode="bilinear", antialias=True)[:, 0]
            pixel_values = processor.normalize(seen).contiguous(memory_format=torch.channels_last)
            logits = model.network(pixel_values).float() / temperature
            answers.append(logits.sigmoid() if self.multi_label else logits.softmax(1))
        return torch.stack(answers).mean(0)


def student_loss(
    heads: Sequence[torch.Tensor],
    labels: torch.Tensor,
    config: CxrConfig,
    targets: torch.Tensor | None = None,
    weight: float = 0.0,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The configuration's loss on labelled images, and the distance to the teachers on all.

    Args:
        heads: logits, float (B, K), of each head that has a loss of its own; see
            `CxrClassifier.head_logits`.
        labels: see `classification_loss`.
        config: the student's.
        targets: probabilities of the teachers, float (B, K); None without teachers.
        weight: share of the teachers' part, in [0, 1].
        temperature: at which `targets` were made; the gradients are scaled by its square, after
            Hinton et al.

    Returns:
        A scalar, the mean over the heads.
    """
    loss = torch.stack([classification_loss(logits, labels, config) for logits in heads]).mean()
    if targets is None:
        return loss
    distance = torch.stack([_distance(logits, targets, temperature, config) for logits in heads])
    return (1 - weight) * loss + weight * temperature**2 * distance.mean()


def _distance(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float, config: CxrConfig
) -> torch.Tensor:
    logits = logits.float() / temperature
    if config.is_multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets)
    return -(targets * logits.log_softmax(1)).sum(1).mean()

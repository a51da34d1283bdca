"""What the configurations of all chest X-ray classifiers share."""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from .calibration_cxr import check_operation

LOSSES = ("cross_entropy", "focal")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification")
OPERATION = ("calibration", "thresholds", "abstention", "prevalence")
# What holds for the classes and the people of the training data alone.
FITTED = (*OPERATION, "outlier_threshold", "age_range", "class_weights", "focal_alpha")

NO_FEATURES = (
    "pipeline('image-feature-extraction') would answer this model's logits, which are no features; "
    "use model.embed(processor(image).pixel_values)."
)

logger = logging.getLogger(__name__)


def spelled_alike(names: Sequence[str]) -> list[str]:
    """Names without what spellings of one class differ in: capitals, blanks, hyphens, underscores.

    Two models have the same classes in the same order where these are equal.
    """
    return [re.sub(r"[\s_-]+", " ", str(name)).casefold() for name in names]


def _check_classes(id2label: Mapping[int | str, str]) -> dict[int, str]:
    """`id2label` with numbers for the text keys of JSON, in their order."""
    texts = {str(index): name for index, name in id2label.items()}
    if set(texts) != {str(index) for index in range(len(texts))}:
        raise ValueError(f"id2label has the indices {', '.join(texts)}; they count from 0.")
    names = list(texts.values())
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"id2label has {repeated!r} more than once; each class has its own name.")
    return {index: texts[str(index)] for index in range(len(texts))}


class CxrConfig(PretrainedConfig):
    """What every network family shares.

    Setting other classes (`id2label`, `num_labels`) or another `problem_type`, also by keywords of
    `from_pretrained`, drops what was fitted for the old ones (`FITTED`), which a warning says.
    Classes that are edited in place drop it when they are saved. `label2id` follows `id2label`.

    Args:
        image_size: height and width of `pixel_values`, pixels.
        num_channels: 1 (grey) or 3 (the grey image repeated, for networks pretrained on colour).
        dropout: probability of dropping a feature before the classifier, in [0, 1).
        loss: "cross_entropy" or "focal" (Lin et al. 2017, section 3).
        class_weights: one weight a class (single-label) or one positive weight a class
            (multi-label); None weighs all alike.
        label_smoothing: share of the target spread over the classes, in [0, 1); cross-entropy only.
        focal_gamma: focusing exponent, >= 0.
        focal_alpha: weight of the positive class in [0, 1], 1 - alpha for the negative one; for
            two classes or multi-label. None leaves it out.
        calibration: map from the log-odds of class 1 (two classes) or of each class (multi-label)
            to calibrated ones, fitted on validation. `{"method": "temperature", "temperature": T}`
            divides all by T, and is the only one for more exclusive classes; `{"method": "platt",
            "scale": [...], "bias": [...]}` is linear; `{"method": "isotonic", "log_odds": [[...]],
            "calibrated": [[...]]}` is linear between knots and flat outside; `{"method":
            "operating_point", "threshold": [...]}` scales probabilities so that each threshold
            becomes 0.5. None is the identity.
        thresholds: probability from which class 1, or each class of a multi-label model, is
            decided; None decides for the most probable class, or above 0.5.
        abstention: [low, high] for each threshold, between which no decision is made; None decides
            always.
        prevalence: share of each class in the data of the calibration, in (0, 1).
        outlier_threshold: `outlier_score` above which an image is none that the model knows; None
            for a model without a detector.
        age_range: [low, high], years, of the people it was trained on; None where unknown.
        kwargs: `id2label`, `label2id`, `problem_type` and transformers' own.

    Raises:
        ValueError: a value outside its range or set.
    """

    # `Trainer` then hands the logits alone to `compute_metrics`, as it does for other classifiers.
    keys_to_ignore_at_inference = ["probabilities", "outlier_score", "head_logits"]

    def __init__(
        self,
        image_size: int = 224,
        num_channels: int = 1,
        dropout: float = 0.0,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        focal_alpha: float | None = None,
        calibration: dict | None = None,
        thresholds: Sequence[float] | None = None,
        abstention: Sequence[Sequence[float]] | None = None,
        prevalence: Sequence[float] | None = None,
        outlier_threshold: float | None = None,
        age_range: Sequence[float] | None = None,
        problem_type: str = "single_label_classification",
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.num_channels = num_channels
        self.dropout = dropout
        self.loss = loss
        self.class_weights = list(class_weights) if class_weights is not None else None
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.focal_alpha = focal_alpha
        self.calibration = calibration
        self.thresholds = thresholds
        self.abstention = abstention
        self.prevalence = prevalence
        self.outlier_threshold = outlier_threshold
        self.age_range = age_range
        super().__init__(problem_type=problem_type, **kwargs)
        self.follow_classes()
        self.check()

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "id2label" and value is not None:
            value = _check_classes(value)
        before = self.__dict__.get(key)
        super().__setattr__(key, value)
        if key == "id2label" and value is not None:
            self.follow_classes()
        elif key == "problem_type" and None not in (before, value) and before != value:
            self._forget_fitted("another problem_type")

    def follow_classes(self) -> None:
        """Lets `label2id`, and what was fitted, follow the names in `id2label`.

        Raises:
            ValueError: `id2label` does not count from 0, or has a name twice.
        """
        names = list(_check_classes(self.id2label).values())
        # A copy of the names that what was fitted is for: those in `id2label` are edited in place.
        before = self.__dict__.get("_fitted_classes", names)
        if spelled_alike(before) != spelled_alike(names):
            self._forget_fitted("other classes")
        self.__dict__["_fitted_classes"] = names
        self.__dict__["label2id"] = {name: index for index, name in enumerate(names)}

    def to_dict(self) -> dict[str, Any]:
        """See transformers."""
        fields = super().to_dict()
        fields.pop("_fitted_classes", None)
        return fields

    def _forget_fitted(self, what: str) -> None:
        dropped = [name for name in FITTED if self.__dict__.get(name) is not None]
        if dropped:
            logger.warning("Dropped %s: fitted for %s.", ", ".join(dropped), what)
            self.update(dict.fromkeys(dropped))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "CxrConfig | tuple[CxrConfig, dict]":
        """See transformers.

        Raises:
            ValueError: see `from_dict`; it is for a pipeline that asks for features.
        """
        if kwargs.get("_from_pipeline") == "image-feature-extraction":
            raise ValueError(NO_FEATURES)
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: Any) -> "CxrConfig | tuple[CxrConfig, dict]":
        """See transformers.

        Raises:
            ValueError: a value, of the dictionary or a keyword, outside its range or set; a
                `label2id` that is not the inverse of `id2label`.
        """
        # The classes first: what is given for them must outlive what held for the old ones.
        classes = ("problem_type", "id2label", "label2id")
        kwargs = {key: kwargs[key] for key in classes if key in kwargs} | kwargs
        given = kwargs.get("label2id")
        made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made
        config.follow_classes()
        if given is not None and {str(name): int(index) for name, index in given.items()} != {
            str(name): index for name, index in config.label2id.items()
        }:
            raise ValueError(
                f"label2id is {given}, while id2label is {config.id2label}; give id2label alone, "
                "which label2id follows."
            )
        config.check()
        return made

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """See transformers.

        Raises:
            ValueError: see `check`; nothing is then written.
        """
        self.follow_classes()
        self.check()
        super().save_pretrained(save_directory, **kwargs)

    def set_operation(self, operation: dict | None) -> None:
        """Takes over what was fitted on validation, all of it; None forgets it.

        Args:
            operation: `calibration`, `thresholds`, `abstention` and `prevalence`.

        Raises:
            ValueError: another set of fields, or a value that does not fit; nothing is then taken.
        """
        operation = dict.fromkeys(OPERATION) if operation is None else operation
        if set(operation) != set(OPERATION):
            raise ValueError(
                f"an operation holds {', '.join(OPERATION)}, not {', '.join(operation) or 'none'}."
            )
        check_operation(**operation, num_labels=self.num_labels, multi_label=self.is_multi_label)
        self.update(operation)

    @property
    def is_multi_label(self) -> bool:
        """Whether each class is told by itself, so that none or several may hold at once."""
        return self.problem_type == "multi_label_classification"

    def check(self) -> None:
        """Refuses what cannot be used, and so not be loaded either.

        Raises:
            ValueError: a value outside its range or set, or one that does not fit the classes.
        """
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is {self.num_channels}; it can be 1 or 3.")
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; it can be {' or '.join(LOSSES)}.")
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"problem_type is {self.problem_type!r}; it can be {' or '.join(PROBLEM_TYPES)}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it lies in [0, 1).")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it lies in [0, 1).")
        if self.class_weights is not None and len(self.class_weights) != self.num_labels:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} values for {self.num_labels} classes."
            )
        if self.outlier_threshold is not None and not math.isfinite(self.outlier_threshold):
            raise ValueError(f"outlier_threshold is {self.outlier_threshold}, not a finite number.")
        if self.age_range is not None and not (
            len(self.age_range) == 2 and 0 <= self.age_range[0] <= self.age_range[1]
        ):
            raise ValueError(f"age_range is {self.age_range}; it takes [low, high] in years.")
        operation = {name: getattr(self, name) for name in OPERATION}
        check_operation(**operation, num_labels=self.num_labels, multi_label=self.is_multi_label)
        if self.loss == "focal":
            self._check_focal()

    def _check_focal(self) -> None:
        if self.focal_gamma < 0:
            raise ValueError(f"focal_gamma is {self.focal_gamma}; it is 0 or more.")
        if self.label_smoothing:
            raise ValueError("label_smoothing goes with loss='cross_entropy', not with 'focal'.")
        if self.focal_alpha is None:
            return
        if not 0 <= self.focal_alpha <= 1:
            raise ValueError(f"focal_alpha is {self.focal_alpha}; it lies in [0, 1].")
        if self.problem_type == PROBLEM_TYPES[0] and self.num_labels != 2:
            raise ValueError(
                f"focal_alpha weighs two classes, not {self.num_labels}; use class_weights instead."
            )


# ------------------------------------------------------------------- checks that families share


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Refuses heads of an attention that do not divide its width.

    Raises:
        ValueError: they do not; those that do are named.
    """
    if embed_dim < 1:
        raise ValueError(f"embed_dim is {embed_dim}; it is 1 or more.")
    if num_heads < 1 or embed_dim % num_heads:
        divisors = [n for n in range(1, embed_dim + 1) if embed_dim % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - num_heads))[:4])
        raise ValueError(
            f"num_heads is {num_heads}, which does not divide embed_dim {embed_dim}; near it, "
            f"{', '.join(map(str, near))} do."
        )


def check_multiple(name: str, value: int, factor: int, what: str) -> None:
    """Refuses a value that is no multiple of a factor.

    Args:
        name: of the value.
        value: 1 or more.
        factor: what divides it.
        what: what the factor is, for the reader.

    Raises:
        ValueError: it is none; the nearest that are, are named.
    """
    if value < 1 or value % factor:
        low = max(value // factor, 1) * factor
        raise ValueError(
            f"{name} is {value}; it takes multiples of {factor} ({what}), such as {low} or "
            f"{low + factor}."
        )

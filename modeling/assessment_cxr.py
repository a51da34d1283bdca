"""One answer an X-ray, the same in the browser, on the command line and in the API."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .grad_cam_cxr import check_method

UNLIKE = "This does not look like a chest X-ray that the model knows, so it gives no probability."
DRAWN = (
    "Large areas are of exactly one grey, as in drawings and on screens; heavy compression or an "
    "enlarged copy of an X-ray may also be the cause, so try its original file."
)


@dataclass(frozen=True)
class CxrAssessment:
    """What a model says of one image.

    Attributes:
        refusal: why there is no answer, a sentence; None where there is one.
        warnings: what to know before believing it, a sentence each.
        logits, probabilities: {class name: value}; empty if refused.
        decided: the class decided for, or each class of a multi-label model found present.
        uncertain: classes whose probability lies in the abstention band: a human should read it.
        outlier_score: see `CxrClassifierOutput`.
        explained: class that the heatmap explains, or None without a heatmap.
        heatmap: float32 (H, W) in [0, 1] in the frame of `pixel_values`.
    """

    refusal: str | None = None
    warnings: tuple[str, ...] = ()
    logits: dict[str, float] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)
    decided: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    outlier_score: float | None = None
    explained: str | None = None
    heatmap: np.ndarray | None = None

    def heat(self, processor, height: int, width: int) -> np.ndarray:
        """The heatmap times the probability of the class it explains, in the image's own frame.

        Args:
            processor: the image processor that read the image.
            height, width: of the image, or of a copy of another size, pixels.

        Returns:
            float32 (height, width) in [0, 1]; zeros where there is no heatmap.
        """
        if self.heatmap is None:
            return np.zeros((height, width), np.float32)
        restored = processor.restore(self.heatmap, height, width)
        return restored * self.probabilities[self.explained]


@torch.no_grad()
def assess(model, images: Sequence, processor, target: str | None, method: str | None) -> list:
    """See `CxrPreTrainedModel.assess`."""
    config = model.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    if target is not None and target not in names:
        raise ValueError(f"{target!r} is not a class of this model; choose {', '.join(names)}.")
    if method is not None:
        check_method(method)
    pixels = np.stack([processor.resize(image.pixels) for image in images])
    pixel_values = processor.normalize(pixels).to(model.device)
    scores = [None] * len(images)
    if model.outlier_detector is not None:
        scores = model.outlier_detector(pixel_values).tolist()
    threshold = config.outlier_threshold
    refusals = [refusal(score, threshold, image.drawn) for score, image in zip(scores, images)]
    # The classifier is asked, and perhaps explained, about the rest alone.
    known = [row for row, reason in enumerate(refusals) if reason is None]
    answers = iter(_answer(model, pixel_values[known], names, target, method) if known else ())
    return [
        CxrAssessment(
            refusal=reason,
            warnings=(*image.warnings, *_age_warning(image.age, config.age_range)),
            outlier_score=score,
            **(next(answers) if reason is None else {}),
        )
        for image, score, reason in zip(images, scores, refusals)
    ]


def _answer(model, pixel_values, names, target, method):
    """Of each image, the attributes of a `CxrAssessment` that a refused one lacks."""
    if method is None:
        output = model(pixel_values)
        explained = heatmaps = [None] * len(pixel_values)
    else:
        output = model.explain(pixel_values, target and names.index(target), method)
        explained = [target or names[index] for index in output.logits.argmax(1).tolist()]
        heatmaps = output.heatmaps.float().cpu().numpy()
    decisions = model.decide(output.probabilities).tolist()
    columns = output.logits.tolist(), output.probabilities.tolist(), decisions, explained, heatmaps
    for logits, probabilities, decision, shown, heatmap in zip(*columns):
        decided, uncertain = _name_decisions(decision, names)
        yield {
            "logits": dict(zip(names, logits)),
            "probabilities": dict(zip(names, probabilities)),
            "decided": decided,
            "uncertain": uncertain,
            "explained": shown,
            "heatmap": heatmap,
        }


def refusal(score: float | None, threshold: float | None, drawn: bool) -> str | None:
    """Why a model with an outlier detector gives no answer, a sentence; else None.

    Args:
        score: of the detector; None without one.
        threshold: `config.outlier_threshold`.
        drawn: see `CxrImage`.
    """
    if score is None:
        return None
    if score > threshold:
        return UNLIKE
    return DRAWN if drawn else None


def _name_decisions(decision, names):
    """Classes decided for, and classes in the abstention band."""
    if isinstance(decision, int):  # exclusive classes; of these, only class 1 of two has a band
        return ((), (names[1],)) if decision == -1 else ((names[decision],), ())
    present = tuple(name for name, one in zip(names, decision) if one == 1)
    return present, tuple(name for name, one in zip(names, decision) if one == -1)


def _age_warning(age, age_range):
    if age_range is None:
        return ()
    low, high = age_range
    if age is None:
        return (
            f"The model was trained on people of {low:g} to {high:g} years, and the file does not "
            "say how old this person is.",
        )
    if low <= age <= high:
        return ()
    who = "an adult" if age >= 18 else "a child"
    return (
        f"The file is of {who}, and the model was trained on people of {low:g} to {high:g} years: "
        "expect it to do worse.",
    )


def table_row(
    file: str, assessment: CxrAssessment, error: str | None, class_names: Sequence[str]
) -> dict:
    """See `CxrPreTrainedModel.table_row`."""
    status = "error" if error else "refused" if assessment.refusal else "ok"
    row = {
        "file": file,
        "status": "uncertain" if status == "ok" and assessment.uncertain else status,
        "decision": "; ".join(assessment.decided),
        "uncertain": "; ".join(assessment.uncertain),
    }
    columns = (("probability", assessment.probabilities), ("logit", assessment.logits))
    for column, values in columns:
        row |= {f"{column}_{name}": _number(values.get(name)) for name in class_names}
    return row | {
        "outlier_score": _number(assessment.outlier_score),
        "warnings": " ".join(assessment.warnings),
        "reason": error or assessment.refusal or "",
    }


def _number(value):
    return None if value is None else float(str(np.float32(value)))

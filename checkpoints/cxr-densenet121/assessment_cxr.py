"""One answer an X-ray, the same in the browser, on the command line and in the API."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

UNLIKE = "This does not look like a chest X-ray that the model knows, so it gives no probability."
DRAWN = "Large areas are of exactly one grey, as in drawings and on screens, but not in X-rays."


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
        heatmap: float32 (H, W) in [0, 1] in the frame of `pixel_values`; the image processor's
            `restore` puts it back on the image.
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


@torch.no_grad()
def assess(model, images: Sequence, processor, target: str | None, method: str | None) -> list:
    """See `CxrPreTrainedModel.assess`."""
    config = model.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    if target is not None and target not in names:
        raise ValueError(f"{target!r} is not a class of this model; choose {', '.join(names)}.")
    pixels = np.stack([processor.resize(image.pixels) for image in images])
    pixel_values = processor.normalize(pixels).to(model.device)
    if method is None:
        output, heatmaps = model(pixel_values), [None] * len(images)
        explained = heatmaps
    else:
        index = None if target is None else names.index(target)
        output = model.explain(pixel_values, index, method)
        heatmaps = output.heatmaps.float().cpu().numpy()
        explained = [target or names[index] for index in output.logits.argmax(1).tolist()]
    scores = [None] * len(images)
    if output.outlier_score is not None:
        scores = output.outlier_score.tolist()
    decisions = model.decide(output.probabilities).tolist()
    rows = zip(
        images, output.logits.tolist(), output.probabilities.tolist(), decisions, scores,
        explained, heatmaps,
    )  # fmt: skip
    answers = []
    for image, logits, probabilities, decision, score, shown, heatmap in rows:
        warnings = (*image.warnings, *_age_warning(image.age, config.age_range))
        refusal = _refusal(image, score, config.outlier_threshold)
        if refusal is not None:
            answers.append(CxrAssessment(refusal, warnings, outlier_score=score))
            continue
        decided, uncertain = _name_decisions(decision, names)
        answers.append(
            CxrAssessment(
                warnings=warnings,
                logits=dict(zip(names, logits)),
                probabilities=dict(zip(names, probabilities)),
                decided=decided,
                uncertain=uncertain,
                outlier_score=score,
                explained=shown,
                heatmap=heatmap,
            )
        )
    return answers


def _refusal(image, score, threshold):
    """Why a model with a detector gives no answer, or None."""
    if score is None:
        return None
    if score > threshold:
        return UNLIKE
    return DRAWN if image.drawn else None


def _name_decisions(decision, names):
    """Classes decided for, and classes in the abstention band."""
    if isinstance(
        decision, int
    ):  # of two or more exclusive classes; only class 1 of two has a band
        return ((), (names[1],)) if decision == -1 else ((names[decision],), ())
    present = tuple(name for name, one in zip(names, decision) if one == 1)
    return present, tuple(name for name, one in zip(names, decision) if one == -1)


def _age_warning(age, age_range):
    if age is None or age_range is None:
        return ()
    low, high = age_range
    if low <= age <= high:
        return ()
    who = "an adult" if age >= 18 else "a child"
    return (
        f"The file is of {who}, and the model was trained on people of {low:g} to {high:g} years: "
        "expect it to do worse.",
    )

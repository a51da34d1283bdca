"""One answer an X-ray, the same in the browser, on the command line and in the API; NumPy alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .calibration_cxr import calibrate, decide, to_probabilities
from .image_cxr import CxrImage

UNLIKE = "This does not look like a chest X-ray that the model knows, so it gives no probability."
DRAWN = (
    "Large areas are of exactly one grey, as in drawings and on screens; heavy compression or an "
    "enlarged copy of an X-ray may also be the cause, so try its original file."
)
NO_MAPS = "This network has no feature maps with places in the image: there is no heatmap."
NOT_FLAGGED = "not flagged"


@dataclass(frozen=True)
class CxrAnswer:
    """What a model says of one image.

    Attributes:
        refusal: why there is no answer, a sentence; None where there is one.
        warnings: what to know before believing it, a sentence each.
        logits, probabilities: {class name: value}; empty if refused.
        decided: classes that are flagged: of two exclusive classes the second, the finding, or
            none; of more the most probable; of a multi-label model each that is found.
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

    @property
    def status(self) -> str:
        """ok, uncertain or refused."""
        return "refused" if self.refusal else "uncertain" if self.uncertain else "ok"

    @property
    def decision(self) -> str:
        """The classes that are flagged, joined by "; ", or "not flagged"; empty without one.

        A class that is not flagged is no finding of its opposite: at a threshold of 0.7, a
        probability of 0.66 is not flagged and still more likely than not.
        """
        nothing = "" if self.refusal or self.uncertain else NOT_FLAGGED
        return "; ".join(self.decided) or nothing

    def heat(self, processor: Any, height: int, width: int) -> np.ndarray:
        """The heatmap times the probability of the class it explains, in the image's own frame.

        Args:
            processor: the image processor that read the image.
            height: of the image, or of a copy of another size, pixels.
            width: the same.

        Returns:
            float32 (height, width) in [0, 1]; zeros where there is no heatmap.
        """
        if self.heatmap is None:
            return np.zeros((height, width), np.float32)
        restored = processor.restore(self.heatmap, height, width)
        return restored * np.float32(self.probabilities[self.explained])


def answers(
    outputs: Mapping[str, np.ndarray],
    images: Sequence[CxrImage],
    config: Mapping[str, Any],
    target: str | None = None,
) -> list[CxrAnswer]:
    """What a network's outputs mean, in words and numbers that can be shown.

    Args:
        outputs: `logits`, float (B, K), and what there is of `outlier_score`, float (B,), and
            `heatmaps`, float (B, H, W), or a None each where the network has no feature maps. The
            logits and heatmaps of refused images may be anything.
        images: what the network saw, as read.
        config: the fields of the model's config.json.
        target: the class that the heatmaps explain; None for the one of the highest logit.

    Returns:
        One answer an image.
    """
    names = class_names(config)
    logits = np.asarray(outputs["logits"], np.float32)
    scores = outputs.get("outlier_score", [None] * len(images))
    heatmaps = outputs.get("heatmaps", [None] * len(images))
    multi_label = config.get("problem_type") == "multi_label_classification"
    calibrated = calibrate(logits, config.get("calibration"), multi_label)
    probabilities = to_probabilities(calibrated, multi_label).astype(np.float32)
    decisions = decide(
        probabilities, config.get("thresholds"), config.get("abstention"), multi_label
    )
    found = []
    for row, (image, score, heatmap) in enumerate(zip(images, scores, heatmaps)):
        score = None if score is None else float(score)
        reason = refusal(score, config.get("outlier_threshold"), image.drawn)
        warnings = (*image.warnings, *_age_warning(image.age, config.get("age_range"), reason))
        answer = CxrAnswer(reason, warnings, outlier_score=score)
        if reason is None:
            decided, uncertain = _name_decisions(decisions[row], names)
            answer = replace(
                answer,
                logits=dict(zip(names, logits[row].tolist())),
                probabilities=dict(zip(names, probabilities[row].tolist())),
                decided=decided,
                uncertain=uncertain,
            )
        if reason is None and "heatmaps" in outputs and heatmap is None:
            answer = replace(answer, warnings=(*warnings, NO_MAPS))
        elif reason is None and heatmap is not None:
            explained = target or names[logits[row].argmax()]
            answer = replace(answer, explained=explained, heatmap=heatmap)
        found.append(answer)
    return found


def class_names(config: Mapping[str, Any]) -> list[str]:
    """In the order of the logits; JSON has the indices as text."""
    return [name for _, name in sorted((int(k), name) for k, name in config["id2label"].items())]


def refusal(score: float | None, threshold: float | None, drawn: bool) -> str | None:
    """Why a model with an outlier detector gives no answer, a sentence; else None.

    Args:
        score: of the detector; None without one.
        threshold: `config.outlier_threshold`.
        drawn: see `CxrImage`.
    """
    if score is None or threshold is None:
        return None
    if score > threshold:
        return UNLIKE
    return DRAWN if drawn else None


def table_row(
    file: str,
    answer: CxrAnswer | None,
    error: str | None,
    names: Sequence[str],
) -> dict[str, str | float | None]:
    """A file's row in a table of predictions.

    Args:
        file: its name.
        answer: None where the file could not be read.
        error: what went wrong with it, a sentence; None where nothing did.
        names: of the classes.

    Returns:
        `file`; `status`: ok, uncertain (a human should read it), refused or error; `decision`, see
        `CxrAnswer`; `uncertain`: classes, joined by "; "; `probability_CLASS` and `logit_CLASS` of
        each class and `outlier_score`: in the fewest digits that give the same float32, None where
        there is none; `warnings`; `reason`: of a refusal or an error.
    """
    known = answer or CxrAnswer()
    row = {
        "file": file,
        "status": "error" if error else known.status,
        "decision": known.decision if answer else "",
        "uncertain": "; ".join(known.uncertain),
    }
    for column, values in (("probability", known.probabilities), ("logit", known.logits)):
        row |= {f"{column}_{name}": _number(values.get(name)) for name in names}
    return row | {
        "outlier_score": _number(known.outlier_score),
        "warnings": " ".join(known.warnings),
        "reason": error or known.refusal or "",
    }


def _number(value: float | None) -> float | None:
    return None if value is None else float(str(np.float32(value)))


def _name_decisions(
    decision: np.ndarray, names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Classes that are flagged, and classes in the abstention band."""
    if decision.ndim == 0:  # exclusive classes; of these, only class 1 of two has a band
        if decision == -1:
            return (), (names[1],)
        return () if len(names) == 2 and decision == 0 else (names[decision],), ()
    flagged = tuple(name for name, one in zip(names, decision) if one == 1)
    return flagged, tuple(name for name, one in zip(names, decision) if one == -1)


def _age_warning(
    age: float | None, age_range: Sequence[float] | None, reason: str | None
) -> tuple[str, ...]:
    """What a person's age says against the answer; of a refused image, only one that is known."""
    if age_range is None or (age is None and reason):
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

"""The endpoints, of which two are MCP tools too: their docstrings are what a caller reads."""

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
from batch import assess_entries, read_uploads
from files import names_and_paths, read_upload, save_csv, save_picture
from models import Classifier

PREDICTED = "most probable class"


def sentence(error: Exception) -> str:
    """What went wrong, for the person who sent the image."""
    text = str(error).removeprefix("the image: ")
    return text[:1].upper() + text[1:]


def answering(function: Callable) -> Callable:
    """Turns what a request did wrong into an answer, without a traceback in the log."""

    @functools.wraps(function)
    def answer(*args: Any) -> Any:
        try:
            return function(*args)
        except (ValueError, ImportError) as error:
            raise gr.Error(sentence(error), print_exception=False) from error

    return answer


def endpoints(
    classifiers: dict[str, Classifier], overlay: gr.Image, csv_file: gr.File
) -> tuple[Callable, Callable, Callable]:
    """The functions behind /predict, /heatmap and /predict_batch.

    Args:
        classifiers: {name: classifier}.
        overlay: component that owns the pictures which /heatmap writes.
        csv_file: component that owns the tables which /predict_batch writes.
    """

    def choose(name: str) -> Classifier:
        if name not in classifiers:
            raise ValueError(f"{name!r} is no model here; choose {', '.join(classifiers)}.")
        return classifiers[name]

    @answering
    def predict(image: dict, model: str) -> dict:
        """Classify a chest X-ray. Research only, not a medical device.

        Returns a dictionary. "status" is "ok", "uncertain" (a human should read it) or "refused"
        (no chest X-ray that the model knows; "reason" says so). "decision" is the finding if it is
        flagged, or the classes found, separated by "; ", or "not flagged"; "uncertain" names those
        in the abstention band. "probabilities" (calibrated) and "logits" (raw) are {class: number},
        empty if refused. "outlier_score" is how unlike its training images the model finds the
        image, or null. "warnings" is a list of sentences. "model" is its name and the hash of its
        files, "revision" its version.

        Args:
            image: The image file: PNG, JPEG, TIFF or DICOM, 8 to 16 bits.
            model: The model to ask.
        """
        classifier = choose(model)
        opened = classifier.open(read_upload(image))
        return _facts(classifier, classifier.assess(opened))

    @answering
    def heatmap(image: dict, model: str, target: str, method: str) -> tuple[str, dict]:
        """Draw where a model looked in a chest X-ray. Research only, not a medical device.

        Returns the X-ray at its own size under the heatmap of one class, a PNG whose colour and
        opacity follow the heatmap times the probability of that class; and the dictionary of
        `predict` with the class "explained" and the "method". A refused image comes back without
        heat, and "explained" is null.

        Args:
            image: The image file: PNG, JPEG, TIFF or DICOM, 8 to 16 bits.
            model: The model to ask.
            target: The class to explain, or "most probable class".
            method: grad_cam, grad_cam_plus_plus, hires_cam, layer_cam or score_cam (slow); and
                token_grad_cam of a model that has a transformer beside a CNN.
        """
        classifier = choose(model)
        opened = classifier.open(read_upload(image))
        wanted = None if target == PREDICTED else target
        assessment = classifier.assess(opened, wanted, method)
        heat = assessment.heat(classifier.processor, *opened.pixels.shape)
        path = save_picture(classifier.processor.overlay(opened.pixels, heat), overlay)
        facts = {"explained": assessment.explained, "method": method}
        return path, _facts(classifier, assessment) | facts

    @answering
    def predict_batch(files: list, model: str) -> tuple[list[dict], str]:
        """Classify many chest X-rays. Research only, not a medical device.

        Returns a list of rows, and the same table as a CSV file: file, status (ok, uncertain,
        refused or error), decision, uncertain, probability_CLASS and logit_CLASS of each class,
        outlier_score, warnings, reason (of a refusal or an error) and model.

        Args:
            files: Image files, and zip archives of them.
            model: The model to ask.
        """
        classifier = choose(model)
        rows = list(assess_entries(classifier, read_uploads(names_and_paths(files))))
        if not rows:
            raise ValueError("There is no image in these files.")
        return [row.cells for row in rows], save_csv(rows, csv_file)

    predict_batch._mcp_type = "none"  # no tool: Gradio's MCP server cannot pass on a list of files
    return predict, heatmap, predict_batch


def _facts(classifier: Classifier, assessment: Any) -> dict:
    cells = classifier.row("", assessment)
    facts = {name: cells[name] for name in ("status", "decision", "uncertain")}
    for key, column in (("probabilities", "probability"), ("logits", "logit")):
        numbers = {name: cells[f"{column}_{name}"] for name in classifier.classes}
        facts[key] = {} if assessment.refusal else numbers
    return facts | {
        "outlier_score": cells["outlier_score"],
        "warnings": list(assessment.warnings),
        "reason": assessment.refusal,
        "model": classifier.version,
        "revision": classifier.revision,
    }

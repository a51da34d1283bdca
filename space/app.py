"""A chest X-ray classifier in the browser: class probabilities, and where the model looked.

    MODEL_ID=org/cxr-densenet121 python app.py

MODEL_ID names one model or several, separated by commas: Hub ids or folders. The code stored with
a model is run (`trust_remote_code`), so name only models that you trust.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

import gradio as gr
import numpy as np
from models import PREDICTED, Classifier, load_classifiers
from PIL import Image
from widgets import colour_bar, probability_table

TITLE = "Chest X-ray classifier"
UPLOAD_MINUTES = 10  # time to compare models and classes
MAX_FILE_SIZE = "64mb"  # 16-bit, uncompressed, 5600 x 5600

THEME = gr.themes.Base(primary_hue="teal", neutral_hue="slate").set(
    body_text_color_subdued="*neutral_500"  # legible on white, unlike the default
)


def build_page(classifiers: dict[str, Classifier]) -> gr.Blocks:
    """Lay out the page and its API."""
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(60, UPLOAD_MINUTES * 60)
    ) as page:
        gr.Markdown(f"# {TITLE}\nClass probabilities, and where the model looked.")
        gr.Markdown(
            "**Research only, not a medical device.** Base no decision about a patient on it.",
            elem_id="notice",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                image = gr.File(label="Chest X-ray (PNG or JPEG)", type="binary", height=170)
                model = gr.Dropdown(list(classifiers), label="Model", filterable=False)
                classes = [name for each in classifiers.values() for name in each.classes]
                target = gr.Dropdown(
                    list(dict.fromkeys([PREDICTED, *classes])),
                    label="Heatmap for",
                    filterable=False,
                )
                problem = gr.Markdown(visible=False, elem_id="problem")
                table = probability_table(elem_id="probabilities")
            with gr.Column(scale=3, min_width=300):
                with gr.Row():
                    original = _picture("Original", "The X-ray", elem_id="original")
                    heatmap = _picture("Heatmap", "The X-ray under its heatmap", elem_id="heatmap")
                scale = colour_bar(elem_id="colour-bar")
        gr.Markdown(
            "**Your upload** is read on this server by the model you choose and goes nowhere else; "
            f"it is deleted after {UPLOAD_MINUTES} minutes.",
            elem_id="privacy",
        )
        probabilities = gr.JSON(label="Probabilities", visible=False)

        def predict(image: bytes | None, model: str, target: str = PREDICTED):
            """Classify a chest X-ray and show where the model looked.

            Returns the probabilities as {class name: probability}, and the X-ray at its own size
            under the Grad-CAM heatmap of one class, whose colour and opacity are scaled by the
            probability of that class. Research only, not a medical device.

            Args:
                image: The image file: PNG or JPEG, 8 or 16 bits a channel.
                model: The model to ask.
                target: The class that the heatmap explains; by default the most probable one.
            """
            if image is None:
                raise gr.Error("There is no image; give a PNG or JPEG file.", print_exception=False)
            try:
                result = classifiers[model].explain(image, target)
            except ValueError as error:
                raise gr.Error(str(error), print_exception=False) from error
            return result.probabilities, _save_png(result.overlay, heatmap)

        def show(upload: dict | None, model: str, target: str):
            """Fill the page, so that nothing of one image or model stays beside another's."""
            choices = [PREDICTED, *classifiers[model].classes]
            if target in choices:
                choice = gr.Dropdown(choices)
            else:
                target = PREDICTED
                choice = gr.Dropdown(choices, value=target)

            def nothing(reason: str | None = None):
                return choice, gr.Markdown(reason, visible=bool(reason)), None, None, None, None

            if upload is None:
                return nothing()
            try:
                result = classifiers[model].explain(Path(upload["path"]).read_bytes(), target)
            except FileNotFoundError:
                return nothing(f"The upload was deleted after {UPLOAD_MINUTES} minutes; repeat it.")
            except ValueError as error:
                return nothing(str(error))
            return (
                choice,
                gr.Markdown(visible=False),
                result.probabilities,
                _save_png(result.grey, original),
                _save_png(result.overlay, heatmap),
                {"class": result.shown, "probability": result.probabilities[result.shown]},
            )

        inputs = [image, model, target]
        # One at a time: a forward pass already uses every core, and a heatmap may hook the model.
        one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1}
        gr.on(
            # A dropdown sends `input` twice, and no `select` when the keyboard chooses.
            [image.change, model.change, target.change],
            show,
            inputs,
            [target, problem, table, original, heatmap, scale],
            show_progress_on=[table, heatmap],
            preprocess=False,  # the path as Gradio checked it: by now its file may be gone
            trigger_mode="always_last",
            api_visibility="private",
            **one_at_a_time,
        )
        gr.on([], predict, inputs, [probabilities, heatmap], api_name="predict", **one_at_a_time)
    return page.queue(max_size=32)


def _picture(label: str, alt_text: str, elem_id: str) -> gr.Image:
    return gr.Image(
        label=label,
        alt_text=alt_text,
        elem_id=elem_id,
        interactive=False,
        buttons=["download", "fullscreen"],
        min_width=280,
    )


def _save_png(pixels: np.ndarray, picture: gr.Image) -> str:
    """Write pixels where Gradio deletes a component's files, and return the path."""
    folder = picture.GRADIO_CACHE
    os.makedirs(folder, exist_ok=True)
    name = {"prefix": f"{picture.elem_id}-", "suffix": ".png"}
    with tempfile.NamedTemporaryFile(dir=folder, delete=False, **name) as file:
        # Gradio's own PNG takes four times as long to write and is a tenth smaller.
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.name


def main() -> None:
    """Serve the models that MODEL_ID names until interrupted."""
    try:
        classifiers = load_classifiers(os.environ.get("MODEL_ID", ""))
    except ValueError as error:
        sys.exit(str(error))
    # A stopped container gets SIGTERM: leave as on Ctrl-C, so that Gradio deletes the uploads.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    build_page(classifiers).launch(
        theme=THEME,
        css_paths=Path(__file__).with_name("style.css"),
        max_file_size=MAX_FILE_SIZE,
        run_history=False,  # it would keep X-rays in the browser's storage
        footer_links=["api", "settings"],
    )


if __name__ == "__main__":
    main()

"""A chest X-ray classifier in the browser.

It shows probabilities that mean something, where the model looked, and when not to believe it:

    MODEL_ID=org/cxr-densenet121 python app.py

MODEL_ID names one model or several, separated by commas: Hub ids or folders. The code stored with
a model is run (`trust_remote_code`), so name only models that you trust.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cleanup  # before Gradio, which takes its folder when it is imported
import gradio as gr
import tools  # noqa: F401  (puts its MCP server in the place of Gradio's)
import widgets
from api import PREDICTED, endpoints, sentence
from batch import LIMITS, assess_entries, read_uploads
from doors import App
from files import Page, names_and_paths, read_upload, save_csv, save_grey
from gradio.data_classes import FileData
from gradio.routes import ORJSONResponse
from lanes import HEAT, MANY, ONE, SLOWLY
from models import SLOW, Classifier, default_model_ids, load_classifiers

TITLE = "Chest X-ray classifier"
NOTICE = "<b>Research only, not a medical device.</b> Base no decision about a patient on it."
MAX_UPLOAD = "256mb"  # an archive
SESSIONS = 100  # remembered callers: Gradio keeps a tenth of a megabyte of the page for each
METHODS = {
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "hires_cam": "HiResCAM",
    "layer_cam": "Layer-CAM",
    SLOW: "Score-CAM (slow: up to a minute)",
    "token_grad_cam": "Grad-CAM of the transformer",  # beside a CNN, in models of both
}
PUBLIC = {"preprocess": False, "api_visibility": "public"}
PRIVATE = {"preprocess": False, "api_visibility": "private"}
# At once, in the browser: what is said of one image never stays beside another's name. A new image
# is not kept waiting by a slow method.
NEW_IMAGE = f"""(image, method) => {{
    Object.assign((window.cxr ??= {{}}), {{ path: image?.path }});
    return [null, null, method === "{SLOW}" ? "grad_cam" : method];
}}"""

THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    font=["-apple-system", "Segoe UI", "Roboto", "Arial", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "monospace"],
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
    button_primary_text_color="white",
    link_text_color_dark="*primary_300",
)


def build_page(classifiers: dict[str, Classifier]) -> gr.Blocks:
    """Lays out the page and its API."""
    models = list(classifiers.values())
    with Page(title=TITLE, analytics_enabled=False, delete_cache=cleanup.DELETE_CACHE) as page:
        widgets.html("title", f"<h1>{TITLE}</h1><p id='notice'>{NOTICE}</p>")
        with gr.Tabs():
            with gr.Tab("One X-ray"), gr.Row():
                image, target, method = _one_xray(models)
            with gr.Tab("Many"), gr.Row():
                files, model = _many(classifiers)
            with gr.Tab("Report"):
                _report(page, classifiers)
        widgets.html("footer", widgets.footer(models, cleanup.UPLOAD_MINUTES))
        answer = gr.JSON(label="Answer", visible=False)
        overlay = gr.Image(label="X-ray under its heatmap", visible=False)
        answers = gr.JSON(label="Rows", visible=False)
        csv_file = gr.File(label="The rows as CSV", visible=False)
        predict, heatmap, predict_batch = endpoints(classifiers, overlay, csv_file)
        gr.on([], predict, [image, model], answer, api_name="predict", **PUBLIC, **ONE)
        gr.on([], heatmap, [image, model, target, method], [overlay, answer], api_name="heatmap",
              **PUBLIC, **HEAT)  # fmt: skip
        gr.on([], predict_batch, [files, model], [answers, csv_file], api_name="predict_batch",
              **PUBLIC, **MANY)  # fmt: skip
    # Without `api_open=False`, requests to /run would pass by the queue and its limits.
    return page.queue(api_open=False)


def _one_xray(models: list[Classifier]) -> tuple[gr.File, gr.Dropdown, gr.Dropdown]:
    """The tab of one X-ray: its fields for the image, the class and the method of the heatmap."""
    classes = dict.fromkeys(name for each in models for name in each.classes)
    findings = {each.finding for each in models}
    # Side by side, heat of one class: what the models look for, where it is the same.
    explained = (findings.pop() if len(findings) == 1 else None) or PREDICTED
    with gr.Column(scale=1, min_width=280):
        label = "Chest X-ray: PNG, JPEG, DICOM"
        image = gr.File(label=label, type="binary", height=150, elem_id="image")
        widgets.examples("examples")
    with gr.Column(scale=3, min_width=280):
        results = widgets.answer("results", "What the models say appears here.")
        with gr.Row(elem_id="choices"):
            target = _choice([PREDICTED, *classes], "Heatmap for", value=explained)
            offered = {name for each in models for name in each.methods}
            methods = [(label, name) for name, label in METHODS.items() if name in offered]
            method = _choice(methods, "Method")
        viewer = widgets.viewer("viewer")
    slowly = gr.State()  # changes where a slow method is asked for

    def draw(upload: dict | None, target: str, method: str) -> tuple:
        """Fills the page for an image."""
        if upload is None:
            return None, None
        path = {"path": upload["path"]}
        try:
            said, picture = _look(models, viewer, upload, target, method)
        except (ValueError, ImportError) as error:
            return path | {"html": widgets.problem(sentence(error))}, None
        return path | {"html": said}, path | picture

    def show(upload: dict | None, target: str, method: str) -> tuple:
        """The same, by no slow method: of a new image the page asks for none, others may."""
        return draw(upload, target, "grad_cam" if method == SLOW else method)

    def redraw(upload: dict | None, target: str, method: str) -> tuple:
        """Draws the heat anew; what the models say stays, unless the image is gone."""
        said, picture = draw(upload, target, method)
        return gr.skip() if picture else said, picture

    def redraw_or_wait(upload: dict | None, target: str, method: str) -> tuple:
        """The same, but for a slow method: that is left to whoever waits for `slowly`."""
        if method == SLOW and upload is not None:
            return gr.skip(), gr.skip(), time.monotonic()
        return *redraw(upload, target, method), gr.skip()

    one, shown = [image, target, method], [results, viewer]
    image.change(None, [image, method], [*shown, method], js=NEW_IMAGE,
                 api_visibility="private")  # fmt: skip
    last = {**PRIVATE, **ONE, "trigger_mode": "always_last"}
    # The browser goes through what a change brings about in the order of these lines, and what
    # is cancelled has to be known before: so a change of a state, `slowly`, starts it.
    slow = slowly.change(redraw, one, shown, show_progress_on=viewer, **PRIVATE, **SLOWLY)
    choice = [target.change, method.change]
    gr.on([image.change, *choice], None, cancels=slow, **PRIVATE)
    image.change(show, one, shown, show_progress_on=results, **last)
    gr.on(choice, redraw_or_wait, one, [*shown, slowly], show_progress_on=viewer, **last)
    return image, target, method


def _look(
    models: list[Classifier], viewer: gr.HTML, upload: dict, target: str, method: str
) -> tuple[str, dict]:
    """What the models say of an upload, and the picture that the viewer shows."""
    content = read_upload(upload)
    image = models[0].open(content)
    answers, pictures = {}, {}
    called = METHODS[method].split(" (")[0]
    for each in models:
        if target not in (PREDICTED, *each.classes):
            answers[each], pictures[each] = each.assess(image), f"this model has no class {target}."
        elif method not in each.methods:
            answers[each], pictures[each] = each.assess(image), f"this model has no {called}."
        else:
            wanted = None if target == PREDICTED else target
            answers[each] = pictures[each] = each.assess(image, wanted, method)
    grey = FileData(path=save_grey(content, image.pixels, viewer)).model_dump()
    html = widgets.panels(pictures, image.pixels.shape, called)
    return widgets.results(answers, image), {"grey": grey, "html": html}


def _many(classifiers: dict[str, Classifier]) -> tuple[gr.File, gr.Dropdown]:
    """The tab of many X-rays: its fields for the files and the model."""
    with gr.Column(scale=1, min_width=280):
        label = "Chest X-rays, or a zip archive of them"
        files = gr.File(label=label, file_count="multiple", height=170, elem_id="files")
        widgets.html("limits", f"<p>{LIMITS}</p>")
        model = _choice(list(classifiers), "Model")
        run = gr.Button("Read all files", variant="primary", interactive=False)
        download = gr.DownloadButton("Download table (CSV)", interactive=False)
    with gr.Column(scale=3, min_width=280):
        progress = widgets.live("progress", "The table appears here.")
        table = widgets.html("table")
        sheet = widgets.html("contact-sheet")

    def show_batch(files: list | None, model: str) -> Iterator[tuple]:
        """Fills the tab, and says how far it is."""
        classifier, rows = classifiers[model], []
        try:
            entries = read_uploads(names_and_paths(files))
            for row in assess_entries(classifier, entries, thumbnails=True):
                rows.append(row)
                yield f"<p>{len(rows)} read ...</p>", None, None, gr.skip()
            if not rows:
                raise ValueError("There is no image in these files.")
            path = save_csv(rows, download)
        except ValueError as error:
            yield widgets.problem(sentence(error)), None, None, gr.skip()
            return
        yield (
            widgets.summary(rows, classifier.name),
            widgets.table(rows, classifier),
            widgets.contact_sheet(rows, classifier.finding),
            gr.DownloadButton(value=path, interactive=True),
        )

    def forget_batch(files: list | None) -> tuple:
        none = gr.DownloadButton(value=None, interactive=False)
        return None, None, None, none, gr.Button(interactive=bool(files))

    many = [progress, table, sheet, download]
    reading = run.click(show_batch, [files, model], many, show_progress="hidden", **PRIVATE, **MANY)
    other = [files.change, model.change]
    gr.on(other, None, cancels=reading, **PRIVATE)  # first, so that it ends empty
    gr.on(other, forget_batch, files, [*many, run], queue=False, **PRIVATE)
    return files, model


def _report(page: gr.Blocks, classifiers: dict[str, Classifier]) -> None:
    """The tab of the models' cards."""
    reported = _choice(list(classifiers), "Model's own card")
    report = widgets.live("report")

    def show_report(model: str) -> str:
        return widgets.report(classifiers[model])

    gr.on([page.load, reported.change], show_report, reported, report, **PRIVATE)


def _choice(choices: list, label: str, **options: str) -> gr.Dropdown:
    return gr.Dropdown(choices, label=label, filterable=False, min_width=240, **options)


def main() -> None:
    """Serves the models that MODEL_ID names until interrupted."""
    try:
        classifiers = load_classifiers(default_model_ids())
    except ValueError as error:
        sys.exit(str(error))
    # A stopped container gets SIGTERM: leave as on Ctrl-C, so that the uploads are deleted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # One port: on a second one, Gradio's MCP server does not start.
    port = int(os.environ.get("GRADIO_SERVER_PORT", 7860))
    with cleanup.own_temporary_folder():
        page = build_page(classifiers)
        try:
            page.launch(
                server_port=port,
                theme=THEME,
                css_paths=Path(__file__).with_name("style.css"),
                max_file_size=MAX_UPLOAD,
                mcp_server=True,
                _app=App(default_response_class=ORJSONResponse),
                state_session_capacity=SESSIONS,
                run_history=False,  # it would keep X-rays in the browser's storage
                footer_links=["api"],
            )
        except OSError as error:
            sys.exit(f"The server cannot start on port {port}: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()

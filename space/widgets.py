"""The page's HTML, from templates/.

Jinja escapes what is filled in: names of files, classes and models are text, never markup.
"""

import base64
import io
import itertools
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from batch import Row, fit
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from models import FIGURE, Classifier
from PIL import Image

HERE = Path(__file__).parent
LAYER = 512  # longest side of a heat layer, pixels; the network sees no more
EXAMPLES = {
    "normal.png": "Phantom, clear lungs",
    "opacity.png": "Phantom, opacity",
    "not-an-x-ray.jpg": "No X-ray at all",
}
# An answer to another image than the one in the field, late or overtaken, is not shown.
CURRENT = "(value && value.path === window.cxr?.path)"


def percent(p: float) -> str:
    """To a digit, with spaces that do not break; 0.99996 is not yet a certainty."""
    if p < 0.001:
        return "<\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%"
    number = ">\N{NO-BREAK SPACE}99.9" if p > 0.999 else f"{100 * p:.1f}"
    return f"{number}\N{NO-BREAK SPACE}%"


def data_uri(content: bytes) -> str:
    """A PNG or JPEG as an address that holds it."""
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def png_uri(pixels: np.ndarray) -> str:
    """Pixels, uint8 (h, w) or (h, w, 3 or 4), as the address of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=4)
    return data_uri(file.getvalue())


_TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
)
_TEMPLATES.filters |= {"percent": percent, "data_uri": data_uri}


def render(template: str, **values: Any) -> str:
    """A template of templates/, filled in."""
    return _TEMPLATES.get_template(f"{template}.html").render(values)


# ------------------------------------------------------------------------------------- components


def html(elem_id: str, value: str | None = None, **options: Any) -> gr.HTML:
    """HTML without Gradio's own style."""
    return gr.HTML(
        value,
        elem_id=elem_id,
        apply_default_css=False,
        **{"html_template": '${value || ""}', "js_on_load": None, **options},
    )


def live(elem_id: str, hint: str = "", shown: str = "value") -> gr.HTML:
    """HTML that screen readers announce when it changes.

    Args:
        elem_id: its id in the page.
        hint: text in its place while there is none.
        shown: JavaScript that gives the HTML of `value`.
    """
    hint = f'<p class="hint">{escape(hint)}</p>' if hint else ""
    template = f'<div aria-live="polite">${{({shown}) || `{hint}`}}</div>'
    return html(elem_id, html_template=template)


def answer(elem_id: str, hint: str) -> gr.HTML:
    """What is said of the image in the field. Value: {"path": of the upload, "html"}."""
    return live(elem_id, hint, f"{CURRENT} && value.html")


def viewer(elem_id: str) -> gr.HTML:
    """X-rays under their heat.

    Value: {"path": of the upload, "grey": the X-ray's FileData, "html": see `panels`}.
    """
    # Filled in by the browser, so it is no template of Jinja's.
    template = (HERE / "templates" / "viewer.html").read_text(encoding="utf-8")
    script = (HERE / "viewer.js").read_text(encoding="utf-8")
    return html(elem_id, html_template=template.replace("CURRENT", CURRENT), js_on_load=script)


def examples(elem_id: str) -> gr.HTML:
    """Buttons that upload an example; its script also uploads what is pasted."""
    contents = {name: (HERE / "examples" / name).read_bytes() for name in EXAMPLES}
    script = (HERE / "upload.js").read_text(encoding="utf-8")
    content = render("examples", examples=EXAMPLES, contents=contents)
    return html(elem_id, content, js_on_load=script)


# ---------------------------------------------------------------------------------------- contents


def problem(sentence: str) -> str:
    """What went wrong, in place of an answer."""
    return f'<p class="problem" role="alert">{escape(sentence)}</p>'


def results(answers: dict, image: Any) -> str:
    """What each model says, side by side, under what there is to say about the file.

    Args:
        answers: {Classifier: its answer}.
        image: the `CxrImage` that they were given.
    """
    return render("results", answers=answers, image=image)


def panels(answers: dict, shape: tuple[int, int], method: str) -> str:
    """The X-ray once a model under its heat layer.

    The source of the grey picture is "grey", which the browser replaces by its address.

    Args:
        answers: {Classifier: its answer, or why there is none}.
        shape: height and width of the X-ray, pixels.
        method: of the heatmaps, as the page calls it.
    """
    pictures = {each: _picture(each, answer, shape) for each, answer in answers.items()}
    return render("panels", pictures=pictures, shape=shape, method=method)


def _picture(classifier: Classifier, answer: Any, shape: tuple[int, int]) -> dict:
    if isinstance(answer, str) or answer.heatmap is None:
        note = answer if isinstance(answer, str) else "No heatmap without an answer."
        return {"layer": None, "note": note}
    processor = classifier.processor
    width, height = fit(shape, LAYER)
    return {
        "layer": png_uri(processor.heat_layer(answer.heat(processor, height, width))),
        "colours": png_uri(processor.heat_layer(np.linspace(0, 1, 256)[None])),
        "explained": answer.explained,
        "p": answer.probabilities[answer.explained],
    }


def table(rows: list[Row], classifier: Classifier) -> str:
    """The rows of a batch: what a reader needs of `predict.py`'s columns."""
    names = [classifier.finding] if classifier.finding else classifier.classes
    return render("batch", rows=rows, names=names)


def summary(rows: list[Row], name: str) -> str:
    """How many files came to what, by the model of this name."""
    statuses = [row.cells["status"] for row in rows]
    counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
    return f"<p><b>{len(rows)} files by {escape(name)}:</b> {', '.join(counts)}.</p>"


def contact_sheet(rows: list[Row], finding: str | None) -> str:
    """The thumbnails, each under what the model says; with the probability of its one finding."""
    return render("contact_sheet", rows=rows, finding=finding)


def report(classifier: Classifier) -> str:
    """The model's card as HTML, under its version."""
    text, figures = classifier.card()
    return render("report", classifier=classifier, card=_card(text, figures))


def footer(classifiers: Iterable[Classifier], minutes: int) -> str:
    """What happens to uploads, and which models answer."""
    return render("footer", classifiers=classifiers, minutes=minutes)


def _card(text: str, figures: dict[str, bytes]) -> Markup:
    """Markdown as HTML: of the HTML in it, folding alone works, the rest is text."""
    markdown = MarkdownIt("js-default", {"html": True})
    markdown.validateLink = lambda url: (
        url.startswith(("https://", "http://")) or bool(FIGURE.fullmatch(url))
    )
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):  # the page has a title of its own
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        if token.type == "html_block":
            token.content = _only_folding(token.content)
        for child in token.children or ():
            if child.type == "html_inline":
                child.content = _only_folding(child.content)
            if child.type == "image":
                figure = figures.get(child.attrs["src"])
                child.attrs["src"] = data_uri(figure) if figure else "data:,"
    content = markdown.renderer.render(tokens, markdown.options, {})
    numbers = itertools.count(1)  # screen readers list the tables by their names
    scrolling = '<div class="scroll" tabindex="0" role="region" aria-label="Table {}"><table>'
    content = re.sub("<table>", lambda _: scrolling.format(next(numbers)), content)
    content = content.replace("</table>", "</table></div>")
    return Markup(content.replace("<pre>", '<pre tabindex="0">'))


def _only_folding(markup: str) -> str:
    """Escapes all but the tags of `<details><summary>...`, without attributes."""
    return re.sub(r"&lt;(/?(?:details|summary))&gt;", r"<\1>", escape(markup))

"""The page's HTML. Names of files, classes and models are text in it, never markup."""

import base64
import io
import re
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np
from batch import fit
from markdown_it import MarkdownIt
from models import FIGURE, Classifier
from PIL import Image

HERE = Path(__file__).parent
LAYER = 512  # longest side of a heat layer, pixels; the network sees no more
DETAILS = re.compile(r"<p>&lt;details&gt;\s*&lt;summary&gt;([^<]*)&lt;/summary&gt;</p>")
EXAMPLES = {
    "normal.png": "Phantom, clear lungs",
    "opacity.png": "Phantom, opacity",
    "not-an-x-ray.jpg": "No X-ray at all",
}

# An answer to another image than the one in the field, late or overtaken, is not shown.
CURRENT = "value && value.path === window.cxr?.path"
VIEWER = f"""<div class="tools" ${{{CURRENT} ? "" : "hidden"}}>
    <label><input type="checkbox" name="heat" ${{window.cxr?.shown === 0 ? "" : "checked"}}> Heatmap
    </label>
    <label>Opacity <input type="range" name="opacity" min="0" max="100" step="1"
    value="${{Math.round(100 * (window.cxr?.opacity ?? 1))}}"></label>
    <output name="opacity">${{Math.round(100 * (window.cxr?.opacity ?? 1))}} %</output>
</div>
<p class="note" ${{{CURRENT} ? "" : "hidden"}}>Heat is where the model looked, times the probability
of the class: an unlikely class stays pale.</p>
<div class="panels">${{{CURRENT}
    ? value.html.replaceAll('src="grey"', `src="${{value.grey.url}}"`) : ""}}
</div>"""


def live(elem_id: str, hint: str = "", shown: str = "value") -> gr.HTML:
    """HTML that screen readers announce when it changes.

    Args:
        hint: text in its place while there is none.
        shown: JavaScript that gives the HTML of `value`.
    """
    hint = f'<p class="hint">{escape(hint)}</p>' if hint else ""
    template = f'<div aria-live="polite">${{({shown}) || `{hint}`}}</div>'
    return html(elem_id, html_template=template)


def answer(elem_id: str, hint: str) -> gr.HTML:
    """What is said of the image in the field. Value: {"path": of the upload, "html"}."""
    return live(elem_id, hint, f"{CURRENT} && value.html")


def html(elem_id: str, value=None, **options) -> gr.HTML:
    return gr.HTML(
        value,
        elem_id=elem_id,
        apply_default_css=False,
        **{"html_template": '${value || ""}', "js_on_load": None, **options},
    )


def viewer(elem_id: str) -> gr.HTML:
    """X-rays under their heat. Value: {"path": of the upload, "grey": the X-ray's FileData, "html":
    see `panels`}.
    """
    script = (HERE / "viewer.js").read_text(encoding="utf-8")
    return html(elem_id, html_template=VIEWER, js_on_load=script)


def examples(elem_id: str) -> gr.HTML:
    """Buttons that upload an example; its script also uploads what is pasted."""
    buttons = [
        f'<button type="button" data-name="{escape(name)}">'
        f'<img src="{data_uri((HERE / "examples" / name).read_bytes())}" alt="">'
        f"<span>{escape(label)}</span></button>"
        for name, label in EXAMPLES.items()
    ]
    script = (HERE / "upload.js").read_text(encoding="utf-8")
    content = f"""<h2>Or paste an image, or try an example</h2>
        <div class="row">{"".join(buttons)}</div>"""
    return html(elem_id, content, js_on_load=script)


def percent(p: float) -> str:
    """To a digit, with spaces that do not break; 0.99996 is not yet a certainty."""
    if p < 0.001:
        return "<\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%"
    number = ">\N{NO-BREAK SPACE}99.9" if p > 0.999 else f"{100 * p:.1f}"
    return f"{number}\N{NO-BREAK SPACE}%"


def problem(sentence: str) -> str:
    return f'<p class="problem" role="alert">{escape(sentence)}</p>'


def _list(sentences, title) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="warnings"><p><b>{title}</b></p><ul>{items}</ul></div>'


# -------------------------------------------------------------------------------------- one X-ray


def results(answers: dict, image) -> str:
    """What each model says, side by side, under what there is to say about the file.

    Args:
        answers: {Classifier: CxrAssessment}.
        image: the `CxrImage` that they were given.
    """
    cards = "".join(_card(*item, image) for item in answers.items())
    return f'{_list(image.warnings, "About this file")}<div class="cards">{cards}</div>'


def _card(classifier, assessment, image):
    own = [warning for warning in assessment.warnings if warning not in image.warnings]
    if assessment.refusal:
        body = f'<p class="decision refused">No answer</p><p>{escape(assessment.refusal)}</p>'
    elif classifier.finding:
        body = _two_classes(classifier, assessment)
    else:
        body = _many_classes(classifier, assessment)
    return (
        f'<section class="card"><h2>{escape(classifier.name)}</h2>'
        f"{body}{_list(own, 'Before you believe it')}</section>"
    )


def _two_classes(classifier, assessment):
    config, name = classifier.config, classifier.finding
    p = assessment.probabilities[name]
    threshold = config.thresholds[0] if config.thresholds else 0.5
    band = config.abstention[0] if config.abstention else None
    flagged = assessment.decided == (name,)
    if assessment.uncertain:
        decision = "Uncertain: a human should read this"
        why = (
            f"{percent(p)} lies where the model abstains, {percent(band[0])} to {percent(band[1])}."
        )
    else:
        decision = f"{'Flagged' if flagged else 'Not flagged'} as {name}"
        side = "at or above" if flagged else "below"
        why = f"{percent(p)} is {side} the operating point, {percent(threshold)}. "
        if flagged != (p >= 0.5):
            odds = "less likely than not, but" if flagged else "more likely than not, but only"
            why += f"{name} is {odds} from there on the model flags it. "
        why += "What that misses and what it raises in vain is under Report."
    kind = "uncertain" if assessment.uncertain else "sure"
    return (
        f'<p class="decision {kind}">{escape(decision)}</p>'
        f'<p class="number"><b>{escape(percent(p))}</b> probability of {escape(name)}</p>'
        f"{_bar(p, threshold, band)}{_key(band)}<p>{escape(why)}</p>"
        f'<p class="meaning">{escape(_meaning(config, name, p))}</p>'
    )


def _meaning(config, name, p):
    if config.calibration is None:
        return "This model is not calibrated: the number is a score, not a share of X-rays."
    count = round(100 * p)
    about = "fewer than 1" if count < 1 else "more than 99" if count > 99 else f"about {count}"
    sentence = (
        f"Of 100 X-rays that score like this one, among those the model was calibrated on, {about} "
        f"{'shows' if count <= 1 else 'show'} {name}."
    )
    if config.prevalence is None:
        return sentence
    share = config.prevalence[1]
    share = f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
    return f"{sentence} Of all of those, {share} do; where it is rarer, fewer will."


def _bar(p, threshold, band):
    """The probability on a line from 0 to 100 %, its operating point, its abstention band."""
    marks, words = "", [percent(p)]
    if band is not None:
        low, high = (100 * bound for bound in band)
        marks += f'<i class="band" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        words.append(f"uncertain from {percent(band[0])} to {percent(band[1])}")
    marks += f'<i class="fill" style="width:{100 * p:.2f}%"></i>'
    if threshold is not None:
        marks += f'<i class="threshold" style="left:{100 * threshold:.2f}%"></i>'
        words.append(f"operating point {percent(threshold)}")
    label = escape("; ".join(words))
    return f'<div class="bar" role="img" aria-label="{label}">{marks}</div>'


def _key(band):
    """What the marks of a bar mean."""
    uncertain = '<i class="band"></i> uncertain' if band is not None else ""
    return (
        f'<p class="key" aria-hidden="true"><i class="threshold"></i> operating point {uncertain}'
        "</p>"
    )


def _many_classes(classifier, assessment):
    config, rows = classifier.config, []
    thresholds = config.thresholds or [0.5 if config.is_multi_label else None] * config.num_labels
    bands = config.abstention or [None] * config.num_labels
    for name, threshold, band in zip(classifier.classes, thresholds, bands):
        p = assessment.probabilities[name]
        word = "uncertain" if name in assessment.uncertain else ""
        word = word or ("found" if name in assessment.decided else "")
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>'
            f'<td class="wide">{_bar(p, threshold, band)}</td>'
            f"<td>{escape(percent(p))}</td><td>{word}</td></tr>"
        )
    parts = []
    if assessment.decided or not assessment.uncertain:
        found = ", ".join(assessment.decided) or "None of its classes"
        parts.append(f'<p class="decision sure">{escape(found)}</p>')
    if assessment.uncertain:
        names = escape(", ".join(assessment.uncertain))
        parts.append(
            f'<p class="decision uncertain">Uncertain: a human should read this for {names}</p>'
        )
    head = '<tr><th scope="col">Class</th><td></td><th scope="col">Probability</th>'
    head += '<th scope="col">Decision</th></tr>'
    body = "".join(rows)
    parts.append(f'<table class="classes"><thead>{head}</thead><tbody>{body}</tbody></table>')
    if thresholds[0] is not None:
        parts.append(_key(config.abstention))
    meaning = "Not calibrated: the numbers are scores, not shares of X-rays."
    if config.calibration is not None:
        meaning = (
            "Of 100 X-rays that score 30 % for a class, among those the model was calibrated on, "
            "about 30 show it."
        )
    parts.append(f'<p class="meaning">{meaning}</p>')
    return "".join(parts)


def panels(answers: dict, shape: tuple[int, int], method: str) -> str:
    """The X-ray once a model under its heat layer.

    The source of the grey picture is "grey", which the browser replaces by its address.

    Args:
        answers: {Classifier: CxrAssessment, or why there is none}.
        shape: height and width of the X-ray, pixels.
    """
    return "".join(_panel(*item, shape, method) for item in answers.items())


def _panel(classifier, answer, shape, method):
    name = escape(classifier.name)
    open_stack = f'<div class="stack" style="--ratio: {shape[1] / shape[0]:.4f}">'
    open_stack += '<img class="grey" src="grey" alt="The X-ray">'
    if isinstance(answer, str) or answer.heatmap is None:
        note = answer if isinstance(answer, str) else "No heatmap without an answer."
        stack = f"{open_stack}</div>"
        caption = f"<p><b>{name}</b>: {escape(note)}</p>"
        return f'<figure class="panel">{stack}<figcaption>{caption}</figcaption></figure>'
    shown, p = escape(answer.explained), answer.probabilities[answer.explained]
    width, height = fit(shape, LAYER)
    heat = answer.heat(classifier.processor, height, width)
    layer = png_uri(classifier.processor.heat_layer(heat))
    alt = f"Heat of {name} for {shown}"
    return (
        f'<figure class="panel">{open_stack}'
        f'<img class="layer" src="{layer}" alt="{alt}"></div><figcaption>'
        f"<p><b>{name}</b>: {escape(method)} for {shown}, {escape(percent(p))}</p>"
        f"{_colour_bar(classifier, p)}"
        f'<p><button type="button" data-action="download" data-name="{name}-{shown}">'
        'Download picture</button><button type="button" data-action="fullscreen">Full screen'
        "</button></p></figcaption></figure>"
    )


def _colour_bar(classifier, p):
    gradient = png_uri(classifier.processor.heat_layer(np.linspace(0, 1, 256)[None]))
    ticks = "".join(f"<span>{tick} %</span>" for tick in (0, 25, 50, 75, 100))
    label = f"Colours of heat from 0 to 100 %; the probability, {percent(p)}, is marked"
    return (
        f'<div class="scale" role="img" aria-label="{escape(label)}"><div class="gradient">'
        f'<img src="{gradient}" alt=""></div><i class="marker" style="left:{100 * p:.2f}%"></i>'
        f'<div class="ticks">{ticks}</div></div>'
    )


def png_uri(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=4)
    return data_uri(file.getvalue())


def data_uri(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# ----------------------------------------------------------------------------- many X-rays, report


def table(rows, classifier: Classifier) -> str:
    """The rows of a batch: what a reader needs of `predict.py`'s columns."""
    names = [classifier.finding] if classifier.finding else classifier.classes
    head = ["File", "Status", "Decision", *[f"P({name})" for name in names], "Remarks"]
    lines = []
    for row in rows:
        cells = row.cells
        decision = cells["decision"]
        if cells["uncertain"]:
            decision = f"{decision}; uncertain: {cells['uncertain']}".removeprefix("; ")
        values = [cells[f"probability_{name}"] for name in names]
        numbers = ["" if value is None else percent(value) for value in values]
        remarks = " ".join(filter(None, [cells["reason"], cells["warnings"]]))
        remarks = remarks[:1].upper() + remarks[1:]
        texts = [cells["status"], decision, *numbers, remarks]
        line = "".join(f"<td>{escape(text)}</td>" for text in texts)
        lines.append(f'<tr><th scope="row">{escape(cells["file"])}</th>{line}</tr>')
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(lines)
    return _scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def summary(rows, name: str) -> str:
    """How many files came to what, by the model of this name."""
    statuses = [row.cells["status"] for row in rows]
    counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
    return f"<p><b>{len(rows)} files by {escape(name)}:</b> {', '.join(counts)}.</p>"


def contact_sheet(rows, finding: str | None) -> str:
    """The thumbnails, each under what the model says; with the probability of its one finding."""
    figures = []
    for row in rows:
        if row.thumbnail is None:
            continue
        cells = row.cells
        said = cells["decision"] or cells["status"]
        if finding and cells[f"probability_{finding}"] is not None:
            said += f", P({finding}) {percent(cells[f'probability_{finding}'])}"
        figures.append(
            f'<figure><img src="{data_uri(row.thumbnail)}" alt="">'
            f"<figcaption>{escape(cells['file'])}<br><b>{escape(said)}</b></figcaption></figure>"
        )
    return f'<div class="sheet">{"".join(figures)}</div>'


def _scrolling(content):
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Table">{content}</div>'


def report(classifier: Classifier) -> str:
    """The model's card as HTML, under its version."""
    text, figures = classifier.card()
    version = f"<p>{_version(classifier)}</p>"
    if not text:
        return f"{version}<p>This model has no card.</p>"
    markdown = MarkdownIt("js-default")  # it takes no raw HTML
    markdown.validateLink = lambda url: (
        url.startswith(("https://", "http://")) or bool(FIGURE.fullmatch(url))
    )
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):  # the page has a title of its own
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        for child in token.children or ():
            if child.type == "image":
                figure = figures.get(child.attrs["src"])
                child.attrs["src"] = data_uri(figure) if figure else "data:,"
    content = markdown.renderer.render(tokens, markdown.options, {})
    # The card's folded arguments, the one raw HTML that it has.
    content = DETAILS.sub(r"<details><summary>\1</summary>", content)
    content = content.replace("<p>&lt;/details&gt;</p>", "</details>")
    content = content.replace("<table>", _scrolling("<table>").removesuffix("</div>"))
    content = content.replace("</table>", "</table></div>")
    content = content.replace("<pre>", '<pre tabindex="0">')
    return f'{version}<article class="report">{content}</article>'


def _version(classifier):
    name, version = escape(classifier.name), f"version <code>{classifier.revision}</code>"
    if classifier.hub_url is None:
        return f"<b>{name}</b>, {version}"
    url = escape(classifier.hub_url)
    return f'<b>{name}</b>, {version}, <a href="{url}">card on the Hub</a>'


def footer(classifiers: list[Classifier], minutes: int) -> str:
    """What happens to uploads, and which models answer."""
    models = "".join(f"<li>{_version(classifier)}</li>" for classifier in classifiers)
    return (
        "<p><b>Your upload</b> is read on this server and goes nowhere else. It is kept in a "
        f"temporary file, and deleted after {minutes} minutes and when the server stops. Pictures "
        "made of it go as long after they were last shown. "
        "Do not upload what identifies a person.</p>"
        f"<p><b>Models</b>, with their evidence under Report:</p><ul>{models}</ul>"
    )

"""The two displays that Gradio lacks: class probabilities, and the heatmap's colour bar.

Each takes plain data as its value; a template that the browser fills in draws it.
"""

import gradio as gr
from heatmap import css_gradient

# Class names are text, not markup; and 0.99996 is not yet a certainty.
HELPERS = """
    const text = (name) => name.replace(/[&<>]/g, (c) => `&#${c.charCodeAt(0)};`);
    const percent = (p) =>
        p < 0.001 ? "&lt; 0.1 %" : p > 0.999 ? "&gt; 99.9 %" : `${(100 * p).toFixed(1)} %`;
"""

PROBABILITIES = """
    if (!value) return `<p class="empty">Class probabilities appear here.</p>`;
    const rows = Object.entries(value).sort((a, b) => b[1] - a[1]).map(([name, p]) => `<tr>
        <th scope="row">${text(name)}</th>
        <td class="bar"><div style="width: ${100 * p}%"></div></td>
        <td class="percent">${percent(p)}</td>
    </tr>`);
    return `<table><caption>Probability</caption><tbody>${rows.join("")}</tbody></table>`;
"""

COLOUR_BAR = """
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((tick) => `<span>${tick}</span>`).join("");
    const left = value ? `left: ${100 * value.probability}%` : "display: none";
    const shown = value ? `: here <b>${text(value.class)}</b>, ${percent(value.probability)}` : "";
    return `<div class="scale">
            <div class="gradient" style="--heat: ${gradient}"></div>
            <div class="marker" style="${left}"></div>
            <div class="ticks">${ticks}</div>
        </div>
        <p>Heat is where the model looked (Grad-CAM) times the probability of the class${shown}.
        </p>`;
"""


def probability_table(elem_id: str) -> gr.HTML:
    """Class probabilities with bars, highest first. Value: {class name: probability}."""
    return _display(PROBABILITIES, elem_id)


def colour_bar(elem_id: str) -> gr.HTML:
    """What the heatmap's colours mean. Value: {"class": name, "probability": p} of its class."""
    return _display(COLOUR_BAR, elem_id, gradient=css_gradient())


def _display(template: str, elem_id: str, **props) -> gr.HTML:
    return gr.HTML(
        html_template="${(() => {" + HELPERS + template + "})()}",
        js_on_load=None,
        apply_default_css=False,
        elem_id=elem_id,
        **props,
    )

"""The Space for those who see, hear or point differently: axe-core, and the keyboard alone."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from space_server import CLASSES, FINDINGS, Page, save, serve

from modeling import create_model
from modeling.outlier_cxr import OutlierDetector

# Found, not imported: of this package, only the script is needed.
AXE = Path(find_spec("axe_playwright_python").origin).with_name("axe.min.js")
RUN_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"]}).then(
    (found) => done(found.violations.flatMap(({id, nodes}) => nodes.map((node) =>
        [id, node.target.join(" "), node.failureSummary]))),
    (error) => done([["axe failed", "", String(error)]]));
"""
# Gradio's own markup, which the Space can neither change nor leave out: (rule, selector).
GRADIOS_OWN = {
    # The button "Settings" of the footer repeats its text in its icon.
    ("image-redundant-alt", 'img[alt="Settings"]'),
    # The button that adds files to a list wraps the file field that it opens.
    ("nested-interactive", 'button[aria-label="common.upload"]'),
}
CARD = """# A model

## Evidence

| Set | AUROC |
| --- | --- |
| Phantoms | 0.5 |

See [the paper](https://arxiv.org/abs/1608.06993), `config.json` and:

```sh
python validate.py --model tiny
```

<details>
<summary>Arguments</summary>

| Flag | Value |
| --- | --- |
| `seed` | 0 |

</details>
"""
FOCUS = """
const one = document.activeElement, style = getComputedStyle(one);
return {
    tag: one.tagName,
    text: (one.getAttribute("aria-label") || one.innerText || one.name || "").trim(),
    ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
};
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A Space whose models decide, abstain, refuse, and find several classes in any image."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    tiny = {"image_size": 32, "hidden_sizes": [8]}
    sure, _ = create_model("baseline", CLASSES, **tiny)
    unsure, _ = create_model("baseline", CLASSES, **tiny)
    unsure.config.thresholds, unsure.config.abstention = [0.5], [[0.01, 0.99]]
    refusing, _ = create_model("baseline", CLASSES, **tiny)
    refusing.set_outlier_detector(OutlierDetector(), -1e6)
    multi = {"problem_type": "multi_label_classification"}
    findings, _ = create_model("baseline", FINDINGS, **tiny, **multi)
    models = {"sure": sure, "unsure": unsure, "refusing": refusing, "findings": findings}
    saved = [save(model, folder / name, CARD).folder for name, model in models.items()]
    with serve(tmp_path_factory.mktemp("served"), saved) as served:
        yield served


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tinted image, of which the Space warns, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    y, x = np.mgrid[0:180, 0:240] / 180
    grey = 0.45 + 0.45 * np.cos(10 * x) * np.sin(4 * y)
    tinted = grey[..., None] * [1, 0.8, 0.5]
    Image.fromarray((tinted * 255).astype(np.uint8)).save(folder / "tinted.png")
    (folder / "text.png").write_text("This is not an image.")
    return folder


def violations(page):
    """What axe-core finds wrong in the page as it stands, but for Gradio's own."""
    page.driver.set_script_timeout(120)
    still = "return document.getAnimations().every((one) => one.playState !== 'running')"
    page.wait(lambda: page.script(still))  # half faded in, a text has little contrast
    if not page.script("return Boolean(window.axe)"):
        page.script(AXE.read_text(encoding="utf-8"))
    found = page.driver.execute_async_script(RUN_AXE)
    return [one for one in found if (one[0], one[1]) not in GRADIOS_OWN]


@pytest.fixture(
    params=[(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")],
    ids=lambda param: "-".join(map(str, param)),
)
def page(request, served, tmp_path):
    page = Page(served.url, tmp_path, *request.param)
    yield page
    page.driver.quit()


def test_axe_finds_nothing(page, files):
    found = {"empty page": violations(page)}
    page.upload(files / "text.png")
    page.wait(lambda: page.all("#results .problem"))
    found["problem"] = violations(page)
    page.upload(files / "tinted.png")
    page.wait_for_text("#results", "Uncertain: a human should read this")
    page.wait(lambda: len(page.all("#viewer .panel")) == 4)
    assert "No answer" in page.text("#results") and "tinted" in page.text("#results")
    found["result"] = violations(page)
    page.tab("Many")
    page.wait(lambda: page.all("#files input[type=file]")[0:1])
    found["many, empty"] = violations(page)
    page.upload(files / "tinted.png", files / "text.png", zone="#files")
    page.wait(lambda: len(page.all("#files .file-preview tr")) == 2)
    page.choose("Model", "unsure")
    page.press("Read all files")
    page.wait(lambda: len(page.all("#table tbody tr")) == 2)
    assert "Uncertain, P(PNEUMONIA)" in page.text("#contact-sheet")
    found["many, read"] = violations(page)
    page.tab("Report")
    page.wait(lambda: page.all("#report table"))
    page.all("#report summary")[0].click()
    found["report"] = violations(page)
    assert not {state: problems for state, problems in found.items() if problems}


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_would_find_something(served, tmp_path, width):
    """A check of the check: pale text on white, and a picture without a name."""
    page = Page(served.url, tmp_path, width, "light")
    try:
        page.script(
            "document.querySelector('#title').insertAdjacentHTML('beforeend', "
            '\'<p id=pale style="color:#bbb;background:#fff">pale</p><img src="data:,">\')'
        )
        assert {rule for rule, *_ in violations(page)} == {"color-contrast", "image-alt"}
    finally:
        page.driver.quit()


def press(page, *keys):
    ActionChains(page.driver).send_keys(*keys).perform()


def tab_to(page, text, tag="BUTTON"):
    """Presses Tab until this has the focus; whatever has it on the way shows it."""
    passed = []
    for _ in range(60):
        press(page, Keys.TAB)
        focus = page.script(FOCUS)
        passed.append(focus)
        assert focus["ring"] or focus["tag"] == "BODY", f"no focus is seen on {focus}"
        if text in focus["text"] and focus["tag"] == tag:
            return
    pytest.fail(f"Tab does not reach {text!r}, but {[one['text'] for one in passed]}")


def pick(page, *options):
    """Goes down the list that opened with the focus, and takes the last option."""
    page.wait(lambda: page.all("li[role=option].active"))
    for option in options:
        press(page, Keys.ARROW_DOWN)
        page.wait(lambda: page.text("li[role=option].active") == option)  # noqa: B023
    press(page, Keys.ENTER)
    page.wait(lambda: not page.all("li[role=option]"))


def test_keyboard_alone(served, tmp_path):
    page = Page(served.url, tmp_path, 1280, "light")
    try:
        tab_to(page, "Many")  # Gradio's tabs are buttons, each a stop of its own
        press(page, Keys.ENTER)
        page.wait(lambda: any(one.is_displayed() for one in page.all("#files")))
        ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).perform()
        ActionChains(page.driver).key_up(Keys.SHIFT).send_keys(Keys.ENTER).perform()
        page.wait(lambda: any(one.is_displayed() for one in page.all("#image")))

        tab_to(page, "Phantom, clear lungs")
        press(page, Keys.ENTER)
        page.wait(lambda: len(page.all("#viewer .panel")) == 4)

        tab_to(page, "Heatmap for", "INPUT")
        pick(page, "NORMAL", "PNEUMONIA")
        page.wait_for_text("#viewer", "sure: Grad-CAM for PNEUMONIA")
        tab_to(page, "Method", "INPUT")
        pick(page, "Grad-CAM++", "HiResCAM")
        page.wait_for_text("#viewer", "sure: HiResCAM for PNEUMONIA")

        layer = lambda: page.script(  # noqa: E731
            "return getComputedStyle(document.querySelector('#viewer .layer')).opacity"
        )
        tab_to(page, "heat", "INPUT")
        press(page, Keys.SPACE)
        page.wait(lambda: layer() == "0")
        press(page, Keys.SPACE)
        tab_to(page, "opacity", "INPUT")
        press(page, *[Keys.ARROW_LEFT] * 5)
        page.wait(lambda: layer() == "0.95")
        assert page.text("#viewer output") == "95 %"
        tab_to(page, "Download picture")
        press(page, Keys.ENTER)
        page.wait(lambda: list(page.downloads.glob("*.png")))
    finally:
        page.driver.quit()

"""The Space as a visitor meets it: its page in Chromium, wide and narrow, light and dark."""

import base64
import csv
import io
import os
import time
import zipfile

import httpx
import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys
from space_server import (
    CLASSES,
    FINDINGS,
    PREDICTED,
    SPACE,
    Page,
    percent,
    save_images,
    save_tiny_models,
    serve,
)

CARD = """---
license: apache-2.0
---

# tiny-baseline

| Metric | Test |
| ------ | ---: |
| AUROC  | 0.62 |

    a line of code that is far too long for the screen of a phone and has to be scrolled to be read

![ROC curve](figures/roc.png) ![Secret](../../secret.png) ![Elsewhere](https://example.org/x.png)

<img src=x onerror=document.title=1> [odd](javascript:document.title=1)

<details>
<summary>Arguments</summary>

| Flag | Value |
| ---- | ----- |
| seed | 4711  |

</details>

<details onclick="document.title=1">
"""
# What would become an element if the name of a file were taken for markup.
HOSTILE = "<img src=x onerror=document.title=1>.png"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    saved = save_tiny_models(folder)
    (saved["tiny-baseline"].folder / "README.md").write_text(CARD)
    figures = saved["tiny-baseline"].folder / "figures"
    figures.mkdir()
    for path in (figures / "roc.png", folder / "secret.png"):
        Image.new("RGB", (40, 30), "teal").save(path)
    return saved


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    folders = [saved.folder for saved in models.values()]
    with serve(tmp_path_factory.mktemp("served"), folders) as served:
        yield served


@pytest.fixture(
    params=[(1280, "light"), (390, "dark")], ids=["laptop-light", "phone-dark"], scope="module"
)
def browser(request, served, tmp_path_factory):
    page = Page(served.url, tmp_path_factory.mktemp("browser"), *request.param)
    yield page
    addresses = [address for address in page.requested() if address.startswith("http")]
    assert addresses and all(address.startswith(served.url) for address in addresses)
    assert page.driver.title == "Chest X-ray classifier"  # nothing in a name was run
    page.driver.quit()


@pytest.fixture
def page(browser):
    """The page as it is when it is opened."""
    browser.driver.refresh()
    browser.wait(lambda: browser.all("#image input[type=file]"))
    browser.wait(lambda: "appears here" in browser.text("#results"))
    browser.errors()  # of the page before, whose connection was cut
    yield browser
    assert not browser.errors()


def cards(page):
    """The text of each model's card."""
    return {
        card.text.split("\n")[0]: " ".join(card.text.split()) for card in page.all("#results .card")
    }


def shown(page, models, path, target=None, method="grad_cam", label="Grad-CAM"):
    """Waits until the page shows this image's answers and heat, and compares it with the models."""
    captions = []
    for name, saved in models.items():
        if target in (None, *saved.classes):
            answer = saved.assess(path, target, method)
            p = answer.probabilities[answer.explained]
            captions.append(f"{name}: {label} for {answer.explained}, {percent(p)}")
        else:
            captions.append(f"{name}: this model has no class {target}.")
    page.wait(lambda: all(caption in page.text("#viewer figcaption") for caption in captions))
    pixels = models["tiny-baseline"].processor.open(path).pixels
    assert (page.picture("#viewer .grey") == pixels >> 8).all()
    layers = iter(page.all("#viewer .layer"))
    for saved in models.values():
        if target in (None, *saved.classes):
            content = next(layers).get_attribute("src").partition(",")[2]
            layer = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)
            expected = saved.processor.heat_layer(saved.heat(path, target, method))
            assert np.abs(layer - expected).max() <= 1
    assert next(layers, None) is None


def test_an_answer_in_words_and_numbers(page, models, images, tmp_path):
    assert "Research only, not a medical device." in page.text("#notice")
    assert "deleted after 10 minutes and when the server stops" in page.text("#footer")
    page.upload(images / "8bit.png")
    shown(page, models, images / "8bit.png")
    page.screenshot(tmp_path / "answer.png")
    texts = cards(page)
    assert list(texts) == list(models)
    for name in ("tiny-baseline", "tiny-densenet"):
        answer = models[name].assess(images / "8bit.png")
        p = answer.probabilities["PNEUMONIA"]
        assert f"{percent(p)} probability of PNEUMONIA" in texts[name]
        flagged = "Flagged" if answer.decided == ("PNEUMONIA",) else "Not flagged"
        decision = f"{flagged} as PNEUMONIA"
        if answer.uncertain:
            decision = "Uncertain: a human should read this"
        assert texts[name].startswith(f"{name} {decision} ")
    calibrated = models["tiny-baseline"].assess(images / "8bit.png").probabilities["PNEUMONIA"]
    assert f"about {100 * calibrated:.0f} show PNEUMONIA" in texts["tiny-baseline"]
    assert "Of all of those, 75 % do" in texts["tiny-baseline"]
    assert "not calibrated" in texts["tiny-densenet"]
    answer = models["tiny-findings"].assess(images / "8bit.png")
    for name in FINDINGS:
        word = " found" if name in answer.decided else ""
        assert f"{name} {percent(answer.probabilities[name])}{word}" in texts["tiny-findings"]


def test_the_operating_point_and_the_band_are_drawn_to_scale(page, images):
    page.upload(images / "8bit.png")
    page.wait(lambda: page.all("#results .card"))
    box = "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
    box += "return [r.left, r.width];"
    card = "#results .card:first-child .bar"
    left, width = page.script(box, card)
    assert page.script(box, f"{card} .band") == pytest.approx(
        [left + 0.5 * width, 0.1 * width], abs=1
    )
    threshold, thickness = page.script(box, f"{card} .threshold")
    assert threshold + thickness / 2 == pytest.approx(left + 0.55 * width, abs=2)
    label = page.all(card)[0].get_attribute("aria-label")
    assert "operating point 55.0" in label and "uncertain from 50.0" in label


def test_every_choice_of_heatmap(page, models, images, tmp_path):
    path = images / "16bit.png"
    page.choose("Heatmap for", "PNEUMONIA")  # there is no image yet, and nobody complains
    page.upload(path)
    shown(page, models, path, "PNEUMONIA")
    for target in ("NORMAL", *FINDINGS[1:]):
        page.choose("Heatmap for", target)
        shown(page, models, path, target)
    page.choose("Heatmap for", PREDICTED)
    for label, method in (("HiResCAM", "hires_cam"), ("Layer-CAM", "layer_cam")):
        page.choose("Method", label)
        shown(page, models, path, method=method, label=label)
    page.screenshot(tmp_path / "method.png")
    assert not page.all(".toast-body")
    answers = page.text("#results")
    page.choose("Method", "Grad-CAM++")
    page.wait(lambda: "Grad-CAM++ for" in page.text("#viewer figcaption"))
    assert page.text("#results") == answers


def test_opacity_and_the_original(page, models, images):
    page.upload(images / "photo.jpeg")
    shown(page, models, images / "photo.jpeg")
    opacity = "return getComputedStyle(document.querySelector('#viewer .layer')).opacity"
    asked = len(list(page.requested()))
    assert float(page.script(opacity)) == 1 and asked
    slider = page.all("#viewer input[type=range]")[0]
    for _ in range(40):
        slider.send_keys(Keys.ARROW_LEFT)
    assert float(page.script(opacity)) == 0.6
    assert "60 %" in page.text("#viewer output")
    page.all("#viewer input[type=checkbox]")[0].send_keys(Keys.SPACE)
    assert float(page.script(opacity)) == 0
    page.all("#viewer input[type=checkbox]")[0].send_keys(Keys.SPACE)
    assert not list(page.requested())  # all of it is done in the browser
    page.choose("Heatmap for", "NORMAL")
    shown(page, models, images / "photo.jpeg", "NORMAL")
    assert float(page.script(opacity)) == 0.6  # and stays as it was set
    assert "60 %" in page.text("#viewer output")


def test_an_answer_to_another_image_is_not_shown(page, models, images):
    page.upload(images / "8bit.png")
    shown(page, models, images / "8bit.png")
    page.script("window.cxr.path = 'of the next image, whose answer is on its way'")
    page.choose("Heatmap for", "PNEUMONIA")
    page.wait(lambda: not page.all("#viewer img"))
    assert not any(tool.is_displayed() for tool in page.all("#viewer .tools, #viewer .note"))


def test_a_class_chosen_while_the_answer_is_on_its_way(page, served, models, images):
    with httpx.Client(base_url=f"{served.url}gradio_api/", timeout=60) as http:
        content = (images / "8bit.png").read_bytes()
        (path,) = http.post("upload", files={"files": ("x.png", content)}).json()
        job = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "tiny-densenet"]}
        for _ in range(12):  # others who are answered first
            assert http.post("call/predict", json=job).status_code == 200
    page.upload(images / "16bit.png")
    page.choose("Heatmap for", "NORMAL")
    for _ in range(2):
        shown(page, models, images / "16bit.png", "NORMAL")
        time.sleep(1)


def test_a_new_image_is_not_kept_waiting_by_a_slow_method(page, models, images):
    slow = "Score-CAM (slow: up to a minute)"
    page.choose("Method", slow)
    assert page.all("input[aria-label=Method]")[0].get_attribute("value") == slow
    page.upload(images / "8bit.png")
    shown(page, models, images / "8bit.png")
    assert page.all("input[aria-label=Method]")[0].get_attribute("value") == "Grad-CAM"
    page.choose("Method", slow)
    shown(page, models, images / "8bit.png", method="score_cam", label="Score-CAM")


def test_the_picture_can_be_downloaded(page, models, images):
    path, saved = images / "8bit.png", models["tiny-baseline"]
    page.upload(path)
    shown(page, models, path)
    page.script("document.querySelector('#viewer [data-action=download]').click()")
    explained = saved.assess(path, method="grad_cam").explained
    file = page.downloads / f"tiny-baseline-{explained}.png"
    page.wait(file.is_file)
    pixels = saved.processor.open(path).pixels
    expected = saved.processor.overlay(pixels, saved.heat(path)).astype(int)
    downloaded = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(downloaded - expected).max() <= 2
    file.unlink()


def test_what_is_wrong_is_said_and_nothing_old_stays(page, served, models, images, tmp_path):
    page.upload(images / "8bit.png")
    shown(page, models, images / "8bit.png")
    page.upload(images / "text.jpeg")
    page.wait_for_text("#results", "Not an image file that can be read")
    assert not page.all("#viewer img, #results .card")
    page.screenshot(tmp_path / "problem.png")
    page.upload(images / "photo.jpeg")
    shown(page, models, images / "photo.jpeg")
    for path in served.temporary_files():
        path.unlink()
    page.choose("Heatmap for", "PNEUMONIA")
    page.wait_for_text("#results", "The upload was deleted after 10 minutes; repeat it.")
    assert not page.all("#viewer img, #results .card")


def test_examples_and_paste(page, models, images):
    page.all("#examples button")[1].click()
    shown(page, models, SPACE / "examples" / "opacity.png")
    content = base64.b64encode((images / "16bit.png").read_bytes()).decode()
    page.script(
        """const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
        const clipboard = new DataTransfer();
        clipboard.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
        document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: clipboard }));""",
        content,
    )
    shown(page, models, images / "16bit.png")  # 16 bits: the bytes went as they were


def test_many_files(page, models, images, tmp_path):
    hostile, archive = tmp_path / HOSTILE, tmp_path / "x-rays.zip"
    hostile.write_bytes((images / "8bit.png").read_bytes())
    with zipfile.ZipFile(archive, "w") as file:
        file.write(images / "16bit.png", "../../ward/16bit.png")
        file.write(images / "text.jpeg", f"{HOSTILE}/text.jpeg")
    page.tab("Many")
    page.upload(hostile, archive, zone="#files")
    page.wait(lambda: "x-rays" in page.text("#files"))
    page.press("Read all files")
    page.wait_for_text("#progress", "3 files by tiny-baseline:")
    page.screenshot(tmp_path / "many.png")
    table = page.table("#table")
    saved = models["tiny-baseline"]
    for row, path in zip(table, ("8bit.png", "16bit.png")):
        answer = saved.assess(images / path)
        assert row[1] == ("uncertain" if answer.uncertain else "ok")
        flagged = "Flagged" if answer.decided == ("PNEUMONIA",) else "Not flagged"
        assert row[2] == ("Uncertain" if answer.uncertain else f"{flagged} as PNEUMONIA")
        assert row[3] == percent(answer.probabilities["PNEUMONIA"])
    assert [row[0] for row in table[1:]] == [
        "x-rays.zip/ward/16bit.png",
        f"x-rays.zip/{HOSTILE}/text.jpeg",
    ]
    assert table[2][1] == "error" and "Not an image file" in table[2][4]
    assert len(page.all("#contact-sheet img")) == 2
    page.press("Download table (CSV)")
    page.wait((page.downloads / "predictions.csv").is_file)
    with open(page.downloads / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [row[0] for row in table]
    assert all(f"probability_{name}" in rows[0] for name in CLASSES)
    os.unlink(page.downloads / "predictions.csv")
    page.choose("Model", "tiny-densenet")
    page.wait(lambda: not page.all("#table tr, #contact-sheet img"))


def test_what_is_read_by_one_model_never_stands_under_another(page, images, tmp_path):
    with Image.open(images / "8bit.png") as image:  # enlarged, so that it takes seconds
        image.resize((1600, 1200)).save(tmp_path / "large.png")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as file:
        for number in range(100):
            file.write(tmp_path / "large.png", f"{number}.png")
    page.tab("Many")
    page.upload(tmp_path / "many.zip", zone="#files")
    page.wait(lambda: "many" in page.text("#files"))
    page.press("Read all files")
    page.wait_for_text("#progress", " read ...")
    page.choose("Model", "tiny-densenet")
    page.wait_for_text("#progress", "The table appears here.")
    for _ in range(10):
        assert page.text("#progress") == "The table appears here." and not page.all("#table tr")
        time.sleep(0.1)
    page.press("Read all files")
    page.wait_for_text("#progress", "100 files by tiny-densenet:", 180)


def test_the_report_is_the_models_card(page, models, tmp_path):
    page.tab("Report")
    page.wait_for_text("#report", "AUROC 0.62")
    page.screenshot(tmp_path / "report.png")
    assert "license" not in page.text("#report")
    assert page.all("#report h2")[0].text == "tiny-baseline"
    assert page.text("#report p code") in page.text("#footer")
    figure = page.all("#report img[alt='ROC curve']")[0]
    assert page.script("return arguments[0].naturalWidth", figure) == 40
    for name in ("Secret", "Elsewhere"):
        picture = page.all(f"#report img[alt='{name}']")
        assert not picture or page.script("return arguments[0].naturalWidth", picture[0]) == 0
    assert "<img src=x onerror=document.title=1>" in page.text("#report")
    assert not page.all("#report a[href^=javascript]")
    assert len(page.all("#report details")) == 1  # the one with an attribute is text
    assert "4711" not in page.text("#report")
    page.all("#report summary")[0].click()
    page.wait_for_text("#report details table", "4711")
    page.choose("Model's own card", "tiny-densenet")
    page.wait_for_text("#report", "This model has no card.")

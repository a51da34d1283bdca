"""The Space as visitors meet it: a copy of `space/` alone, its API, its page in Chromium."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import HfApi
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from modeling import (
    CxrBaselineConfig,
    CxrBaselineForImageClassification,
    CxrDenseNetConfig,
    CxrDenseNetForImageClassification,
    CxrImageProcessor,
)

SPACE = Path(__file__).parents[1] / "space"
CLASSES = ["NORMAL", "PNEUMONIA"]
FINDINGS = ["Edema", "Mass > 3 cm", "Nodule"]
FLAGS = "headless=new no-sandbox disable-gpu disable-dev-shm-usage disable-background-networking"
# `-S` leaves the editable install unread: the libraries can be imported, this checkout cannot.
PYTHON = [sys.executable, "-S"]
LIBRARIES = {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"}


class Served(NamedTuple):
    """A running Space."""

    url: str
    uploads: Path

    def temporary_files(self):
        return [path for path in self.uploads.rglob("*") if path.is_file()]


class Saved(NamedTuple):
    """A model as it was saved."""

    folder: Path
    model: torch.nn.Module
    processor: CxrImageProcessor
    classes: list[str]

    def probabilities(self, path):
        """{class: probability} of an image file through the Python API."""
        with torch.no_grad():
            logits = self.model(self.processor(path)["pixel_values"]).logits
        return dict(zip(self.classes, self.model.probabilities(logits)[0].tolist(), strict=True))


def options(*classes, **others):
    id2label = dict(enumerate(classes))
    label2id = {name: index for index, name in id2label.items()}
    return {"image_size": 64, "id2label": id2label, "label2id": label2id, **others}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three tiny networks with random weights, saved: {folder name: Saved}."""
    torch.manual_seed(0)
    networks = {
        "tiny-baseline": CxrBaselineForImageClassification(
            CxrBaselineConfig(hidden_sizes=(8, 16), **options(*CLASSES))
        ),
        "tiny-densenet": CxrDenseNetForImageClassification(
            CxrDenseNetConfig(block_config=(2, 2), **options(*CLASSES))
        ),
        "tiny-findings": CxrBaselineForImageClassification(
            CxrBaselineConfig(problem_type="multi_label_classification", **options(*FINDINGS))
        ),
    }
    saved = {}
    for name, model in networks.items():
        head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        head.weight.data *= 4  # random networks hardly tell images apart
        processor = CxrImageProcessor(size=64)
        folder = tmp_path_factory.mktemp("models") / name
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
        saved[name] = Saved(folder, model, processor, list(model.config.label2id))
    return saved


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Image files: 8-bit PNG, 16-bit PNG, JPEG, and a text file called JPEG."""
    folder = tmp_path_factory.mktemp("images")
    y, x = np.mgrid[0:180, 0:240] / 180
    noise = np.random.default_rng(0).uniform(0, 0.1, x.shape)
    grey = 0.45 + 0.45 * np.cos(10 * x) * np.sin(4 * y) + noise
    Image.fromarray((grey * 255).astype(np.uint8)).save(folder / "8bit.png")
    Image.fromarray((grey.T * 65535).astype(np.uint16)).save(folder / "16bit.png")
    Image.fromarray((grey[:, ::-1] * 255).astype(np.uint8)).save(folder / "photo.jpeg")
    (folder / "text.jpeg").write_text("This is not an image.")
    return folder


@contextmanager
def serve(folder, model_ids, **env):
    """Run a copy of `space/` on a free port; stop it as a container is stopped."""
    space = shutil.copytree(SPACE, folder / "space", ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    served = Served(f"http://127.0.0.1:{port}/", folder / "uploads")
    env = {
        **os.environ,
        **LIBRARIES,
        "MODEL_ID": ",".join(map(str, model_ids)),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(served.uploads),
        **env,
    }
    imported = subprocess.run([*PYTHON, "-c", "import modeling"], cwd=space, env=env)
    assert imported.returncode != 0, "the checkout is importable, so this would prove nothing"
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([*PYTHON, "app.py"], cwd=space, env=env, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log.txt").read_text()
            try:
                urllib.request.urlopen(served.url).close()
                break
            except OSError:
                time.sleep(0.1)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    folders = [saved.folder for saved in models.values()]
    with serve(tmp_path_factory.mktemp("served"), folders) as served:
        yield served


@pytest.fixture(scope="module")
def client(served):
    return Client(served.url, verbose=False)


def predict(client, path, model, target="predicted class"):
    """`/predict`: {class: probability} and the overlay as an array."""
    probabilities, overlay = client.predict(handle_file(path), model, target, api_name="/predict")
    return probabilities, np.asarray(Image.open(overlay)).astype(int)


@pytest.mark.parametrize("file", ["8bit.png", "16bit.png", "photo.jpeg"])
@pytest.mark.parametrize("name", ["tiny-baseline", "tiny-densenet", "tiny-findings"])
def test_predict_equals_the_python_api(client, models, images, name, file):
    probabilities, overlay = predict(client, images / file, name)
    assert probabilities == pytest.approx(models[name].probabilities(images / file), abs=1e-6)
    width, height = Image.open(images / file).size
    assert overlay.shape == (height, width, 3)


@pytest.mark.parametrize("target", CLASSES)
def test_heat_is_in_the_scale_of_the_probability(client, models, images, target):
    _, model, processor, _ = models["tiny-densenet"]
    path = images / "8bit.png"
    grey = np.asarray(Image.open(path)).astype(int)
    probabilities, overlay = predict(client, path, "tiny-densenet", target)
    heatmap = model.grad_cam(processor(path)["pixel_values"], CLASSES.index(target))[0]
    heat = processor.restore(heatmap, *grey.shape) * probabilities[target]
    cold, hottest = heat < 1 / 1000, np.unravel_index(heat.argmax(), heat.shape)
    assert cold.any() and heat[hottest] > 0.1
    change = np.abs(overlay - grey[..., None]).max(-1)
    assert (change[cold] == 0).all()
    assert (change <= 0.7 * 255 * heat + 2).all()
    red, _, blue = overlay[hottest]
    assert red - blue > 60 * heat[hottest]


def test_predict_says_what_is_wrong(client, models, images):
    with pytest.raises(ValueError) as unreadable:
        models["tiny-baseline"].processor.load((images / "text.jpeg").read_bytes())
    with pytest.raises(AppError) as error:
        predict(client, images / "text.jpeg", "tiny-baseline")
    assert error.value.message == str(unreadable.value)
    with pytest.raises(AppError, match="There is no image"):
        client.predict(None, "tiny-baseline", api_name="/predict")
    with pytest.raises(AppError, match="tiny-densenet"):  # names the models that there are
        predict(client, images / "8bit.png", "huge")
    with pytest.raises(AppError, match="choose NORMAL, PNEUMONIA"):
        predict(client, images / "8bit.png", "tiny-baseline", "Edema")


def test_api_page_describes_predict_alone(served):
    with urllib.request.urlopen(served.url + "gradio_api/info") as response:
        endpoints = json.load(response)["named_endpoints"]
    assert list(endpoints) == ["/predict"]
    assert "Research only" in endpoints["/predict"]["description"]
    parameters = endpoints["/predict"]["parameters"]
    assert [p["parameter_name"] for p in parameters] == ["image", "model", "target"]


def test_hub_model_is_served_and_uploads_are_deleted_on_exit(hub, models, images, tmp_path):
    saved, path = models["tiny-densenet"], images / "8bit.png"
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("org/cxr-tiny")
    api.upload_folder(repo_id="org/cxr-tiny", folder_path=saved.folder)
    with serve(tmp_path, ["org/cxr-tiny"], **hub.env) as served:
        probabilities, _ = predict(Client(served.url, verbose=False), path, "org/cxr-tiny")
        assert len(served.temporary_files()) == 2  # the upload and its overlay
    assert probabilities == pytest.approx(saved.probabilities(path), abs=1e-6)
    assert not served.temporary_files()


RUN_WITH_EACH_ID = """
import os, runpy, sys
for model_id in sys.argv[1:]:
    os.environ["MODEL_ID"] = model_id
    try:
        runpy.run_path("app.py", run_name="__main__")
    except SystemExit as exit:
        print(exit.code)
"""


def test_wrong_model_id_is_one_sentence(run_python, hub, models, tmp_path):
    folder = models["tiny-baseline"].folder
    copy = shutil.copytree(folder, tmp_path / "copy" / folder.name)
    cut = shutil.copytree(folder, tmp_path / "cut")
    os.truncate(cut / "model.safetensors", 1000)
    sentences = {
        f"{tmp_path}/none": "is not a folder and cannot be loaded from the Hub: ",
        "org/none": "is not a folder and cannot be loaded from the Hub: ",
        f"{cut}": "cannot be loaded: ",
        f"{folder},{copy}": "has two models called 'tiny-baseline'",
    }
    settings = {"cwd": SPACE, "env": {**LIBRARIES, **hub.env}, "isolated": True}
    # One process for them all: what takes the time is to import the libraries.
    printed = run_python(["-c", RUN_WITH_EACH_ID, *sentences], **settings).stdout
    for line, sentence in zip(printed.splitlines(), sentences.values(), strict=True):
        assert line.startswith("MODEL_ID ") and sentence in line and line.endswith(".")
    unset = run_python(["app.py"], **settings)
    assert unset.returncode == 1
    assert unset.stderr.startswith("MODEL_ID is not set; ") and unset.stderr.count("\n") == 1


class Page:
    """The page in a headless Chromium of a given width, in light or dark."""

    def __init__(self, url, profile, width, scheme):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS.split(), f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.width = width
        self.resize(900)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(url)
        self.wait(lambda: self.all("input[type=file]"))

    def resize(self, height):
        screen = {"width": self.width, "height": height, "deviceScaleFactor": 1}
        screen["mobile"] = self.width < 500
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return " ".join(element.text for element in self.all(selector))

    def wait(self, condition):
        return WebDriverWait(self.driver, 20, poll_frequency=0.1).until(lambda _: condition())

    def upload(self, path):
        if remove := self.all("button[aria-label='Clear']"):
            remove[0].click()
        self.wait(lambda: self.all("input[type=file]"))[0].send_keys(str(path))

    def choose(self, label, option):
        self.all(f"input[aria-label='{label}']")[0].click()
        self.wait(lambda: self.all(f"li[role=option][aria-label='{option}']"))[0].click()

    def shows(self, probabilities, target=None):
        """Wait until the page shows these probabilities and the heatmap of this class."""
        rows = sorted(probabilities.items(), key=lambda row: -row[1])
        target = target or rows[0][0]
        table = " ".join(f"{name} {percent(p)}" for name, p in rows)
        bar = f"here {target}, {percent(probabilities[target])}."
        self.wait(lambda: table in " ".join(self.text("#probabilities").split()))
        self.wait(lambda: bar in self.text("#colour-bar"))

    def image(self, elem_id):
        with urllib.request.urlopen(self.all(f"#{elem_id} img")[0].get_attribute("src")) as file:
            return np.asarray(Image.open(file)).astype(int)

    def screenshot(self, path):
        """Keep a picture of the whole page, which must not scroll sideways."""
        self.resize(self.driver.execute_script("return document.documentElement.scrollHeight"))
        self.driver.save_screenshot(str(path))
        self.resize(900)
        width = self.driver.execute_script("return document.documentElement.scrollWidth")
        assert width == self.width

    def requested(self):
        """Every address that the browser asked for."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                yield message["params"]["request"]["url"]


def percent(p):
    return "< 0.1 %" if p < 0.001 else "> 99.9 %" if p > 0.999 else f"{100 * p:.1f} %"


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["laptop-light", "phone-dark"])
def page(request, served, tmp_path):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        reason = "chromium and chromedriver are not installed"
        pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)
    page = Page(served.url, tmp_path / "profile", *request.param)
    yield page
    page.driver.quit()


def test_page(page, served, client, models, images, tmp_path):
    assert "Research only, not a medical device." in page.text("#notice")
    assert "deleted after 10 minutes" in page.text("#privacy")

    def shown(file, name, target=None):
        """Compare the page with the Python API and with `/predict`; return its heatmap."""
        page.shows(models[name].probabilities(images / file), target)
        _, overlay = predict(client, images / file, name, target or "predicted class")
        heatmap = page.image("heatmap")
        assert (heatmap == overlay).all()
        assert (page.image("original") == models[name].processor.load(images / file) >> 8).all()
        page.screenshot(tmp_path / f"{name}-{file}-{target}.png")
        return heatmap

    page.choose("Model", "tiny-densenet")  # there is no image yet, and nobody complains
    page.choose("Model", "tiny-baseline")
    page.upload(images / "8bit.png")
    heatmaps = [shown("8bit.png", "tiny-baseline")]
    assert not page.all(".toast-body")
    page.choose("Model", "tiny-densenet")
    for target in CLASSES:
        page.choose("Heatmap for", target)
        heatmaps.append(shown("8bit.png", "tiny-densenet", target))
    assert len({heatmap.tobytes() for heatmap in heatmaps}) == 3

    page.upload(images / "16bit.png")
    shown("16bit.png", "tiny-densenet", "PNEUMONIA")
    page.choose("Model", "tiny-findings")  # it has no PNEUMONIA: back to the predicted class
    shown("16bit.png", "tiny-findings")
    page.choose("Heatmap for", "Mass > 3 cm")
    shown("16bit.png", "tiny-findings", "Mass > 3 cm")

    def only_problem(sentence):
        page.wait(lambda: page.text("#problem") == sentence)
        page.screenshot(tmp_path / "problem.png")
        assert not page.all("#heatmap img, #original img, #probabilities table")

    page.upload(images / "text.jpeg")
    only_problem("the image: not an image file that can be read.")
    page.upload(images / "photo.jpeg")
    shown("photo.jpeg", "tiny-findings", "Mass > 3 cm")
    assert not page.text("#problem")
    for path in served.temporary_files():
        path.unlink()
    page.choose("Heatmap for", "Edema")
    only_problem("The upload was deleted after 10 minutes; repeat it.")

    assert not [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]
    addresses = [address for address in page.requested() if address.startswith("http")]
    assert addresses and all(address.startswith(served.url) for address in addresses)

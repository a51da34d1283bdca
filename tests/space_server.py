"""A running copy of `space/` alone, and its page in a headless Chromium."""

import hashlib
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
    create_model,
)

SPACE = Path(__file__).parents[1] / "space"
CLASSES = ["NORMAL", "PNEUMONIA"]
FINDINGS = ["Edema", "Mass > 3 cm", "<img src=x onerror=document.title=1>"]
FLAGS = "headless=new no-sandbox disable-gpu disable-dev-shm-usage disable-background-networking"
# `-S` leaves the editable install unread: the libraries can be imported, this checkout cannot.
PYTHON = [sys.executable, "-S"]
LIBRARIES = {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"}
PREDICTED = "most probable class"


class Served(NamedTuple):
    """A running Space.

    Attributes:
        url: its address, with a slash at the end.
        uploads: the folder that holds all that it writes.
        log: what it has printed.
        process: the server.
    """

    url: str
    uploads: Path
    log: Path
    process: subprocess.Popen

    def temporary_files(self):
        return [path for path in self.uploads.rglob("*") if path.is_file()]


class Saved(NamedTuple):
    """A model as it was saved."""

    folder: Path
    model: torch.nn.Module
    processor: CxrImageProcessor
    classes: list[str]

    def assess(self, path, target=None, method=None):
        image = self.processor.open(path)
        return self.model.assess([image], self.processor, target, method)[0]

    def heat(self, path, target=None, method="grad_cam"):
        """Heat at the image's own size, through the Python API."""
        answer = self.assess(path, target, method)
        shape = self.processor.open(path).pixels.shape
        return (
            self.processor.restore(answer.heatmap, *shape) * answer.probabilities[answer.explained]
        )

    def version(self):
        """Name and hash of its three files."""
        names = ("config.json", "preprocessor_config.json", "model.safetensors")
        content = b"".join((self.folder / name).read_bytes() for name in names)
        return f"{self.folder.name}@{hashlib.sha256(content).hexdigest()[:12]}"


def tiny_config(names, **others):
    id2label = dict(enumerate(names))
    label2id = {name: index for index, name in id2label.items()}
    return {"image_size": 64, "id2label": id2label, "label2id": label2id, **others}


def save(model, folder, card=None):
    """Writes a model as training does; returns what a test compares the Space with."""
    processor = CxrImageProcessor(size=model.config.image_size)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    if card:
        (folder / "README.md").write_text(card)
    return Saved(folder, model, processor, list(model.config.label2id))


def save_tiny(folder):
    """The folder of one tiny network with random weights, which answers at once: folder/tiny."""
    torch.manual_seed(0)
    model, _ = create_model("baseline", CLASSES, image_size=32, hidden_sizes=[8])
    return save(model, folder / "tiny").folder


def save_tiny_models(folder):
    """Three tiny networks with random weights: {folder name: Saved}."""
    torch.manual_seed(0)
    operation = {
        "calibration": {"method": "temperature", "temperature": 1.5},
        "thresholds": [0.55],
        "abstention": [[0.5, 0.6]],
        "prevalence": [0.25, 0.75],
    }
    networks = {
        "tiny-baseline": CxrBaselineForImageClassification(
            CxrBaselineConfig(hidden_sizes=(8, 16), **tiny_config(CLASSES, **operation))
        ),
        "tiny-densenet": CxrDenseNetForImageClassification(
            CxrDenseNetConfig(block_config=(2, 2), **tiny_config(CLASSES))
        ),
        "tiny-findings": CxrBaselineForImageClassification(
            CxrBaselineConfig(problem_type="multi_label_classification", **tiny_config(FINDINGS))
        ),
    }
    for model in networks.values():
        head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        head.weight.data *= 4  # random networks hardly tell images apart
    return {name: save(model, folder / name) for name, model in networks.items()}


def save_images(folder):
    """Image files: 8-bit PNG, 16-bit PNG, JPEG, and a text file called JPEG."""
    y, x = np.mgrid[0:180, 0:240] / 180
    noise = np.random.default_rng(0).uniform(0, 0.1, x.shape)
    grey = 0.45 + 0.45 * np.cos(10 * x) * np.sin(4 * y) + noise
    Image.fromarray((grey * 255).astype(np.uint8)).save(folder / "8bit.png")
    Image.fromarray((grey.T * 65535).astype(np.uint16)).save(folder / "16bit.png")
    Image.fromarray((grey[:, ::-1] * 255).astype(np.uint8)).save(folder / "photo.jpeg")
    (folder / "text.jpeg").write_text("This is not an image.")
    return folder


@contextmanager
def serve(folder, model_ids=None, **env):
    """Runs a copy of `space/` in a folder, on a free port; stops it as a container is stopped.

    Without `model_ids`, the Space chooses its models itself.
    """
    space = shutil.copytree(SPACE, folder / "space", ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log, uploads = folder / "log.txt", folder / "uploads"
    env = {
        **os.environ,
        **LIBRARIES,
        **({"MODEL_ID": ",".join(map(str, model_ids))} if model_ids else {}),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(uploads),
        **env,
    }
    imported = subprocess.run(
        [*PYTHON, "-c", "import modeling"], cwd=space, env=env, capture_output=True
    )
    assert imported.returncode != 0, "the checkout is importable, so this would prove nothing"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*PYTHON, "app.py"], cwd=space, env=env, stdout=file, stderr=file
        )
    served = Served(f"http://127.0.0.1:{port}/", uploads, log, process)
    try:
        for _ in range(6000):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(served.url).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail(f"the Space does not answer after ten minutes: {log.read_text()}")
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)


def percent(p):
    """A probability as the page shows it."""
    return "< 0.1 %" if p < 0.001 else "> 99.9 %" if p > 0.999 else f"{100 * p:.1f} %"


class Page:
    """The page in a headless Chromium of a given width, "light" or "dark"."""

    def __init__(self, url, folder, width, scheme):
        if not (shutil.which("chromium") and shutil.which("chromedriver")):
            reason = "chromium and chromedriver are not installed"
            pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS.split(), f"user-data-dir={folder / 'profile'}"):
            options.add_argument(f"--{flag}")
        self.downloads = folder / "downloads"
        options.add_experimental_option(
            "prefs", {"download.default_directory": str(self.downloads)}
        )
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.width = width
        self.resize(900)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(url)
        self.wait(lambda: self.all("#image input[type=file]"))

    def resize(self, height):
        screen = {"width": self.width, "height": height, "deviceScaleFactor": 1}
        screen["mobile"] = self.width < 500
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return " ".join(" ".join(element.text for element in self.all(selector)).split())

    def table(self, selector):
        """The texts of a table's cells, a list a row."""
        return self.script(
            """const text = (cell) => cell.textContent.replaceAll("\\u00a0", " ").trim();
            return [...document.querySelectorAll(`${arguments[0]} tbody tr`)].map(
                (row) => [...row.cells].map(text));""",
            selector,
        )

    def wait(self, condition, seconds=60):
        return WebDriverWait(self.driver, seconds, poll_frequency=0.1).until(lambda _: condition())

    def wait_for_text(self, selector, text, seconds=60):
        self.wait(lambda: text in self.text(selector), seconds)

    def script(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def tab(self, name):
        tab = next(one for one in self.all("button[role=tab]") if name in one.text)
        self.script("arguments[0].click()", tab)

    def upload(self, *paths, zone="#image"):
        if remove := self.all(f"{zone} button[aria-label='Clear']"):
            remove[0].click()
        field = self.wait(lambda: self.all(f"{zone} input[type=file]"))[0]
        field.send_keys("\n".join(map(str, paths)))

    def press(self, name):
        button = next(one for one in self.all("button") if one.text == name)
        self.wait(button.is_enabled)
        self.script("arguments[0].click()", button)

    def choose(self, label, option):
        field = next(one for one in self.all(f"input[aria-label={label!r}]") if one.is_displayed())
        self.script("document.activeElement.blur()")
        self.script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.click()
        choice = f"li[role=option][aria-label={option!r}]"
        self.script("arguments[0].scrollIntoView()", self.wait(lambda: self.all(choice))[0])
        self.all(choice)[0].click()

    def picture(self, selector):
        """The pixels of an image of the page."""
        with urllib.request.urlopen(self.all(selector)[0].get_attribute("src")) as file:
            return np.asarray(Image.open(file)).astype(int)

    def screenshot(self, path):
        """Keeps a picture of the whole page, which must not scroll sideways."""
        self.resize(self.script("return document.documentElement.scrollHeight"))
        self.driver.save_screenshot(str(path))
        assert self.script("return document.documentElement.scrollWidth") <= self.width
        self.resize(900)

    def requested(self):
        """Every address that the browser asked for."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                yield message["params"]["request"]["url"]

    def errors(self):
        return [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

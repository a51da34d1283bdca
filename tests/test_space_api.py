"""The Space as a program meets it: its endpoints, the commands of its README, how it starts."""

import ast
import asyncio
import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from importlib.metadata import requires
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from huggingface_hub import HfApi
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from space_server import (
    CLASSES,
    FINDINGS,
    LIBRARIES,
    PREDICTED,
    SPACE,
    save_images,
    save_tiny_models,
    serve,
)

from modeling.heatmap_cxr import CAM_METHODS
from prediction.table import Prediction, to_row

REPO = SPACE.parent
README = (SPACE / "README.md").read_text()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    folders = [saved.folder for saved in models.values()]
    with serve(tmp_path_factory.mktemp("served"), folders) as served:
        yield served
        assert not re.search("8bit|16bit|photo|text.jpeg|members", served.log.read_text())


@pytest.fixture(scope="module")
def client(served):
    return Client(served.url, verbose=False)


def heatmap(client, path, model, target=PREDICTED, method="grad_cam"):
    """`/heatmap`: the overlay as an array, and the facts."""
    image = handle_file(path)
    overlay, facts = client.predict(image, model, target, method, api_name="/heatmap")
    return np.asarray(Image.open(overlay)).astype(int), facts


# ------------------------------------------------------------------------------------- endpoints


@pytest.mark.parametrize("file", ["8bit.png", "16bit.png", "photo.jpeg"])
@pytest.mark.parametrize("name", ["tiny-baseline", "tiny-densenet", "tiny-findings"])
def test_predict_equals_the_python_api(client, models, images, name, file):
    answer = client.predict(handle_file(images / file), name, api_name="/predict")
    expected = models[name].assess(images / file)
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert answer["logits"] == pytest.approx(expected.logits, abs=1e-5)
    assert answer["decision"] == expected.decision
    assert answer["uncertain"] == "; ".join(expected.uncertain)
    assert answer["status"] == ("uncertain" if expected.uncertain else "ok")
    assert answer["warnings"] == list(expected.warnings)
    assert answer["outlier_score"] == pytest.approx(expected.outlier_score, abs=1e-4)
    assert answer["reason"] is None
    assert answer["model"] == models[name].version()
    assert answer["model"] == f"{name}@{answer['revision']}"


def test_without_a_model_the_first_is_asked(client, models, images):
    answer = client.predict(handle_file(images / "8bit.png"), api_name="/predict")
    assert answer["model"].startswith(f"{next(iter(models))}@")


@pytest.mark.parametrize(
    ("target", "method"),
    [
        (PREDICTED, "grad_cam"),
        ("NORMAL", "grad_cam"),
        *(("PNEUMONIA", name) for name in CAM_METHODS),
    ],
)
def test_heatmap_is_the_models_own_overlay(client, models, images, target, method):
    saved, path = models["tiny-baseline"], images / "16bit.png"
    wanted = None if target == PREDICTED else target
    overlay, facts = heatmap(client, path, "tiny-baseline", target, method)
    expected = saved.processor.overlay(
        saved.processor.open(path).pixels, saved.heat(path, wanted, method)
    )
    assert np.abs(overlay - expected).max() <= 1
    assert facts["explained"] == saved.assess(path, wanted, method).explained
    assert facts["method"] == method
    assert facts["probabilities"] == client.predict(
        handle_file(path), "tiny-baseline", api_name="/predict"
    )["probabilities"]  # fmt: skip


@pytest.mark.parametrize("target", CLASSES)
def test_heat_is_in_the_scale_of_the_probability(client, models, images, target):
    path = images / "8bit.png"
    grey = models["tiny-densenet"].processor.open(path).pixels >> 8
    overlay, _ = heatmap(client, path, "tiny-densenet", target)
    heat = models["tiny-densenet"].heat(path, target)
    cold, hottest = heat < 1 / 1000, np.unravel_index(heat.argmax(), heat.shape)
    assert cold.any() and heat[hottest] > 0.1
    change = np.abs(overlay - grey[..., None].astype(int)).max(-1)
    assert (change[cold] == 0).all()
    assert (change <= 0.7 * 255 * heat + 2).all()
    red, _, blue = overlay[hottest]
    assert red - blue > 60 * heat[hottest]


def test_predict_batch_writes_the_rows_of_predict_py(client, models, images, tmp_path):
    saved, name = models["tiny-baseline"], "tiny-baseline"
    archive = tmp_path / "members.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(images / "16bit.png", "ward/16bit.png")
        file.write(images / "text.jpeg", "text.jpeg")
    uploads = [handle_file(images / "8bit.png"), handle_file(archive)]
    rows, table = client.predict(uploads, name, api_name="/predict_batch")
    constants = {"model": saved.version()}
    with pytest.raises(ValueError) as unreadable:
        saved.processor.open((images / "text.jpeg").read_bytes())
    error = str(unreadable.value).removeprefix("the image: ")
    expected = [
        Prediction("8bit.png", saved.assess(images / "8bit.png")),
        Prediction("members.zip/ward/16bit.png", saved.assess(images / "16bit.png")),
        Prediction("members.zip/text.jpeg", error=error),
    ]
    for row, prediction in zip(rows, expected, strict=True):
        wanted = to_row(prediction, saved.classes, constants)
        assert list(row) == list(wanted)
        for column, value in wanted.items():
            number = isinstance(value, float)
            assert row[column] == (pytest.approx(value, abs=1e-5) if number else value)
    with open(table, newline="") as file:
        written = list(csv.DictReader(file))
    texts = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    assert written == texts


WRONG = [
    ("/predict", ("text.jpeg", "tiny-baseline"), "^Not an image file"),
    ("/predict", (None, "tiny-baseline"), "There is no image"),
    ("/predict", ("8bit.png", "huge"), "'huge' is no model here; choose tiny-baseline, tiny-de"),
    ("/heatmap", ("8bit.png", "tiny-baseline", "Edema", "grad_cam"), "choose NORMAL, PNEUMONIA"),
    ("/heatmap", ("8bit.png", "tiny-baseline", PREDICTED, "magic"), "can be grad_cam"),
    ("/heatmap", ("8bit.png", "tiny-baseline", PREDICTED, "token_grad_cam"), "can be grad_cam, "),
    ("/predict_batch", ([], "tiny-baseline"), "There are no files"),
]


@pytest.mark.parametrize(("endpoint", "inputs", "sentence"), WRONG)
def test_an_error_is_a_sentence(client, images, endpoint, inputs, sentence):
    first, *others = inputs
    first = handle_file(images / first) if first else first
    with pytest.raises(AppError, match=sentence) as error:
        client.predict(first, *others, api_name=endpoint)
    assert error.value.message.endswith(".") and error.value.message.count("\n") == 0


def test_three_endpoints_are_public_and_described(served):
    with urllib.request.urlopen(served.url + "gradio_api/info") as response:
        api = json.load(response)
    endpoints = api["named_endpoints"]
    assert list(endpoints) == ["/predict", "/heatmap", "/predict_batch"]
    assert not api["unnamed_endpoints"]
    for endpoint in endpoints.values():
        assert "Research only" in endpoint["description"]
    assert endpoints["/heatmap"]["parameters"][2]["parameter_default"] == PREDICTED


def test_two_endpoints_are_mcp_tools_that_answer(served, models, images):
    async def talk():
        url = served.url + "gradio_api/mcp/"
        async with streamable_http_client(url) as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                tools = (await session.list_tools()).tools
                content = base64.b64encode((images / "8bit.png").read_bytes()).decode()
                inputs = {"image": f"data:image/png;base64,{content}", "model": "tiny-baseline"}
                answers = [
                    await session.call_tool(tool.name, inputs, progress_callback=ignore)
                    for tool in tools
                ]
                return tools, answers

    async def ignore(progress, total, message):
        pass

    tools, (answer, drawn) = asyncio.run(talk())
    assert [tool.name for tool in tools] == ["predict", "heatmap"]
    inputs = [tool.inputSchema["properties"] for tool in tools]
    assert list(inputs[1]) == ["image", "model", "target", "method"]
    assert all(one["description"] for properties in inputs for one in properties.values())
    expected = models["tiny-baseline"].assess(images / "8bit.png")
    given = ast.literal_eval(answer.content[0].text)
    assert given["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.content[0].data))))
    saved = models["tiny-baseline"]
    pixels, heat = saved.processor.open(images / "8bit.png").pixels, saved.heat(images / "8bit.png")
    assert np.abs(picture.astype(int) - saved.processor.overlay(pixels, heat)).max() <= 1


# ----------------------------------------------------------------------------------- its README


def block(language, word):
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(text for text in blocks if word in text)


def adapted(text, served):
    return text.replace("http://127.0.0.1:7860/", served.url).replace(
        "http://127.0.0.1:7860", served.url
    ).replace("cxr-densenet121", "tiny-baseline")  # fmt: skip


def test_the_readmes_python_runs(served, models, images, tmp_path):
    shutil.copy(images / "8bit.png", tmp_path / "x-ray.png")
    code = adapted(block("python", "gradio_client"), served)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    answer, picture, row = run.stdout.splitlines()[-3:]
    expected = models["tiny-baseline"].assess(images / "8bit.png")
    decision = expected.decision
    assert answer.split()[0] in ("ok", "uncertain") and decision in answer and decision in row
    assert Image.open(picture.rsplit(" ", 1)[0]).size == Image.open(images / "8bit.png").size
    assert Path(row.rsplit(" ", 1)[-1]).read_text().startswith("file,status,decision,uncertain,")


def test_the_readmes_curl_runs(served, models, images, tmp_path):
    shutil.copy(images / "8bit.png", tmp_path / "x-ray.png")
    script = adapted(block("sh", "curl"), served)
    run = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    event, data = run.stdout.strip().splitlines()[-2:]
    assert event == "event: complete", run.stdout + run.stderr
    (answer,) = json.loads(data.removeprefix("data: "))
    expected = models["tiny-baseline"].assess(images / "8bit.png")
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    for key in answer:
        assert f"`{key}`" in README


def test_the_requirements_are_those_that_are_tested():
    pins = dict(line.split("==") for line in (REPO / "constraints.txt").read_text().split())
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    required = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for name, version in required.items():
        assert pins[name.partition("[")[0]] == version
    names = {canonicalize_name(name.partition("[")[0]) for name in required}
    assert "pylibjpeg-libjpeg" not in names  # GPL-3.0
    for name in required:  # and with them all that they bring
        extra = name.partition("[")[2].rstrip("]")
        for needed in map(Requirement, requires(name.partition("[")[0]) or []):
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            if name != "torch" and needed.name != "setuptools":
                assert canonicalize_name(needed.name) in names, (name, needed.name)
    assert f"sdk_version: {pins['gradio']}\n" in README


# --------------------------------------------------------------------------------- start and end


def test_hub_model_is_served_and_uploads_are_deleted_on_exit(hub, models, images, tmp_path):
    saved, path = models["tiny-findings"], images / "8bit.png"
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("tester/cxr-tiny")
    (saved.folder / "README.md").write_text("# The card of this commit")
    commit = api.upload_folder(repo_id="tester/cxr-tiny", folder_path=saved.folder).oid
    later = {"path_in_repo": "README.md", "path_or_fileobj": b"# A later card"}
    api.upload_file(repo_id="tester/cxr-tiny", **later)
    with serve(tmp_path, [f"tester/cxr-tiny@{commit}"], **hub.env) as served:
        asked = len(hub.requests)
        client = Client(served.url, verbose=False)
        answer = client.predict(handle_file(path), "tester/cxr-tiny", api_name="/predict")
        heatmap(client, path, "tester/cxr-tiny", FINDINGS[1])
        assert len(served.temporary_files()) >= 2  # the upload and its overlay
        (served.uploads / "left-by-a-killed-upload").mkdir()
        with urllib.request.urlopen(served.url + "config") as response:
            config = response.read().decode()
        assert f"huggingface.co/tester/cxr-tiny/tree/{commit}" in config
        functions = json.loads(config)["dependencies"]
        number = next(each["id"] for each in functions if each["api_name"] == "show_report")
        job = {"fn_index": number, "data": ["tester/cxr-tiny"], "session_hash": "reader"}
        assert httpx.post(f"{served.url}gradio_api/queue/join", json=job).status_code == 200
        report = httpx.get(f"{served.url}gradio_api/queue/data?session_hash=reader").text
        assert "The card of this commit" in report and "later" not in report
        assert len(hub.requests) == asked  # while it serves, the Hub is left alone
    assert answer["probabilities"] == pytest.approx(saved.assess(path).probabilities, abs=1e-6)
    assert answer["revision"] == commit[:12]
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
        "tester/none": "is not a folder and cannot be loaded from the Hub: ",
        "org/cxr-baseline": "is a placeholder; ",
        f"{cut}": "cannot be loaded: ",
        f"{folder},{copy}": "has two models called 'tiny-baseline'",
        ",": "is not set and no model lies beside this folder",
    }
    settings = {"cwd": SPACE, "env": {**LIBRARIES, **hub.env}, "isolated": True}
    # One process for them all: what takes the time is to import the libraries.
    printed = run_python(["-c", RUN_WITH_EACH_ID, *sentences], **settings).stdout
    for line, sentence in zip(printed.splitlines(), sentences.values(), strict=True):
        assert line.startswith("MODEL_ID ") and sentence in line and line.endswith(".")


def test_the_default_models_are_those_beside_the_space_or_in_its_readme(run_python, tmp_path):
    space = tmp_path / "space"
    shutil.copytree(SPACE, space, ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import models
print(models.default_model_ids())
for name in ("cxr-baseline", "cxr-densenet121"):
    folder = models.HERE.parent / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    print(models.default_model_ids())
"""
    printed = run_python(["-c", code], cwd=space, env=LIBRARIES, isolated=True).stdout.split()
    baseline, densenet = (f"{tmp_path}/checkpoints/cxr-{n}" for n in ("baseline", "densenet121"))
    in_readme = "org/cxr-densenet121,org/cxr-baseline"
    assert printed == [in_readme, baseline, f"{densenet},{baseline}"]

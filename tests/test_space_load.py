"""Many visitors at once, for a few seconds; `benchmarks/space_load.py` does it for longer."""

import io
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from PIL import Image
from space_server import CLASSES, save, serve

from benchmarks import space_load
from datasets_scripts.phantom import generate
from modeling import create_model

CLIENTS = 4
JOBS = 60  # more than a lane holds of a client


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    folder, found = tmp_path_factory.mktemp("models"), []
    for name in ("first", "second"):
        model, _ = create_model("baseline", CLASSES, image_size=32, hidden_sizes=[8])
        model.network.get_classifier().weight.data.normal_()  # so that answers differ
        found.append(save(model, folder / name).folder)
    return found


@pytest.fixture(scope="module")
def served(folders, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("served"), folders) as served:
        yield served


@pytest.fixture(scope="module")
def questions(folders):
    return space_load.prepare(folders, CLIENTS)


def test_each_client_gets_its_own_answer(served, questions):
    given = [question.probabilities["NORMAL"] for mine in questions for question in mine]
    assert len({round(p, 3) for p in given}) > CLIENTS  # another's answer would be noticed
    found = space_load.measure(served.url, questions, seconds=5)
    assert set(found["outcomes"]) == {"right"}
    assert found["outcomes"]["right"] >= CLIENTS
    assert 0 < found["median"] <= found["p99"]
    assert found["rss_after"] < found["rss_before"] + 200


def test_memory_does_not_grow_with_the_number_of_callers(served, questions):
    question = next(one for one in questions[0] if one.endpoint == "predict")
    server = space_load.find_server(served.url)
    memory = []
    with httpx.Client(base_url=f"{served.url}gradio_api/", timeout=60) as http:
        for _ in range(2):
            for _ in range(300):
                assert space_load.ask(http, question) == "right"
            memory.append(server.memory_info().rss / 2**20)
    assert memory[1] - memory[0] < 15  # kept for each caller, the page would be 30


def test_another_answer_counts_as_wrong(served, questions):
    predict, heatmap = (
        next(one for one in questions[0] if one.endpoint == endpoint)
        for endpoint in space_load.ENDPOINTS
    )
    swapped = {name: 1 - p for name, p in predict.probabilities.items()}
    with httpx.Client(base_url=f"{served.url}gradio_api/", timeout=60) as http:
        assert space_load.ask(http, predict) == "right"
        assert space_load.ask(http, predict._replace(probabilities=swapped)) == "wrong"
        negative = heatmap._replace(overlay=255 - heatmap.overlay)
        assert space_load.ask(http, heatmap) == "right"
        assert space_load.ask(http, negative) == "wrong"


def test_a_full_queue_says_so_and_empties(served, questions):
    question = questions[0][0]
    file = io.BytesIO()
    Image.fromarray(generate(0, size=1024).image).save(file, "PNG")
    with httpx.Client(base_url=f"{served.url}gradio_api/", timeout=120) as http:
        (path,) = http.post("upload", files={"files": ("x-ray.png", file.getvalue())}).json()
        upload = {"path": path, "meta": {"_type": "gradio.FileData"}}

        def join(count):
            job = {"data": [[upload] * count, question.model]}
            return http.post("call/predict_batch", json=job)

        first = join(100)  # while it runs, the others wait
        with ThreadPoolExecutor(8) as pool:
            jobs = [first, *pool.map(join, [1] * JOBS)]
        refused = [job for job in jobs if job.status_code != 200]
        assert {job.status_code for job in refused} == {503}
        for job in refused:
            sentence = job.json()["detail"]
            assert sentence.startswith("Queue is full.") and sentence.endswith(".")
        for job in jobs:
            if job.status_code == 200:
                stream = http.get(f"call/predict_batch/{job.json()['event_id']}").text
                assert "event: complete" in stream
        assert space_load.ask(http, question) == "right"


def test_side_by_side_models_explain_what_both_look_for(served):
    endpoints = httpx.get(f"{served.url}gradio_api/info").json()["named_endpoints"]
    assert endpoints["/heatmap"]["parameters"][2]["parameter_default"] == "PNEUMONIA"

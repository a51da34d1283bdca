"""Many visitors at once at a running Space: speed, memory, and whether each gets its own answer.

    python benchmarks/space_load.py http://127.0.0.1:7860 checkpoints/cxr-densenet121

Each client has phantoms of its own, whose answers the model gave it in this process before. It
uploads one, asks `/predict` or `/heatmap`, compares, and goes on with the next.
"""

import argparse
import io
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
from PIL import Image

from datasets_scripts.phantom import generate
from modeling import load_model

IMAGES = 3  # a client
SIDE = 512
ENDPOINTS = ("predict", "heatmap")
TOLERANCE = 1e-4  # of a probability: the server may add in another order
GREY_LEVELS = 2  # of a heatmap's pixel, for the same reason
NOT_ASKED = {"predict": [], "heatmap": ["most probable class", "grad_cam"]}


class Question(NamedTuple):
    """A request, and what is right.

    Attributes:
        content: the image file's bytes.
        model: its name in the Space.
        endpoint: one of ENDPOINTS.
        probabilities: {class: number}; empty if the model refuses the image.
        overlay: uint8 (h, w, 3), the X-ray under its heatmap.
    """

    content: bytes
    model: str
    endpoint: str
    probabilities: dict[str, float]
    overlay: np.ndarray


def prepare(folders: list[str], clients: int) -> list[list[Question]]:
    """Each client's questions, answered by the models in this process."""
    models = {Path(folder).resolve().name: load_model(str(folder)) for folder in folders}
    questions = []
    for client in range(clients):
        mine = []
        for index in range(client * IMAGES, (client + 1) * IMAGES):
            file = io.BytesIO()
            Image.fromarray(generate(index, size=SIDE).image).save(file, "PNG")
            for name, (model, processor) in models.items():
                image = processor.open(file.getvalue())
                (answer,) = model.assess([image], processor, method="grad_cam")
                heat = answer.heat(processor, *image.pixels.shape)
                overlay = processor.overlay(image.pixels, heat)
                mine += [
                    Question(file.getvalue(), name, endpoint, answer.probabilities, overlay)
                    for endpoint in ENDPOINTS
                ]
        questions.append(mine)
    return questions


def ask(http: httpx.Client, question: Question) -> str:
    """One request, as `curl` would make it: "right", "wrong", or the server's message."""
    sent = http.post("upload", files={"files": ("x-ray.png", question.content)})
    if sent.is_error:
        return f"HTTP {sent.status_code}: {sent.text}"
    file = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
    data = [file, question.model, *NOT_ASKED[question.endpoint]]
    joined = http.post(f"call/{question.endpoint}", json={"data": data})
    if joined.is_error:
        return f"HTTP {joined.status_code}: {joined.json()['detail']}"
    stream = http.get(f"call/{question.endpoint}/{joined.json()['event_id']}").text
    event, data = stream.strip().split("\n\n")[-1].split("\n", 1)
    answer = json.loads(data.removeprefix("data: "))
    if event != "event: complete":
        return str(answer.get("error") if isinstance(answer, dict) else answer)
    given = answer[-1]["probabilities"]
    right = given.keys() == question.probabilities.keys() and all(
        abs(given[name] - p) <= TOLERANCE for name, p in question.probabilities.items()
    )
    if question.endpoint == "heatmap":
        picture = http.get(answer[0]["url"]).content
        overlay = np.asarray(Image.open(io.BytesIO(picture))).astype(int)
        right = right and overlay.shape == question.overlay.shape
        right = right and np.abs(overlay - question.overlay).max() <= GREY_LEVELS
    return "right" if right else "wrong"


def measure(url: str, questions: list[list[Question]], seconds: float) -> dict:
    """Runs a thread a client for so long.

    Returns:
        clients, requests a second, median and 99th percentile of a request's seconds, the server's
        memory before and after in MB, and {what came back: count}.
    """
    server, times, outcomes = find_server(url), [], Counter()
    lock, start = threading.Lock(), threading.Barrier(len(questions) + 1)

    def visit(mine: list[Question]) -> None:
        with httpx.Client(base_url=f"{url.rstrip('/')}/gradio_api/", timeout=300) as http:
            start.wait()
            asked, end = 0, time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.monotonic()
                try:
                    outcome = ask(http, mine[asked % len(mine)])
                except httpx.HTTPError as error:
                    outcome = f"{type(error).__name__}: {error}"
                asked += 1
                with lock:
                    times.append(time.monotonic() - began)
                    outcomes[outcome] += 1

    threads = [threading.Thread(target=visit, args=(mine,)) for mine in questions]
    for thread in threads:
        thread.start()
    before = server.memory_info().rss
    start.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - began
    return {
        "clients": len(questions),
        "per_second": len(times) / elapsed,
        "median": float(np.median(times)),
        "p99": float(np.quantile(times, 0.99)),
        "rss_before": before / 2**20,
        "rss_after": server.memory_info().rss / 2**20,
        "outcomes": dict(outcomes),
    }


def find_server(url: str) -> psutil.Process:
    """The process of this machine that listens where a URL points."""
    port = urlsplit(url).port
    for process in psutil.process_iter():
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:  # another user's, or gone
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return process
    raise ValueError(f"{url}: no process of this machine listens there; start the Space here.")


def main(argv: list[str] | None = None) -> int:
    """Prints a line a number of clients; the exit code says whether any answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", help="the Space on this machine")
    parser.add_argument("models", nargs="+", help="folders of models that the Space serves")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    args = parser.parse_args(argv)
    questions, wrong = prepare(args.models, max(args.clients)), 0
    print("clients  requests/s  median s  99 % s  MB before  MB after  outcomes")
    for clients in args.clients:
        found = measure(args.url, questions[:clients], args.seconds)
        wrong += found["outcomes"].get("wrong", 0)
        print(
            f"{clients:7}{found['per_second']:12.1f}{found['median']:10.3f}{found['p99']:8.3f}"
            f"{found['rss_before']:11.0f}{found['rss_after']:10.0f}  {found['outcomes']}",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
